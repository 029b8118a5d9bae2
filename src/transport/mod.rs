//! Byte streams and listeners, on io_uring or epoll.

pub mod address;
pub mod backend;

pub use address::Address;
pub use address::AddressError;
pub use backend::Backend;
pub use backend::BackendChoice;
