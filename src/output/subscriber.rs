//! A reader that connects to an output: let in, greeted, and served until it leaves.
//!
//! From its START on it is a lane like others: a queue, a delivery and the loop that drives both.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::admission::Entrant;
use crate::admission::Limit;
use crate::admission::NotAdmitted;
use crate::admission::gate::Gate;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::PeerName;
use crate::observability::roster::Roster;
use crate::output::frame_stream;
use crate::output::lane::Source;
use crate::output::settings::LaneSettings;
use crate::output::stream_lane::StreamLane;
use crate::output::subscribers::SubscribersConfig;
use crate::protocol::ContentType;
use crate::protocol::WriterConfig;
use crate::protocol::WriterSession;
use crate::queue::takers::Taker;
use crate::queue::takers::Takers;
use crate::session::subscribe::NotStarted;
use crate::session::subscribe::Subscription;
use crate::transport::Backend;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::socket::Socket;

/// An output, as those see it who subscribe. One for all workers.
#[derive(Debug)]
pub(crate) struct Door {
    /// Name of the output.
    pub(crate) output: String,
    pub(crate) content_type: Option<ContentType>,
    /// As it is configured now, for those that come.
    pub(crate) config: watch::Receiver<Arc<SubscribersConfig>>,
    /// And for those that are there.
    pub(crate) settings: watch::Receiver<Arc<LaneSettings>>,
    pub(crate) takers: Arc<Takers>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) gate: Arc<Gate>,
    /// Of the output.
    pub(crate) scope: Scope,
    pub(crate) own: Arc<OwnListeners>,
    pub(crate) loops: Arc<Loops>,
}

/// A connection that was accepted at a listener of the output.
pub(crate) struct Visitor {
    pub(crate) socket: Socket,
    pub(crate) peer: PeerName,
    /// Of the listener.
    pub(crate) log: Arc<ListenerLog>,
    pub(crate) scope: Scope,
}

/// Why a connection is not served.
enum NotServed {
    Refused(NotAdmitted),
    NotStarted(NotStarted),
}

impl Door {
    /// Serves a connection from accept to its end, on a worker with this backend.
    pub(crate) async fn serve(self: Arc<Self>, visitor: Visitor, backend: Backend) {
        let Visitor { socket, mut peer, log, scope } = visitor;
        let not_served = match self.serve_visitor(socket, &mut peer, &log, &scope, backend).await {
            Ok(()) => return,
            Err(not_served) => not_served,
        };
        let (event, words) = match not_served {
            NotServed::Refused(NotAdmitted::Refused(refusal)) => {
                self.roster.rejected(refusal.reason());
                (Event::Refused(refusal.reason()), format!("refused: {refusal}"))
            }
            NotServed::Refused(NotAdmitted::NoByte) | NotServed::NotStarted(NotStarted::NoByte) => {
                (Event::Probed, "connection ended: closed by the peer before it sent a byte".to_owned())
            }
            NotServed::Refused(NotAdmitted::CutHeader) => {
                (Event::Failed, "connection ended: closed by the peer within its PROXY header".to_owned())
            }
            NotServed::Refused(NotAdmitted::Late) => {
                (Event::Failed, "connection ended: the PROXY header did not come in time".to_owned())
            }
            NotServed::Refused(NotAdmitted::Connection(error)) => {
                (Event::Failed, format!("connection ended: {error}"))
            }
            NotServed::NotStarted(NotStarted::Fault(fault)) => {
                (Event::Failed, format!("connection ended: {fault}"))
            }
        };
        log.tell(event, Some(&peer), || words);
    }

    async fn serve_visitor(
        &self,
        mut socket: Socket,
        peer: &mut PeerName,
        log: &ListenerLog,
        scope: &Scope,
        backend: Backend,
    ) -> Result<(), NotServed> {
        let config = Arc::clone(&self.config.borrow());
        let accepted_at = Instant::now();
        let deadline = accepted_at + config.handshake_timeout;
        let (mut slot, open_before) = self.gate.enter();
        let limit = Limit { key: "subscribers_max", max: config.subscribers_max };
        let access = &config.access;
        let mut phases = scope.phases();
        let opening = async {
            let entrant = Entrant { access, limit, open_before, slot: &mut slot, peer };
            entrant.admit(&mut socket, deadline).await.map_err(NotServed::Refused)?;
            // TLS has its place here: between the PROXY header and the handshake, within the same deadline.
            socket.prepare_writing();
            let session = WriterSession::serving(self.writer(&config), accepted_at)
                .map_err(|error| NotServed::NotStarted(error.into()))?;
            let mut subscription = Subscription::new(socket, session, config.bidirectional);
            subscription.shake_hands(deadline).await.map_err(NotServed::NotStarted)?;
            Ok(subscription)
        };
        let subscription = tokio::select! {
            biased;
            opened = opening => opened?,
            () = phases.reached(Phase::Draining) => return Ok(()),
        };
        let name = name_of(peer, log);
        // Before START: who has START gets what arrives from then on.
        let Some(taker) = self.takers.join(name.clone()) else { return Ok(()) };
        let seat = Seat { takers: &self.takers, taker, scope };
        let open = subscription.start(deadline, backend).await.map_err(NotServed::NotStarted)?;
        let lane = StreamLane {
            source: Source {
                output: self.output.clone(),
                queue: Arc::clone(&seat.taker.queue),
                account: Arc::clone(&seat.taker.account),
                reports: None,
                max_age: None,
            },
            content_type: self.content_type.clone(),
            settings: self.settings.clone(),
            own: Arc::clone(&self.own),
            loops: Arc::clone(&self.loops),
            subscriber: Some(name),
        };
        // The listener goes, and the output stays: what waits is written, and STOP.
        let listener_goes = async {
            phases.reached(Phase::Draining).await;
            if self.scope.phase() == Phase::Running {
                self.takers.dismiss(&seat.taker);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = frame_stream::serve(lane, open, backend, scope.clone()) => {}
            () = listener_goes => {}
        }
        Ok(())
    }

    fn writer(&self, config: &SubscribersConfig) -> WriterConfig {
        WriterConfig {
            content_types: self.content_type.clone().into_iter().collect(),
            bidirectional: config.bidirectional,
            handshake_timeout: config.handshake_timeout,
            finish_timeout: config.finish_timeout,
        }
    }
}

/// The place of a subscriber among the takers. Dropped, it has left, in whatever way.
struct Seat<'a> {
    takers: &'a Takers,
    taker: Arc<Taker>,
    scope: &'a Scope,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.scope.phase() < Phase::Over {
            self.taker.account.unsubscribe();
        }
        self.takers.dismiss(&self.taker);
    }
}

/// Where a subscriber comes from, in the ledger and in the log.
fn name_of(peer: &PeerName, log: &ListenerLog) -> String {
    match peer {
        PeerName::Tcp(address) => format!("tcp://{address}"),
        PeerName::Unix(_) => log.listener().to_owned(),
    }
}
