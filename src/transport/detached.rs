//! A connected socket outside every reactor: between two workers, or between its handshake and its stream.

use std::os::fd::OwnedFd;
use std::time::Duration;

/// What kind of socket it is. Decided where the socket is made, and asked nowhere above `transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Unix,
}

/// A connected socket that any thread may take over.
#[derive(Debug)]
pub(crate) struct Detached {
    /// Non-blocking.
    pub(super) fd: OwnedFd,
    pub(super) kind: Kind,
    /// TCP: bytes that the kernel counts as acknowledged once the peer has the whole handshake, our SYN included.
    pub(super) acked_before: u64,
    /// TCP: see [`ConnectOptions`](crate::transport::socket::ConnectOptions). `None` on connections that were accepted.
    pub(super) user_timeout: Option<Duration>,
}
