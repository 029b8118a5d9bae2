//! Connected sockets before their data begins, on `tokio::net`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::Path;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use rustix::net::RecvFlags;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::Interest;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio_rustls::TlsStream;

use crate::transport::Backend;
use crate::transport::detached::Detached;
use crate::transport::detached::Kind;
use crate::transport::process::AcceptedPeer;
use crate::transport::process::Process;
use crate::transport::proxy_header;
use crate::transport::proxy_header::ProxyVersion;
use crate::transport::safe_path::refuse_foreign_links;
use crate::transport::stream::Stream;
use crate::transport::tls::ClientConnector;
use crate::transport::tls::ServerAcceptor;
use crate::transport::tls::counted::CountedTcp;
use crate::transport::tls::handshake;
use crate::transport::tls::handshake::HandshakeFault;

/// A send buffer of this size saves a relay 15 % of its time on unix sockets. The kernel gives what
/// `net.core.wmem_max` allows.
const UNIX_SEND_BUFFER: usize = 1 << 20;
/// Shorter user timeouts count as this.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// A writer that is gone without a word is noticed after about 90 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// A connected socket during its handshake. Its reads and writes are cancel-safe.
#[derive(Debug)]
pub(crate) struct Socket {
    io: Io,
    // Bytes that the kernel counts as acknowledged on TCP once the peer has everything written so far.
    acked_at_most: u64,
    // TCP connections that we opened.
    user_timeout: Option<Duration>,
}

/// How a connection is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectOptions {
    /// How long a lookup may take, and each address.
    pub(crate) timeout: Duration,
    /// TCP: a connection ends when its peer's host does not answer for so long, whether frames flow or not. A host that
    /// answers and takes nothing is not concerned. At least a second: the kernel's timers are no finer.
    pub(crate) user_timeout: Duration,
    /// The PROXY header that is sent first; `None`: none.
    pub(crate) send_proxy: Option<ProxyVersion>,
}

/// The far end of a connection that was opened.
#[derive(Debug)]
pub(super) enum Remote {
    Tcp { local: SocketAddr, peer: SocketAddr },
    Unix { path: PathBuf, process: i32 },
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<CountedTcp>>),
    Unix(UnixStream),
}

impl Socket {
    /// Takes a TCP connection that was opened.
    pub(super) fn connected_tcp(stream: TcpStream, options: &ConnectOptions) -> Self {
        let user_timeout = options.user_timeout.max(USER_TIMEOUT_MIN);
        tune_tcp(&stream, &keepalive_within(user_timeout));
        // Does not fail on a connected socket.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(user_timeout));
        // The kernel counts the SYN of the side that connects.
        Self { io: Io::Tcp(stream), acked_at_most: 1, user_timeout: Some(user_timeout) }
    }

    /// Connects to a unix socket. Cancel-safe.
    pub(super) async fn connect_unix(path: &Path) -> io::Result<Self> {
        refuse_foreign_links(path)?;
        let stream = UnixStream::connect(path).await?;
        // Best effort: smaller buffers work, more slowly.
        let _ = SockRef::from(&stream).set_send_buffer_size(UNIX_SEND_BUFFER);
        Ok(Self { io: Io::Unix(stream), acked_at_most: 0, user_timeout: None })
    }

    /// TCP: the address of the peer.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.tcp()?.peer_addr().ok()
    }

    /// The TCP connection, whatever goes over it.
    fn tcp(&self) -> Option<&TcpStream> {
        match &self.io {
            Io::Tcp(stream) => Some(stream),
            Io::Tls(stream) => Some(&stream.get_ref().0.stream),
            Io::Unix(_) => None,
        }
    }

    /// Shakes hands of TLS with a peer that has connected. The connection is given up when this future is dropped.
    ///
    /// # Errors
    /// [`HandshakeFault`].
    pub(crate) async fn accept_tls(self, acceptor: &ServerAcceptor) -> Result<Self, HandshakeFault> {
        let (tcp, user_timeout) = self.into_counted().map_err(HandshakeFault::Connection)?;
        let io = Io::Tls(handshake::accept(tcp, acceptor).await?);
        Ok(Self { io, acked_at_most: 0, user_timeout })
    }

    /// Shakes hands of TLS with a reader, which has to have this name. The connection is given up when this future is dropped.
    ///
    /// # Errors
    /// [`HandshakeFault`].
    pub(crate) async fn connect_tls(
        self,
        connector: &ClientConnector,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeFault> {
        let (tcp, user_timeout) = self.into_counted().map_err(HandshakeFault::Connection)?;
        let io = Io::Tls(handshake::connect(tcp, connector, name).await?);
        Ok(Self { io, acked_at_most: 0, user_timeout })
    }

    fn into_counted(self) -> io::Result<(CountedTcp, Option<Duration>)> {
        let Self { io, acked_at_most, user_timeout } = self;
        match io {
            Io::Tcp(stream) => Ok((CountedTcp { stream, written: acked_at_most }, user_timeout)),
            Io::Tls(_) | Io::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// TLS: the certificate of the peer, if it has shown one.
    pub(crate) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        match &self.io {
            Io::Tls(stream) => handshake::peer_certificate(stream),
            Io::Tcp(_) | Io::Unix(_) => None,
        }
    }

    /// TLS: its version, for the log.
    pub(crate) fn tls_version(&self) -> Option<&'static str> {
        match &self.io {
            Io::Tls(stream) => Some(handshake::version(stream)),
            Io::Tcp(_) | Io::Unix(_) => None,
        }
    }

    /// The far end: on a unix connection that was opened, the process that listens.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn far_end(&self) -> io::Result<AcceptedPeer> {
        match &self.io {
            Io::Tcp(stream) => stream.peer_addr().map(AcceptedPeer::Tcp),
            Io::Tls(stream) => stream.get_ref().0.stream.peer_addr().map(AcceptedPeer::Tcp),
            Io::Unix(stream) => Ok(AcceptedPeer::Unix(stream.peer_cred().ok().map(Process::of))),
        }
    }

    /// Sends a PROXY header that tells of this connection, before anything else.
    pub(crate) async fn send_proxy_header(&mut self, version: ProxyVersion) -> io::Result<()> {
        let ends = match self.tcp() {
            Some(stream) => Some((stream.local_addr()?, stream.peer_addr()?)),
            None => None,
        };
        self.write_all(&proxy_header::encode(version, ends)).await
    }

    /// Where the listener is that this connection was opened to; `None` where that cannot be told.
    pub(super) fn remote(&self) -> Option<Remote> {
        if let Some(stream) = self.tcp() {
            return Some(Remote::Tcp { local: stream.local_addr().ok()?, peer: stream.peer_addr().ok()? });
        }
        match &self.io {
            Io::Tcp(_) | Io::Tls(_) => None,
            Io::Unix(stream) => {
                // As the listener was bound, whatever links led to it; and the process that called `listen`.
                let path = stream.peer_addr().ok()?.as_pathname()?.to_owned();
                Some(Remote::Unix { path, process: stream.peer_cred().ok()?.pid()? })
            }
        }
    }

    /// Copies what has arrived to `buffer`, and leaves it there for a read. Waits for a byte; 0 is the end. Cancel-safe. Not for TLS.
    pub(crate) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.io {
            Io::Tcp(stream) => stream.peek(buffer).await,
            Io::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
            Io::Unix(stream) => {
                let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
                let peek = || Ok(rustix::net::recv(stream, &mut *buffer, flags)?.0);
                stream.async_io(Interest::READABLE, peek).await
            }
        }
    }

    /// Takes a TCP connection that was accepted.
    pub(super) fn accepted_tcp(stream: TcpStream) -> Self {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        tune_tcp(&stream, &keepalive);
        Self { io: Io::Tcp(stream), acked_at_most: 0, user_timeout: None }
    }

    /// Takes a unix connection that was accepted.
    pub(super) fn accepted_unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), acked_at_most: 0, user_timeout: None }
    }

    /// Makes ready to write much to a connection that was accepted.
    pub(crate) fn prepare_writing(&self) {
        if let Io::Unix(stream) = &self.io {
            // Best effort: smaller buffers work, more slowly.
            let _ = SockRef::from(stream).set_send_buffer_size(UNIX_SEND_BUFFER);
        }
    }

    /// How much one read should ask for at most: a unix socket has no more than its peer's send buffer, TCP gains up to
    /// 1 MiB.
    pub(crate) fn read_len_max(&self) -> usize {
        match self.io {
            Io::Tcp(_) => 1 << 20,
            Io::Tls(_) | Io::Unix(_) => 256 << 10,
        }
    }

    /// Begins the data phase, on a thread that runs this backend: the stream's bytes are counted from here.
    pub(crate) fn into_stream(self, backend: Backend) -> io::Result<Stream> {
        let Self { io, acked_at_most, user_timeout } = self;
        match io {
            Io::Tls(stream) => {
                let (tcp, tls) = handshake::into_parts(*stream);
                let fd = tcp.stream.into_std()?.into();
                Stream::over_tls(
                    Detached { fd, kind: Kind::Tcp, acked_before: tcp.written, user_timeout },
                    tls,
                )
            }
            io => Stream::new(Self { io, acked_at_most, user_timeout }.detach()?, backend),
        }
    }

    /// Takes the socket out of the reactor of this thread.
    ///
    /// # Errors
    /// What the system says; `Unsupported` for TLS, whose keys stay where they are.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        let (fd, kind) = match self.io {
            Io::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
            Io::Tcp(stream) => (stream.into_std()?.into(), Kind::Tcp),
            Io::Unix(stream) => (stream.into_std()?.into(), Kind::Unix),
        };
        Ok(Detached { fd, kind, acked_before: self.acked_at_most, user_timeout: self.user_timeout })
    }

    /// The number of its descriptor.
    pub(super) fn descriptor(&self) -> RawFd {
        match &self.io {
            Io::Tcp(stream) => stream.as_raw_fd(),
            Io::Tls(stream) => stream.get_ref().0.stream.as_raw_fd(),
            Io::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Another descriptor of the same socket, for another process to go on with.
    ///
    /// # Errors
    /// No descriptor is left; `Unsupported` for TLS, whose keys stay in this process.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.io {
            Io::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
            Io::Tcp(stream) => stream.as_fd().try_clone_to_owned(),
            Io::Unix(stream) => stream.as_fd().try_clone_to_owned(),
        }
    }

    /// A connected socket that another process has given away, and its peer.
    ///
    /// # Errors
    /// It is no connected stream socket of TCP or of unix.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<(Detached, AcceptedPeer)> {
        let socket = SockRef::from(&fd);
        socket.set_nonblocking(true)?;
        let (kind, peer) = if let Some(address) = socket.peer_addr()?.as_socket() {
            (Kind::Tcp, AcceptedPeer::Tcp(address))
        } else {
            let credentials = rustix::net::sockopt::socket_peercred(&fd)?;
            (Kind::Unix, AcceptedPeer::Unix(Some(Process::of_credentials(&credentials))))
        };
        Ok((Detached { fd, kind, acked_before: 0, user_timeout: None }, peer))
    }

    /// Puts the socket into the reactor of this thread.
    pub(crate) fn attach(detached: Detached) -> io::Result<Self> {
        let Detached { fd, kind, acked_before, user_timeout } = detached;
        let io = match kind {
            Kind::Tcp => Io::Tcp(TcpStream::from_std(fd.into())?),
            Kind::Unix => Io::Unix(UnixStream::from_std(fd.into())?),
        };
        Ok(Self { io, acked_at_most: acked_before, user_timeout })
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => poll_read_unix(stream, cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        let result = match &mut socket.io {
            // It counts by itself.
            Io::Tls(stream) => return Pin::new(&mut **stream).poll_write(cx, buf),
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        if let Poll::Ready(Ok(count)) = result {
            socket.acked_at_most += count as u64;
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Io::Tcp(_) | Io::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Reads what has come. tokio takes a short read for an empty socket, and a read of a unix socket ends behind a message that
/// came with descriptors, whatever is behind it. The kernel closes the descriptors.
fn poll_read_unix(stream: &UnixStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let read = || Ok(rustix::net::recv(stream, buf.initialize_unfilled(), RecvFlags::DONTWAIT)?.0);
        match stream.try_io(Interest::READABLE, read) {
            Ok(count) => {
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Probes an idle connection so early that the last answer is awaited when the user timeout ends. The kernel counts in whole
/// seconds, and lets the user timeout decide in place of a number of retries.
fn keepalive_within(user_timeout: Duration) -> TcpKeepalive {
    let second = Duration::from_secs(1);
    TcpKeepalive::new()
        .with_time((user_timeout / 2).clamp(second, KEEPALIVE_IDLE))
        .with_interval((user_timeout / 6).clamp(second, KEEPALIVE_INTERVAL))
}

fn tune_tcp(stream: &TcpStream, keepalive: &TcpKeepalive) {
    let socket = SockRef::from(stream);
    // Neither fails on a connected socket; if one does, data flows all the same.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(keepalive);
}
