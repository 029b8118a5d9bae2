//! A worker: one pinned thread with its own runtime, its listeners, its connections and its lanes.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;
use tracing::warn;

use crate::drain::DrainSignal;
use crate::drain::Phase;
use crate::input::listener::Readers;
use crate::input::listener::WorkerInput;
use crate::input::listener::serve;
use crate::output::OutputConfig;
use crate::output::backlog::Backlog;
use crate::output::frame_stream;
use crate::output::group;
use crate::output::group::Group;
use crate::relay::placement::Placement;
use crate::relay::placement::pin;
use crate::route::Inlet;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::backend::Runtime;
use crate::transport::detached::Detached;
use crate::transport::listener::BoundListener;
use crate::transport::listener::Listener;
use crate::transport::socket::Socket;
use crate::transport::sys::trim_heap;
use crate::transport::timer::Timer;

/// Everything that one worker gets.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) cpu: Option<usize>,
    pub(crate) backend: Backend,
    pub(crate) inputs: Vec<WorkerInput>,
    pub(crate) listeners: Vec<WorkerListener>,
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) lanes: Vec<WorkerLane>,
    pub(crate) groups: Vec<WorkerGroup>,
    pub(crate) placement: Placement,
    /// Connections that other workers accepted for this one.
    pub(crate) mailbox: UnboundedReceiver<Handover>,
    /// The mailboxes of all workers.
    pub(crate) mailboxes: Vec<UnboundedSender<Handover>>,
    pub(crate) drain: DrainSignal,
    /// Dropped when the last connection of this worker has ended.
    pub(crate) inputs_ended: mpsc::Sender<()>,
}

/// A listener, and the index of its input.
pub(crate) struct WorkerListener {
    pub(crate) input: usize,
    pub(crate) listener: BoundListener,
    pub(crate) address: Address,
}

/// A lane over a connection.
pub(crate) struct WorkerLane {
    pub(crate) config: Arc<OutputConfig>,
    pub(crate) backlog: Backlog,
}

/// A group, and the configuration of each member's lane.
pub(crate) struct WorkerGroup {
    pub(crate) group: Arc<Group>,
    pub(crate) configs: Vec<Arc<OutputConfig>>,
}

/// A connection on its way to another worker.
pub(crate) struct Handover {
    input: usize,
    socket: Detached,
    listener: String,
    peer: String,
}

impl Worker {
    /// Runs the worker on the calling thread until the relay has ended. `ready` learns whether it could begin.
    pub(crate) fn run(self, ready: mpsc::Sender<io::Result<()>>) {
        if let Some(cpu) = self.cpu {
            pin(cpu);
        }
        // A ring belongs to the thread that built it.
        let runtime = match Runtime::new(self.backend) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        runtime.block_on(async {
            let (running, result) = match self.begin() {
                Ok(running) => (Some(running), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = ready.send(result);
            // Who waits for the workers to begin waits until the last sender is gone.
            drop(ready);
            if let Some(running) = running {
                running.end().await;
            }
        });
    }

    fn begin(self) -> io::Result<Running> {
        let serving = Rc::new(Serving {
            index: self.index,
            readers: Rc::new(Readers::new(self.backend, self.drain.clone(), self.inlets)),
            inputs: self.inputs.into_iter().map(Rc::new).collect(),
            placement: self.placement,
            mailboxes: self.mailboxes,
            open: Cell::new(0),
            ended: Cell::new(0),
            none_open: Notify::new(),
        });
        let mut accepting = Vec::new();
        for WorkerListener { input, listener, address } in self.listeners {
            let listener = Listener::new(listener)?;
            let accept = accept(Rc::clone(&serving), input, listener, address, self.drain.clone());
            accepting.push(spawn_local(accept));
        }
        spawn_local(receive(Rc::clone(&serving), self.mailbox));
        spawn_local(give_back_memory(Rc::clone(&serving)));
        let readers = Rc::clone(&serving.readers);
        let timer = Timer::new()?;
        spawn_local(async move { readers.gather.run(timer).await });
        let lanes = self.lanes.into_iter().map(|lane| {
            spawn_local(frame_stream::run(lane.config, lane.backlog, self.backend, self.drain.clone()))
        });
        let groups = self.groups.into_iter().map(|WorkerGroup { group, configs }| {
            spawn_local(group::run(group, configs, self.backend, self.drain.clone()))
        });
        let lanes = lanes.chain(groups).collect();
        Ok(Running { serving, accepting, lanes, drain: self.drain, inputs_ended: self.inputs_ended })
    }
}

/// A worker at work.
struct Running {
    serving: Rc<Serving>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
    lanes: Vec<tokio::task::JoinHandle<()>>,
    drain: DrainSignal,
    inputs_ended: mpsc::Sender<()>,
}

impl Running {
    /// Waits for the end to be asked for, and brings it about.
    async fn end(mut self) {
        self.drain.wait(|phase| *phase != Phase::Running).await;
        for accepting in self.accepting {
            let _ = accepting.await;
        }
        self.serving.readers.drain_all();
        self.serving.wait_until_none_open().await;
        drop(self.inputs_ended);
        for lane in self.lanes {
            if let Err(error) = lane.await {
                std::panic::resume_unwind(error.into_panic());
            }
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
}

impl Serving {
    /// Serves a connection for which a place on this worker was taken.
    fn serve(self: &Rc<Self>, input: usize, socket: Socket, listener: Rc<str>, peer: String) {
        let serving = Rc::clone(self);
        self.open.set(self.open.get() + 1);
        spawn_local(async move {
            let input = Rc::clone(&serving.inputs[input]);
            serve(Rc::clone(&serving.readers), input, socket, listener, peer).await;
            serving.placement.release(serving.index);
            serving.open.set(serving.open.get() - 1);
            serving.ended.set(serving.ended.get() + 1);
            if serving.open.get() == 0 {
                serving.none_open.notify_one();
            }
        });
    }

    async fn wait_until_none_open(&self) {
        while self.open.get() > 0 {
            self.none_open.notified().await;
        }
    }
}

/// Accepts until the end is asked for, and gives each connection to the worker with the fewest.
async fn accept(
    serving: Rc<Serving>,
    input: usize,
    listener: Listener,
    address: Address,
    mut drain: DrainSignal,
) {
    let name: Rc<str> = address.to_string().into();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait(|phase| *phase != Phase::Running) => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those who wait in the backlog are taken when others have gone.
                warn!(listener = &*name, "cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let worker = serving.placement.take(serving.index);
        if worker == serving.index {
            serving.serve(input, socket, Rc::clone(&name), peer);
            continue;
        }
        let handed = socket.detach().map(|socket| {
            let listener = name.to_string();
            serving.mailboxes[worker].send(Handover { input, socket, listener, peer })
        });
        if !matches!(handed, Ok(Ok(()))) {
            serving.placement.release(worker);
        }
    }
}

/// Serves what other workers accepted.
async fn receive(serving: Rc<Serving>, mut mailbox: UnboundedReceiver<Handover>) {
    while let Some(handover) = mailbox.recv().await {
        match Socket::attach(handover.socket) {
            Ok(socket) => serving.serve(handover.input, socket, handover.listener.into(), handover.peer),
            Err(error) => {
                warn!(listener = handover.listener, peer = handover.peer, "connection lost: {error}");
                serving.placement.release(serving.index);
            }
        }
    }
}

/// Frees blocks that nobody needs, and trims the heap in the first quiet second after many connections ended.
async fn give_back_memory(serving: Rc<Serving>) {
    let mut ended_before = 0;
    let mut ended_at_trim = 0;
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        serving.readers.free_unused();
        let ended = serving.ended.get();
        if ended - ended_at_trim >= MANY_CONNECTIONS && ended == ended_before {
            trim_heap();
            ended_at_trim = ended;
        }
        ended_before = ended;
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked what nobody needs.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// So many connections, once ended, leave a heap that is worth the time to trim it.
const MANY_CONNECTIONS: usize = 1000;
