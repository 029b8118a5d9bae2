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
use crate::transport::Address;
use crate::transport::backend::Runtime;
use crate::transport::cancel::is_cancelled;
use crate::transport::dial::Dial;
use crate::transport::listener;
use crate::transport::listener::Listener;
use crate::transport::socket::ConnectOptions;
use crate::transport::socket::Socket;
use crate::transport::socket_path::SocketFileConfig;

const OPTIONS: ConnectOptions = ConnectOptions {
    timeout: Duration::from_secs(10),
    user_timeout: Duration::from_secs(30),
    send_proxy: None,
};

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
            let socket = Detached { fd: ours.into(), kind: Kind::Unix, acked_before: 0, user_timeout: None };
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
        let socket = connect(&address).await.unwrap();
        test(socket, listener.accept().unwrap().0, backend).await;
    });
}

async fn connect(address: &Address) -> io::Result<Socket> {
    Dial::new(address, OPTIONS, None).await?.next().await
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
        let file = SocketFileConfig::default();
        let mut bound = listener::bind(&address, 1, &file, listener::Beside::default()).unwrap().remove(0);
        let reserve = crate::transport::descriptors::Reserve::default();
        let mut listener = Listener::new(bound.listeners.remove(0), reserve).unwrap();
        let (socket, accepted) = tokio::join!(connect(&bound.address), listener.accept());
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
