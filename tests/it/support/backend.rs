//! Every scenario on io_uring and on epoll.

use std::sync::LazyLock;

use tapster::transport::Backend;

/// Turns `fn scenario(backend) { … }` into the tests `scenario::uring` and `scenario::epoll`.
///
/// `alone fn` is for scenarios that measure time: nothing else runs beside them.
macro_rules! on_both_backends {
    ($($(#[$attribute:meta])* fn $name:ident($backend:ident) $body:block)*) => {
        $(on_both_backends!(@module beside_others, $(#[$attribute])* $name, $backend, $body);)*
    };
    ($($(#[$attribute:meta])* alone fn $name:ident($backend:ident) $body:block)*) => {
        $(on_both_backends!(@module alone, $(#[$attribute])* $name, $backend, $body);)*
    };
    (@module $turn:ident, $(#[$attribute:meta])* $name:ident, $backend:ident, $body:block) => {
        $(#[$attribute])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn scenario($backend: ::tapster::transport::Backend) $body

            #[test]
            fn uring() {
                if $crate::support::backend::uring_works() {
                    let _turn = $crate::support::wait::$turn();
                    scenario(::tapster::transport::Backend::Uring);
                }
            }

            #[test]
            fn epoll() {
                let _turn = $crate::support::wait::$turn();
                scenario(::tapster::transport::Backend::Epoll);
            }
        }
    };
}

/// Whether this machine allows io_uring, asked without the relay's own probe.
pub(crate) fn uring_works() -> bool {
    static WHY_NOT: LazyLock<Option<String>> =
        LazyLock::new(|| io_uring::IoUring::new(2).err().map(|error| error.to_string()));
    match &*WHY_NOT {
        None => true,
        Some(why) => {
            super::peers::absent(&format!("io_uring ({why})"));
            false
        }
    }
}

/// The word for it on the command line.
pub(crate) fn word(backend: Backend) -> &'static str {
    match backend {
        Backend::Uring => "uring",
        Backend::Epoll => "epoll",
    }
}
