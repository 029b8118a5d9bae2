//! Who counts for which input and output, and where its frames wait.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tracing::error;

use crate::lifecycle::Scope;
use crate::observability::InputLedger;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::observability::account::OutputAccount;
use crate::observability::age::AgeSum;
use crate::observability::age::OldestOf;
use crate::observability::drop_reason::DropReason;
use crate::observability::input_account::InputAccount;
use crate::observability::member_account::MemberAccount;
use crate::observability::wait_log::OutputWait;
use crate::queue::Queue;
use crate::spool::reports::LeftBatches;
use crate::transport::Address;

/// Everything that the ledger is made of.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) workers: usize,
    pub(crate) inputs: Vec<InputEntry>,
    pub(crate) outputs: Vec<OutputEntry>,
}

/// One input: an account for each worker.
#[derive(Debug)]
pub(crate) struct InputEntry {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) accounts: Vec<Arc<InputAccount>>,
    /// Whether frames over the limit are skipped. Otherwise the end of their session tells them.
    pub(crate) skips_oversize: bool,
}

impl InputEntry {
    /// Frames that were skipped, and frames that no output takes: since the start.
    pub(crate) fn lost(&self) -> [u64; 2] {
        let oversize: u64 = self.accounts.iter().map(|account| account.oversize_now()).sum();
        let unrouted = self.accounts.iter().map(|account| account.unrouted_now()).sum();
        [if self.skips_oversize { oversize } else { 0 }, unrouted]
    }

    /// Who sent a frame over the limit.
    pub(crate) fn oversize_peer(&self) -> Option<String> {
        self.accounts.iter().find_map(|account| account.oversize_peer())
    }

    /// The age of the oldest frame that an output keeps from going on.
    pub(crate) fn held(&self, now: Instant) -> Option<Duration> {
        let mut oldest = OldestOf::new();
        self.accounts.iter().for_each(|account| oldest.add(&account.held));
        oldest.age(now)
    }
}

/// One output: an account for each lane.
#[derive(Debug)]
pub(crate) struct OutputEntry {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    /// Where it has a spool: the scope of its lanes, which end before it. The spool takes what they leave.
    pub(crate) lanes: Option<Scope>,
    pub(crate) accounts: Vec<Arc<OutputAccount>>,
    /// The queues that inputs fill.
    pub(crate) fronts: Vec<Arc<Queue>>,
    /// Where its frames wait, these included.
    pub(crate) queues: Vec<Arc<Queue>>,
    /// What a spool that does not answer has not taken of its lane.
    pub(crate) left: Vec<LeftBatches>,
    /// Of a group: where each member is, and what it did.
    pub(crate) members: Vec<(Address, Arc<MemberAccount>)>,
}

impl OutputEntry {
    pub(crate) fn new(name: &str, scope: Scope) -> Self {
        let (fronts, queues) = (Vec::new(), Vec::new());
        let (accounts, left, members) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: name.to_owned(), scope, lanes: None, accounts, fronts, queues, left, members }
    }

    /// Adds the queue that inputs fill, and the one that a lane empties: another one, where a spool is between them.
    pub(crate) fn add_queues(&mut self, front: Arc<Queue>, back: Arc<Queue>) {
        if !Arc::ptr_eq(&front, &back) {
            self.queues.push(back);
        }
        self.queues.push(Arc::clone(&front));
        self.fronts.push(front);
    }

    /// Nothing comes any more.
    pub(crate) fn close(&self) {
        self.fronts.iter().for_each(|front| front.close());
    }

    /// Ends the lanes that have a spool: it needs time for what they leave.
    pub(crate) fn end_lanes(&self) {
        self.lanes.iter().for_each(Scope::end);
    }

    /// The end, after that of every task, or of the time for it: what is left is lost.
    pub(crate) fn abandon(&self) {
        self.queues.iter().for_each(|queue| queue.abandon());
        self.left.iter().for_each(LeftBatches::abandon);
        let left_behind = self.scope.alive();
        if left_behind.is_empty() {
            return;
        }
        let frames_dropped: u64 =
            self.accounts.iter().map(|account| account.abandoned()).sum();
        let tasks = left_behind.into_iter().collect::<Vec<_>>().join(", ");
        let output = &self.name;
        error!(
            output,
            tasks,
            frames_dropped,
            "these tasks of the output have not ended by the deadline, and tapster ends without them; most likely a disk hangs"
        );
    }

    /// Frames lost since the start, in the order of [`DropReason::ALL`].
    pub(crate) fn dropped(&self) -> [u64; DropReason::ALL.len()] {
        let mut sums = [0; DropReason::ALL.len()];
        for account in &self.accounts {
            sums.iter_mut().zip(account.dropped_now()).for_each(|(sum, frames)| *sum += frames);
        }
        sums
    }

    /// Who keeps frames waiting, and for how long.
    pub(crate) fn wait(&self, now: Instant) -> OutputWait {
        let mut oldest = OldestOf::new();
        self.queues.iter().filter_map(|queue| queue.oldest()).for_each(|read_at| oldest.add_read_at(read_at));
        let mut wait = OutputWait::default();
        for account in &self.accounts {
            account.add_oldest_to(&mut oldest);
            wait.progress += account.progress();
            wait.absent.extend(account.absences.now());
        }
        wait.oldest = oldest.age(now);
        wait
    }

    /// Whether an input waits for room in a queue of this output.
    pub(crate) fn blocks(&self) -> bool {
        self.fronts.iter().any(|front| front.blocks())
    }

    /// Tells what the log left out.
    pub(crate) fn tell_left_out(&self, now: Option<Instant>) {
        if let Some(account) = self.accounts.first() {
            account.log.tell_left_out(now);
        }
    }

    fn ledger(&self, now: Instant) -> OutputLedger {
        let (name, panics) = (self.name.clone(), self.scope.panics());
        let mut ledger = OutputLedger { name, panics, ..OutputLedger::default() };
        self.accounts.iter().for_each(|account| account.add_to(&mut ledger));
        ledger.members =
            self.members.iter().map(|(to, account)| account.ledger(to.to_string(), now)).collect();
        let mut ages = AgeSum::new();
        self.queues.iter().filter_map(|queue| queue.oldest()).for_each(|read_at| ages.add_waiting(read_at));
        self.accounts.iter().for_each(|account| account.add_ages_to(&mut ages));
        ledger.oldest_age_us = ages.oldest_age_us(now);
        ledger.residence = ages.residence();
        ledger
    }
}

impl Accounts {
    pub(crate) fn ledger(&self) -> Ledger {
        let inputs = self.inputs.iter().map(|entry| {
            let (name, panics) = (entry.name.clone(), entry.scope.panics());
            let mut ledger = InputLedger { name, panics, ..InputLedger::default() };
            entry.accounts.iter().for_each(|account| account.add_to(&mut ledger));
            ledger
        });
        let now = Instant::now();
        let outputs = self.outputs.iter().map(|entry| entry.ledger(now));
        Ledger { inputs: inputs.collect(), outputs: outputs.collect() }
    }
}
