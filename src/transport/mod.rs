//! Byte streams and listeners, on io_uring or epoll.
//!
//! Accepting, connecting and handshakes run on `tokio::net` (`socket`), which both backends have. A socket becomes a
//! `Stream` of its backend when its data begins; `uring` and `epoll` are the only files that differ.

pub mod address;
pub mod backend;
pub(crate) mod buffer;
mod epoll;
pub(crate) mod listener;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod sys;
pub(crate) mod timer;
mod uring;

pub use address::Address;
pub use address::AddressError;
pub use backend::Backend;
pub use backend::BackendChoice;
pub use sys::return_freed_memory;
