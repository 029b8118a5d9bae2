//! io_uring or epoll: asked once, with the reason when it is epoll.

use std::fmt;
use std::io;

use rustix::process::Resource;
use rustix::process::getrlimit;
use tokio::task::LocalSet;

use crate::transport::epoll;
use crate::transport::uring;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring where the kernel allows it, else epoll.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// epoll.
    Epoll,
}

/// What the workers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// tokio-uring.
    Uring,
    /// tokio.
    Epoll,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Whether io_uring can be used by this process; the error is a sentence that says why not.
///
/// Sets up a ring with the flags that the workers use, and takes it down again.
///
/// # Errors
/// "io_uring is blocked by …", "io_uring needs Linux 6.0 …"
pub fn probe() -> Result<(), String> {
    match uring::runtime() {
        Ok(_) => Ok(()),
        Err(error) => Err(why_not(&error)),
    }
}

/// A sentence that says why a ring cannot be set up.
pub(crate) fn why_not(error: &io::Error) -> String {
    explain(error, disabled_by_sysctl(), seccomp_filters())
}

/// Settles the choice, with the reason when `auto` came to epoll.
///
/// # Errors
/// The reason of [`probe`] when io_uring was demanded.
pub(crate) fn choose(choice: BackendChoice) -> Result<(Backend, Option<String>), String> {
    match choice {
        BackendChoice::Epoll => Ok((Backend::Epoll, None)),
        BackendChoice::Uring => probe().map(|()| (Backend::Uring, None)),
        BackendChoice::Auto => match probe() {
            Ok(()) => Ok((Backend::Uring, None)),
            Err(reason) => Ok((Backend::Epoll, Some(reason))),
        },
    }
}

fn explain(error: &io::Error, sysctl: Option<u8>, filtered: bool) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if sysctl.is_some_and(|value| value > 0) => {
            "io_uring is blocked by the sysctl kernel.io_uring_disabled (EPERM)".to_owned()
        }
        Some(libc::EPERM | libc::EACCES) if filtered => {
            "io_uring is blocked by a seccomp filter (EPERM)".to_owned()
        }
        Some(libc::EINVAL) => "io_uring needs Linux 6.0 or later here (EINVAL)".to_owned(),
        Some(libc::ENOSYS) => "the kernel has no io_uring (ENOSYS)".to_owned(),
        Some(libc::ENOMEM) => {
            let limit = getrlimit(Resource::Memlock).current;
            let limit = limit.map_or_else(|| "none".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
            format!(
                "io_uring found too little locked memory (ENOMEM; the limit is {limit}: see `ulimit -l`, LimitMEMLOCK)"
            )
        }
        _ => format!("io_uring cannot be set up ({error})"),
    }
}

fn disabled_by_sysctl() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

fn seccomp_filters() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// A runtime for the calling thread on either backend. Tasks are spawned with `tokio::task::spawn_local`.
pub(crate) enum Runtime {
    Uring(Box<tokio_uring::Runtime>),
    Epoll { runtime: tokio::runtime::Runtime, tasks: LocalSet },
}

impl Runtime {
    pub(crate) fn new(backend: Backend) -> io::Result<Self> {
        match backend {
            Backend::Uring => Ok(Self::Uring(Box::new(uring::runtime()?))),
            Backend::Epoll => Ok(Self::Epoll { runtime: epoll::runtime()?, tasks: LocalSet::new() }),
        }
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime) => runtime.block_on(future),
            Self::Epoll { runtime, tasks } => tasks.block_on(runtime, future),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_what_blocks() {
        let eperm = io::Error::from_raw_os_error(libc::EPERM);
        assert!(explain(&eperm, Some(0), true).contains("seccomp filter (EPERM)"));
        assert!(explain(&eperm, Some(2), true).contains("kernel.io_uring_disabled"));
        assert!(explain(&io::Error::from_raw_os_error(libc::ENOSYS), None, false).contains("ENOSYS"));
        assert!(explain(&io::Error::from_raw_os_error(libc::EINVAL), None, false).contains("6.0"));
        assert!(explain(&io::Error::from_raw_os_error(libc::ENOMEM), None, false).contains("the limit is"));
    }

    #[test]
    fn epoll_is_never_refused() {
        assert_eq!(choose(BackendChoice::Epoll), Ok((Backend::Epoll, None)));
        assert!(choose(BackendChoice::Auto).is_ok());
    }
}
