//! Stream sockets by address: TCP and unix alike.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use socket2::Domain;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;
use tapster::transport::Address;

/// A listening socket and the address that it is bound to; a unix socket is removed when it goes.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    address: Address,
}

impl Listener {
    /// Listens; port 0 lets the kernel choose. A unix socket on which nobody listens any more is replaced.
    pub(crate) fn bind(address: &Address) -> Result<Self> {
        let context = || format!("cannot listen on {address}");
        let bound = match address {
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                let resolved = resolve(host, *port).with_context(context)?;
                let socket = Socket::new(Domain::for_address(resolved), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&resolved.into()).with_context(context)?;
                let local = socket.local_addr()?.as_socket().context("a TCP socket has an IP address")?;
                let address = address.at(local.ip().to_string(), local.port());
                Self { socket, address }
            }
            Address::Unix(path) => {
                remove_stale(path);
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.bind(&SockAddr::unix(path)?).with_context(context)?;
                Self { socket, address: address.clone() }
            }
            Address::Systemd(_) => bail!("{address} is for tapster"),
        };
        bound.socket.listen(BACKLOG).with_context(context)?;
        Ok(bound)
    }

    /// The address, with the port that the kernel chose.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Waits for the next connection, or takes it if the socket does not block.
    pub(crate) fn accept(&self) -> io::Result<Socket> {
        self.socket.accept().map(|(socket, _)| socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

/// Connects, trying for as long as `patience` while nobody listens there yet.
pub(crate) fn connect(address: &Address, patience: Duration) -> Result<Socket> {
    let give_up_at = Instant::now() + patience;
    loop {
        match try_connect(address) {
            Ok(socket) => return Ok(socket),
            Err(error) if is_not_there_yet(&error) && Instant::now() < give_up_at => {
                thread::sleep(RETRY_PAUSE);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
        }
    }
}

fn try_connect(address: &Address) -> io::Result<Socket> {
    match address {
        Address::Tcp { host, port } | Address::Tls { host, port } => {
            let resolved = resolve(host, *port)?;
            let socket = Socket::new(Domain::for_address(resolved), Type::STREAM, None)?;
            socket.connect(&resolved.into())?;
            socket.set_tcp_nodelay(true)?;
            Ok(socket)
        }
        Address::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(socket)
        }
        Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let mut addresses = (host, port).to_socket_addrs()?;
    addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

fn remove_stale(path: &Path) {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if try_connect(&Address::Unix(path.to_owned())).is_err_and(|error| refused(&error)) {
        let _ = fs::remove_file(path);
    }
}

/// Thousands of connections may come at once.
const BACKLOG: i32 = 4096;
const RETRY_PAUSE: Duration = Duration::from_millis(10);
