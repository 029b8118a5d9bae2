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
use crate::loops::Loops;
use crate::observability::account::OutputAccount;
use crate::observability::output_log::OutputLog;
use crate::output::Buffer;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::FileConfig;
use crate::output::Lanes;
use crate::output::OutputConfig;
use crate::output::StreamsConfig;
use crate::output::file::FileLane;
use crate::output::frame_stream::StreamLane;
use crate::output::lane::Source;
use crate::output::settings::LaneSettings;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::relay::output_entry::OutputEntry;
use crate::relay::worker::Order;
use crate::relay::worker::WorkerLane;
use crate::relay::workers::Workers;
use crate::route::Inlet;
use crate::spool::Folder;
use crate::spool::entrance::StandIn;
use crate::spool::reports::reports;
use crate::spool::stage::Stage;
use crate::spool::stage::StageConfig;
use crate::spool::stage_loop;
use crate::transport::own_listeners::OwnListeners;

/// One output at work.
#[derive(Debug)]
pub(crate) struct RunningOutput {
    pub(crate) config: OutputConfig,
    pub(crate) entry: Arc<OutputEntry>,
    /// Of every queue.
    pub(crate) budgets: Vec<Arc<Budget>>,
    // One, or one for each worker.
    inlets: Vec<Inlet>,
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

/// What every output is put together with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) workers: usize,
    /// The scope of all outputs.
    pub(crate) scope: Scope,
    /// How long the end of anything may take.
    pub(crate) drain_timeout: Duration,
    /// Asks file outputs to end their files and to begin new ones.
    pub(crate) reopen: watch::Sender<u64>,
    /// Which ways of outputs lead back through other relays.
    pub(crate) loops: Arc<Loops>,
    /// Where no output may lead.
    pub(crate) own: Arc<OwnListeners>,
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
            inlet.queue.reconfigure(config.buffer.memory() - lane_queue, config.buffer.policy());
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
                (_, _) => unreachable!("the kind of the destination stays"),
            }
        }
        self.config = config;
    }

    /// The worker that has its lane.
    pub(crate) fn owner(&self) -> usize {
        self.owner
    }
}

impl NewOutput {
    /// A lane on every worker that feeds itself alone, or one lane that every worker feeds, on worker `owner`.
    pub(crate) fn new(config: OutputConfig, owner: usize, around: &Surroundings) -> Self {
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
                queue: Arc::clone(&front),
                account: Arc::clone(&account),
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
                    let lane = StreamLane { source, content_type, settings, own, loops };
                    parts.lanes.push((owner, WorkerLane { lane, scope }));
                }
            }
        }
        let output = RunningOutput { config, entry: Arc::new(entry), budgets, inlets, news, owner };
        Self { output, parts }
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
    let way = |address| around.loops.way(content_type.as_ref(), address, streams.send_proxy);
    let ways = streams.endpoints.addresses().map(way);
    Arc::new(LaneSettings {
        buffer: config.buffer.clone(),
        streams: streams.clone(),
        members,
        ways: ways.collect(),
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
