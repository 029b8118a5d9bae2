//! From configuration to what each worker gets, and to the accounts of it all.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use crate::input::InputConfig;
use crate::input::listener::WorkerInput;
use crate::observability::InputLedger;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::observability::age::AgeSum;
use crate::observability::metrics::InputMetrics;
use crate::observability::metrics::LaneMetrics;
use crate::output::Connections;
use crate::output::OutputConfig;
use crate::output::backlog::Backlog;
use crate::output::group::Group;
use crate::protocol::ReaderConfig;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::queue::keeper::Keeper;
use crate::queue::receipts::ReceiptSender;
use crate::queue::receipts::receipts;
use crate::relay::worker::WorkerGroup;
use crate::relay::worker::WorkerLane;
use crate::relay::worker::WorkerListener;
use crate::route::Inlet;
use crate::transport::Address;
use crate::transport::listener::BoundListener;

/// What one worker gets of inputs and outputs.
#[derive(Default)]
pub(crate) struct WorkerParts {
    pub(crate) inputs: Vec<WorkerInput>,
    pub(crate) listeners: Vec<WorkerListener>,
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) lanes: Vec<WorkerLane>,
    pub(crate) groups: Vec<WorkerGroup>,
}

/// A lane into files, on a thread of its own.
pub(crate) struct FileLane {
    pub(crate) config: Arc<OutputConfig>,
    pub(crate) pattern: String,
    pub(crate) backlog: Backlog,
}

/// The parts, while they are put together.
pub(crate) struct Assembly {
    pub(crate) workers: Vec<WorkerParts>,
    pub(crate) files: Vec<FileLane>,
    pub(crate) keepers: Vec<Keeper>,
    pub(crate) queues: Vec<Arc<Queue>>,
    pub(crate) accounts: Accounts,
}

impl Assembly {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| WorkerParts::default()).collect(),
            files: Vec::new(),
            keepers: Vec::new(),
            queues: Vec::new(),
            accounts: Accounts { workers, inputs: Vec::new(), outputs: Vec::new() },
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
        let mut account = Account::new(&config.name);
        let config = Arc::new(config);
        let open = Arc::new(AtomicUsize::new(0));
        for worker in &mut self.workers {
            let metrics = Arc::<InputMetrics>::default();
            account.metrics.push(Arc::clone(&metrics));
            worker.inputs.push(WorkerInput {
                config: Arc::clone(&config),
                reader: Arc::clone(&reader),
                metrics,
                open: Arc::clone(&open),
            });
        }
        self.accounts.inputs.push(account);
    }

    /// A lane on every worker that feeds itself alone, or one lane that every worker feeds: outputs are dealt out among
    /// the workers.
    pub(crate) fn add_output(&mut self, config: OutputConfig) {
        let owner = self.accounts.outputs.len() % self.workers.len();
        let mut account = Account::new(&config.name);
        // A file has the frames when they are written.
        let keeps = config.keeps_unacknowledged() && !matches!(config.to, Address::File(_));
        let config = Arc::new(config);
        let lanes = match config.connections {
            Connections::One => vec![(owner, 0..self.workers.len())],
            Connections::PerWorker => {
                (0..self.workers.len()).map(|worker| (worker, worker..worker + 1)).collect()
            }
        };
        for (owner, feeders) in lanes {
            let metrics = Arc::<LaneMetrics>::default();
            let Ends { front, back, receipts, keeper } = make_queues(&config, &metrics);
            for feeder in feeders {
                self.workers[feeder].inlets.push(Inlet {
                    content_type: config.stream_type(),
                    frame_len_max: config.frame_len_max,
                    when_full: config.policy(),
                    queue: Arc::clone(&front),
                    metrics: Arc::clone(&metrics),
                });
            }
            let backlog = || Backlog::new(Arc::clone(&back), receipts.clone(), Arc::clone(&metrics), keeps);
            let config = Arc::clone(&config);
            match (&config.group, &config.to) {
                (Some(_), _) => {
                    let group = make_group(&config, &back, receipts, &metrics, &mut account.members);
                    self.workers[owner].groups.extend(group);
                }
                (None, Address::File(pattern)) => {
                    let pattern = pattern.clone();
                    self.files.push(FileLane { pattern, backlog: backlog(), config });
                }
                _ => self.workers[owner].lanes.push(WorkerLane { backlog: backlog(), config }),
            }
            self.keepers.extend(keeper);
            account.queues.push(Arc::clone(&front));
            if !Arc::ptr_eq(&front, &back) {
                account.queues.push(back);
            }
            self.queues.push(front);
            account.metrics.push(metrics);
        }
        self.accounts.outputs.push(account);
    }

    /// One listener for each worker.
    pub(crate) fn add_listeners(&mut self, input: usize, listeners: Vec<BoundListener>, address: &Address) {
        for (worker, listener) in self.workers.iter_mut().zip(listeners) {
            worker.listeners.push(WorkerListener { input, listener, address: address.clone() });
        }
    }
}

/// What stands before a lane: one queue, or two with a spool between them.
struct Ends {
    front: Arc<Queue>,
    back: Arc<Queue>,
    receipts: Option<ReceiptSender>,
    keeper: Option<Keeper>,
}

fn make_queues(config: &OutputConfig, metrics: &Arc<LaneMetrics>) -> Ends {
    let queue =
        |max, when_full| Arc::new(Queue::new(config.name.clone(), max, when_full, Arc::clone(metrics)));
    let Some(spool) = &config.spool else {
        let queue = queue(config.queue, config.when_full);
        return Ends { front: Arc::clone(&queue), back: queue, receipts: None, keeper: None };
    };
    let front = queue(config.queue - config.lane_queue(), config.policy());
    // Filled by `offer`, which has no policy.
    let back = queue(config.lane_queue(), WhenFull::Block);
    let (sender, receiver) = receipts();
    let keeper = Keeper {
        output: config.name.clone(),
        content_type: config.stream_type(),
        settings: spool.clone(),
        front: Arc::clone(&front),
        back: Arc::clone(&back),
        receipts: receiver,
        metrics: Arc::clone(metrics),
    };
    Ends { front, back, receipts: Some(sender), keeper: Some(keeper) }
}

/// The lanes of a group; `None` where the output is none.
fn make_group(
    config: &OutputConfig,
    queue: &Arc<Queue>,
    receipts: Option<ReceiptSender>,
    metrics: &Arc<LaneMetrics>,
    accounts: &mut Vec<(Address, Arc<LaneMetrics>)>,
) -> Option<WorkerGroup> {
    let group = config.group.as_ref()?;
    let mut members = Vec::new();
    let mut configs = Vec::new();
    for member in &group.members {
        let metrics = Arc::new(LaneMetrics::of_member(Arc::clone(metrics)));
        accounts.push((member.address.clone(), Arc::clone(&metrics)));
        members.push(metrics);
        configs.push(Arc::new(OutputConfig { to: member.address.clone(), ..config.clone() }));
    }
    let group = Group::new(group, Arc::clone(queue), receipts, Arc::clone(metrics), members);
    Some(WorkerGroup { group: Arc::new(group), configs })
}

/// Who counts for which input and output.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) workers: usize,
    pub(crate) inputs: Vec<Account<InputMetrics>>,
    pub(crate) outputs: Vec<Account<LaneMetrics>>,
}

/// One line of the ledger, and the counters that it sums up.
#[derive(Debug)]
pub(crate) struct Account<M> {
    pub(crate) name: String,
    pub(crate) metrics: Vec<Arc<M>>,
    /// Of an output: where its frames wait.
    pub(crate) queues: Vec<Arc<Queue>>,
    /// Of a group: where each member is, and its share of `metrics`.
    pub(crate) members: Vec<(Address, Arc<M>)>,
}

impl<M> Account<M> {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), metrics: Vec::new(), queues: Vec::new(), members: Vec::new() }
    }
}

impl Account<LaneMetrics> {
    fn ledger(&self, now: Instant) -> OutputLedger {
        let mut ledger = OutputLedger { name: self.name.clone(), ..OutputLedger::default() };
        self.metrics.iter().for_each(|metrics| metrics.add_to(&mut ledger));
        let member = |(to, metrics): &(Address, Arc<LaneMetrics>)| metrics.member_ledger(to.to_string(), now);
        ledger.members = self.members.iter().map(member).collect();
        let mut ages = AgeSum::new();
        self.queues.iter().filter_map(|queue| queue.oldest()).for_each(|read_at| ages.add_waiting(read_at));
        let members = self.members.iter().map(|(_, metrics)| metrics);
        self.metrics.iter().chain(members).for_each(|metrics| metrics.add_ages_to(&mut ages));
        ledger.oldest_age_us = ages.oldest_age_us(now);
        ledger.residence = ages.residence();
        ledger
    }
}

impl Accounts {
    pub(crate) fn ledger(&self) -> Ledger {
        let inputs = self.inputs.iter().map(|account| {
            let mut ledger = InputLedger { name: account.name.clone(), ..InputLedger::default() };
            account.metrics.iter().for_each(|metrics| metrics.add_to(&mut ledger));
            ledger
        });
        let now = Instant::now();
        let outputs = self.outputs.iter().map(|account| account.ledger(now));
        Ledger { inputs: inputs.collect(), outputs: outputs.collect() }
    }
}
