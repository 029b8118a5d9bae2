//! A worker: one pinned thread with its own runtime, its listeners, its connections and its lanes.
//!
//! It begins with nothing. The relay gives it inputs, listeners, lanes and routes by [`Order`]s, at the start and later.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;
use tokio_util::task::TaskTracker;

use crate::faults;
use crate::input::connection::WorkerInput;
use crate::input::handing::Offer;
use crate::input::listener::Readers;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::observability::listener_log::ListenerLog;
use crate::output::frame_stream;
use crate::output::stream_lane::StreamLane;
use crate::queue::block_limit::BlockLimit;
use crate::relay::door::Door;
use crate::relay::input_entry::InputId;
use crate::relay::placement::Placement;
use crate::relay::placement::pin;
use crate::relay::serving::Handover;
use crate::relay::serving::Serving;
use crate::relay::serving::WorkerDial;
use crate::relay::serving::receive;
use crate::relay::ticks::Ticker;
use crate::route::Inlet;
use crate::transport::Backend;
use crate::transport::backend::Runtime;
use crate::transport::descriptors::Reserve;
use crate::transport::listener::BoundListener;
use crate::transport::listener::Listener;
use crate::transport::sys::trim_heap;
use crate::transport::timer::Timer;

/// Everything that one worker begins with.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) cpu: Option<usize>,
    pub(crate) backend: Backend,
    pub(crate) block_limit: Arc<BlockLimit>,
    pub(crate) loops: Arc<Loops>,
    pub(crate) placement: Placement,
    /// What it is told to do.
    pub(crate) orders: UnboundedReceiver<Ordered>,
    /// Connections that other workers accepted for this one.
    pub(crate) mailbox: UnboundedReceiver<Handover>,
    /// Descriptors that its connections leave to outputs.
    pub(crate) reserve: Reserve,
    /// The mailboxes of all workers.
    pub(crate) mailboxes: Vec<UnboundedSender<Handover>>,
    /// The scope of all inputs.
    pub(crate) scope: Scope,
    /// Its signs of life.
    pub(crate) ticker: Ticker,
    /// For faults that a test asks for.
    pub(crate) first_input: String,
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

/// What a worker is told to do.
pub(crate) enum Order {
    /// Serve this input, or serve it from now on as it is configured here.
    Input(InputId, WorkerInput),
    /// The input has ended.
    ForgetInput(InputId),
    /// Accept connections.
    Listen(WorkerListener),
    /// Serve the connections of this address that an input dials, and dial it or not.
    Dial(WorkerDial, bool),
    /// Run this lane.
    Lane(Box<WorkerLane>),
    /// Feed these lanes, and no others.
    Routes(Vec<Inlet>),
    /// Offer every connection to the next process, or keep what it has not taken.
    Offer(Option<UnboundedSender<Offer>>),
}

/// An order, and who waits for it to be carried out.
pub(crate) struct Ordered {
    pub(crate) order: Order,
    pub(crate) done: mpsc::Sender<io::Result<()>>,
}

/// A listener of one input, or of an output.
pub(crate) struct WorkerListener {
    pub(crate) door: Door,
    pub(crate) listener: BoundListener,
    pub(crate) is_tls: bool,
    /// One for the listeners of all workers at this address.
    pub(crate) log: Arc<ListenerLog>,
    /// Likewise, and of the connections that it accepts.
    pub(crate) scope: Scope,
    /// Below it: of whoever accepts.
    pub(crate) accepting: Scope,
}

/// A lane over connections, and the scope of its output.
pub(crate) struct WorkerLane {
    pub(crate) lane: StreamLane,
    pub(crate) scope: Scope,
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
            self.work(ready).await;
        });
    }

    fn build(&self) -> io::Result<Runtime> {
        if self.backend == Backend::Uring && faults::hit("ring", &self.first_input) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Runtime::new(self.backend)
    }

    /// Does what it is told, until the inputs drain and every task has ended.
    async fn work(self, ready: mpsc::Sender<io::Result<()>>) {
        let timer = match Timer::new() {
            Ok(timer) => timer,
            Err(error) => return drop(ready.send(Err(error))),
        };
        faults::point("worker start", &self.first_input);
        // Whatever becomes of this thread, nobody places connections on it afterwards.
        let _alive = self.placement.alive(self.index);
        let (tasks, ticker) = (TaskTracker::new(), Rc::new(self.ticker));
        let serving = Rc::new(Serving {
            index: self.index,
            readers: Rc::new(Readers::new(self.backend, self.block_limit, self.loops)),
            inputs: Default::default(),
            placement: self.placement,
            mailboxes: self.mailboxes,
            ended: Cell::new(0),
            tasks: tasks.clone(),
            logs: Default::default(),
        });
        let receive = receive(Rc::clone(&serving), self.mailbox, self.scope.clone());
        self.scope.spawn_local("mailbox", tasks.track_future(receive));
        spawn_local(tidy_up(Rc::clone(&serving), Rc::clone(&ticker), self.first_input));
        let readers = Rc::clone(&serving.readers);
        spawn_local(async move { readers.coalescer.run(timer).await });
        spawn_local(obey(Rc::clone(&serving), self.orders, self.backend, self.reserve));
        let _ = ready.send(Ok(()));
        drop(ready);
        let mut phases = self.scope.phases();
        phases.reached(Phase::Draining).await;
        tasks.close();
        tasks.wait().await;
        ticker.end();
    }
}

/// Carries out one order after the other.
async fn obey(
    serving: Rc<Serving>,
    mut orders: UnboundedReceiver<Ordered>,
    backend: Backend,
    reserve: Reserve,
) {
    while let Some(Ordered { order, done }) = orders.recv().await {
        let result = match order {
            Order::Input(id, new) => {
                serving.set_input(id, new);
                Ok(())
            }
            Order::ForgetInput(id) => {
                serving.inputs.borrow_mut().remove(&id);
                Ok(())
            }
            Order::Listen(WorkerListener { door, listener, is_tls, log, scope, accepting }) => {
                Listener::new(listener, reserve.clone())
                    .map(|listener| serving.listen(door, listener, log, is_tls, (scope, &accepting)))
            }
            Order::Dial(dial, dials) => {
                serving.dial(dial, dials);
                Ok(())
            }
            Order::Lane(lane) => {
                let WorkerLane { lane, scope } = *lane;
                let run = serving.tasks.track_future(frame_stream::run(lane, backend, scope.clone()));
                scope.spawn_local("lane", run);
                Ok(())
            }
            Order::Offer(offers) => {
                serving.readers.offer_all(offers);
                Ok(())
            }
            Order::Routes(inlets) => {
                serving.readers.routes.set(inlets);
                Ok(())
            }
        };
        // Who gave the order may have given up to wait.
        let _ = done.send(result);
    }
}

/// Ticks, frees blocks that nobody needs, tells what the log left out, and trims the heap in the first quiet second after many connections ended.
async fn tidy_up(serving: Rc<Serving>, ticker: Rc<Ticker>, first_input: String) {
    let mut ended_before = 0;
    let mut ended_at_trim = 0;
    loop {
        ticker.tick();
        tokio::time::sleep(IDLE_LOOK).await;
        if faults::hit("worker hangs", &first_input) {
            std::thread::sleep(Duration::from_secs(60));
        }
        serving.readers.free_unused();
        serving.readers.note_held(serving.inputs.borrow().values());
        serving.readers.retire(Instant::now());
        serving.tell_left_out();
        let ended = serving.ended.get();
        if ended - ended_at_trim >= MANY_CONNECTIONS && ended == ended_before {
            trim_heap();
            ended_at_trim = ended;
        }
        ended_before = ended;
    }
}

/// How often it is looked what nobody needs.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// So many connections, once ended, leave a heap that is worth the time to trim it.
const MANY_CONNECTIONS: usize = 1000;
