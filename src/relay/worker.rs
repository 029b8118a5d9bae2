//! A worker: one pinned thread with its own runtime, its listeners, its connections and its lanes.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::task::spawn_local;

use crate::faults;
use crate::input::listener::Readers;
use crate::input::listener::WorkerInput;
use crate::input::listener::serve;
use crate::lifecycle::Guard;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::LocalPeer;
use crate::observability::peer_name::PeerName;
use crate::output::frame_stream::StreamLane;
use crate::queue::block_limit::BlockLimit;
use crate::relay::placement::Alive;
use crate::relay::placement::Place;
use crate::relay::placement::Placement;
use crate::relay::placement::pin;
use crate::route::Inlet;
use crate::transport::Backend;
use crate::transport::backend::Runtime;
use crate::transport::detached::Detached;
use crate::transport::listener::BoundListener;
use crate::transport::listener::Listener;
use crate::transport::process::AcceptedPeer;
use crate::transport::process::Process;
use crate::transport::socket::Socket;
use crate::transport::sys::trim_heap;
use crate::transport::timer::Timer;
use crate::transport::turn::TurnShare;

/// Everything that one worker gets.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) cpu: Option<usize>,
    pub(crate) backend: Backend,
    pub(crate) inputs: Vec<WorkerInput>,
    pub(crate) listeners: Vec<WorkerListener>,
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) block_limit: Arc<BlockLimit>,
    pub(crate) lanes: Vec<WorkerLane>,
    pub(crate) placement: Placement,
    /// Connections that other workers accepted for this one.
    pub(crate) mailbox: UnboundedReceiver<Handover>,
    /// Descriptors that its connections leave to outputs.
    pub(crate) reserve: usize,
    /// The mailboxes of all workers.
    pub(crate) mailboxes: Vec<UnboundedSender<Handover>>,
    /// The scope of all inputs.
    pub(crate) scope: Scope,
}

/// How a worker and the thread that starts the relay agree. Where a worker fails, its ends go without a word.
pub(crate) struct Beginning {
    /// Whether the worker could build its runtime.
    pub(crate) built: mpsc::Sender<io::Result<()>>,
    /// The backend that every worker can have.
    pub(crate) agreed: mpsc::Receiver<Backend>,
    /// Whether the worker could begin.
    pub(crate) ready: mpsc::Sender<io::Result<()>>,
}

/// A listener, and the index of its input.
pub(crate) struct WorkerListener {
    pub(crate) input: usize,
    pub(crate) listener: BoundListener,
    /// One for the listeners of all workers at this address.
    pub(crate) log: Arc<ListenerLog>,
}

/// A lane over connections, and the scope of its output.
pub(crate) struct WorkerLane {
    pub(crate) lane: StreamLane,
    pub(crate) scope: Scope,
}

/// A connection on its way to another worker.
pub(crate) struct Handover {
    input: usize,
    socket: Detached,
    log: Arc<ListenerLog>,
    peer: PeerName,
    place: Place,
    guard: Guard,
}

impl Worker {
    /// Runs the worker on the calling thread until the relay has ended.
    pub(crate) fn run(mut self, Beginning { built, agreed, ready }: Beginning) {
        if let Some(cpu) = self.cpu {
            pin(cpu);
        }
        // A ring belongs to the thread that built it.
        let (runtime, result) = match self.build() {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = built.send(result);
        drop(built);
        // The relay does not begin: it was given up.
        let Ok(backend) = agreed.recv() else { return };
        let runtime = match runtime {
            Some(runtime) if backend == self.backend => Ok(runtime),
            unused => {
                drop(unused);
                self.backend = backend;
                self.build()
            }
        };
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        runtime.block_on(async {
            match self.begin() {
                Ok(running) => {
                    let _ = ready.send(Ok(()));
                    drop(ready);
                    running.end().await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    }

    fn build(&self) -> io::Result<Runtime> {
        let name = self.inputs.first().map_or("", |input| &input.config.name);
        if self.backend == Backend::Uring && faults::hit("ring", name) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Runtime::new(self.backend)
    }

    fn begin(self) -> io::Result<Running> {
        if let Some(input) = self.inputs.first() {
            faults::point("worker start", &input.config.name);
        }
        // Whatever becomes of this thread, nobody places connections on it afterwards.
        let alive = self.placement.alive(self.index);
        let serving = Rc::new(Serving {
            index: self.index,
            readers: Rc::new(Readers::new(self.backend, self.inlets, self.block_limit)),
            inputs: self.inputs.into_iter().map(Rc::new).collect(),
            placement: self.placement,
            mailboxes: self.mailboxes,
            open: Cell::new(0),
            ended: Cell::new(0),
            none_open: Notify::new(),
            logs: self.listeners.iter().map(|listener| Arc::clone(&listener.log)).collect(),
        });
        let mut accepting = Vec::new();
        for WorkerListener { input, listener, log } in self.listeners {
            let listener = Listener::new(listener, self.reserve)?;
            let scope = serving.inputs[input].scope.clone();
            let accept = accept(Rc::clone(&serving), input, listener, log);
            accepting.push(scope.spawn_local("listener", accept));
        }
        self.scope.spawn_local("mailbox", receive(Rc::clone(&serving), self.mailbox, self.scope.clone()));
        spawn_local(tidy_up(Rc::clone(&serving)));
        let readers = Rc::clone(&serving.readers);
        let timer = Timer::new()?;
        spawn_local(async move { readers.coalescer.run(timer).await });
        let backend = self.backend;
        let lanes = self.lanes.into_iter().map(|WorkerLane { lane, scope }| {
            let run = lane.run(backend, scope.clone());
            scope.spawn_local("lane", run)
        });
        let lanes = lanes.collect();
        Ok(Running { serving, accepting, lanes, scope: self.scope, _alive: alive })
    }
}

/// A worker at work.
struct Running {
    serving: Rc<Serving>,
    accepting: Vec<JoinHandle<Option<()>>>,
    lanes: Vec<JoinHandle<Option<()>>>,
    scope: Scope,
    _alive: Alive,
}

impl Running {
    /// Waits for the end to be asked for, and brings it about.
    async fn end(self) {
        let mut phases = self.scope.phases();
        phases.reached(Phase::Draining).await;
        for accepting in self.accepting {
            let _ = accepting.await;
        }
        self.serving.readers.enter(Phase::Draining);
        loop {
            tokio::select! {
                () = self.serving.wait_until_none_open() => break,
                phase = phases.next() => self.serving.readers.enter(phase),
            }
        }
        self.serving.logs.iter().for_each(|log| log.end());
        for lane in self.lanes {
            let _ = lane.await;
        }
    }
}

/// What accepting and serving connections takes.
struct Serving {
    index: usize,
    readers: Rc<Readers>,
    inputs: Vec<Rc<WorkerInput>>,
    placement: Placement,
    mailboxes: Vec<UnboundedSender<Handover>>,
    open: Cell<usize>,
    // Connections that have ended since the beginning.
    ended: Cell<usize>,
    none_open: Notify,
    // Of every listener.
    logs: Vec<Arc<ListenerLog>>,
}

impl Serving {
    /// Serves a connection that has a place on this worker.
    fn serve(
        self: &Rc<Self>,
        input: usize,
        socket: Socket,
        log: Arc<ListenerLog>,
        peer: PeerName,
        (place, guard): (Place, Guard),
    ) {
        let open = Open::new(Rc::clone(self));
        let input = Rc::clone(&self.inputs[input]);
        let readers = Rc::clone(&self.readers);
        spawn_local(guard.supervise(async move {
            let _ended = (place, open);
            serve(readers, input, socket, log, peer).await;
        }));
    }

    /// A connection was lost before this worker or another could serve it.
    fn lost(&self, input: usize, log: &ListenerLog, peer: &PeerName, error: &io::Error) {
        let account = &self.inputs[input].account;
        account.connected();
        account.ended("connection");
        log.tell(Event::LostBetweenWorkers, Some(peer), || {
            format!("connection lost between two workers: {error}")
        });
    }

    async fn wait_until_none_open(&self) {
        while self.open.get() > 0 {
            self.none_open.notified().await;
        }
    }
}

/// An open connection of this worker. Dropped, it has ended, in whatever way.
struct Open(Rc<Serving>);

impl Open {
    fn new(serving: Rc<Serving>) -> Self {
        serving.open.update(|open| open + 1);
        Self(serving)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.update(|open| open - 1);
        self.0.ended.update(|ended| ended + 1);
        if self.0.open.get() == 0 {
            self.0.none_open.notify_one();
        }
    }
}

/// Accepts until the end is asked for, and gives each connection to the worker with the fewest. Connections that wait in the
/// backlog then are taken too.
async fn accept(serving: Rc<Serving>, input: usize, mut listener: Listener, log: Arc<ListenerLog>) {
    let scope = serving.inputs[input].scope.clone();
    let mut phases = scope.phases();
    let mut draining_since = None;
    let share = TurnShare::new(serving.readers.backend, CONNECTIONS_PER_TURN);
    loop {
        share.spend().await;
        let draining = phases.seen() != Phase::Running;
        if draining && draining_since.get_or_insert_with(Instant::now).elapsed() >= BACKLOG_TIME {
            return;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = phases.next(), if !draining => continue,
            () = tokio::time::sleep(BACKLOG_QUIET), if draining => return,
        };
        let (socket, peer) = match accepted {
            Ok((socket, peer)) => (socket, peer_name(peer)),
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
        let place = serving.placement.take(serving.index);
        let guard = scope.guard("connection");
        let worker = place.worker();
        if worker == serving.index {
            serving.serve(input, socket, Arc::clone(&log), peer, (place, guard));
            continue;
        }
        let handed_over = socket.detach().and_then(|socket| {
            let handover =
                Handover { input, socket, log: Arc::clone(&log), peer: peer.clone(), place, guard };
            // A worker that is gone gives the place back, and the guard.
            serving.mailboxes[worker].send(handover).map_err(|_| io::Error::other("the other worker is gone"))
        });
        if let Err(error) = handed_over {
            serving.lost(input, &log, &peer, &error);
        }
        if scope.phase() == Phase::Over {
            return;
        }
    }
}

fn peer_name(peer: AcceptedPeer) -> PeerName {
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
async fn receive(serving: Rc<Serving>, mut mailbox: UnboundedReceiver<Handover>, scope: Scope) {
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
        let Some(Handover { input, socket, log, peer, place, guard }) = handover else { return };
        match Socket::attach(socket) {
            Ok(socket) => serving.serve(input, socket, log, peer, (place, guard)),
            Err(error) => serving.lost(input, &log, &peer, &error),
        }
    }
}

/// Frees blocks that nobody needs, tells what the log left out, and trims the heap in the first quiet second after many connections ended.
async fn tidy_up(serving: Rc<Serving>) {
    let mut ended_before = 0;
    let mut ended_at_trim = 0;
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        serving.readers.free_unused();
        serving.readers.note_held(&serving.inputs);
        serving.readers.retire(Instant::now());
        serving.logs.iter().for_each(|log| log.tell_left_out());
        let ended = serving.ended.get();
        if ended - ended_at_trim >= MANY_CONNECTIONS && ended == ended_before {
            trim_heap();
            ended_at_trim = ended;
        }
        ended_before = ended;
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
/// How often it is looked what nobody needs.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// So many connections, once ended, leave a heap that is worth the time to trim it.
const MANY_CONNECTIONS: usize = 1000;
