//! A connected socket in its data phase, on either backend.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use bytes::BytesMut;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::time::Timespec;

use crate::transport::Backend;
use crate::transport::epoll;
use crate::transport::sys;
use crate::transport::sys::SendList;
use crate::transport::uring;

/// A byte stream with owned buffers. A clone is the same stream; it closes when the last one is dropped.
///
/// **None of the futures is cancel-safe**: each is polled until it is ready. [`Stream::cancel`] makes them ready.
#[derive(Clone)]
pub(crate) enum Stream {
    Uring(uring::Stream),
    Epoll(epoll::Stream),
}

impl Stream {
    /// Takes over a non-blocking socket, on a thread that runs this backend.
    pub(crate) fn new(socket: OwnedFd, backend: Backend) -> io::Result<Self> {
        match backend {
            Backend::Uring => {
                // Kernels differ in what a ring read does on O_NONBLOCK sockets; older ones answer EAGAIN.
                rustix::io::ioctl_fionbio(&socket, false)?;
                Ok(Self::Uring(uring::Stream::new(socket)))
            }
            Backend::Epoll => Ok(Self::Epoll(epoll::Stream::new(socket)?)),
        }
    }

    /// Waits until a read would not wait, without holding a buffer. May be wrong now and then: [`Stream::read_now`] tells.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Uring(stream) => stream.readable().await,
            Self::Epoll(stream) => stream.readable().await,
        }
    }

    /// Appends what comes next to `buffer`, within its capacity and at most `len_max` bytes; 0 is the end.
    ///
    /// # Errors
    /// `ECANCELED` after [`Stream::cancel`], with no byte lost; what the socket says.
    pub(crate) async fn read(&self, buffer: BytesMut, len_max: usize) -> (io::Result<usize>, BytesMut) {
        match self {
            Self::Uring(stream) => stream.read(buffer, len_max).await,
            Self::Epoll(stream) => stream.read(buffer, len_max).await,
        }
    }

    /// Writes `list`, all of it or a part; the list comes back as it was.
    ///
    /// # Errors
    /// `ECANCELED` after [`Stream::cancel`] when nothing was written; what the socket says.
    pub(crate) async fn write(&self, list: SendList) -> (io::Result<usize>, SendList) {
        match self {
            Self::Uring(stream) => stream.write(list).await,
            Self::Epoll(stream) => stream.write(list).await,
        }
    }

    /// Ends the operations that are under way now; later ones are not concerned.
    pub(crate) fn cancel(&self) {
        match self {
            Self::Uring(stream) => stream.cancel(),
            Self::Epoll(stream) => stream.cancel(),
        }
    }

    /// Appends what has arrived, without waiting, within the capacity of `buffer` and at most `len_max` bytes; 0 is the
    /// end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has arrived: wait with [`Stream::readable`]; what the socket says.
    pub(crate) fn read_now(&self, buffer: &mut BytesMut, len_max: usize) -> io::Result<usize> {
        match self {
            Self::Uring(stream) => sys::recv_now(stream, buffer, len_max),
            Self::Epoll(stream) => stream.read_now(buffer, len_max),
        }
    }

    /// Writes a control frame without waiting: it is short, and nothing else goes that way.
    pub(crate) fn write_now(&self, control_frame: Bytes) -> io::Result<usize> {
        let mut list = SendList::new();
        list.extend(std::iter::once(control_frame));
        sys::send_now(self, &mut list)
    }

    /// Bytes that have arrived and were not read.
    pub(crate) fn arrived_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(self).map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Bytes written by us that the peer (unix) or its kernel (TCP) has not taken.
    pub(crate) fn unsent_bytes(&self) -> usize {
        sys::unsent_bytes(self).unwrap_or(0)
    }

    /// Bytes that the peer's kernel has acknowledged, on TCP, counted from connect; readable after a reset too.
    pub(crate) fn acknowledged_bytes(&self) -> io::Result<u64> {
        // The SYN counts as one.
        sys::tcp_bytes_acked(self).map(|count| count.saturating_sub(1))
    }

    /// Whether the peer has closed or broken the connection.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut poll = [PollFd::new(self, PollFlags::RDHUP)];
        // HUP and ERR need not be asked for.
        rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
    }

    /// Size of the socket's send buffer.
    pub(crate) fn send_buffer_bytes(&self) -> usize {
        socket2::SockRef::from(self).send_buffer_size().unwrap_or(0)
    }

    /// Lets the socket take no more than about so many bytes that the peer (unix) or its kernel (TCP) has no room for. Best
    /// effort.
    pub(crate) fn set_unsent_max(&self, bytes: usize, unix: bool) {
        let socket = socket2::SockRef::from(self);
        if !unix {
            let _ = socket.set_tcp_notsent_lowat(u32::try_from(bytes).unwrap_or(u32::MAX));
        } else if bytes < self.send_buffer_bytes() {
            // The kernel doubles it, for what it needs itself.
            let _ = socket.set_send_buffer_size(bytes / 2);
        }
    }

    /// Ends both directions: the peer sees it, and operations under way complete.
    pub(crate) fn shutdown(&self) {
        // Fails on sockets whose peer is gone, which is what we want anyway.
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Uring(stream) => stream.as_fd(),
            Self::Epoll(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::transport::backend::Runtime;

    /// Runs `test` with a stream and its peer, on every backend that this machine has.
    fn on_every_backend<F: Future<Output = ()>>(test: impl Fn(Stream, UnixStream) -> F) {
        for backend in [Backend::Uring, Backend::Epoll] {
            let Ok(runtime) = Runtime::new(backend) else {
                eprintln!("skipped: no {backend} here");
                continue;
            };
            runtime.block_on(async {
                let (ours, peer) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                test(Stream::new(ours.into(), backend).unwrap(), peer).await;
            });
        }
    }

    #[test]
    fn a_read_appends_within_capacity_and_sees_the_end() {
        on_every_backend(|stream, mut peer| async move {
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

    /// A cancelled read must not swallow what comes later: the trap of dropped ring operations.
    #[test]
    fn a_cancelled_read_loses_no_byte() {
        on_every_backend(|stream, mut peer| async move {
            let reader = stream.clone();
            let read =
                tokio::task::spawn_local(async move { reader.read(BytesMut::with_capacity(16), 16).await });
            let poller = stream.clone();
            let poll = tokio::task::spawn_local(async move { poller.readable().await });
            tokio::time::sleep(Duration::from_millis(5)).await;
            stream.cancel();
            let (result, _) = read.await.unwrap();
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            assert_eq!(poll.await.unwrap().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            peer.write_all(b"late").unwrap();
            stream.readable().await.unwrap();
            assert_eq!(stream.arrived_bytes(), 4);
            let (count, buffer) = stream.read(BytesMut::with_capacity(16), 16).await;
            assert_eq!((count.unwrap(), &buffer[..]), (4, &b"late"[..]));
        });
    }

    /// The count of a write that ends early is exact: the next connection begins with the frame after it.
    #[test]
    fn a_write_that_is_cut_off_says_how_much_it_wrote() {
        on_every_backend(|stream, mut peer| async move {
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
            // The socket buffer fills, the rest of the write waits.
            let mut before = 0;
            while before == 0 || stream.unsent_bytes() > before {
                before = stream.unsent_bytes();
                // A worker submits when it parks, which a task that only yields prevents.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stream.shutdown();
            let written = write.await.unwrap();
            drop(stream);
            let mut read = Vec::new();
            peer.read_to_end(&mut read).unwrap();
            assert!(0 < written && written < 64 * (64 << 10));
            assert_eq!(read.len(), written);
        });
    }

    /// What an output builds on that resends what a dead peer had not acknowledged.
    #[test]
    fn tcp_tells_what_was_acknowledged_even_after_a_reset() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(16 << 10).unwrap();
        let mut ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let wait_for = |condition: &dyn Fn() -> bool| {
            let begin = std::time::Instant::now();
            while !condition() {
                assert!(begin.elapsed() < Duration::from_secs(10));
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let acknowledged = |socket: &std::net::TcpStream| sys::tcp_bytes_acked(socket).unwrap() - 1;
        assert_eq!(acknowledged(&ours), 0);
        ours.write_all(&[7; 1000]).unwrap();
        wait_for(&|| acknowledged(&ours) == 1000);
        // More than the peer's buffer takes: the rest waits in ours.
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[7; 64 << 10]).is_ok() {}
        wait_for(&|| {
            let before = acknowledged(&ours);
            std::thread::sleep(Duration::from_millis(20));
            acknowledged(&ours) == before
        });
        let before = acknowledged(&ours);
        assert!(before > 1000 && sys::unsent_bytes(&ours).unwrap() > 0);
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        wait_for(&|| ours.take_error().unwrap().is_some());
        assert_eq!(acknowledged(&ours), before);
    }

    /// What a unix socket holds is never less than what its peer has not read, until the peer closes.
    #[test]
    fn a_unix_socket_holds_at_least_what_was_not_read_and_forgets_it_when_the_peer_closes() {
        on_every_backend(|stream, mut peer| async move {
            let (mut written, mut read) = (0, 0);
            for round in 0..500usize {
                let len = [1, 13, 4096, 30_000][round % 4];
                written += stream.write_now(Bytes::from(vec![7; len])).unwrap_or(0);
                let mut buffer = vec![0; [7, 500, 10_000][round % 3]];
                if read < written {
                    read += peer.read(&mut buffer).unwrap();
                }
                assert!(stream.unsent_bytes() >= written - read, "round {round}");
            }
            assert!(read < written && !stream.is_hung_up());
            drop(peer);
            assert_eq!(stream.unsent_bytes(), 0);
            assert!(stream.is_hung_up());
        });
    }

    #[test]
    fn dropping_the_last_clone_closes_the_socket() {
        on_every_backend(|stream, mut peer| async move {
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
