//! A connected socket in its data phase, on either backend.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::time::Timespec;

use crate::transport::Backend;
use crate::transport::detached::Detached;
use crate::transport::detached::Kind;
use crate::transport::epoll;
use crate::transport::liveness::Liveness;
use crate::transport::sys;
use crate::transport::sys::SendList;
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
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Waits until a read would not wait, without holding a buffer. May be wrong now and then: [`Stream::read_now`] tells.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.shared.io {
            Io::Uring(stream) => stream.readable().await,
            Io::Epoll(stream) => stream.readable().await,
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
        };
        self.count(&result, list.byte_len());
        (result.map_err(|error| self.explain(error)), list)
    }

    /// Ends the operations that are under way now; later ones are not concerned.
    pub(crate) fn cancel(&self) {
        match &self.shared.io {
            Io::Uring(stream) => stream.cancel(),
            Io::Epoll(stream) => stream.cancel(),
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

    /// Bytes that have arrived and were not read.
    pub(crate) fn readable_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(self.fd()).map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
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

    /// Ends both directions: the peer sees it, and operations under way complete.
    pub(crate) fn shutdown(&self) {
        self.shared.shut_down.set(true);
        // Fails on sockets whose peer is gone, which is what we want anyway.
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Both);
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
        }
    }
}

/// A unix socket takes data in pieces of at most 36 KiB, and takes one more whenever it holds less than its send buffer.
const UNIX_PIECE_MAX: usize = 36 << 10;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::mem::MaybeUninit;
    use std::net::TcpListener;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::net::SendAncillaryBuffer;
    use rustix::net::SendAncillaryMessage;
    use rustix::net::SendFlags;
    use rustix::net::sendmsg;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::transport::backend::Runtime;
    use crate::transport::cancel::is_cancelled;
    use crate::transport::listener;
    use crate::transport::listener::Listener;
    use crate::transport::socket::ConnectOptions;
    use crate::transport::socket::Socket;

    const OPTIONS: ConnectOptions = ConnectOptions { user_timeout: Duration::from_secs(30) };

    /// Runs `test` with a unix stream and its peer, on every backend that this machine has.
    fn on_every_backend<F: Future<Output = ()>>(test: impl Fn(Stream, UnixStream, Backend) -> F) {
        for backend in [Backend::Uring, Backend::Epoll] {
            let Ok(runtime) = Runtime::new(backend) else {
                eprintln!("skipped: no {backend} here");
                continue;
            };
            runtime.block_on(async {
                let (ours, peer) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let socket =
                    Detached { fd: ours.into(), kind: Kind::Unix, acked_before: 0, user_timeout: None };
                test(Stream::new(socket, backend).unwrap(), peer, backend).await;
            });
        }
    }

    /// The same with a TCP connection to a peer with a small receive buffer.
    fn on_every_backend_over_tcp<F: Future<Output = ()>>(test: impl Fn(Socket, TcpStream, Backend) -> F) {
        let test = &test;
        on_every_backend(|_, _, backend| async move {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            socket2::SockRef::from(&listener).set_recv_buffer_size(16 << 10).unwrap();
            let address = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
            let socket = Socket::connect(&address, &OPTIONS).await.unwrap();
            test(socket, listener.accept().unwrap().0, backend).await;
        });
    }

    async fn eventually(mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What `look` sees once it sees nothing new.
    async fn settled<T: PartialEq>(mut look: impl FnMut() -> T) -> T {
        loop {
            let before = look();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if look() == before {
                return before;
            }
        }
    }

    fn write_now(stream: &Stream, len: usize) -> Option<usize> {
        stream.write_now(Bytes::from(vec![7; len])).ok()
    }

    #[test]
    fn a_read_appends_within_capacity_and_sees_the_end() {
        on_every_backend(|stream, mut peer, _| async move {
            peer.write_all(b"abcdef").unwrap();
            let mut buffer = BytesMut::with_capacity(8);
            buffer.extend_from_slice(b"--");
            let (count, buffer) = stream.read(buffer, 4).await;
            assert_eq!((count.unwrap(), &buffer[..]), (4, &b"--abcd"[..]));
            let (count, buffer) = stream.read(buffer, 4).await;
            assert_eq!((count.unwrap(), &buffer[..]), (2, &b"--abcdef"[..]));
            drop(peer);
            let (count, _) = stream.read(BytesMut::with_capacity(1), 1).await;
            assert_eq!(count.unwrap(), 0);
        });
    }

    /// A peer passed descriptors beside its bytes. The read ended behind them, epoll took that for the end of what was
    /// there, and the stream stood still until the peer wrote again.
    #[test]
    fn what_comes_behind_a_message_with_descriptors_is_read_without_delay() {
        on_every_backend(|stream, peer, _| async move {
            let file = std::fs::File::open("/dev/null").unwrap();
            for bytes in [b"abc", b"def", b"ghi"] {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let descriptors = [file.as_fd()];
                assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
                let bytes = [io::IoSlice::new(bytes)];
                sendmsg(&peer, &bytes, &mut control, SendFlags::empty()).unwrap();
            }
            for expected in [b"abc", b"def", b"ghi"] {
                tokio::time::timeout(Duration::from_secs(5), stream.readable()).await.unwrap().unwrap();
                let mut buffer = BytesMut::with_capacity(100);
                assert_eq!(stream.read_now(&mut buffer, 100).unwrap(), 3);
                assert_eq!(buffer[..], expected[..]);
            }
            let nothing = stream.read_now(&mut BytesMut::with_capacity(100), 100).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        });
    }

    /// A cancelled read must not swallow what comes later: the trap of dropped ring operations.
    #[test]
    fn a_cancelled_read_loses_no_byte() {
        on_every_backend(|stream, mut peer, _| async move {
            let reader = stream.clone();
            let read =
                tokio::task::spawn_local(async move { reader.read(BytesMut::with_capacity(16), 16).await });
            let poller = stream.clone();
            let poll = tokio::task::spawn_local(async move { poller.readable().await });
            tokio::time::sleep(Duration::from_millis(5)).await;
            stream.cancel();
            let (result, _) = read.await.unwrap();
            assert!(is_cancelled(&result.unwrap_err()));
            assert!(is_cancelled(&poll.await.unwrap().unwrap_err()));
            peer.write_all(b"late").unwrap();
            stream.readable().await.unwrap();
            assert_eq!(stream.readable_bytes(), 4);
            let (count, buffer) = stream.read(BytesMut::with_capacity(16), 16).await;
            assert_eq!((count.unwrap(), &buffer[..]), (4, &b"late"[..]));
        });
    }

    /// The count of a write that ends early is exact: the next connection begins with the frame after it.
    #[test]
    fn a_write_that_is_cut_off_says_how_much_it_wrote() {
        on_every_backend(|stream, mut peer, _| async move {
            let mut list = SendList::new();
            list.extend((0..64).map(|_| Bytes::from(vec![7; 64 << 10])));
            let writer = stream.clone();
            let write = tokio::task::spawn_local(async move {
                let mut written = 0;
                loop {
                    let (result, back) = writer.write(list).await;
                    list = back;
                    let Ok(count) = result else { return written };
                    written += count;
                    list.advance(count);
                }
            });
            // The socket buffer fills, the rest of the write waits. A worker submits when it parks, which a task that only
            // yields prevents: hence the sleeps.
            settled(|| sys::unsent_bytes(&stream.fd()).unwrap()).await;
            stream.shutdown();
            let written = write.await.unwrap();
            drop(stream);
            let mut read = Vec::new();
            peer.read_to_end(&mut read).unwrap();
            assert!(0 < written && written < 64 * (64 << 10));
            assert_eq!(read.len(), written);
        });
    }

    /// An output that sends again what a dead peer had not acknowledged builds on that.
    #[test]
    fn tcp_tells_what_was_acknowledged_even_after_a_reset() {
        on_every_backend_over_tcp(|socket, peer, backend| async move {
            let stream = socket.into_stream(backend).unwrap();
            assert_eq!(stream.progress(), Progress::Acknowledged(0));
            write_now(&stream, 1000);
            eventually(|| stream.progress() == Progress::Acknowledged(1000)).await;
            assert_eq!(stream.unconfirmed_bytes(), 0);
            // More than the peer's buffer takes: the rest waits in ours.
            while write_now(&stream, 64 << 10).is_some() {}
            let before = settled(|| stream.progress()).await;
            let Progress::Acknowledged(acknowledged) = before else { panic!("{before:?}") };
            assert!(1000 < acknowledged && acknowledged < stream.written_bytes());
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            eventually(|| stream.events().contains(PollFlags::HUP)).await;
            assert_eq!(stream.progress(), before);
            assert_eq!(stream.unconfirmed_bytes(), stream.written_bytes() - acknowledged);
        });
    }

    /// The ledger once told more bytes as unconfirmed than were ever sent: those of the handshake were among them.
    #[test]
    fn a_handshake_that_was_not_acknowledged_is_no_byte_of_the_stream() {
        on_every_backend_over_tcp(|mut socket, mut peer, backend| async move {
            let mut handshake_len = 0;
            while let Ok(count) =
                tokio::time::timeout(Duration::from_millis(50), socket.write(&[1; 64 << 10])).await
            {
                handshake_len += count.unwrap();
            }
            let stream = socket.into_stream(backend).unwrap();
            assert!(sys::unsent_bytes(&stream.fd()).unwrap() > 0);
            assert_eq!((stream.progress(), stream.unconfirmed_bytes()), (Progress::Acknowledged(0), 0));
            peer.set_nonblocking(true).unwrap();
            let mut read = 0;
            eventually(|| {
                read += peer.read(&mut [0; 64 << 10]).unwrap_or(0);
                read == handshake_len
            })
            .await;
            assert_eq!(stream.progress(), Progress::Acknowledged(0));
            write_now(&stream, 100);
            eventually(|| stream.progress() == Progress::Acknowledged(100)).await;
            // The end of the stream is acknowledged as one byte more.
            stream.shutdown();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!((stream.progress(), stream.unconfirmed_bytes()), (Progress::Acknowledged(100), 0));
        });
    }

    /// The kernel counts the SYN of the side that connects, and not the one of the side that accepts.
    #[test]
    fn the_side_that_accepts_counts_its_bytes_as_exactly() {
        on_every_backend(|_, _, backend| async move {
            let address = "tcp://127.0.0.1:0".parse().unwrap();
            let mut bound = listener::bind(&address, 1, None).unwrap().remove(0);
            let listener = Listener::new(bound.listeners.remove(0)).unwrap();
            let (socket, accepted) =
                tokio::join!(Socket::connect(&bound.address, &OPTIONS), listener.accept());
            let (_peer, mut socket) = (socket.unwrap(), accepted.unwrap().0);
            socket.write_all(&[1; 10]).await.unwrap();
            let stream = Socket::attach(socket.detach().unwrap()).unwrap().into_stream(backend).unwrap();
            write_now(&stream, 1);
            eventually(|| stream.progress() == Progress::Acknowledged(1)).await;
        });
    }

    /// What a unix socket holds is never less than what its peer has not read, until the peer closes.
    #[test]
    fn a_unix_peer_is_never_said_to_have_read_more_than_it_has() {
        on_every_backend(|stream, mut peer, _| async move {
            let mut read = 0;
            for round in 0..500usize {
                write_now(&stream, [1, 13, 4096, 30_000][round % 4]);
                let mut buffer = vec![0; [7, 500, 10_000][round % 3]];
                if read < stream.written_bytes() {
                    read += peer.read(&mut buffer).unwrap() as u64;
                }
                let Progress::Taken(taken) = stream.progress() else { panic!("round {round}") };
                assert!(taken <= read, "round {round}");
                assert!(stream.unconfirmed_bytes() >= stream.written_bytes() - read, "round {round}");
            }
            assert!(read < stream.written_bytes());
            let before = stream.unconfirmed_bytes();
            drop(peer);
            assert_eq!(stream.progress(), Progress::Unknown);
            assert!(stream.read(BytesMut::with_capacity(1), 1).await.0.is_err());
            assert_eq!((stream.progress(), stream.unconfirmed_bytes()), (Progress::Unknown, before));
        });
    }

    #[test]
    fn a_unix_peer_that_closes_after_it_has_read_everything_has_taken_everything() {
        on_every_backend(|stream, mut peer, _| async move {
            for len in [30_000, 1] {
                write_now(&stream, len);
                peer.read_exact(&mut vec![0; len]).unwrap();
            }
            // Closed in one direction only, a peer may read on.
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(BytesMut::with_capacity(1), 1).await.0.unwrap(), 0);
            write_now(&stream, 10);
            assert!(stream.progress() != Progress::Taken(30_011));
            peer.read_exact(&mut [0; 10]).unwrap();
            drop(peer);
            assert_eq!(stream.progress(), Progress::Unknown);
            assert_eq!(stream.read(BytesMut::with_capacity(1), 1).await.0.unwrap(), 0);
            assert_eq!((stream.progress(), stream.unconfirmed_bytes()), (Progress::Taken(30_011), 0));
        });
    }

    /// A list of small buffers, one of large ones and single bytes fill a socket to different sizes.
    #[test]
    fn what_a_full_unix_socket_holds_is_within_the_unconfirmed_bytes() {
        for len in [1, 150, 4096, 40_000, 65_536, 1 << 20] {
            on_every_backend(|stream, _peer, _| async move {
                while write_now(&stream, len).is_some() {}
                assert_eq!(stream.unconfirmed_bytes(), stream.written_bytes(), "writes of {len} bytes");
            });
        }
    }

    #[test]
    fn dropping_the_last_clone_closes_the_socket() {
        on_every_backend(|stream, mut peer, _| async move {
            let (count, _) = {
                peer.write_all(b"x").unwrap();
                stream.clone().read(BytesMut::with_capacity(1), 1).await
            };
            assert_eq!(count.unwrap(), 1);
            drop(stream);
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        });
    }
}
