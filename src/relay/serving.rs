//! Accepting and dialling on one worker, and giving each connection to the worker that has the fewest.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;
use tokio_util::task::TaskTracker;

use crate::input::connection::Arrival;
use crate::input::connection::WorkerInput;
use crate::input::dialled::Dialled;
use crate::input::dialling::Dialling;
use crate::input::handshake_limit::Handshake;
use crate::input::listener::Readers;
use crate::input::listener::serve;
use crate::lifecycle::Guard;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::LocalPeer;
use crate::observability::peer_name::PeerName;
use crate::output::subscriber::Visitor;
use crate::relay::door::Door;
use crate::relay::input_entry::InputId;
use crate::relay::placement::Place;
use crate::relay::placement::Placement;
use crate::transport::detached::Detached;
use crate::transport::listener::Listener;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::process::AcceptedPeer;
use crate::transport::process::Process;
use crate::transport::socket::Socket;
use crate::transport::turn::TurnShare;

/// What accepting and serving connections takes.
pub(crate) struct Serving {
    pub(crate) index: usize,
    pub(crate) readers: Rc<Readers>,
    /// The inputs of the relay, as this worker serves them.
    pub(crate) inputs: RefCell<BTreeMap<InputId, Rc<WorkerInput>>>,
    pub(crate) placement: Placement,
    /// The mailboxes of all workers.
    pub(crate) mailboxes: Vec<UnboundedSender<Handover>>,
    /// Connections that have ended since the beginning.
    pub(crate) ended: Cell<usize>,
    /// What has to end before the worker does: listeners, connections, lanes.
    pub(crate) tasks: TaskTracker,
    /// Of every listener that is there.
    pub(crate) logs: RefCell<Vec<Weak<ListenerLog>>>,
}

/// A connection that is to be served.
pub(crate) struct Accepted<S> {
    pub(crate) door: Door,
    pub(crate) socket: S,
    pub(crate) log: Arc<ListenerLog>,
    pub(crate) arrival: Arrival,
    pub(crate) place: Place,
    /// The scope of the listener, or of the address that was dialled, and the connection as one of its tasks.
    pub(crate) scope: Scope,
    pub(crate) guard: Guard,
}

/// An address that an input dials.
#[derive(Clone, Debug)]
pub(crate) struct WorkerDial {
    pub(crate) input: InputId,
    /// Its connections, on all workers.
    pub(crate) dialled: Arc<Dialled>,
    /// Where no input dials.
    pub(crate) own: Arc<OwnListeners>,
    pub(crate) log: Arc<ListenerLog>,
    /// Of whoever dials, and of the connections.
    pub(crate) scope: Scope,
    /// Below it: of whoever dials.
    pub(crate) dialling: Scope,
}

/// A connection on its way to another worker.
pub(crate) type Handover = Accepted<Detached>;

impl Serving {
    /// Accepts connections at a listener until its scope drains, or `accepting`, which is below it.
    pub(crate) fn listen(
        self: &Rc<Self>,
        door: Door,
        listener: Listener,
        log: Arc<ListenerLog>,
        is_tls: bool,
        (scope, accepting): (Scope, &Scope),
    ) {
        self.logs.borrow_mut().push(Arc::downgrade(&log));
        let scopes = (scope.clone(), accepting.clone());
        let accept = accept(Rc::clone(self), door, (listener, is_tls), log, scopes);
        let accepting = accepting.spawn_local("listener", self.tasks.track_future(accept));
        // What waits in the backlog comes before the end of what was accepted.
        self.end_with(scope, async move { drop(accepting.await) });
    }

    /// Serves connections of an address that the input dials until its scope drains. Where this worker is the one that `dials`, it
    /// does so until `dialling` drains, a scope below.
    pub(crate) fn dial(self: &Rc<Self>, order: WorkerDial, dials: bool) {
        let WorkerDial { input: id, dialled, own, log, scope, dialling } = order;
        self.logs.borrow_mut().push(Arc::downgrade(&log));
        if dials && let Some(input) = self.input(id) {
            let run = Dialling { input, dialled, own, log: Arc::clone(&log) };
            let (serving, scope) = (Rc::clone(self), scope.clone());
            let serve = move |(socket, peer), dialled| {
                let arrival =
                    Arrival { peer: peer_name(peer), dialled: Some(dialled), handshake: None, handed: None };
                serving.place(Door::Input(id), socket, &log, arrival, &scope);
            };
            let run = self.tasks.track_future(run.run(dialling.clone(), serve));
            dialling.spawn_local("dialling", run);
        }
        self.end_with(scope, async {});
    }

    /// Tells connections when their scope drains, once `before` has ended, and when it is over.
    fn end_with(&self, scope: Scope, before: impl Future<Output = ()> + 'static) {
        let readers = Rc::clone(&self.readers);
        spawn_local(async move {
            let mut phases = scope.phases();
            phases.reached(Phase::Draining).await;
            before.await;
            readers.enter(&scope, Phase::Draining);
            phases.reached(Phase::Over).await;
            readers.enter(&scope, Phase::Over);
        });
    }

    /// Gives a connection to the worker with the fewest.
    fn place(
        self: &Rc<Self>,
        door: Door,
        socket: Socket,
        log: &Arc<ListenerLog>,
        arrival: Arrival,
        scope: &Scope,
    ) {
        let place = self.placement.take(self.index);
        let guard = scope.guard("connection");
        let worker = place.worker();
        let (log, scope) = (Arc::clone(log), scope.clone());
        if worker == self.index {
            self.serve(Accepted { door, socket, log, arrival, place, scope, guard });
            return;
        }
        let (lost_door, lost_log, lost_peer) = (door.clone(), Arc::clone(&log), arrival.peer.clone());
        let handed_over = socket.detach().and_then(|socket| {
            let handover = Accepted { door, socket, log, arrival, place, scope, guard };
            // A worker that is gone gives the place back, and the guard.
            self.mailboxes[worker].send(handover).map_err(|_| io::Error::other("the other worker is gone"))
        });
        if let Err(error) = handed_over {
            self.lost(&lost_door, &lost_log, &lost_peer, &error);
        }
    }

    /// Tells what the log left out, of each listener.
    pub(crate) fn tell_left_out(&self) {
        self.logs.borrow_mut().retain(|log| {
            let log = log.upgrade();
            log.iter().for_each(|log| log.tell_left_out());
            log.is_some()
        });
    }

    /// Serves an input from now on as it is configured here.
    pub(crate) fn set_input(&self, id: InputId, new: WorkerInput) {
        let mut inputs = self.inputs.borrow_mut();
        match inputs.get(&id) {
            // Connections that are open see it, too.
            Some(input) => {
                input.config.replace(new.config.into_inner());
                input.reader.replace(new.reader.into_inner());
                input.tls.replace(new.tls.into_inner());
            }
            None => drop(inputs.insert(id, Rc::new(new))),
        }
    }

    /// Waits until one more connection of this input may shake hands. Cancel-safe.
    async fn begin_handshake(&self, input: InputId) -> Option<Handshake> {
        let input = self.input(input)?;
        let max = input.config.borrow().tls_handshakes_max;
        Some(input.handshakes.begin(max).await)
    }

    fn input(&self, id: InputId) -> Option<Rc<WorkerInput>> {
        self.inputs.borrow().get(&id).cloned()
    }

    /// Serves a connection that has a place on this worker.
    fn serve(self: &Rc<Self>, accepted: Accepted<Socket>) {
        let Accepted { door, socket, log, arrival, place, scope, guard } = accepted;
        let ended = Ended(Rc::clone(self));
        let readers = Rc::clone(&self.readers);
        let token = self.tasks.token();
        match door {
            Door::Input(input) => {
                // An input is forgotten when its last task has ended.
                let Some(input) = self.input(input) else { return };
                spawn_local(guard.supervise(async move {
                    let _ended = (place, ended, token);
                    serve(readers, input, socket, log, arrival, scope).await;
                }));
            }
            Door::Output(door) => {
                let peer = arrival.peer;
                spawn_local(guard.supervise(async move {
                    let _ended = (place, ended, token);
                    door.serve(Visitor { socket, peer, log, scope }, readers.backend).await;
                }));
            }
        }
    }

    /// A connection was lost before this worker or another could serve it.
    fn lost(&self, door: &Door, log: &ListenerLog, peer: &PeerName, error: &io::Error) {
        if let Door::Input(input) = door
            && let Some(input) = self.input(*input)
        {
            input.account.connected();
            input.account.ended("connection");
        }
        log.tell(Event::LostBetweenWorkers, Some(peer), || {
            format!("connection lost between two workers: {error}")
        });
    }
}

/// An open connection of this worker. Dropped, it has ended, in whatever way.
struct Ended(Rc<Serving>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.update(|ended| ended + 1);
    }
}

/// Accepts until `accepting` drains, and gives each connection to the worker with the fewest. Connections that
/// wait in the backlog then are taken too.
async fn accept(
    serving: Rc<Serving>,
    door: Door,
    (mut listener, is_tls): (Listener, bool),
    log: Arc<ListenerLog>,
    (scope, accepting): (Scope, Scope),
) {
    let mut phases = accepting.phases();
    let mut draining_since = None;
    let share = TurnShare::new(serving.readers.backend, CONNECTIONS_PER_TURN);
    loop {
        share.spend().await;
        let draining = phases.seen() != Phase::Running;
        // Writers that wait have something to give. Readers would get nothing.
        if draining && matches!(door, Door::Output(_)) {
            return;
        }
        if draining && draining_since.get_or_insert_with(Instant::now).elapsed() >= BACKLOG_TIME {
            return;
        }
        let next = async {
            let handshake = match door {
                Door::Input(input) if is_tls => serving.begin_handshake(input).await,
                _ => None,
            };
            listener.accept().await.map(|accepted| (accepted, handshake))
        };
        let accepted = tokio::select! {
            biased;
            accepted = next => accepted,
            _ = phases.next(), if !draining => continue,
            () = tokio::time::sleep(BACKLOG_QUIET), if draining => return,
        };
        let (socket, peer, handshake) = match accepted {
            Ok(((socket, peer), handshake)) => (socket, peer_name(peer), handshake),
            Err(error) => {
                // Out of descriptors or memory: those who wait in the backlog are taken when others have gone.
                log.tell(Event::CannotAccept, None, || {
                    format!(
                        "cannot accept a connection: {error}; connections wait; raise the limit of open files of tapster"
                    )
                });
                if draining {
                    return;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let is_over = scope.phase() == Phase::Over;
        let arrival = Arrival { peer, dialled: None, handshake, handed: None };
        serving.place(door.clone(), socket, &log, arrival, &scope);
        if is_over {
            return;
        }
    }
}

pub(crate) fn peer_name(peer: AcceptedPeer) -> PeerName {
    match peer {
        AcceptedPeer::Tcp(address) => PeerName::Tcp(address),
        AcceptedPeer::Unix(process) => {
            PeerName::Unix(process.map(|Process { pid, uid, gid, user, program }| {
                let program = program.map(|name| name.escape_ascii().to_string());
                LocalPeer { pid, uid, gid, user, program }
            }))
        }
    }
}

/// Serves what other workers accepted, until every listener has ended.
pub(crate) async fn receive(serving: Rc<Serving>, mut mailbox: UnboundedReceiver<Handover>, scope: Scope) {
    let mut phases = scope.phases();
    let share = TurnShare::new(serving.readers.backend, CONNECTIONS_PER_TURN);
    loop {
        share.spend().await;
        let draining = phases.seen() != Phase::Running;
        let handover = tokio::select! {
            biased;
            handover = mailbox.recv() => handover,
            _ = phases.next(), if !draining => continue,
            () = tokio::time::sleep(MAILBOX_QUIET), if draining => return,
        };
        let Some(Accepted { door, socket, log, arrival, place, scope, guard }) = handover else {
            return;
        };
        match Socket::attach(socket) {
            Ok(socket) => serving.serve(Accepted { door, socket, log, arrival, place, scope, guard }),
            Err(error) => serving.lost(&door, &log, &arrival.peer, &error),
        }
    }
}

/// So many connections begin in one turn of a worker, for each listener: those that come by the thousand leave the others
/// their time.
const CONNECTIONS_PER_TURN: u32 = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Peers that connect without pause keep tapster from its end no longer than this, and the next process from its address.
const BACKLOG_TIME: Duration = Duration::from_secs(1);
/// At the end a backlog without a connection for so long is empty.
const BACKLOG_QUIET: Duration = Duration::from_millis(10);
/// At the end no other worker hands over a connection any more after so long.
const MAILBOX_QUIET: Duration = Duration::from_millis(30);
