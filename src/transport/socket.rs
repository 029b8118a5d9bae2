//! Connected sockets before their data begins, on `tokio::net`.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;

use crate::transport::Address;

/// A send buffer of this size saves a relay 15 % of its time on unix sockets. The kernel gives what
/// `net.core.wmem_max` allows.
const UNIX_SEND_BUFFER: usize = 1 << 20;
/// A peer that is gone without a word is noticed after about 90 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// A connected socket during its handshake. Its reads and writes are cancel-safe.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects, with a fresh name resolution. Cancel-safe.
    pub(crate) async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                tune_tcp(&stream);
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                // Best effort: smaller buffers work, more slowly.
                let _ = SockRef::from(&stream).set_send_buffer_size(UNIX_SEND_BUFFER);
                Ok(Self::Unix(stream))
            }
            Address::Tls { .. } | Address::File(_) => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// How much one read should ask for at most: a unix socket has no more than its peer's send buffer, TCP gains up to
    /// 1 MiB.
    pub(crate) fn read_len_max(&self) -> usize {
        match self {
            Self::Tcp(_) => 1 << 20,
            Self::Unix(_) => 256 << 10,
        }
    }

    /// The bare descriptor, non-blocking, out of the reactor.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => Ok(stream.into_std()?.into()),
            Self::Unix(stream) => Ok(stream.into_std()?.into()),
        }
    }

    /// Takes a descriptor that [`Socket::into_fd`] of another worker gave.
    pub(crate) fn from_fd(fd: OwnedFd, unix: bool) -> io::Result<Self> {
        if unix {
            Ok(Self::Unix(UnixStream::from_std(fd.into())?))
        } else {
            Ok(Self::Tcp(TcpStream::from_std(fd.into())?))
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

pub(super) fn tune_tcp(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    // Neither fails on a connected socket; if one does, data flows all the same.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}
