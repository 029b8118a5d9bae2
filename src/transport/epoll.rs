//! Streams on epoll, through tokio: for the places where io_uring is not allowed.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::transport::sys;
use crate::transport::sys::SendList;

/// Builds a runtime for the calling thread.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A connected socket in its data phase.
#[derive(Clone)]
pub(crate) struct Stream {
    shared: Rc<Shared>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    cancelled: Notify,
}

impl Stream {
    /// Takes a non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::register(socket)?;
        Ok(Self { shared: Rc::new(Shared { socket, cancelled: Notify::new() }) })
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.or_cancelled(async { self.shared.socket.readable().await.map(|mut guard| guard.retain_ready()) })
            .await
    }

    pub(crate) async fn read(&self, mut buffer: BytesMut, len_max: usize) -> (io::Result<usize>, BytesMut) {
        let asked = (buffer.capacity() - buffer.len()).min(len_max);
        let result = self
            .or_cancelled(async {
                loop {
                    let mut ready = self.shared.socket.readable().await?;
                    match sys::recv_now(&self.shared.socket, &mut buffer, len_max) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                        Ok(count) => {
                            // Edge triggered: a short read emptied the socket, more bytes make a new edge.
                            if 0 < count && count < asked {
                                ready.clear_ready();
                            }
                            return Ok(count);
                        }
                        Err(error) => return Err(error),
                    }
                }
            })
            .await;
        (result, buffer)
    }

    pub(crate) async fn write(&self, mut list: SendList) -> (io::Result<usize>, SendList) {
        let result = self
            .or_cancelled(async {
                loop {
                    let mut ready = self.shared.socket.writable().await?;
                    match sys::send_now(&self.shared.socket, &mut list) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                        result => return result,
                    }
                }
            })
            .await;
        (result, list)
    }

    pub(crate) fn cancel(&self) {
        self.shared.cancelled.notify_waiters();
    }

    async fn or_cancelled<T>(&self, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            biased;
            result = operation => result,
            () = self.shared.cancelled.notified() => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}
