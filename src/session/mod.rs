//! A protocol session driven over a byte stream.
//!
//! The handshake runs on a tokio socket: it needs deadlines, and its futures may be dropped. The data phase runs on a
//! [`Stream`](crate::transport::stream::Stream) of the backend, whose futures may not.

mod encryption;
mod half_closed;
pub(crate) mod read;
pub(crate) mod read_coalescer;
pub(crate) mod read_handle;
mod read_share;
pub(crate) mod read_turns;
mod retirement;
pub(crate) mod subscribe;
pub(crate) mod write;
pub(crate) mod write_fault;
