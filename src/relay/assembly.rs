//! From configuration to what each worker gets, and to the accounts of it all.

use std::sync::Arc;

use tokio::sync::watch;

use crate::batch::budget::Budget;
use crate::input::InputConfig;
use crate::input::gate::Gate;
use crate::input::listener::WorkerInput;
use crate::lifecycle::Scope;
use crate::observability::account::OutputAccount;
use crate::observability::input_account::InputAccount;
use crate::observability::listener_log::ListenerLog;
use crate::observability::member_account::MemberAccount;
use crate::observability::output_log::OutputLog;
use crate::output::Buffer;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::Lanes;
use crate::output::OutputConfig;
use crate::output::file::FileLane;
use crate::output::frame_stream::StreamLane;
use crate::output::lane::Source;
use crate::protocol::Oversize;
use crate::protocol::ReaderConfig;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::relay::accounts::Accounts;
use crate::relay::accounts::InputEntry;
use crate::relay::accounts::OutputEntry;
use crate::relay::worker::WorkerLane;
use crate::relay::worker::WorkerListener;
use crate::route::Inlet;
use crate::spool::Folder;
use crate::spool::reports::reports;
use crate::spool::stage::Stage;
use crate::spool::stage::StageConfig;
use crate::transport::Address;
use crate::transport::listener::BoundListener;
use crate::transport::own_listeners::OwnListeners;

/// What one worker gets of inputs and outputs.
#[derive(Default)]
pub(crate) struct WorkerParts {
    pub(crate) inputs: Vec<WorkerInput>,
    pub(crate) listeners: Vec<WorkerListener>,
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) lanes: Vec<WorkerLane>,
}

/// The parts, while they are put together.
pub(crate) struct Assembly {
    pub(crate) workers: Vec<WorkerParts>,
    pub(crate) files: Vec<(FileLane, Scope)>,
    pub(crate) stages: Vec<(Stage<Folder>, Scope)>,
    pub(crate) accounts: Accounts,
    /// Of every queue.
    pub(crate) budgets: Vec<Arc<Budget>>,
    /// Asks file outputs to end their files and to begin new ones.
    pub(crate) reopen: watch::Sender<u64>,
    own: Arc<OwnListeners>,
    inputs: Scope,
    outputs: Scope,
}

impl Assembly {
    /// Nothing yet, for so many workers, below the scopes of all inputs and of all outputs. No output may lead to one of `own`.
    pub(crate) fn new(workers: usize, own: OwnListeners, inputs: Scope, outputs: Scope) -> Self {
        Self {
            workers: (0..workers).map(|_| WorkerParts::default()).collect(),
            files: Vec::new(),
            stages: Vec::new(),
            accounts: Accounts { workers, inputs: Vec::new(), outputs: Vec::new() },
            budgets: Vec::new(),
            reopen: watch::Sender::new(0),
            own: Arc::new(own),
            inputs,
            outputs,
        }
    }

    /// Every worker serves every input.
    pub(crate) fn add_input(&mut self, config: InputConfig) {
        let reader = Arc::new(ReaderConfig {
            content_types: config.content_types.clone(),
            bidirectional: true,
            unidirectional: config.unidirectional,
            frame_len_max: config.frame_len_max,
            oversize: config.oversize,
            handshake_timeout: config.handshake_timeout,
        });
        let scope = self.inputs.child(&config.name);
        let mut entry = InputEntry {
            name: config.name.clone(),
            scope: scope.clone(),
            accounts: Vec::new(),
            skips_oversize: config.oversize == Oversize::Skip,
        };
        let config = Arc::new(config);
        let gate = Arc::<Gate>::default();
        for worker in &mut self.workers {
            let account = Arc::<InputAccount>::default();
            entry.accounts.push(Arc::clone(&account));
            worker.inputs.push(WorkerInput {
                config: Arc::clone(&config),
                reader: Arc::clone(&reader),
                account,
                gate: Arc::clone(&gate),
                scope: scope.clone(),
            });
        }
        self.accounts.inputs.push(entry);
    }

    /// A lane on every worker that feeds itself alone, or one lane that every worker feeds: outputs are dealt out among
    /// the workers.
    pub(crate) fn add_output(&mut self, config: &OutputConfig) {
        let owner = self.accounts.outputs.len() % self.workers.len();
        let scope = self.outputs.child(&config.name);
        let mut entry = OutputEntry::new(&config.name, scope.clone());
        entry.lanes = config.buffer.spool().map(|_| scope.child("lanes"));
        let lanes = match config.buffer.lanes() {
            Lanes::One => vec![(owner, 0..self.workers.len())],
            Lanes::PerWorker => (0..self.workers.len()).map(|worker| (worker, worker..worker + 1)).collect(),
        };
        let log = Arc::new(OutputLog::new(&config.name));
        for (owner, feeders) in lanes {
            let account = Arc::new(OutputAccount::new(Arc::clone(&log)));
            let (front, source, stage) = make_queues(config, &account);
            for feeder in feeders {
                self.workers[feeder].inlets.push(Inlet {
                    content_type: config.stream_type(),
                    frame_len_max: config.frame_len_max,
                    when_full: config.buffer.policy(),
                    queue: Arc::clone(&front),
                    account: Arc::clone(&account),
                });
            }
            self.budgets.push(Arc::clone(front.budget()));
            if stage.is_some() {
                self.budgets.push(Arc::clone(source.queue.budget()));
            }
            entry.left.extend(stage.as_ref().map(Stage::left_batches));
            self.stages.extend(stage.map(|stage| (stage, scope.clone())));
            entry.add_queues(front, Arc::clone(&source.queue));
            entry.accounts.push(account);
            self.add_lane(owner, config, source, &mut entry);
        }
        self.accounts.outputs.push(entry);
    }

    fn add_lane(&mut self, owner: usize, config: &OutputConfig, source: Source, entry: &mut OutputEntry) {
        let scope = entry.lanes.clone().unwrap_or_else(|| entry.scope.clone());
        let content_type = config.stream_type();
        match &config.to {
            Destination::File(file) => {
                let reopen = self.reopen.subscribe();
                self.files.push((FileLane { source, content_type, config: file.clone(), reopen }, scope));
            }
            Destination::Streams(streams) => {
                let mut members = Vec::new();
                if let Endpoints::Group(group) = &streams.endpoints {
                    for member in &group.members {
                        let account = Arc::<MemberAccount>::default();
                        entry.members.push((member.address.clone(), Arc::clone(&account)));
                        members.push(account);
                    }
                }
                let (buffer, streams) = (config.buffer.clone(), streams.clone());
                let own = Arc::clone(&self.own);
                let lane = StreamLane { source, content_type, buffer, streams, members, own };
                self.workers[owner].lanes.push(WorkerLane { lane, scope });
            }
        }
    }

    /// One listener for each worker.
    pub(crate) fn add_listeners(&mut self, input: usize, listeners: Vec<BoundListener>, address: &Address) {
        let log = Arc::new(ListenerLog::new(&self.accounts.inputs[input].name, &address.to_string()));
        for (worker, listener) in self.workers.iter_mut().zip(listeners) {
            worker.listeners.push(WorkerListener { input, listener, log: Arc::clone(&log) });
        }
    }
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
