//! Connections that another process goes on with.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::observability::peer_name::PeerName;
use crate::protocol::ContentType;
use crate::protocol::ReaderStage;
use crate::transport::Address;

/// Everything but its socket that another process needs to go on with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandedConnection {
    /// Name of its input.
    pub(crate) input: String,
    /// The address of `dial` that it was opened to; `None` where it was accepted.
    pub(crate) dial: Option<String>,
    /// The address of its peer: the one that a PROXY header has named, if there was one.
    pub(crate) peer: Option<SocketAddr>,
    /// How far its session is.
    pub(crate) stage: ReaderStage,
    /// The type of its stream, once that has begun.
    pub(crate) content_type: Option<ContentType>,
    /// The beginning of a frame.
    pub(crate) received: Bytes,
}

/// A connection that waits for another process to go on with it. Nobody reads it meanwhile.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) socket: OwnedFd,
    pub(crate) connection: HandedConnection,
    /// Whether the other process has it. Dropped: it has not.
    pub(crate) verdict: oneshot::Sender<bool>,
}

impl Offer {
    /// An offer, and what becomes of it; `None` where the connection cannot be offered.
    pub(crate) fn new(
        socket: io::Result<OwnedFd>,
        (input, dial, peer): (&str, Option<&Address>, &PeerName),
        stage: Option<ReaderStage>,
        content_type: Option<&ContentType>,
        received: Bytes,
    ) -> Option<(Self, oneshot::Receiver<bool>)> {
        let (verdict, answer) = oneshot::channel();
        let connection = HandedConnection {
            input: input.to_owned(),
            dial: dial.map(Address::to_string),
            peer: match peer {
                PeerName::Tcp(address) => Some(*address),
                PeerName::Unix(_) => None,
            },
            stage: stage?,
            content_type: content_type.cloned(),
            received,
        };
        Some((Self { socket: socket.ok()?, connection, verdict }, answer))
    }
}
