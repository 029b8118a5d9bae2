//! What an endpoint has of its connection.

use std::time::Instant;

use crate::delivery::action::StreamId;

/// What there is of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    /// The next attempt comes at this time.
    Down { retry_at: Instant },
    /// Until the deadline.
    Connecting { stream: StreamId, deadline: Instant },
    /// Past the handshake.
    Up { stream: StreamId, since: Instant },
    /// STOP was asked for; until the deadline. `last`: nothing is left to write.
    Stopping { stream: StreamId, since: Instant, deadline: Instant, last: bool, arriving: bool },
    /// No connection is wanted. `gave_up`: not even for what others give back.
    Ended { gave_up: bool },
}

impl Link {
    /// With an attempt at this time, or without any more.
    pub(super) fn planned(retry_at: Option<Instant>) -> Self {
        retry_at.map_or(Self::Ended { gave_up: true }, |retry_at| Self::Down { retry_at })
    }
}
