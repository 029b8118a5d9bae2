//! Streams on epoll, through tokio: for the places where io_uring is not allowed.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::transport::cancel::cancelled;
use crate::transport::descriptors;
use crate::transport::detached::Kind;
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
    kind: Kind,
    // Watched for reading alone.
    socket: AsyncFd<OwnedFd>,
    // The same socket watched for writing, while it is full now and then: each time that a peer empties a socket it would
    // wake us for nothing.
    writable: Cell<Option<AsyncFd<OwnedFd>>>,
    // Writes in a row that found room.
    roomy_writes: Cell<u32>,
    cancelled: Notify,
}

impl Stream {
    /// Takes a non-blocking socket.
    pub(crate) fn new(socket: OwnedFd, kind: Kind) -> io::Result<Self> {
        let socket = sys::register(socket, Interest::READABLE)?;
        let (writable, roomy_writes) = (Cell::new(None), Cell::new(0));
        Ok(Self {
            shared: Rc::new(Shared { kind, socket, writable, roomy_writes, cancelled: Notify::new() }),
        })
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.or_cancelled(async { self.shared.socket.readable().await.map(|mut guard| guard.retain_ready()) })
            .await
    }

    pub(crate) async fn read(&self, mut buffer: BytesMut, len_max: usize) -> (io::Result<usize>, BytesMut) {
        let result = self
            .or_cancelled(async {
                loop {
                    self.shared.socket.readable().await?.retain_ready();
                    match self.read_now(&mut buffer, len_max) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return result,
                    }
                }
            })
            .await;
        (result, buffer)
    }

    pub(crate) fn read_now(&self, buffer: &mut BytesMut, len_max: usize) -> io::Result<usize> {
        let asked = (buffer.capacity() - buffer.len()).min(len_max);
        let mut read = None;
        // Told that a read would wait, the reactor forgets that the socket was readable, until more bytes come. A read
        // that was shorter than asked has emptied the socket: to say so here saves the read that finds nothing.
        let _ = self.shared.socket.try_io(Interest::READABLE, |socket| {
            match read.insert(sys::recv_now(socket, buffer, len_max)) {
                Ok(count) if *count == 0 || *count == asked || self.has_more() => Ok(()),
                Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error.kind().into()),
            }
        });
        // What the reactor has not heard of yet may have arrived all the same.
        read.unwrap_or_else(|| sys::recv_now(&self.shared.socket, buffer, len_max))
    }

    /// Whether a read left something although it had room. A read of a unix socket ends behind a message that came with
    /// descriptors.
    fn has_more(&self) -> bool {
        self.shared.kind == Kind::Unix && rustix::io::ioctl_fionread(&self.shared.socket) != Ok(0)
    }

    pub(crate) fn write_now(&self, list: &mut SendList) -> io::Result<usize> {
        let result = sys::send_now(&self.shared.socket, list);
        self.note_room(&result);
        result
    }

    /// Notes whether a write found room.
    pub(crate) fn note_room(&self, result: &io::Result<usize>) {
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.shared.roomy_writes.set(0),
            _ => {
                self.shared.roomy_writes.update(|count| count.saturating_add(1));
                if self.shared.roomy_writes.get() == ROOMY_WRITES {
                    self.shared.writable.take();
                }
            }
        }
    }

    pub(crate) async fn write(&self, mut list: SendList) -> (io::Result<usize>, SendList) {
        let result = self.write_with(|| sys::send_now(&self.shared.socket, &mut list)).await;
        (result, list)
    }

    /// Calls `send` whenever the socket has room, until it does not answer `WouldBlock`.
    pub(crate) async fn write_with(&self, send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        self.or_cancelled(self.write_when_writable(send)).await
    }

    async fn write_when_writable(&self, mut send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let writable = loop {
            if let Some(writable) = self.shared.writable.take() {
                break writable;
            }
            let watched = self.as_fd().try_clone_to_owned();
            match watched.and_then(|socket| sys::register(socket, Interest::WRITABLE)) {
                Ok(writable) => break writable,
                // The connection is worth more than the processor time for looking now and then.
                Err(error) if descriptors::are_exhausted(&error) => {
                    tokio::time::sleep(ROOM_LOOK).await;
                    match send() {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return result,
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let result = loop {
            let mut ready = writable.writable().await?;
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                result => break result,
            }
        };
        self.shared.writable.set(Some(writable));
        result
    }

    pub(crate) fn cancel(&self) {
        self.shared.cancelled.notify_waiters();
    }

    async fn or_cancelled<T>(&self, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            biased;
            result = operation => result,
            () = self.shared.cancelled.notified() => Err(cancelled()),
        }
    }
}

/// After so many writes that found room a socket is not watched for writing any more.
const ROOMY_WRITES: u32 = 64;
/// How often a full socket is looked at when there is no descriptor to watch it.
const ROOM_LOOK: Duration = Duration::from_millis(10);

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}
