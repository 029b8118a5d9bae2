//! Listening and accepting, on `tokio::net`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use socket2::Domain;
use socket2::SockAddr;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tracing::warn;

use crate::transport::Address;
use crate::transport::detached::Kind;
use crate::transport::socket::Socket;

const BACKLOG: i32 = 1024;

/// An address that is listened on, with one listener for every worker.
#[derive(Debug)]
pub(crate) struct Bound {
    /// With the port that the kernel chose.
    pub(crate) address: Address,
    /// One for each worker.
    pub(crate) listeners: Vec<BoundListener>,
    /// Whether it takes connections of IPv4 and of IPv6.
    pub(crate) dual_stack: bool,
    /// Removes the file of a unix socket at the end.
    pub(crate) file: Option<SocketFile>,
}

/// A listener on its way to its worker.
#[derive(Debug)]
pub(crate) struct BoundListener {
    // Non-blocking.
    fd: OwnedFd,
    kind: Kind,
}

/// Binds `address` for `workers` workers: a TCP listener with SO_REUSEPORT for each, a unix listener shared by all.
///
/// A host name binds every address that it resolves to, on the same port, except those of a family that this host lacks. `::`
/// takes IPv4 too, except where something else is `beside_ipv4` on the same port. A unix socket that nobody listens on is
/// replaced; one of a live process is not.
///
/// # Errors
/// `AddrInUse` when another process listens there; what the system says.
pub(crate) fn bind(
    address: &Address,
    workers: usize,
    mode: Option<u32>,
    beside_ipv4: bool,
) -> io::Result<Vec<Bound>> {
    match address {
        Address::Tcp { host, port } => bind_tcp(host, *port, workers, beside_ipv4),
        Address::Unix(path) => Ok(vec![bind_unix(path, workers, mode)?]),
    }
}

fn bind_tcp(host: &str, mut port: u16, workers: usize, beside_ipv4: bool) -> io::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    // A name of both families takes both in listeners of their own.
    let ipv6_only = beside_ipv4 || addresses.iter().any(SocketAddr::is_ipv4);
    let mut lacking = None;
    for mut address in addresses {
        address.set_port(port);
        match bind_address(&mut address, workers, ipv6_only) {
            Ok(listeners) => {
                port = address.port();
                let dual_stack = address.is_ipv6() && address.ip().is_unspecified() && !ipv6_only;
                let address = Address::Tcp { host: address.ip().to_string(), port };
                bound.push(Bound { address, listeners, dual_stack, file: None });
            }
            Err(error) if is_lacking(&error) => lacking = Some((address, error)),
            Err(error) => return Err(error),
        }
    }
    match lacking {
        Some((_, error)) if bound.is_empty() => Err(error),
        Some((address, error)) => {
            warn!("{host} is {address} too, which this host lacks ({error}): tapster does not listen there");
            Ok(bound)
        }
        None => Ok(bound),
    }
}

/// One listener for each worker. Port 0 becomes the one that the kernel chose.
fn bind_address(address: &mut SocketAddr, workers: usize, ipv6_only: bool) -> io::Result<Vec<BoundListener>> {
    // SO_REUSEPORT would share the port with another process that sets it too: ask without it first.
    if address.port() != 0 {
        tcp_socket(*address, ipv6_only)?.bind(&(*address).into())?;
    }
    let mut listeners = Vec::new();
    for _ in 0..workers {
        let socket = tcp_socket(*address, ipv6_only)?;
        socket.set_reuse_port(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(BACKLOG)?;
        if address.port() == 0 {
            address.set_port(socket.local_addr()?.as_socket().map_or(0, |chosen| chosen.port()));
        }
        listeners.push(BoundListener { fd: socket.into(), kind: Kind::Tcp });
    }
    Ok(listeners)
}

/// Whether the host has no such address, or nothing of its family.
fn is_lacking(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn tcp_socket(address: SocketAddr, ipv6_only: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(ipv6_only)?;
    }
    Ok(socket)
}

fn bind_unix(path: &Path, workers: usize, mode: Option<u32>) -> io::Result<Bound> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.listen(BACKLOG)?;
    let first = OwnedFd::from(socket);
    let mut listeners = Vec::new();
    for _ in 1..workers {
        listeners.push(BoundListener { fd: first.try_clone()?, kind: Kind::Unix });
    }
    listeners.push(BoundListener { fd: first, kind: Kind::Unix });
    let address = Address::Unix(path.to_owned());
    Ok(Bound { address, listeners, dual_stack: false, file: Some(file) })
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on this socket")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The file of a unix socket of ours: removed when dropped, unless somebody else's has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // Nothing to be done about a failure: the next start removes a stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One worker's listener in its reactor.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Puts a listener into the reactor of this thread.
    pub(crate) fn new(bound: BoundListener) -> io::Result<Self> {
        match bound.kind {
            Kind::Tcp => Ok(Self::Tcp(TcpListener::from_std(bound.fd.into())?)),
            Kind::Unix => Ok(Self::Unix(UnixListener::from_std(bound.fd.into())?)),
        }
    }

    /// The next connection and the name of its peer for the log. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::accepted_tcp(stream), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
                let peer = pid.map_or_else(|| "unix".to_owned(), |pid| format!("unix, process {pid}"));
                Ok((Socket::accepted_unix(stream), peer))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_not_and_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = bind_unix(&path, 2, Some(0o600)).unwrap();
        assert_eq!(bound.listeners.len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind_unix(&path, 1, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert_eq!(bind_unix(&path, 1, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn a_tcp_port_is_shared_among_our_workers_and_with_nobody_else() {
        let bound = bind_tcp("127.0.0.1", 0, 3, false).unwrap();
        let Address::Tcp { port, .. } = bound[0].address else { panic!("not tcp") };
        assert_eq!(bound[0].listeners.len(), 3);
        assert_ne!(port, 0);
        assert_eq!(bind_tcp("127.0.0.1", port, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_wildcards_of_both_families_share_a_port_and_one_alone_takes_both() {
        let Ok(both) = bind_tcp("::", 0, 1, false) else { return };
        let Address::Tcp { port, .. } = both[0].address else { panic!("not tcp") };
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(both[0].dual_stack);
        drop(both);
        for order in [["::", "0.0.0.0"], ["0.0.0.0", "::"]] {
            let first = bind_tcp(order[0], 0, 2, true).unwrap();
            let Address::Tcp { port, .. } = first[0].address else { panic!("not tcp") };
            let second = bind_tcp(order[1], port, 2, true).unwrap();
            assert!(!first[0].dual_stack && !second[0].dual_stack);
            for host in ["127.0.0.1", "::1"] {
                std::net::TcpStream::connect((host, port)).unwrap();
            }
        }
    }
}
