//! What a connection passes before its handshake: limits, who its peer is, and the PROXY header.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use crate::input::InputConfig;
use crate::input::gate::Slot;
use crate::observability::peer_name::PeerName;
use crate::observability::rejection::Rejection;
use crate::protocol::ReaderSession;
use crate::session::read::ReadEnd;
use crate::transport::proxy_header;
use crate::transport::proxy_header::ProxyHeaderError;
use crate::transport::socket::Socket;

/// Why a connection has not come as far as its stream.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// It is closed without an answer.
    Refused(Refusal),
    /// It ended by itself.
    Ended(ReadEnd),
}

/// Why a connection is closed without an answer. Its text says what to do, in the log; the peer is told nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Limit { connections_max: usize },
    LimitAddress { connections_max: usize },
    NotAllowed,
    Peer,
    ProxyFrom,
    ProxyHeader(ProxyHeaderError),
    Name { names: Vec<String> },
}

/// A connection that has been accepted, and asks to be let in.
pub(super) struct Entrant<'a> {
    pub(super) config: &'a InputConfig,
    /// Connections of the input that were open before it.
    pub(super) open_before: usize,
    pub(super) slot: &'a mut Slot,
    /// The far end of the connection; the one that the PROXY header names, from then on.
    pub(super) peer: &'a mut PeerName,
}

impl Entrant<'_> {
    /// Lets the connection in, or says why not. Takes a PROXY header off the socket where the input has one, and nothing behind
    /// it. The header has the time of the handshake. The connection is given up when this future is dropped.
    pub(super) async fn admit(
        self,
        socket: &mut Socket,
        session: &mut ReaderSession,
    ) -> Result<(), NotAdmitted> {
        let Self { config, open_before, slot, peer } = self;
        let access = &config.access;
        if open_before >= config.connections_max {
            return Err(Refusal::Limit { connections_max: config.connections_max }.into());
        }
        if !access.allows_process(peer) {
            return Err(Refusal::Peer.into());
        }
        if access.proxy_from.is_some() {
            if peer.ip().is_some_and(|address| !access.allows_proxy(address)) {
                return Err(Refusal::ProxyFrom.into());
            }
            if let Some(source) = take_header_in_time(socket, session).await? {
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

async fn take_header_in_time(
    socket: &mut Socket,
    session: &mut ReaderSession,
) -> Result<Option<SocketAddr>, NotAdmitted> {
    let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
    match tokio::time::timeout_at(deadline.into(), take_header(socket)).await {
        Ok(result) => result,
        Err(_) => {
            let result = session.handle_timeout(deadline);
            Err(result.map_or_else(ReadEnd::Protocol, |()| ReadEnd::NoStream).into())
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
            Ok(0) if taken == 0 => return Err(ReadEnd::NoByte.into()),
            Ok(0) => return Err(ReadEnd::NoStream.into()),
            Ok(count) => count,
            Err(error) if taken == 0 && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ReadEnd::NoByte.into());
            }
            Err(error) => return Err(ReadEnd::Connection(error).into()),
        };
        bytes.truncate(taken + count);
        let header = proxy_header::parse(&bytes).map_err(Refusal::ProxyHeader)?;
        let end = header.map_or(bytes.len(), |header| header.len);
        let piece = bytes.get_mut(taken..end).unwrap_or_default();
        socket.read_exact(piece).await.map_err(ReadEnd::Connection)?;
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

impl From<ReadEnd> for NotAdmitted {
    fn from(end: ReadEnd) -> Self {
        Self::Ended(end)
    }
}

impl Refusal {
    /// What it counts as.
    pub(super) fn reason(&self) -> Rejection {
        match self {
            Self::Limit { .. } => Rejection::Limit,
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
            Self::Limit { connections_max } => {
                write!(
                    f,
                    "all {connections_max} connections of `connections_max` are open; raise it for this input"
                )
            }
            Self::LimitAddress { connections_max } => write!(
                f,
                "all {connections_max} connections of `connections_max_per_address` are open from this address; raise it for \
                 this input"
            ),
            Self::NotAllowed => write!(f, "this address is not in `allow` of this input"),
            Self::Peer => write!(
                f,
                "the user of this process is not in `allow_users` of this input, nor its primary group in `allow_groups`"
            ),
            Self::ProxyFrom => write!(
                f,
                "this address is not in `proxy_from` of this input: only the proxies that are may connect to it"
            ),
            Self::ProxyHeader(error @ ProxyHeaderError::NotProxy) => write!(
                f,
                "{error}, and this input has `proxy_protocol = true`: let the proxy send one (HAProxy: send-proxy-v2), or give \
                 writers that connect by themselves another input"
            ),
            Self::ProxyHeader(error) => write!(f, "{error}"),
            Self::Name { names } if names.is_empty() => write!(
                f,
                "its certificate has no name (no subject alternative name of DNS or URI), and this input has `allow_names`"
            ),
            Self::Name { names } => write!(
                f,
                "its certificate is of {}, and no name in it is in `allow_names` of this input",
                names.join(", ")
            ),
        }
    }
}

/// Bytes that are looked at together.
const PIECE: usize = 256;
