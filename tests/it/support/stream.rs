//! Blocking sockets of either kind, with exact control over what is sent and when.

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tapster::transport::Address;
use tapster::transport::tls::ClientConnector;
use tapster::transport::tls::ServerAcceptor;
use tempfile::TempDir;

use super::tls_stream::TlsStream;

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Tcp6,
    Unix,
}

impl Transport {
    /// The two that every data path test runs over.
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Unix];

    /// An address of this kind that nobody listens on: port 0, or a fresh path below `folder`.
    pub(crate) fn fresh_address(self, folder: &Path) -> Address {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        match self {
            Self::Tcp => tcp_address("127.0.0.1", 0),
            Self::Tcp6 => tcp_address("::1", 0),
            Self::Unix => {
                Address::Unix(folder.join(format!("{}.sock", NEXT.fetch_add(1, Ordering::Relaxed))))
            }
        }
    }
}

pub(crate) fn tcp_address(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.to_owned(), port }
}

/// A folder for sockets and files that vanishes.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("tapster-it-").tempdir().expect("a temporary folder")
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// The socket below.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(&stream.socket),
            Self::Unix(_) => None,
        }
    }

    /// TLS as a client, which knows the server by this name.
    pub(crate) fn connect_tls(address: &Address, connector: &ClientConnector) -> io::Result<Self> {
        let (host, port) = address.host_port().expect("a TCP address");
        let stream = TcpStream::connect((host, port))?;
        stream.set_nodelay(true)?;
        let name = connector.server_name(address).expect("a name");
        let tls = rustls::ClientConnection::new(connector.config(), name).expect("a configuration");
        Ok(Self::Tls(Box::new(TlsStream::new(tls, stream))))
    }

    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tls { .. } => panic!("{address}: use connect_tls"),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => uninterrupted(|| UnixStream::connect(path)).map(Self::Unix),
            Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Duration) {
        match self {
            Self::Tls(stream) => stream.socket.set_read_timeout(Some(timeout)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
        .expect("a read timeout");
    }

    pub(crate) fn set_write_timeout(&self, timeout: Duration) {
        match self {
            Self::Tls(stream) => stream.socket.set_write_timeout(Some(timeout)),
            Self::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
        .expect("a write timeout");
    }

    pub(crate) fn set_receive_buffer(&self, bytes: usize) {
        match self {
            Self::Tls(stream) => SockRef::from(&stream.socket).set_recv_buffer_size(bytes),
            Self::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
            Self::Unix(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
        }
        .expect("a receive buffer size");
    }

    pub(crate) fn unread_bytes(&self) -> u64 {
        match self {
            Self::Tls(stream) => rustix::io::ioctl_fionread(&stream.socket),
            Self::Tcp(stream) => rustix::io::ioctl_fionread(stream),
            Self::Unix(stream) => rustix::io::ioctl_fionread(stream),
        }
        .expect("a number of bytes")
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.socket.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    /// Closes with RST on TCP; a unix socket knows only the plain close.
    pub(crate) fn reset(self) {
        if let Some(stream) = self.tcp() {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER 0");
        }
    }

    pub(crate) fn try_clone(&self) -> Self {
        match self {
            Self::Tls(_) => panic!("TLS has one end here"),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
        .expect("a second descriptor")
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| match self {
            Self::Tls(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        })
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| match self {
            Self::Tls(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls again when interrupted: a thread that has set up a ring is woken by the end of that ring, and calls with
/// a timeout are not restarted by the kernel.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result,
        }
    }
}

/// A listening socket; a unix one removes its file when it is dropped.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, ServerAcceptor),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(crate) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).map(Self::Tcp),
            Address::Tls { .. } => panic!("{address}: a certificate is needed"),
            Address::Unix(path) => {
                UnixListener::bind(path).map(|listener| Self::Unix(listener, path.clone()))
            }
            Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The address bound, with the port that the kernel chose.
    pub(crate) fn address(&self) -> Address {
        match self {
            Self::Tcp(listener) => {
                let bound = listener.local_addr().expect("a bound socket");
                tcp_address(&bound.ip().to_string(), bound.port())
            }
            Self::Tls(listener, _) => {
                let bound = listener.local_addr().expect("a bound socket");
                Address::Tls { host: bound.ip().to_string(), port: bound.port() }
            }
            Self::Unix(_, path) => Address::Unix(path.clone()),
        }
    }

    /// A connection that waits, `None` without one.
    pub(crate) fn poll_accept(&self) -> Option<Stream> {
        let accepted = match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true).expect("a non-blocking listener");
                listener.accept().map(|(stream, _)| {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    stream.set_nodelay(true).expect("TCP_NODELAY");
                    Stream::Tcp(stream)
                })
            }
            Self::Tls(listener, acceptor) => {
                listener.set_nonblocking(true).expect("a non-blocking listener");
                listener.accept().map(|(stream, _)| {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    stream.set_nodelay(true).expect("TCP_NODELAY");
                    let tls = rustls::ServerConnection::new(acceptor.config()).expect("a configuration");
                    Stream::Tls(Box::new(TlsStream::new(tls, stream)))
                })
            }
            Self::Unix(listener, _) => {
                listener.set_nonblocking(true).expect("a non-blocking listener");
                listener.accept().map(|(stream, _)| {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    Stream::Unix(stream)
                })
            }
        };
        match accepted {
            Ok(stream) => Some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}
