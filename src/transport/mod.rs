//! Byte streams and listeners, on io_uring or epoll.
//!
//! Accepting (`listener`), connecting (`dial`) and handshakes (`socket`) run on `tokio::net`, which both backends have. A socket
//! becomes a `Stream` of its backend when its data begins; `uring` and `epoll` are the only files that differ.
//!
//! A stream knows whether it is TCP or unix, and tells by itself how far its peer is. Nothing above this module holds a
//! descriptor.

pub mod address;
pub mod backend;
pub(crate) mod buffer;
pub(crate) mod cancel;
pub(crate) mod descriptors;
pub(crate) mod detached;
pub(crate) mod dial;
mod epoll;
pub(crate) mod listener;
mod liveness;
mod local_id;
pub(crate) mod own_listeners;
pub(crate) mod passed;
pub(crate) mod passing;
pub(crate) mod process;
pub mod proxy_header;
mod resolve;
mod safe_path;
pub mod service_manager;
pub(crate) mod socket;
pub(crate) mod socket_path;
pub(crate) mod stream;
pub(crate) mod sys;
pub(crate) mod timer;
pub mod tls;
pub(crate) mod turn;
mod uring;

pub use address::Address;
pub use address::AddressError;
pub use backend::Backend;
pub use backend::BackendChoice;
pub use local_id::LocalId;
pub use passed::PASSED_VARIABLES;
pub use passed::PassedSocket;
pub use passed::passed_fault;
pub use proxy_header::ProxyVersion;
pub use service_manager::ServiceManager;
pub use service_manager::monotonic_line;
pub use service_manager::watchdog_time;
pub use socket_path::SocketFileConfig;
pub use sys::return_freed_memory;
