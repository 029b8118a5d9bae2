//! The outputs of a relay: put together from their configuration, started, and found again by name.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;

use crate::batch::budget::Budget;
use crate::lifecycle::Scope;
use crate::observability::account::OutputAccount;
use crate::observability::output_log::OutputLog;
use crate::output::Buffer;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::FileConfig;
use crate::output::Lanes;
use crate::output::OutputConfig;
use crate::output::StreamsConfig;
use crate::output::SubscribersConfig;
use crate::output::file::FileLane;
use crate::output::lane::Source;
use crate::output::settings::LaneSettings;
use crate::output::stream_lane::StreamLane;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::relay::around::Surroundings;
use crate::relay::door::Door;
use crate::relay::inputs::Doors;
use crate::relay::inputs::NewListener;
use crate::relay::inputs::RunningListener;
use crate::relay::output_entry::OutputEntry;
use crate::relay::sockets::Owner;
use crate::relay::sockets::SocketPaths;
use crate::relay::subscribers::Subscribers;
use crate::relay::worker::Order;
use crate::relay::worker::WorkerLane;
use crate::relay::workers::Workers;
use crate::route::Inlet;
use crate::route::Queues;
use crate::spool::Folder;
use crate::spool::entrance::StandIn;
use crate::spool::reports::reports;
use crate::spool::stage::Stage;
use crate::spool::stage::StageConfig;
use crate::spool::stage_loop;
use crate::transport::Address;

/// One output at work.
#[derive(Debug)]
pub(crate) struct RunningOutput {
    pub(crate) config: OutputConfig,
    pub(crate) entry: Arc<OutputEntry>,
    /// Of every queue.
    pub(crate) budgets: Vec<Arc<Budget>>,
    // One, or one for each worker.
    inlets: Vec<Inlet>,
    /// Where subscribers connect.
    pub(crate) listeners: Vec<RunningListener>,
    // Each lane is told of what changes.
    news: Vec<LaneNews>,
    // The worker that has the first lane.
    owner: usize,
}

/// How a lane hears of other settings.
#[derive(Debug)]
enum LaneNews {
    Streams(watch::Sender<Arc<LaneSettings>>),
    File(watch::Sender<Arc<FileConfig>>),
    Subscribers(Subscribers),
}

/// An output that is put together, and not started.
pub(crate) struct NewOutput {
    pub(crate) output: RunningOutput,
    pub(crate) parts: OutputParts,
}

/// What runs for an output, to be started.
#[derive(Default)]
pub(crate) struct OutputParts {
    // Lanes over connections, and the worker of each.
    lanes: Vec<(usize, WorkerLane)>,
    files: Vec<(FileLane, Scope)>,
    stages: Vec<(Stage<Folder>, Scope)>,
}

impl RunningOutput {
    /// The lanes that a worker feeds.
    pub(crate) fn inlets_of(&self, worker: usize) -> &Inlet {
        &self.inlets[worker % self.inlets.len()]
    }

    /// Goes on as configured here: with the same buffer but for its size and its policy, the same content type, and the same kind
    /// of destination. Workers have to be told of the lanes again.
    pub(crate) fn reconfigure(&mut self, config: OutputConfig, around: &Surroundings) {
        for inlet in &mut self.inlets {
            inlet.frame_len_max = config.frame_len_max;
            let lane_queue = config.buffer.spool().map_or(0, |_| config.buffer.lane_queue());
            let (max, when_full) = (config.buffer.memory() - lane_queue, config.buffer.policy());
            match &inlet.queues {
                Queues::One(queue, _) => queue.reconfigure(max, when_full),
                Queues::Takers(takers) => takers.reconfigure(max, when_full),
            }
        }
        if config.buffer.spool().is_some() {
            // The queue behind the spool.
            self.budgets.iter().skip(1).for_each(|budget| budget.set_max(config.buffer.lane_queue()));
        }
        let unchanged = self.config.to == config.to && self.config.buffer == config.buffer;
        for lane in self.news.iter().filter(|_| !unchanged) {
            match (lane, &config.to) {
                (LaneNews::Streams(lane), Destination::Streams(streams)) => {
                    lane.send_replace(make_settings(&config, streams, &self.entry, around));
                }
                (LaneNews::File(lane), Destination::File(file)) => {
                    lane.send_replace(Arc::new(file.clone()));
                }
                (LaneNews::Subscribers(news), Destination::Subscribers(subscribers)) => {
                    news.reconfigure(&config, subscribers, around);
                }
                (_, _) => unreachable!("the kind of the destination stays"),
            }
        }
        self.config = config;
    }

    /// Accepts subscribers at one more address.
    ///
    /// # Errors
    /// A worker cannot listen; the system has no thread to look after a path.
    pub(crate) fn listen(&mut self, new: NewListener, doors: &mut Doors<'_>) -> io::Result<()> {
        let Some(door) = self.door() else { return Ok(()) };
        let owner = Owner::Output(&self.config.name);
        let (listener, accepts) = RunningListener::begin(new, owner, (door, &self.entry.scope), doors)?;
        self.listeners.push(listener);
        accepts
    }

    /// Accepts subscribers again, where that was stopped.
    ///
    /// # Errors
    /// A worker cannot listen.
    pub(crate) fn accept_again(&mut self, sockets: &SocketPaths, workers: &Workers) -> io::Result<()> {
        let owner = Owner::Output(&self.config.name);
        self.listeners.iter_mut().try_for_each(|listener| listener.accept_again(owner, sockets, workers))
    }

    /// Closes the listeners that this configuration does not have, and returns them. `None`: all of them. Another input or output
    /// listens at the addresses that have `moved`.
    pub(crate) fn close_listeners(
        &mut self,
        keeps: Option<&OutputConfig>,
        moved: &[Address],
        doors: &mut Doors<'_>,
    ) -> Vec<RunningListener> {
        let stays = keeps.map_or(&[][..], OutputConfig::listen);
        let goes = |listener: &mut RunningListener| !stays.contains(&listener.configured);
        let mut gone: Vec<_> = self.listeners.extract_if(.., goes).collect();
        gone.iter_mut().for_each(|listener| listener.close(moved, doors));
        gone
    }

    /// Gives the sockets of its listeners the owner and the permission bits of this configuration.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn set_socket_files(&self, new: &OutputConfig, sockets: &SocketPaths) -> io::Result<()> {
        let (Destination::Subscribers(present), Destination::Subscribers(new)) = (&self.config.to, &new.to)
        else {
            return Ok(());
        };
        if present.socket_file != new.socket_file {
            for listener in &self.listeners {
                if let Address::Unix(path) = listener.address() {
                    sockets.reconfigure(path, &new.socket_file)?;
                }
            }
        }
        Ok(())
    }

    /// Where subscribers connect; `None` where there are none.
    pub(crate) fn door(&self) -> Option<Door> {
        self.news.iter().find_map(|news| match news {
            LaneNews::Subscribers(subscribers) => Some(Door::Output(subscribers.door())),
            LaneNews::Streams(_) | LaneNews::File(_) => None,
        })
    }

    /// The worker that has its lane.
    pub(crate) fn owner(&self) -> usize {
        self.owner
    }
}

impl NewOutput {
    /// A lane on every worker that feeds itself alone, or one lane that every worker feeds, on worker `owner`.
    pub(crate) fn new(config: OutputConfig, owner: usize, around: &Surroundings) -> Self {
        if let Destination::Subscribers(subscribers) = &config.to {
            let subscribers = subscribers.clone();
            return Self::for_subscribers(config, &subscribers, owner, around);
        }
        let scope = around.scope.child(&config.name);
        let folder = config.buffer.spool().map(|spool| spool.folder.clone());
        let mut entry = OutputEntry::new(&config.name, scope.clone(), folder);
        entry.lanes = config.buffer.spool().map(|_| scope.child("lanes"));
        let owners = match config.buffer.lanes() {
            Lanes::One => owner..owner + 1,
            Lanes::PerWorker => 0..around.workers,
        };
        let log = Arc::new(OutputLog::new(&config.name));
        let (mut inlets, mut budgets) = (Vec::new(), Vec::new());
        let (mut parts, mut news) = (OutputParts::default(), Vec::new());
        for owner in owners {
            let account = Arc::new(OutputAccount::new(Arc::clone(&log)));
            let (front, source, stage) = make_queues(&config, &account);
            inlets.push(Inlet {
                content_type: config.stream_type(),
                frame_len_max: config.frame_len_max,
                queues: Queues::One(Arc::clone(&front), Arc::clone(&account)),
            });
            budgets.push(Arc::clone(front.budget()));
            if stage.is_some() {
                budgets.push(Arc::clone(source.queue.budget()));
            }
            entry.left.extend(stage.as_ref().map(Stage::left_batches));
            parts.stages.extend(stage.map(|stage| (stage, scope.clone())));
            entry.add_queues(front, Arc::clone(&source.queue));
            entry.accounts.push(account);
            let scope = entry.lanes.clone().unwrap_or_else(|| scope.clone());
            match &config.to {
                Destination::File(file) => {
                    let (sender, receiver) = watch::channel(Arc::new(file.clone()));
                    news.push(LaneNews::File(sender));
                    let (content_type, reopen) = (config.stream_type(), around.reopen.subscribe());
                    parts.files.push((FileLane { source, content_type, config: receiver, reopen }, scope));
                }
                Destination::Streams(streams) => {
                    let settings = make_settings(&config, streams, &entry, around);
                    let (sender, settings) = watch::channel(settings);
                    news.push(LaneNews::Streams(sender));
                    let (own, loops) = (Arc::clone(&around.own), Arc::clone(&around.loops));
                    let content_type = config.stream_type();
                    let subscriber = None;
                    let lane = StreamLane { source, content_type, settings, own, loops, subscriber };
                    parts.lanes.push((owner, WorkerLane { lane, scope }));
                }
                Destination::Subscribers(_) => unreachable!("their lanes come and go"),
            }
        }
        let (entry, listeners) = (Arc::new(entry), Vec::new());
        let output = RunningOutput { config, entry, budgets, inlets, listeners, news, owner };
        Self { output, parts }
    }
}

impl NewOutput {
    /// An output without a lane: each subscriber is one.
    fn for_subscribers(
        config: OutputConfig,
        subscribers: &SubscribersConfig,
        owner: usize,
        around: &Surroundings,
    ) -> Self {
        let scope = around.scope.child(&config.name);
        let mut entry = OutputEntry::new(&config.name, scope.clone(), None);
        let account = Arc::new(OutputAccount::new(Arc::new(OutputLog::new(&config.name))));
        let (news, takers, roster) = Subscribers::new(&config, subscribers, (&account, scope), around);
        let inlet = Inlet {
            content_type: config.stream_type(),
            frame_len_max: config.frame_len_max,
            queues: Queues::Takers(Arc::clone(&takers)),
        };
        entry.accounts.push(account);
        entry.subscribers = Some((takers, roster));
        let (entry, news) = (Arc::new(entry), vec![LaneNews::Subscribers(news)]);
        let (budgets, inlets, listeners) = (Vec::new(), vec![inlet], Vec::new());
        let output = RunningOutput { config, entry, budgets, inlets, listeners, news, owner };
        Self { output, parts: OutputParts::default() }
    }
}

/// Starts these outputs. Returns when their spools are open: the first frames find them so. A disk that hangs holds up the start
/// for a moment only.
///
/// # Errors
/// The system has no thread; a worker does not answer.
pub(crate) fn start(parts: impl Iterator<Item = OutputParts>, workers: &Workers) -> io::Result<()> {
    let mut all = OutputParts::default();
    for OutputParts { lanes, files, stages } in parts {
        all.lanes.extend(lanes);
        all.files.extend(files);
        all.stages.extend(stages);
    }
    start_stand_ins(all.stages.iter().map(|(stage, _)| stage.stand_in()).collect())?;
    start_stages(all.stages)?;
    for (lane, scope) in all.files {
        start_file(lane, &scope)?;
    }
    let order = |(worker, lane)| (worker, Order::Lane(Box::new(lane)));
    workers.order(all.lanes.into_iter().map(order))
}

/// The settings of a lane. The members of its group have accounts in the entry: those that are there already, or new ones.
fn make_settings(
    config: &OutputConfig,
    streams: &StreamsConfig,
    entry: &OutputEntry,
    around: &Surroundings,
) -> Arc<LaneSettings> {
    let members = match &streams.endpoints {
        Endpoints::One(_) => Vec::new(),
        Endpoints::Group(group) => group.members.iter().map(|member| member.address.clone()).collect(),
    };
    let members = entry.set_members(members);
    let content_type = config.stream_type();
    // They were read before, and are in use.
    let tls = around.certificates.of_output(&config.name, streams).ok().flatten();
    let way = |address| around.loops.way(content_type.as_ref(), address, streams.send_proxy, tls.as_ref());
    let ways = streams.endpoints.addresses().map(way).collect();
    Arc::new(LaneSettings {
        buffer: config.buffer.clone(),
        streams: streams.clone(),
        stall_timeout: match &streams.endpoints {
            Endpoints::One(_) => None,
            Endpoints::Group(group) => Some(group.stall_timeout),
        },
        members,
        ways,
        tls,
        renew_timeout: around.drain_timeout,
    })
}

/// What stands before a lane: one queue, or two with a spool between them. The first is for inputs to fill.
fn make_queues(
    config: &OutputConfig,
    account: &Arc<OutputAccount>,
) -> (Arc<Queue>, Source, Option<Stage<Folder>>) {
    let queue = |max, when_full| Arc::new(Queue::new(max, when_full, Arc::clone(account)));
    let max_age = config.buffer.spool().map(|spool| spool.config.max_age);
    let source = |queue, reports| Source {
        output: config.name.clone(),
        queue,
        account: Arc::clone(account),
        reports,
        max_age,
    };
    let (spool, stores_all) = match &config.buffer {
        Buffer::Memory { max, when_full, .. } => {
            let queue = queue(*max, *when_full);
            return (Arc::clone(&queue), source(queue, None), None);
        }
        Buffer::Spill { spool, .. } => (spool, false),
        Buffer::Disk { spool, .. } => (spool, true),
    };
    let lane_queue = config.buffer.lane_queue();
    let front = queue(config.buffer.memory() - lane_queue, config.buffer.policy());
    // The stage fills it as far as there is room: it has no policy.
    let back = queue(lane_queue, WhenFull::Block);
    let (sender, receiver) = reports();
    let config = StageConfig {
        output: config.name.clone(),
        content_type: config.stream_type(),
        frame_len_max: config.frame_len_max,
        settings: spool.clone(),
        stores_all,
    };
    let queues = (Arc::clone(&front), Arc::clone(&back));
    let stage = Stage::new(config, Stage::open_folder, queues, receiver, Arc::clone(account));
    (front, source(back, Some(sender)), Some(stage))
}

/// Runs a spool's stage on a thread of its own.
fn start_stage(stage: Stage<Folder>, scope: &Scope, opens: mpsc::Sender<()>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let stage_scope = scope.clone();
    let run = move || runtime.block_on(stage_loop::run(stage, stage_scope, opens));
    scope.spawn_thread("tapster-spool", "spool", run)
}

/// Starts the stages, and waits until their spools are open: the first frames find them so. A disk that hangs holds up the start
/// for a moment only.
fn start_stages(stages: Vec<(Stage<Folder>, Scope)>) -> io::Result<()> {
    let (opens, all_open) = mpsc::channel();
    for (stage, scope) in stages {
        start_stage(stage, &scope, opens.clone())?;
    }
    drop(opens);
    // It ends with an error in either way: nobody sends, or the time is over.
    let _ = all_open.recv_timeout(OPEN_PATIENCE);
    Ok(())
}

/// Runs the stand-ins of all stages on one thread, which ends soon after the last stage.
fn start_stand_ins(stand_ins: Vec<StandIn>) -> io::Result<()> {
    if stand_ins.is_empty() {
        return Ok(());
    }
    thread::Builder::new()
        .name("tapster-stand-in".to_owned())
        .spawn(move || stage_loop::run_stand_ins(stand_ins))
        .map(drop)
}

/// Runs a lane into files on a thread of its own.
fn start_file(lane: FileLane, scope: &Scope) -> io::Result<()> {
    // With I/O: an output may write into a FIFO.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let lane_scope = scope.clone();
    scope.spawn_thread("tapster-file", "file", move || runtime.block_on(lane.run(lane_scope)))
}

/// How long the start waits for spools to be open. A disk that takes longer counts as one that hangs.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
