//! One input in the accounts.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use crate::lifecycle::Scope;
use crate::observability::InputLedger;
use crate::observability::age::OldestOf;
use crate::observability::input_account::InputAccount;
use crate::observability::loss_log::LossLog;
use crate::observability::wait_log::InputWait;
use crate::observability::wait_log::InputWaitLog;

/// The number of an input, which no other input of the relay ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InputId(pub(crate) u64);

/// One input: an account for each worker.
#[derive(Debug)]
pub(crate) struct InputEntry {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    accounts: Vec<Arc<InputAccount>>,
    // Whether frames over the limit are skipped. Otherwise the end of their session tells them.
    skips_oversize: AtomicBool,
    // What was told.
    lines: Mutex<(LossLog, InputWaitLog)>,
}

impl InputEntry {
    /// An input with these accounts, one for each worker.
    pub(crate) fn new(
        name: &str,
        scope: Scope,
        accounts: Vec<Arc<InputAccount>>,
        skips_oversize: bool,
    ) -> Self {
        let lines = Mutex::new((LossLog::of_input(name), InputWaitLog::new(name)));
        Self { name: name.to_owned(), scope, accounts, skips_oversize: skips_oversize.into(), lines }
    }

    /// Whether frames over the limit are skipped from now on.
    pub(crate) fn set_skips_oversize(&self, skips: bool) {
        self.skips_oversize.store(skips, Relaxed);
    }

    /// Writes the lines that are due.
    pub(crate) fn tell(&self, wait: &InputWait, now: Instant) {
        let (losses, waits) = &mut *self.lines.lock().expect(UNPOISONED);
        losses.look(&self.lost(), self.oversize_peer().as_deref(), now);
        waits.look(wait, now);
    }

    /// Tells the rest, at the end.
    pub(crate) fn tell_end(&self) {
        self.lines.lock().expect(UNPOISONED).0.end(&self.lost());
    }

    /// What the input took in.
    pub(crate) fn ledger(&self) -> InputLedger {
        let (name, panics) = (self.name.clone(), self.scope.panics());
        let mut ledger = InputLedger { name, panics, ..InputLedger::default() };
        self.accounts.iter().for_each(|account| account.add_to(&mut ledger));
        ledger
    }

    /// Frames that were skipped, and frames that no output takes: since the start.
    fn lost(&self) -> [u64; 2] {
        let oversize: u64 = self.accounts.iter().map(|account| account.oversize_now()).sum();
        let unrouted = self.accounts.iter().map(|account| account.unrouted_now()).sum();
        [if self.skips_oversize.load(Relaxed) { oversize } else { 0 }, unrouted]
    }

    /// Who sent a frame over the limit.
    fn oversize_peer(&self) -> Option<String> {
        self.accounts.iter().find_map(|account| account.oversize_peer())
    }

    /// The age of the oldest frame that an output keeps from going on.
    pub(crate) fn held(&self, now: Instant) -> Option<Duration> {
        let mut oldest = OldestOf::new();
        self.accounts.iter().for_each(|account| oldest.add(&account.held));
        oldest.age(now)
    }
}

/// A panic in there would be one of the log.
const UNPOISONED: &str = "no panic while it is held";
