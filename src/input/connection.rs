//! One connection of an input, on the worker that serves it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::admission::gate::Gate;
use crate::admission::gate::Slot;
use crate::input::InputConfig;
use crate::input::admission::Entrant;
use crate::input::admission::NotAdmitted;
use crate::input::dialled::DialledConnection;
use crate::input::handing::HandedConnection;
use crate::input::handshake_limit::Handshake;
use crate::input::handshake_limit::HandshakeLimit;
use crate::observability::input_account::InputAccount;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::PeerName;
use crate::protocol::ReaderConfig;
use crate::protocol::ReaderCounters;
use crate::protocol::ReaderSession;
use crate::session::read::ReadEnd;
use crate::transport::Address;
use crate::transport::socket::Socket;
use crate::transport::tls::ReloadableServer;

/// One input, as one worker serves it.
pub(crate) struct WorkerInput {
    /// As it is configured now, for new connections.
    pub(crate) config: RefCell<Arc<InputConfig>>,
    /// And for the next frame of each.
    pub(crate) reader: RefCell<Arc<ReaderConfig>>,
    pub(crate) account: Arc<InputAccount>,
    /// Accepted connections of this input on all workers.
    pub(crate) gate: Arc<Gate>,
    /// What its `tls` addresses shake hands with, new connections as it is configured now.
    pub(crate) tls: RefCell<Option<Arc<ReloadableServer>>>,
    /// TLS handshakes that this worker has accepted.
    pub(crate) handshakes: Arc<HandshakeLimit>,
}

/// A connection as it comes to the worker that serves it.
pub(crate) struct Arrival {
    /// Who is at the far end, for the log.
    pub(crate) peer: PeerName,
    /// Whether tapster has opened it, and where to.
    pub(crate) dialled: Option<DialledConnection>,
    /// A connection that was accepted at a `tls` address: its handshake is under way.
    pub(crate) handshake: Option<Handshake>,
    /// Where another process has left it.
    pub(crate) handed: Option<Box<HandedConnection>>,
}

/// One connection in the accounts of its input. Dropped, it has ended, in whatever way.
pub(super) struct OpenConnection<'a> {
    pub(super) input: &'a WorkerInput,
    pub(super) log: &'a ListenerLog,
    pub(super) peer: PeerName,
    pub(super) dialled: Option<DialledConnection>,
    pub(super) end: &'static str,
    counted: ReaderCounters,
    pub(super) slot: Slot,
    /// Connections that were open before it.
    pub(super) open_before: usize,
}

impl<'a> OpenConnection<'a> {
    pub(super) fn new(
        input: &'a WorkerInput,
        log: &'a ListenerLog,
        (peer, dialled): (PeerName, Option<DialledConnection>),
        is_new: bool,
    ) -> Self {
        if is_new {
            input.account.connected();
        } else {
            input.account.taken_over();
        }
        // Those that tapster opens take no place of those that it accepts.
        let (slot, open_before) = match &dialled {
            None => input.gate.enter(),
            Some(_) => Arc::<Gate>::default().enter(),
        };
        // What is not replaced tells of a task that failed.
        let counted = ReaderCounters::default();
        Self { input, log, peer, dialled, end: "internal", counted, slot, open_before }
    }

    /// Lets the connection in, or says why not.
    pub(super) async fn admit(
        &mut self,
        socket: &mut Socket,
        session: &mut ReaderSession,
    ) -> Result<(), NotAdmitted> {
        let config = Arc::clone(&self.input.config.borrow());
        let entrant = Entrant {
            config: &config,
            open_before: self.open_before,
            slot: &mut self.slot,
            peer: &mut self.peer,
        };
        entrant.admit(socket, session).await
    }

    /// The address of `dial` that it was opened to.
    pub(super) fn dial(&self) -> Option<&Address> {
        self.dialled.as_ref().map(DialledConnection::to)
    }

    /// Counts what the session has left out since the last call.
    pub(super) fn count(&mut self, now: ReaderCounters) {
        if now != self.counted {
            if now.frames_oversize > self.counted.frames_oversize {
                self.input.account.oversize_from(&self.peer.to_string());
            }
            self.input.account.left_out(
                now.frames_oversize - self.counted.frames_oversize,
                now.control_frames_ignored - self.counted.control_frames_ignored,
                now.bytes_after_stop - self.counted.bytes_after_stop,
            );
            self.counted = now;
        }
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        if self.end == ReadEnd::HandedOver.name() {
            self.input.account.handed_over();
        } else {
            self.input.account.ended(self.end);
        }
    }
}
