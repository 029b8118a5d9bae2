//! The listening sockets of the admin addresses.

use std::fs;
use std::fs::DirBuilder;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use socket2::SockRef;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::config::AdminConfig;
use crate::config::is_local;
use crate::transport::Address;
use crate::transport::socket_path::AtPath;
use crate::transport::socket_path::SocketFileConfig;
use crate::transport::socket_path::SocketPath;

/// Who can come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Whoever may open the unix socket.
    Unix,
    /// Whoever runs on this host, and pages in its browsers.
    Loopback,
    /// Whoever reaches the address.
    Network,
}

/// An address that is listened on.
#[derive(Debug)]
pub(crate) struct Door {
    configured: Address,
    // With the port that the kernel chose.
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix(SocketPath),
    Tcp(TcpListener),
}

/// A listening socket, for whoever accepts.
#[derive(Debug)]
pub(crate) struct Entrance {
    pub(crate) side: Side,
    pub(crate) socket: OwnedFd,
    /// Of a unix socket: those that take its place when its path is bound again.
    pub(crate) renewals: Option<UnboundedReceiver<OwnedFd>>,
}

/// Addresses that were opened, for a [`Server`](crate::admin::Server).
#[derive(Debug, Default)]
pub struct Opened {
    pub(crate) doors: Vec<Door>,
    /// Default addresses that other processes have.
    pub busy: Vec<Address>,
    /// Default addresses that cannot be had for another reason, in words.
    pub warnings: Vec<String>,
}

impl Opened {
    /// Listens at every address of the configuration except those that are `present`. Sockets that another process has lent take the
    /// place of new ones. Nobody is answered before a server has them. Blocks while names are looked up.
    ///
    /// # Errors
    /// A line for each address that was configured and cannot be had. A default address that cannot is no fault.
    pub fn open(
        config: &AdminConfig,
        present: &[Address],
        mut lent: Vec<(String, OwnedFd)>,
    ) -> Result<Self, Vec<String>> {
        let mut opened = Self::default();
        let mut faults = Vec::new();
        for address in config.addresses() {
            if present.contains(&address) {
                continue;
            }
            let inherited: Vec<_> = lent.extract_if(.., |(name, _)| named(name, &address)).collect();
            let is_default = config.listen.is_none();
            match open(&address, is_default, inherited) {
                Ok(doors) => opened.doors.extend(doors),
                Err(error) if is_default && error.kind() == io::ErrorKind::AddrInUse => {
                    opened.busy.push(address);
                }
                Err(error) if is_default => opened.warnings.push(format!("no answers on {address}: {error}")),
                Err(error) => faults.push(format!("admin: cannot listen on {address}: {error}")),
            }
        }
        if faults.is_empty() { Ok(opened) } else { Err(faults) }
    }

    /// Where it listens, with the ports that the kernel chose.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.doors.iter().map(Door::address)
    }
}

impl Door {
    /// As it was configured.
    pub(crate) fn configured(&self) -> &Address {
        &self.configured
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The socket, for whoever accepts in place of those that did before.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn entrance(&mut self) -> io::Result<Entrance> {
        match &mut self.socket {
            Socket::Unix(path) => {
                let (socket, renewals) = path.listeners(1)?.remove(0);
                Ok(Entrance { side: Side::Unix, socket, renewals: Some(renewals) })
            }
            Socket::Tcp(listener) => {
                let side = if is_local(&self.configured) { Side::Loopback } else { Side::Network };
                Ok(Entrance { side, socket: listener.as_fd().try_clone_to_owned()?, renewals: None })
            }
        }
    }

    /// Another descriptor of the socket for a process that takes over, by name.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn lend(&self) -> io::Result<(String, OwnedFd)> {
        let socket = match &self.socket {
            Socket::Unix(path) => path.duplicate()?,
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned()?,
        };
        Ok((self.configured.to_string(), socket))
    }

    /// Another process has the address: the socket file stays.
    pub(crate) fn leave(self) {
        if let Socket::Unix(path) = self.socket {
            path.leave();
        }
    }

    /// The socket file is that of this process, from now on.
    pub(crate) fn own(&mut self) {
        if let Socket::Unix(path) = &mut self.socket {
            path.own();
        }
    }

    /// Binds the path again when a clean-up has removed the socket file. Returns whether it was bound again.
    ///
    /// # Errors
    /// It is gone, and cannot be bound.
    pub(crate) fn look_after(&mut self) -> io::Result<bool> {
        match &mut self.socket {
            Socket::Unix(path) if path.look() == AtPath::Nothing => path.bind_again().map(|()| true),
            _ => Ok(false),
        }
    }
}

/// Whether a descriptor that was lent is of this address.
fn named(name: &str, address: &Address) -> bool {
    *name == address.to_string()
}

fn open(address: &Address, is_default: bool, lent: Vec<(String, OwnedFd)>) -> io::Result<Vec<Door>> {
    let door = |address: &Address, bound: Address, socket| Door {
        configured: address.clone(),
        address: bound,
        socket,
    };
    if let Address::Unix(path) = address {
        let file = SocketFileConfig { mode: Some(SOCKET_MODE), ..SocketFileConfig::default() };
        let path = match lent.into_iter().next() {
            Some((_, socket)) => SocketPath::adopt(path, socket, &file)?,
            None => {
                if is_default {
                    make_folder(path.parent().unwrap_or(Path::new("/")))?;
                }
                SocketPath::bind(path, 1, &file)?.0
            }
        };
        return Ok(vec![door(address, address.clone(), Socket::Unix(path))]);
    }
    let listeners = match lent.is_empty() {
        true => listen(address)?,
        false => lent.into_iter().map(|(_, socket)| TcpListener::from(socket)).collect(),
    };
    let doors = listeners.into_iter().map(|listener| {
        if !SockRef::from(&listener).is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket that does not listen"));
        }
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        let bound = Address::Tcp { host: bound.ip().to_string(), port: bound.port() };
        Ok(door(address, bound, Socket::Tcp(listener)))
    });
    doors.collect()
}

/// Every address of a name, on one port.
fn listen(address: &Address) -> io::Result<Vec<TcpListener>> {
    let Address::Tcp { host, port } = address else { return Ok(Vec::new()) };
    let mut port = *port;
    let mut listeners: Vec<TcpListener> = Vec::new();
    for mut address in std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port))? {
        address.set_port(port);
        let listener = TcpListener::bind(address)?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Makes the run-time folder of the user, if it is not there. One in a folder that everybody can write may be somebody else's.
fn make_folder(folder: &Path) -> io::Result<()> {
    let user = rustix::process::geteuid();
    let mode = if user.is_root() { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(folder)?;
    let is_ours =
        metadata.is_dir() && [0, user.as_raw()].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0;
    if is_ours {
        return Ok(());
    }
    let words = format!("others can write in {}, or it is no folder", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, words))
}

/// Whoever may open the socket may do everything.
const SOCKET_MODE: u32 = 0o600;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn config(addresses: &[Address]) -> AdminConfig {
        AdminConfig { listen: Some(addresses.to_vec()), ..AdminConfig::default() }
    }

    #[test]
    fn configured_addresses_are_all_opened_or_each_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let unix = Address::Unix(folder.path().join("s.sock"));
        let tcp: Address = "tcp://127.0.0.1:0".parse().unwrap();
        let opened = Opened::open(&config(&[unix.clone(), tcp]), &[], Vec::new()).unwrap();
        let addresses: Vec<_> = opened.addresses().cloned().collect();
        let mode = fs::metadata(folder.path().join("s.sock")).unwrap().permissions().mode();
        assert_eq!((addresses.len(), mode & 0o777), (2, 0o600));
        assert_eq!(Opened::open(&config(&addresses), &[], Vec::new()).unwrap_err().len(), 2);
        let rest = Opened::open(&config(&addresses), &addresses[..1], Vec::new()).unwrap_err();
        assert!(rest[0].starts_with("admin: cannot listen on tcp://127.0.0.1:"), "{rest:?}");
        // What is lent takes the place of what would be bound, and the file stays until it is owned.
        let named = |door: &Door| (door.address().to_string(), door.lend().unwrap().1);
        let lent = opened.doors.iter().map(named).collect();
        let mut taken = Opened::open(&config(&addresses), &[], lent).unwrap();
        assert_eq!(taken.addresses().cloned().collect::<Vec<_>>(), addresses);
        opened.doors.into_iter().for_each(Door::leave);
        assert!(folder.path().join("s.sock").exists());
        taken.doors.iter_mut().for_each(Door::own);
        fs::remove_file(folder.path().join("s.sock")).unwrap();
        assert!(taken.doors[0].look_after().unwrap());
        drop(taken);
        assert!(!folder.path().join("s.sock").exists());
    }

    #[test]
    fn the_folder_of_the_user_is_made_and_one_of_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        make_folder(&own).unwrap();
        make_folder(&own).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o022, 0);
        symlink(&own, folder.path().join("link")).unwrap();
        make_folder(&folder.path().join("link")).unwrap_err();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        make_folder(&own).unwrap_err();
        make_folder(&folder.path().join("none/of/them")).unwrap_err();
    }
}
