//! Who is at the other end of a connection, for the log.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;

/// The peer of a connection that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerName {
    /// An address, and nothing else is known.
    Tcp(SocketAddr),
    /// A process of this host.
    Unix(Option<LocalPeer>),
}

/// A process at the other end of a unix socket, at the time when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPeer {
    /// Its number; `None` where this process cannot see it.
    pub(crate) pid: Option<i32>,
    /// The number of its user.
    pub(crate) uid: u32,
    /// The number of its primary group.
    pub(crate) gid: u32,
    /// The name of its user.
    pub(crate) user: Option<String>,
    /// What the process calls itself, escaped: it may choose any bytes.
    pub(crate) program: Option<String>,
}

/// Whom the log takes for the same peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerKey {
    /// An address, whatever its port.
    Address(IpAddr),
    /// A user of this host.
    User(u32),
}

impl PeerName {
    /// Whom the log takes it for; `None` where nothing is known.
    pub(crate) fn key(&self) -> Option<PeerKey> {
        self.ip().map(PeerKey::Address).or(self.process().map(|process| PeerKey::User(process.uid)))
    }

    /// The address, for TCP.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }

    /// The process, for a unix socket.
    pub(crate) fn process(&self) -> Option<&LocalPeer> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(process) => process.as_ref(),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(_) => f.write_str("unix"),
        }
    }
}
