//! Who counts for which input and output, and where its frames wait.

use std::sync::Arc;
use std::time::Instant;

use tracing::error;

use crate::lifecycle::Scope;
use crate::observability::InputLedger;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::observability::account::OutputAccount;
use crate::observability::age::AgeSum;
use crate::observability::drop_reason::DropReason;
use crate::observability::input_account::InputAccount;
use crate::observability::member_account::MemberAccount;
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
            self.accounts.iter().map(|account| account.abandoned(DropReason::Shutdown)).sum();
        let tasks = left_behind.into_iter().collect::<Vec<_>>().join(", ");
        let output = &self.name;
        error!(
            output,
            tasks,
            frames_dropped,
            "these tasks of the output have not ended by the deadline, and tapster ends without them; most likely a disk hangs"
        );
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
