//! The addresses that this relay listens on: an output that leads to one of them would send every frame round without end.
//!
//! The kernel tells where a connection has arrived, whatever name, link or wildcard led there. On TCP that is the address of
//! the peer. On unix it is the path that the listener was bound to, and the process that listens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::RwLock;

use crate::transport::Address;
use crate::transport::listener::Bound;
use crate::transport::socket::Remote;
use crate::transport::socket::Socket;

/// What one relay listens on, with the names of its inputs, and of its outputs that readers connect to.
#[derive(Debug, Default)]
pub(crate) struct OwnListeners(RwLock<Vec<OwnListener>>);

#[derive(Debug)]
struct OwnListener {
    name: String,
    is_output: bool,
    address: Address,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Tcp {
        address: SocketAddr,
        dual_stack: bool,
    },
    /// `process` has called `listen`: a former process of the chain, the service manager, or this one.
    Unix {
        path: PathBuf,
        process: Option<i32>,
    },
}

impl OwnListeners {
    /// Input `input` listens there.
    pub(crate) fn add(&self, input: &str, bound: &Bound) {
        self.add_listener(input, false, bound);
    }

    /// Output `output` waits for readers there.
    pub(crate) fn add_output(&self, output: &str, bound: &Bound) {
        self.add_listener(output, true, bound);
    }

    fn add_listener(&self, name: &str, is_output: bool, bound: &Bound) {
        let place = match &bound.address {
            Address::Unix(path) => Place::Unix { path: path.clone(), process: bound.listening_process() },
            Address::Systemd(_) => return,
            Address::Tcp { host, port } | Address::Tls { host, port } => match host.parse() {
                Ok(ip) => Place::Tcp { address: SocketAddr::new(ip, *port), dual_stack: bound.dual_stack },
                Err(_) => return,
            },
        };
        let (name, address) = (name.to_owned(), bound.address.clone());
        let listener = OwnListener { name, is_output, address, place };
        self.0.write().expect(UNPOISONED).push(listener);
    }

    /// Nobody listens there any more.
    pub(crate) fn remove(&self, address: &Address) {
        self.0.write().expect(UNPOISONED).retain(|listener| listener.address != *address);
    }

    /// The input that a connection of ours has arrived at.
    pub(crate) fn behind(&self, socket: &Socket) -> Option<String> {
        self.find(socket, |listener| !listener.is_output).map(|(name, _)| name)
    }

    /// The input or output that a connection of a reader of ours has arrived at, and why nothing is to be read there: in words.
    pub(crate) fn behind_for_reader(&self, socket: &Socket) -> Option<String> {
        let (name, is_output) = self.find(socket, |_| true)?;
        Some(if is_output {
            format!("output `{name}` of this same tapster, so that every frame would go round without end")
        } else {
            format!("input `{name}` of this same tapster, which sends no frames")
        })
    }

    fn find(&self, socket: &Socket, wanted: impl Fn(&OwnListener) -> bool) -> Option<(String, bool)> {
        let remote = socket.remote()?;
        let listeners = self.0.read().expect(UNPOISONED);
        let found = listeners.iter().find(|listener| wanted(listener) && listener.place.is(&remote))?;
        Some((found.name.clone(), found.is_output))
    }
}

impl Place {
    fn is(&self, remote: &Remote) -> bool {
        match (self, remote) {
            (Self::Tcp { address, dual_stack }, Remote::Tcp { local, peer }) => {
                takes(*address, *dual_stack, *local, *peer)
            }
            (Self::Unix { path: bound, process: listens }, Remote::Unix { path, process }) => {
                // The path may have been bound again.
                let ours = || u32::try_from(*process) == Ok(std::process::id());
                bound == path && (*listens == Some(*process) || ours())
            }
            _ => false,
        }
    }
}

/// Whether a listener at `bound` has accepted the connection from `local` to `peer`.
fn takes(bound: SocketAddr, dual_stack: bool, local: SocketAddr, peer: SocketAddr) -> bool {
    if bound.port() != peer.port() {
        return false;
    }
    let (peer, local) = (peer.ip().to_canonical(), local.ip().to_canonical());
    if !bound.ip().is_unspecified() {
        return bound.ip().to_canonical() == peer;
    }
    // A wildcard takes what comes to this host: on the loopback, or from one of its addresses to the same one.
    let here = peer.is_loopback() || peer == local;
    here && (bound.is_ipv6() == peer.is_ipv6() || bound.is_ipv6() && dual_stack)
}

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_takes_what_comes_to_this_host_and_an_address_what_comes_to_it() {
        let is = |bound: &str, dual_stack, local: &str, peer: &str| {
            let [bound, local, peer] = [bound, local, peer].map(|text| text.parse().unwrap());
            takes(bound, dual_stack, local, peer)
        };
        assert!(is("127.0.0.1:6000", false, "127.0.0.1:40000", "127.0.0.1:6000"));
        assert!(!is("127.0.0.1:6000", false, "127.0.0.1:40000", "127.0.0.1:6001"));
        assert!(!is("127.0.0.1:6000", false, "127.0.0.1:40000", "127.0.0.2:6000"));
        assert!(is("0.0.0.0:6000", false, "127.0.0.1:40000", "127.0.0.2:6000"));
        assert!(is("0.0.0.0:6000", false, "192.0.2.1:40000", "192.0.2.1:6000"));
        assert!(!is("0.0.0.0:6000", false, "192.0.2.1:40000", "192.0.2.2:6000"));
        assert!(!is("0.0.0.0:6000", false, "[::1]:40000", "[::1]:6000"));
        assert!(is("[::]:6000", false, "[::1]:40000", "[::1]:6000"));
        assert!(is("[::]:6000", true, "127.0.0.1:40000", "127.0.0.1:6000"));
        assert!(!is("[::]:6000", false, "127.0.0.1:40000", "127.0.0.1:6000"));
    }
}
