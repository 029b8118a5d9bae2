//! What an input makes of a connection that is not let in.

use std::time::Instant;

use crate::admission;
use crate::admission::Limit;
use crate::admission::Refusal;
use crate::admission::gate::Slot;
use crate::input::InputConfig;
use crate::observability::peer_name::PeerName;
use crate::protocol::ReaderSession;
use crate::session::read::ReadEnd;
use crate::transport::socket::Socket;

/// Why a connection has not come as far as its stream.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// It is closed without an answer.
    Refused(Refusal),
    /// It ended by itself.
    Ended(ReadEnd),
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
    /// Lets the connection in, or says why not. A PROXY header has the time of the handshake. The connection is given up when this
    /// future is dropped.
    pub(super) async fn admit(
        self,
        socket: &mut Socket,
        session: &mut ReaderSession,
    ) -> Result<(), NotAdmitted> {
        let Self { config, open_before, slot, peer } = self;
        let limit = Limit { key: "connections_max", max: config.connections_max };
        let entrant = admission::Entrant { access: &config.access, limit, open_before, slot, peer };
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        entrant.admit(socket, deadline).await.map_err(|error| match error {
            admission::NotAdmitted::Refused(refusal) => NotAdmitted::Refused(refusal),
            admission::NotAdmitted::NoByte => ReadEnd::NoByte.into(),
            admission::NotAdmitted::CutHeader => ReadEnd::NoStream.into(),
            admission::NotAdmitted::Connection(error) => ReadEnd::Connection(error).into(),
            admission::NotAdmitted::Late => {
                let late = session.handle_timeout(deadline);
                late.map_or_else(ReadEnd::Protocol, |()| ReadEnd::NoStream).into()
            }
        })
    }
}

impl From<ReadEnd> for NotAdmitted {
    fn from(end: ReadEnd) -> Self {
        Self::Ended(end)
    }
}
