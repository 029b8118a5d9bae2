//! A connected socket in its data phase, on either backend.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::time::Timespec;

use crate::transport::Backend;
use crate::transport::cancel::is_cancelled;
use crate::transport::detached::Detached;
use crate::transport::detached::Kind;
use crate::transport::epoll;
use crate::transport::liveness::Liveness;
use crate::transport::sys;
use crate::transport::sys::SendList;
use crate::transport::tls;
use crate::transport::uring;

/// How far the peer is with what was written to a stream, in bytes since the stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// TCP: the peer's kernel has so many bytes.
    Acknowledged(u64),
    /// Unix: the peer itself has read so many bytes.
    Taken(u64),
    /// It cannot be told: the peer of a unix socket has closed, and the kernel has forgotten what it did not read.
    Unknown,
}

/// A byte stream with owned buffers. A clone is the same stream; it closes when the last one is dropped.
///
/// **None of the futures is cancel-safe**: each is polled until it is ready. [`Stream::cancel`] makes them ready.
#[derive(Clone)]
pub(crate) struct Stream {
    shared: Rc<Shared>,
}

struct Shared {
    io: Io,
    kind: Kind,
    // TCP: bytes that the kernel counts as acknowledged before the first byte of this stream.
    acked_before: u64,
    written: Cell<u64>,
    // The most that `progress` has told: reached <= written.
    reached: Cell<u64>,
    // Whether the last write took all that it was given. False while a write waits.
    last_write_whole: Cell<bool>,
    // Unix: the peer closed, and the kernel did not say that it left bytes unread.
    read_to_the_end: Cell<bool>,
    shut_down: Cell<bool>,
    // `None` where the kernel's own patience is enough.
    liveness: Option<Liveness>,
}

enum Io {
    Uring(uring::Stream),
    Epoll(epoll::Stream),
    Tls(tls::stream::Stream),
}

impl Stream {
    /// Takes over a socket, on a thread that runs this backend.
    pub(super) fn new(socket: Detached, backend: Backend) -> io::Result<Self> {
        let Detached { fd, kind, acked_before, user_timeout } = socket;
        let io = match backend {
            Backend::Uring => {
                // Kernels differ in what a ring read does on O_NONBLOCK sockets; older ones answer EAGAIN.
                rustix::io::ioctl_fionbio(&fd, false)?;
                Io::Uring(uring::Stream::new(fd))
            }
            Backend::Epoll => Io::Epoll(epoll::Stream::new(fd, kind)?),
        };
        Ok(Self::of(io, kind, acked_before, user_timeout))
    }

    /// Takes over a socket, and what TLS knows of it, on a thread that runs either backend.
    pub(super) fn over_tls(socket: Detached, tls: rustls::Connection) -> io::Result<Self> {
        let Detached { fd, kind, acked_before, user_timeout } = socket;
        let stream = tls::stream::Stream::new(epoll::Stream::new(fd, kind)?, tls, acked_before);
        Ok(Self::of(Io::Tls(stream), kind, acked_before, user_timeout))
    }

    fn of(io: Io, kind: Kind, acked_before: u64, user_timeout: Option<Duration>) -> Self {
        let shared = Shared {
            io,
            kind,
            acked_before,
            written: Cell::new(0),
            reached: Cell::new(0),
            last_write_whole: Cell::new(true),
            read_to_the_end: Cell::new(false),
            shut_down: Cell::new(false),
            liveness: user_timeout.map(|timeout| Liveness::new(timeout, Instant::now())),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Waits until a read would not wait, without holding a buffer. May be wrong now and then: [`Stream::read_now`] tells.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.shared.io {
            Io::Uring(stream) => stream.readable().await,
            Io::Epoll(stream) => stream.readable().await,
            Io::Tls(stream) => stream.readable().await,
        }
    }

    /// Waits for bytes, at most for so long. Returns whether there are any.
    ///
    /// # Errors
    /// As [`Stream::readable`].
    pub(crate) async fn readable_within(&self, time: Duration) -> io::Result<bool> {
        let mut readable = pin!(self.readable());
        tokio::select! {
            biased;
            readable = &mut readable => readable.map(|()| true),
            () = tokio::time::sleep(time) => {
                // Polled to its end: what arrives in this moment is not lost.
                self.cancel();
                match readable.await {
                    Err(error) if is_cancelled(&error) => Ok(false),
                    result => result.map(|()| true),
                }
            }
        }
    }

    /// Appends what comes next to `buffer`, within its capacity and at most `len_max` bytes; 0 is the end.
    ///
    /// # Errors
    /// [`is_cancelled`](crate::transport::cancel::is_cancelled) after [`Stream::cancel`], with no byte lost; `TimedOut`
    /// when the peer's host did not answer for the user timeout of the connection; what the socket says.
    pub(crate) async fn read(&self, buffer: BytesMut, len_max: usize) -> (io::Result<usize>, BytesMut) {
        let read = async {
            match &self.shared.io {
                Io::Uring(stream) => stream.read(buffer, len_max).await,
                Io::Epoll(stream) => stream.read(buffer, len_max).await,
                Io::Tls(stream) => stream.read(buffer, len_max).await,
            }
        };
        // Who waits for the peer's bytes looks after its host, too. The read is not dropped before it is ready: the other
        // branch never is.
        let (result, buffer) = match &self.shared.liveness {
            None => read.await,
            Some(liveness) => tokio::select! {
                biased;
                done = read => done,
                never = liveness.watch(self.fd()) => never,
            },
        };
        if matches!(result, Ok(0)) {
            self.note_end();
        }
        (result.map_err(|error| self.explain(error)), buffer)
    }

    /// Appends what has arrived, without waiting, within the capacity of `buffer` and at most `len_max` bytes; 0 is the
    /// end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has arrived: wait with [`Stream::readable`]; what the socket says.
    pub(crate) fn read_now(&self, buffer: &mut BytesMut, len_max: usize) -> io::Result<usize> {
        match &self.shared.io {
            Io::Uring(stream) => sys::recv_now(stream, buffer, len_max),
            Io::Epoll(stream) => stream.read_now(buffer, len_max),
            Io::Tls(stream) => stream.read_now(buffer, len_max),
        }
    }

    /// Writes as much of `list` as the socket has room for, without waiting. The list stays as it was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room: wait with [`Stream::write`]; what the socket says.
    pub(crate) fn write_now_list(&self, list: &mut SendList) -> io::Result<usize> {
        let result = match &self.shared.io {
            Io::Uring(stream) => sys::send_now(stream, list),
            Io::Epoll(stream) => stream.write_now(list),
            Io::Tls(stream) => stream.write_now(list),
        };
        self.count(&result, list.byte_len());
        result.map_err(|error| self.explain(error))
    }

    /// Writes a control frame without waiting: it is short, and nothing else goes that way.
    ///
    /// # Errors
    /// As [`Stream::write_now_list`].
    pub(crate) fn write_now(&self, control_frame: Bytes) -> io::Result<usize> {
        let mut list = SendList::new();
        list.extend(std::iter::once(control_frame));
        self.write_now_list(&mut list)
    }

    /// Waits for room and writes `list`, all of it or a part. The list comes back as it was. For a list that
    /// [`Stream::write_now_list`] had no room for.
    ///
    /// # Errors
    /// [`is_cancelled`](crate::transport::cancel::is_cancelled) after [`Stream::cancel`] when nothing was written; what
    /// the socket says.
    pub(crate) async fn write(&self, list: SendList) -> (io::Result<usize>, SendList) {
        self.shared.last_write_whole.set(false);
        let (result, list) = match &self.shared.io {
            Io::Uring(stream) => stream.write(list).await,
            Io::Epoll(stream) => stream.write(list).await,
            Io::Tls(stream) => stream.write(list).await,
        };
        self.count(&result, list.byte_len());
        (result.map_err(|error| self.explain(error)), list)
    }

    /// Ends the operations that are under way now; later ones are not concerned.
    pub(crate) fn cancel(&self) {
        match &self.shared.io {
            Io::Uring(stream) => stream.cancel(),
            Io::Epoll(stream) => stream.cancel(),
            Io::Tls(stream) => stream.cancel(),
        }
    }

    /// Bytes written since the stream began.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.shared.written.get()
    }

    /// How far the peer is. Never tells less than before, nor more than was written. Costs one or two system calls.
    pub(crate) fn progress(&self) -> Progress {
        let reached = match self.shared.kind {
            Kind::Tcp => self.acknowledged_bytes(),
            Kind::Unix => self.taken_bytes(),
        };
        let Some(reached) = reached else { return Progress::Unknown };
        let reached = reached.max(self.shared.reached.get());
        self.shared.reached.set(reached);
        match self.shared.kind {
            Kind::Tcp => Progress::Acknowledged(reached),
            Kind::Unix => Progress::Taken(reached),
        }
    }

    /// Bytes that were written and may not have reached the peer: never less than are lost if the connection ends now,
    /// never more than were written. Exact on TCP; at most what the socket can hold on unix.
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        // When the progress is unknown, what was known before still holds.
        let _ = self.progress();
        let unconfirmed = self.written_bytes() - self.shared.reached.get();
        match self.shared.kind {
            Kind::Tcp => unconfirmed,
            Kind::Unix => unconfirmed.min((self.send_buffer_bytes() + UNIX_PIECE_MAX) as u64),
        }
    }

    /// Bytes that have arrived and were not read. With TLS: those that carry them, about.
    pub(crate) fn readable_bytes(&self) -> usize {
        let arrived = rustix::io::ioctl_fionread(self.fd()).unwrap_or(0);
        let arrived = usize::try_from(arrived).unwrap_or(usize::MAX);
        match &self.shared.io {
            Io::Tls(stream) => stream.readable_bytes(arrived),
            Io::Uring(_) | Io::Epoll(_) => arrived,
        }
    }

    /// Lets the socket take no more than about so many bytes that the peer (unix) or its kernel (TCP) has no room for. Best
    /// effort.
    pub(crate) fn set_unsent_max(&self, bytes: usize) {
        let fd = self.fd();
        let socket = socket2::SockRef::from(&fd);
        match self.shared.kind {
            Kind::Tcp => {
                let _ = socket.set_tcp_notsent_lowat(u32::try_from(bytes).unwrap_or(u32::MAX));
            }
            Kind::Unix if bytes < self.send_buffer_bytes() => {
                // The kernel doubles it, for what it needs itself.
                let _ = socket.set_send_buffer_size(bytes / 2);
            }
            Kind::Unix => {}
        }
    }

    /// Whether nothing that is written can reach the peer any more, as far as the socket knows: a TCP peer that has closed looks
    /// like one that has ended its own direction alone, until it is written to.
    pub(crate) fn has_ended(&self) -> bool {
        self.events().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Never ready: does for a stream without a read what a read does for its connection. Cancel-safe.
    pub(crate) async fn look_after(&self) {
        match &self.shared.liveness {
            Some(liveness) => liveness.watch(self.fd()).await,
            None => std::future::pending().await,
        }
    }

    /// Another descriptor of the same socket, for another process to go on with. No operation may be under way.
    ///
    /// # Errors
    /// No descriptor is left; `Unsupported` for TLS, whose keys stay in this process.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        if matches!(self.shared.io, Io::Tls(_)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.fd().try_clone_to_owned()
    }

    /// Goes on with the socket that [`Stream::duplicate`] had given away: the other process may have made it blocking, or not.
    pub(crate) fn take_back(&self) {
        let nonblocking = matches!(self.shared.io, Io::Epoll(_) | Io::Tls(_));
        let _ = rustix::io::ioctl_fionbio(self.fd(), nonblocking);
    }

    /// Ends both directions: the peer sees it, and operations under way complete.
    pub(crate) fn shutdown(&self) {
        self.shared.shut_down.set(true);
        self.close_notify();
        // Fails on sockets whose peer is gone, which is what we want anyway.
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Both);
    }

    /// Ends the direction to the peer: the peer sees it, and may go on writing.
    pub(crate) fn shutdown_write(&self) {
        self.close_notify();
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write);
    }

    fn close_notify(&self) {
        if let Io::Tls(stream) = &self.shared.io {
            stream.close_notify();
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        match &self.shared.liveness {
            Some(liveness) => liveness.explain(error),
            None => error,
        }
    }

    /// Counts the result of a write that was given `asked` bytes.
    fn count(&self, result: &io::Result<usize>, asked: usize) {
        match result {
            Ok(count) => {
                self.shared.written.update(|written| written + *count as u64);
                self.shared.last_write_whole.set(*count == asked);
            }
            // A socket without room says nothing about its peer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.shared.last_write_whole.set(false),
        }
    }

    /// TCP: bytes of this stream that the peer's kernel has acknowledged; readable after a reset too.
    fn acknowledged_bytes(&self) -> Option<u64> {
        if let Io::Tls(stream) = &self.shared.io {
            return stream.acknowledged_bytes().map(|acked| acked.min(self.written_bytes()));
        }
        let acked = sys::tcp_state(&self.fd()).ok()?.bytes_acked;
        // The end of a stream counts as one byte more.
        Some(acked.saturating_sub(self.shared.acked_before).min(self.written_bytes()))
    }

    /// Unix: bytes that the peer has read, at least. `None` once it has closed and may have left some unread.
    fn taken_bytes(&self) -> Option<u64> {
        let written = self.written_bytes();
        // The socket counts memory: never less than the bytes that were not read, and more with every write. It counts
        // nothing once the peer has closed, so look at the peer afterwards.
        let unread = sys::unsent_bytes(&self.fd()).ok()? as u64;
        if !self.events().contains(PollFlags::HUP) {
            return Some(written.saturating_sub(unread));
        }
        // A write that the close cut short may have been told of unread bytes in place of the read.
        (self.shared.read_to_the_end.get() && self.shared.last_write_whole.get()).then_some(written)
    }

    /// Called when a read found the end. The peer of a unix socket that closes with bytes unread makes that an error.
    fn note_end(&self) {
        // Without HUP it has ended one direction only, and may read on.
        if self.shared.kind == Kind::Unix && !self.shared.shut_down.get() && self.events() == PollFlags::HUP {
            self.shared.read_to_the_end.set(true);
        }
    }

    /// Whether the connection has ended (`HUP`), and with an error that nobody has been told (`ERR`).
    fn events(&self) -> PollFlags {
        let fd = self.fd();
        // Neither need be asked for.
        let mut poll = [PollFd::new(&fd, PollFlags::empty())];
        let _ = rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        poll[0].revents()
    }

    /// Size of the socket's send buffer.
    fn send_buffer_bytes(&self) -> usize {
        socket2::SockRef::from(&self.fd()).send_buffer_size().unwrap_or(0)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.shared.io {
            Io::Uring(stream) => stream.as_fd(),
            Io::Epoll(stream) => stream.as_fd(),
            Io::Tls(stream) => stream.as_fd(),
        }
    }
}

/// A unix socket takes data in pieces of at most 36 KiB, and takes one more whenever it holds less than its send buffer.
const UNIX_PIECE_MAX: usize = 36 << 10;

#[cfg(test)]
mod tests;
