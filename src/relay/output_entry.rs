//! One output in the accounts, and where its frames wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use tracing::error;

use crate::lifecycle::Scope;
use crate::observability::OutputLedger;
use crate::observability::OutputStanding;
use crate::observability::account::OutputAccount;
use crate::observability::age::AgeSum;
use crate::observability::age::OldestOf;
use crate::observability::drop_reason::DropReason;
use crate::observability::loss_log::LossLog;
use crate::observability::member_account::MemberAccount;
use crate::observability::roster::Roster;
use crate::observability::wait_log::OutputWait;
use crate::observability::wait_log::OutputWaitLog;
use crate::queue::Queue;
use crate::queue::takers::Takers;
use crate::spool::reports::LeftBatches;
use crate::transport::Address;

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
    /// Where its spool is.
    pub(crate) spool: Option<PathBuf>,
    /// Of an output that listens: its subscribers, and what was counted for them.
    pub(crate) subscribers: Option<(Arc<Takers>, Arc<Roster>)>,
    /// Of a group: where each member is, and what it did.
    members: Mutex<Vec<(Address, Arc<MemberAccount>)>>,
    // What was told.
    lines: Mutex<(LossLog, OutputWaitLog)>,
}

impl OutputEntry {
    pub(crate) fn new(name: &str, scope: Scope, spool: Option<PathBuf>) -> Self {
        let (fronts, queues) = (Vec::new(), Vec::new());
        let (accounts, left, members) = (Vec::new(), Vec::new(), Mutex::default());
        let lines = Mutex::new((LossLog::of_output(name), OutputWaitLog::new(name)));
        Self {
            name: name.to_owned(),
            scope,
            lanes: None,
            accounts,
            fronts,
            queues,
            left,
            spool,
            subscribers: None,
            members,
            lines,
        }
    }

    /// Adds the queue that inputs fill, and the one that a lane empties: another one, where a spool is between them.
    pub(crate) fn add_queues(&mut self, front: Arc<Queue>, back: Arc<Queue>) {
        if !Arc::ptr_eq(&front, &back) {
            self.queues.push(back);
        }
        self.queues.push(Arc::clone(&front));
        self.fronts.push(front);
    }

    /// The group has these members from now on. Those that it had before keep their accounts.
    pub(crate) fn set_members(&self, addresses: Vec<Address>) -> Vec<Arc<MemberAccount>> {
        let mut members = self.members.lock().expect(UNPOISONED);
        let account = |address: Address| {
            let known = members.iter().find(|(known, _)| *known == address);
            let account = known.map(|(_, account)| Arc::clone(account)).unwrap_or_default();
            (address, account)
        };
        let renewed: Vec<_> = addresses.into_iter().map(account).collect();
        *members = renewed;
        members.iter().map(|(_, account)| Arc::clone(account)).collect()
    }

    /// Nothing comes any more.
    pub(crate) fn close(&self) {
        self.fronts.iter().for_each(|front| front.close());
        self.subscribers.iter().for_each(|(takers, _)| takers.close());
    }

    /// The accounts of its lanes, those of its subscribers included.
    pub(crate) fn all_accounts(&self) -> Vec<Arc<OutputAccount>> {
        let subscribers = self.subscribers.iter().flat_map(|(_, roster)| roster.accounts());
        self.accounts.iter().cloned().chain(subscribers).collect()
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
        let frames_dropped: u64 = self.all_accounts().iter().map(|account| account.abandoned()).sum();
        let tasks = left_behind.into_iter().collect::<Vec<_>>().join(", ");
        let output = &self.name;
        error!(
            output,
            tasks,
            frames_dropped,
            "these tasks of the output have not ended by the deadline, and tapster ends without them; most likely a disk hangs"
        );
    }

    /// Writes the lines that are due.
    pub(crate) fn tell(&self, now: Instant) {
        let (losses, waits) = &mut *self.lines.lock().expect(UNPOISONED);
        losses.look(&self.dropped(), None, now);
        waits.look(&self.wait(now), now);
        self.tell_left_out(Some(now));
    }

    /// Tells the rest, at the end.
    pub(crate) fn tell_end(&self) {
        self.lines.lock().expect(UNPOISONED).0.end(&self.dropped());
        self.tell_left_out(None);
    }

    /// Frames lost since the start, in the order of [`DropReason::ALL`].
    fn dropped(&self) -> [u64; DropReason::ALL.len()] {
        let mut sums = [0; DropReason::ALL.len()];
        for account in &self.accounts {
            sums.iter_mut().zip(account.dropped_now()).for_each(|(sum, frames)| *sum += frames);
        }
        if let Some((_, roster)) = &self.subscribers {
            sums.iter_mut().zip(roster.dropped_now()).for_each(|(sum, frames)| *sum += frames);
        }
        sums
    }

    /// Who keeps frames waiting, and for how long.
    fn wait(&self, now: Instant) -> OutputWait {
        let mut oldest = OldestOf::new();
        self.queues.iter().filter_map(|queue| queue.oldest()).for_each(|read_at| oldest.add_read_at(read_at));
        self.oldest_of_subscribers().for_each(|read_at| oldest.add_read_at(read_at));
        let mut wait = OutputWait::default();
        for account in &self.all_accounts() {
            account.add_oldest_to(&mut oldest);
            wait.progress += account.progress();
            wait.absent.extend(account.absences.now());
        }
        wait.oldest = oldest.age(now);
        wait
    }

    /// When the oldest batch was read that waits for a subscriber, for each.
    fn oldest_of_subscribers(&self) -> impl Iterator<Item = Instant> {
        let takers = self.subscribers.iter().flat_map(|(takers, _)| takers.present().to_vec());
        takers.filter_map(|taker| taker.queue.oldest())
    }

    /// How it stands, in short.
    pub(crate) fn standing(&self) -> OutputStanding {
        let in_memory: usize = self.queues.iter().map(|queue| queue.budget().charged()).sum();
        let on_disk: u64 = self.accounts.iter().map(|account| account.bytes_spooled_now()).sum();
        OutputStanding {
            name: self.name.clone(),
            is_down: self.accounts.iter().any(|account| !account.absences.now().is_empty()),
            bytes_behind: in_memory as u64 + on_disk,
        }
    }

    /// Whether an input waits for room in a queue of this output.
    pub(crate) fn blocks(&self) -> bool {
        self.fronts.iter().any(|front| front.blocks())
    }

    /// Tells what the log left out.
    fn tell_left_out(&self, now: Option<Instant>) {
        if let Some(account) = self.accounts.first() {
            account.log.tell_left_out(now);
        }
    }

    /// What became of the frames.
    pub(crate) fn ledger(&self, now: Instant) -> OutputLedger {
        let (name, panics) = (self.name.clone(), self.scope.panics());
        let mut ledger = OutputLedger { name, panics, ..OutputLedger::default() };
        self.accounts.iter().for_each(|account| account.add_to(&mut ledger));
        let members = self.members.lock().expect(UNPOISONED);
        ledger.members = members.iter().map(|(to, account)| account.ledger(to.to_string(), now)).collect();
        let mut ages = AgeSum::new();
        self.queues.iter().filter_map(|queue| queue.oldest()).for_each(|read_at| ages.add_waiting(read_at));
        self.accounts.iter().for_each(|account| account.add_ages_to(&mut ages));
        self.oldest_of_subscribers().for_each(|read_at| ages.add_waiting(read_at));
        if let Some((_, roster)) = &self.subscribers {
            roster.add_to(&mut ledger);
            roster.accounts().iter().for_each(|account| ages.add_oldest(&account.ages.oldest));
        }
        ledger.oldest_age_us = ages.oldest_age_us(now);
        ledger.residence = ages.residence();
        ledger
    }
}

/// A panic in there would be one of the log.
const UNPOISONED: &str = "no panic while it is held";
