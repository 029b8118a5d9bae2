//! What a connection passes before its handshake.

use std::fmt;

use crate::input::InputConfig;
use crate::input::gate::Place;
use crate::observability::peer_name::PeerName;
use crate::observability::rejection::Rejection;

/// Why a connection is closed without an answer. Its text says what to do, unlike the peer, who is told nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Limit { connections_max: usize },
    LimitAddress { connections_max: usize },
    NotAllowed,
    Peer,
}

/// Lets a connection in, with its place among the open ones, of which `open` were there before.
pub(super) fn admit(
    config: &InputConfig,
    open: usize,
    place: &mut Place,
    peer: &PeerName,
) -> Result<(), Refusal> {
    if open >= config.connections_max {
        return Err(Refusal::Limit { connections_max: config.connections_max });
    }
    let access = &config.access;
    if !access.allows_process(peer) {
        return Err(Refusal::Peer);
    }
    if let Some(address) = peer.ip() {
        if !access.allows(address) {
            return Err(Refusal::NotAllowed);
        }
        if let Some(connections_max) = access.connections_max_per_address
            && !place.take_one_of(address, connections_max)
        {
            return Err(Refusal::LimitAddress { connections_max });
        }
    }
    Ok(())
}

impl Refusal {
    /// What it counts as.
    pub(super) fn reason(&self) -> Rejection {
        match self {
            Self::Limit { .. } => Rejection::Limit,
            Self::LimitAddress { .. } => Rejection::LimitAddress,
            Self::NotAllowed => Rejection::NotAllowed,
            Self::Peer => Rejection::Peer,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { connections_max } => {
                write!(f, "{connections_max} connections are open; raise `connections_max` of this input")
            }
            Self::LimitAddress { connections_max } => write!(
                f,
                "{connections_max} connections of this address are open; raise `connections_max_per_address` of this input"
            ),
            Self::NotAllowed => write!(f, "`allow` of this input does not have this address"),
            Self::Peer => write!(
                f,
                "neither `allow_users` has the user of this process nor `allow_groups` its primary group"
            ),
        }
    }
}
