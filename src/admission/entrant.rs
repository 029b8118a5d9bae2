//! What a connection passes before its handshake: limits, who its peer is, and the PROXY header.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use crate::admission::access::Access;
use crate::admission::gate::Slot;
use crate::observability::peer_name::PeerName;
use crate::observability::rejection::Rejection;
use crate::transport::proxy_header;
use crate::transport::proxy_header::ProxyHeaderError;
use crate::transport::socket::Socket;

/// Why a connection has not come as far as its handshake.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// It is closed without an answer.
    Refused(Refusal),
    /// Its peer closed it, and had not sent a byte.
    NoByte,
    /// Its peer closed it within the PROXY header.
    CutHeader,
    /// The PROXY header did not come in time.
    Late,
    /// It broke.
    Connection(io::Error),
}

/// How many connections there may be at the same time, and the key that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) key: &'static str,
    pub(crate) max: usize,
}

/// Why a connection is closed without an answer. Its text says what to do, in the log; the peer is told nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Limit(Limit),
    LimitAddress { connections_max: usize },
    NotAllowed,
    Peer,
    ProxyFrom,
    ProxyHeader(ProxyHeaderError),
    Name { names: Vec<String> },
}

/// A connection that has been accepted, and asks to be let in.
pub(crate) struct Entrant<'a> {
    pub(crate) access: &'a Access,
    pub(crate) limit: Limit,
    /// Connections that were open before it.
    pub(crate) open_before: usize,
    pub(crate) slot: &'a mut Slot,
    /// The far end of the connection; the one that the PROXY header names, from then on.
    pub(crate) peer: &'a mut PeerName,
}

impl Entrant<'_> {
    /// Lets the connection in, or says why not. Takes a PROXY header off the socket where there has to be one, and nothing behind
    /// it: until `deadline`. The connection is given up when this future is dropped.
    pub(crate) async fn admit(self, socket: &mut Socket, deadline: Instant) -> Result<(), NotAdmitted> {
        let Self { access, limit, open_before, slot, peer } = self;
        if open_before >= limit.max {
            return Err(Refusal::Limit(limit).into());
        }
        if !access.allows_process(peer) {
            return Err(Refusal::Peer.into());
        }
        if access.proxy_from.is_some() {
            if peer.ip().is_some_and(|address| !access.allows_proxy(address)) {
                return Err(Refusal::ProxyFrom.into());
            }
            let header = tokio::time::timeout_at(deadline.into(), take_header(socket)).await;
            if let Some(source) = header.unwrap_or(Err(NotAdmitted::Late))? {
                *peer = PeerName::Tcp(source);
            }
        }
        let Some(address) = peer.ip() else { return Ok(()) };
        if !access.allows(address) {
            return Err(Refusal::NotAllowed.into());
        }
        match access.connections_max_per_address {
            Some(connections_max) if !slot.take_one_of(address, connections_max) => {
                Err(Refusal::LimitAddress { connections_max }.into())
            }
            _ => Ok(()),
        }
    }
}

/// Looks at what has arrived before it is taken, so that what stands behind the header stays for the stream.
async fn take_header(socket: &mut Socket) -> Result<Option<SocketAddr>, NotAdmitted> {
    // A header has few bytes, most of the time. The parser refuses long ones: this stays small.
    let mut bytes = Vec::new();
    loop {
        let taken = bytes.len();
        bytes.resize(taken + PIECE, 0);
        let count = match socket.peek(bytes.get_mut(taken..).unwrap_or_default()).await {
            Ok(0) if taken == 0 => return Err(NotAdmitted::NoByte),
            Ok(0) => return Err(NotAdmitted::CutHeader),
            Ok(count) => count,
            Err(error) if taken == 0 && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(NotAdmitted::NoByte);
            }
            Err(error) => return Err(NotAdmitted::Connection(error)),
        };
        bytes.truncate(taken + count);
        let header = proxy_header::parse(&bytes).map_err(Refusal::ProxyHeader)?;
        let end = header.map_or(bytes.len(), |header| header.len);
        let piece = bytes.get_mut(taken..end).unwrap_or_default();
        socket.read_exact(piece).await.map_err(NotAdmitted::Connection)?;
        if let Some(header) = header {
            return Ok(header.source);
        }
    }
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Refusal {
    /// What it counts as.
    pub(crate) fn reason(&self) -> Rejection {
        match self {
            Self::Limit(_) => Rejection::Limit,
            Self::LimitAddress { .. } => Rejection::LimitAddress,
            Self::NotAllowed | Self::Name { .. } => Rejection::NotAllowed,
            Self::Peer => Rejection::Peer,
            Self::ProxyFrom | Self::ProxyHeader(_) => Rejection::ProxyHeader,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(Limit { key, max }) => {
                write!(f, "all {max} connections of `{key}` are open; raise it")
            }
            Self::LimitAddress { connections_max } => write!(
                f,
                "all {connections_max} connections of `connections_max_per_address` are open from this address; raise it"
            ),
            Self::NotAllowed => write!(f, "this address is not in `allow`"),
            Self::Peer => write!(
                f,
                "the user of this process is not in `allow_users`, nor its primary group in `allow_groups`"
            ),
            Self::ProxyFrom => {
                write!(f, "this address is not in `proxy_from`: only the proxies that are may connect to it")
            }
            Self::ProxyHeader(error @ ProxyHeaderError::NotProxy) => write!(
                f,
                "{error}, and `proxy_protocol = true` is set here: let the proxy send one (HAProxy: send-proxy-v2), or let peers that \
                 connect by themselves have another listener"
            ),
            Self::ProxyHeader(error) => write!(f, "{error}"),
            Self::Name { names } if names.is_empty() => write!(
                f,
                "its certificate has no name (no subject alternative name of DNS or URI), and `allow_names` is set here"
            ),
            Self::Name { names } => {
                write!(f, "its certificate is of {}, and no name in it is in `allow_names`", names.join(", "))
            }
        }
    }
}

/// Bytes that are looked at together.
const PIECE: usize = 256;
