//! Streams on io_uring, through tokio-uring.
//!
//! What is avoided here, and how (numbers of the known traps of tokio-uring 0.5):
//! - a future that is dropped does not cancel its operation, and swallows the bytes that the operation reads later:
//!   no future of this file may be dropped before it is ready. [`Stream::cancel`] makes it ready;
//! - unix listeners cannot be bound and accept cannot be cancelled: accepting, connecting and handshakes run on
//!   `tokio::net` beside the ring, and a socket comes here when its stream has begun;
//! - `Builder::start` panics where io_uring is forbidden: [`runtime`] returns the error;
//! - `write` may be short, `writev` allocates, `write_all` takes one buffer: SENDMSG with MSG_WAITALL instead;
//! - a full completion queue is survived but slow: the ring is large;
//! - a ring built with SINGLE_ISSUER belongs to the thread that built it: workers build their own;
//! - a pending read pins its buffer: connections that are read from wait with POLL_ADD, all of a worker's in one system
//!   call, and read with a plain recv into a block that they share. Outputs hear their readers with a pending RECV;
//! - a completion costs a turn of the ring: what a socket has room for is sent with a plain sendmsg
//!   (`Stream::write_now_list`), and the ring waits for the rest;
//! - fixed buffers and zero-copy sends cost more than they save.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::BytesMut;

use crate::transport::sys;
use crate::transport::sys::SendList;

/// Entries of the submission queue: what one turn of a busy worker submits.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue: more than the operations that end in one turn.
const COMPLETIONS: u32 = 4096;

/// Builds a runtime with its ring, for the calling thread alone.
///
/// # Errors
/// What `io_uring_setup` says: `EPERM` where it is forbidden, `EINVAL` on kernels before 6.0, `ENOSYS` without it.
pub(crate) fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_cqsize(COMPLETIONS);
    tokio_uring::Runtime::new(tokio_uring::builder().entries(SUBMISSIONS).uring_builder(&ring))
}

/// A connected socket in its data phase.
#[derive(Clone)]
pub(crate) struct Stream {
    socket: Rc<OwnedFd>,
}

impl Stream {
    /// Takes a blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket: Rc::new(socket) }
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        sys::ring_readable(Rc::clone(&self.socket)).await
    }

    pub(crate) async fn read(&self, buffer: BytesMut, len_max: usize) -> (io::Result<usize>, BytesMut) {
        sys::ring_recv(Rc::clone(&self.socket), buffer, len_max).await
    }

    pub(crate) async fn write(&self, list: SendList) -> (io::Result<usize>, SendList) {
        sys::ring_send(Rc::clone(&self.socket), list).await
    }

    pub(crate) fn cancel(&self) {
        // Submitted at once; its own completion matters to nobody, and it owns no buffer.
        drop(sys::ring_cancel(Rc::clone(&self.socket)));
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
