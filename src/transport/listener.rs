//! Listening and accepting, on `tokio::net`.

use std::io;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::Domain;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::warn;

use crate::transport::Address;
use crate::transport::descriptors::Reserve;
use crate::transport::detached::Detached;
use crate::transport::detached::Kind;
use crate::transport::process::AcceptedPeer;
use crate::transport::process::Process;
use crate::transport::process::read_users;
use crate::transport::socket::Socket;
use crate::transport::socket_path::BACKLOG;
use crate::transport::socket_path::Listening;
use crate::transport::socket_path::SocketFileConfig;
use crate::transport::socket_path::SocketPath;

/// An address that is listened on, with one listener for every worker.
#[derive(Debug)]
pub(crate) struct Bound {
    /// With the port that the kernel chose.
    pub(crate) address: Address,
    /// One for each worker.
    pub(crate) listeners: Vec<BoundListener>,
    /// Whether it takes connections of IPv4 and of IPv6.
    pub(crate) dual_stack: bool,
    /// Of a unix socket that tapster bound: removes its file when dropped.
    pub(crate) path: Option<SocketPath>,
}

/// What else is listened on at the port of an address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside {
    /// Another address, which is or may be one of IPv4.
    pub(crate) ipv4: bool,
    /// An address of ours, which is about to be given up.
    pub(crate) own: bool,
}

/// A listener on its way to its worker.
#[derive(Debug)]
pub(crate) struct BoundListener {
    // Non-blocking.
    fd: OwnedFd,
    kind: Kind,
    // Of a unix socket: those that take its place when its path is bound again.
    renewals: Option<UnboundedReceiver<OwnedFd>>,
}

impl Bound {
    /// The same address for other tasks of the workers: what waits in the backlog waits for whoever accepts first. Of a unix socket
    /// the path has the socket, see [`of_path`].
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn again(&self) -> io::Result<Self> {
        let listeners = self.listeners.iter().map(|listener| {
            let fd = listener.fd.try_clone()?;
            Ok(BoundListener { fd, kind: listener.kind, renewals: None })
        });
        let listeners = listeners.collect::<io::Result<_>>()?;
        Ok(Self { address: self.address.clone(), listeners, dual_stack: self.dual_stack, path: None })
    }
}

impl Bound {
    /// A listening socket of others, shared by `workers` workers. It is non-blocking, and its file is not ours.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn shared(
        address: Address,
        socket: &OwnedFd,
        kind: Kind,
        workers: usize,
        dual_stack: bool,
    ) -> io::Result<Self> {
        if kind == Kind::Unix {
            read_users();
        }
        let listener = |_| Ok(BoundListener { fd: socket.try_clone()?, kind, renewals: None });
        let listeners = (0..workers).map(listener).collect::<io::Result<_>>()?;
        Ok(Self { address, listeners, dual_stack, path: None })
    }

    /// The process that has called `listen` on a unix socket, as its peers see it.
    pub(super) fn listening_process(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.listeners.first()?.fd).ok()?;
        Some(credentials.pid.as_raw_pid())
    }

    /// Another descriptor of each socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.listeners.iter().map(|listener| listener.fd.try_clone()).collect()
    }
}

/// The listening sockets of another process at `address`, for `workers` workers: each has one or more, and none is left out,
/// since connections wait at all of them.
///
/// # Errors
/// There is no socket, or one that does not listen.
pub(crate) fn adopt(
    address: Address,
    sockets: Vec<OwnedFd>,
    workers: usize,
    dual_stack: bool,
    file: &SocketFileConfig,
) -> io::Result<Bound> {
    for socket in &sockets {
        let socket = socket2::SockRef::from(socket);
        socket.set_nonblocking(true)?;
        if !socket.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket that does not listen"));
        }
    }
    let Some(first) = sockets.first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an address without a socket"));
    };
    let (listeners, path) = match &address {
        Address::Unix(path) => {
            read_users();
            let mut path = SocketPath::adopt(path, first.try_clone()?, file)?;
            (of_path(&mut path, workers)?, Some(path))
        }
        Address::Tcp { .. } | Address::Tls { .. } => {
            let more = (sockets.len()..workers).map(|worker| sockets[worker % sockets.len()].try_clone());
            let more = more.collect::<io::Result<Vec<_>>>()?;
            let listener = |fd| BoundListener { fd, kind: Kind::Tcp, renewals: None };
            (sockets.into_iter().chain(more).map(listener).collect(), None)
        }
        Address::Systemd(_) => return Err(passed_only()),
    };
    Ok(Bound { address, listeners, dual_stack, path })
}

/// Listeners for `workers` workers at a path that is bound, in place of those that had it before.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn of_path(path: &mut SocketPath, workers: usize) -> io::Result<Vec<BoundListener>> {
    let listening = path.listeners(workers)?;
    Ok(listening.into_iter().map(of_listening).collect())
}

fn of_listening((fd, renewals): Listening) -> BoundListener {
    BoundListener { fd, kind: Kind::Unix, renewals: Some(renewals) }
}

/// Binds `address` for `workers` workers: a TCP listener with SO_REUSEPORT for each, a unix listener shared by all.
///
/// A host name binds every address that it resolves to, on the same port, except those of a family that this host lacks. `::`
/// takes IPv4 too, except where an address of IPv4 is beside it on the same port. A unix socket that nobody listens on is
/// replaced; one of a live process is not.
///
/// # Errors
/// `AddrInUse` when another process listens there; what the system says.
pub(crate) fn bind(
    address: &Address,
    workers: usize,
    file: &SocketFileConfig,
    beside: Beside,
) -> io::Result<Vec<Bound>> {
    match address {
        Address::Tcp { host, port } | Address::Tls { host, port } => {
            bind_tcp(host, *port, workers, beside, address)
        }
        Address::Unix(path) => Ok(vec![bind_unix(path, workers, file)?]),
        Address::Systemd(_) => Err(passed_only()),
    }
}

fn passed_only() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the service manager passes such a socket, and it is not bound",
    )
}

fn bind_tcp(
    host: &str,
    mut port: u16,
    workers: usize,
    beside: Beside,
    configured: &Address,
) -> io::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    // A name of both families takes both in listeners of their own.
    let ipv6_only = beside.ipv4 || addresses.iter().any(SocketAddr::is_ipv4);
    let mut lacking = None;
    for mut address in addresses {
        address.set_port(port);
        match bind_address(&mut address, workers, ipv6_only, beside.own) {
            Ok(listeners) => {
                port = address.port();
                let dual_stack = address.is_ipv6() && address.ip().is_unspecified() && !ipv6_only;
                let address = configured.at(host_of(address), port);
                bound.push(Bound { address, listeners, dual_stack, path: None });
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

/// The host as it is written in an address: a link-local one means nothing without its zone.
pub(super) fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

/// One listener for each worker. Port 0 becomes the one that the kernel chose.
fn bind_address(
    address: &mut SocketAddr,
    workers: usize,
    ipv6_only: bool,
    beside_own: bool,
) -> io::Result<Vec<BoundListener>> {
    // SO_REUSEPORT would share the port with another process that sets it too: ask without it first.
    if address.port() != 0 && !beside_own {
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
        listeners.push(BoundListener { fd: socket.into(), kind: Kind::Tcp, renewals: None });
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

fn bind_unix(path: &Path, workers: usize, file: &SocketFileConfig) -> io::Result<Bound> {
    read_users();
    let (file, listening) = SocketPath::bind(path, workers, file)?;
    let listeners = listening.into_iter().map(of_listening).collect();
    let address = Address::Unix(path.to_owned());
    Ok(Bound { address, listeners, dual_stack: false, path: Some(file) })
}

/// One worker's listener in its reactor.
pub(crate) struct Listener {
    socket: ListenerSocket,
    // Of a unix socket: those that take its place when its path is bound again.
    renewals: Option<UnboundedReceiver<OwnedFd>>,
    // Descriptors that are kept for others.
    reserve: Reserve,
    // A connection that has one of these.
    held_back: Option<(Detached, AcceptedPeer)>,
}

enum ListenerSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Puts a listener into the reactor of this thread. Its connections leave the descriptors of `reserve` to others.
    pub(crate) fn new(bound: BoundListener, reserve: Reserve) -> io::Result<Self> {
        let socket = ListenerSocket::new(bound.fd, bound.kind)?;
        Ok(Self { socket, renewals: bound.renewals, reserve, held_back: None })
    }

    /// The next connection and its peer. Cancel-safe.
    ///
    /// # Errors
    /// No descriptor is left, or none but those that are kept for others: ask again later. No connection is lost.
    pub(crate) async fn accept(&mut self) -> io::Result<(Socket, AcceptedPeer)> {
        if let Some((socket, peer)) = self.held_back.take() {
            return self.release(socket, peer);
        }
        let (socket, peer) = loop {
            // What waits at a socket whose path is gone comes first.
            let renewed = tokio::select! {
                biased;
                accepted = self.socket.accept() => break accepted?,
                Some(renewed) = next(&mut self.renewals) => renewed,
            };
            self.socket = ListenerSocket::new(renewed, Kind::Unix)?;
        };
        if self.reserve.has(socket.descriptor()) {
            return self.release(socket.detach()?, peer);
        }
        Ok((socket, peer))
    }

    /// Gives a connection a descriptor that is not kept for others, or holds it back.
    fn release(&mut self, mut socket: Detached, peer: AcceptedPeer) -> io::Result<(Socket, AcceptedPeer)> {
        let free = socket.fd.try_clone();
        match free {
            Ok(free) if !self.reserve.has(free.as_raw_fd()) => socket.fd = free,
            _ => {
                self.held_back = Some((socket, peer));
                return Err(io::Error::other("the descriptors that are left are kept for outputs"));
            }
        }
        Ok((Socket::attach(socket)?, peer))
    }
}

async fn next(renewals: &mut Option<UnboundedReceiver<OwnedFd>>) -> Option<OwnedFd> {
    renewals.as_mut()?.recv().await
}

impl ListenerSocket {
    fn new(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        match kind {
            Kind::Tcp => Ok(Self::Tcp(TcpListener::from_std(fd.into())?)),
            Kind::Unix => Ok(Self::Unix(UnixListener::from_std(fd.into())?)),
        }
    }

    async fn accept(&self) -> io::Result<(Socket, AcceptedPeer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::accepted_tcp(stream), AcceptedPeer::Tcp(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().ok().map(Process::of);
                Ok((Socket::accepted_unix(stream), AcceptedPeer::Unix(process)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_at(host: &str, port: u16, workers: usize, beside: Beside) -> io::Result<Vec<Bound>> {
        bind(&Address::Tcp { host: host.to_owned(), port }, workers, &SocketFileConfig::default(), beside)
    }

    #[test]
    fn a_tcp_port_is_shared_among_our_workers_and_with_nobody_else() {
        let bound = bind_at("127.0.0.1", 0, 3, Beside::default()).unwrap();
        let Address::Tcp { port, .. } = bound[0].address else { panic!("not tcp") };
        assert_eq!(bound[0].listeners.len(), 3);
        assert_ne!(port, 0);
        assert_eq!(
            bind_at("127.0.0.1", port, 1, Beside::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn the_wildcards_of_both_families_share_a_port_and_one_alone_takes_both() {
        let Ok(both) = bind_at("::", 0, 1, Beside::default()) else { return };
        let Address::Tcp { port, .. } = both[0].address else { panic!("not tcp") };
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(both[0].dual_stack);
        drop(both);
        let beside_ipv4 = Beside { ipv4: true, own: false };
        for order in [["::", "0.0.0.0"], ["0.0.0.0", "::"]] {
            let first = bind_at(order[0], 0, 2, beside_ipv4).unwrap();
            let Address::Tcp { port, .. } = first[0].address else { panic!("not tcp") };
            let second = bind_at(order[1], port, 2, beside_ipv4).unwrap();
            assert!(!first[0].dual_stack && !second[0].dual_stack);
            for host in ["127.0.0.1", "::1"] {
                std::net::TcpStream::connect((host, port)).unwrap();
            }
        }
    }
}
