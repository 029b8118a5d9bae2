//! The subscribers of an output: those that are there, each with an account of its own, and the sum of those that have left.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use jiff::Timestamp;
use jiff::Unit;

use crate::observability::OutputLedger;
use crate::observability::SubscriberLedger;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;
use crate::observability::rejection::Rejection;

/// The subscribers of one output. Any thread adds to it.
#[derive(Debug)]
pub(crate) struct Roster {
    // The account of the output: each subscriber has one beside it.
    output: Arc<OutputAccount>,
    people: Mutex<People>,
    rejected: [AtomicU64; Rejection::ALL.len()],
}

#[derive(Debug, Default)]
struct People {
    present: Vec<Present>,
    // Of those that have left.
    left: OutputLedger,
}

/// A subscriber that is there.
#[derive(Clone, Debug)]
struct Present {
    address: String,
    since: String,
    account: Arc<OutputAccount>,
}

impl Roster {
    /// Nobody is there yet. `output` is the account of the output.
    pub(crate) fn new(output: Arc<OutputAccount>) -> Self {
        Self { output, people: Mutex::default(), rejected: Default::default() }
    }

    /// A subscriber comes from there, now. Its account counts for the output until [`Roster::leave`], and its counts for ever.
    pub(crate) fn join(&self, address: String) -> Arc<OutputAccount> {
        let account = Arc::new(self.output.beside());
        let since = Timestamp::now().round(Unit::Second).unwrap_or_default().to_string();
        let present = Present { address, since, account: Arc::clone(&account) };
        self.people.lock().expect(UNPOISONED).present.push(present);
        account
    }

    /// The subscriber with this account has left, and nobody adds to the account any more.
    pub(crate) fn leave(&self, account: &Arc<OutputAccount>) {
        let mut people = self.people.lock().expect(UNPOISONED);
        let place = people.present.iter().position(|present| Arc::ptr_eq(&present.account, account));
        if let Some(place) = place {
            people.present.remove(place);
            account.add_to(&mut people.left);
        }
    }

    /// A connection was closed without an answer.
    pub(crate) fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }

    /// Adds all of them to the ledger of their output.
    pub(crate) fn add_to(&self, ledger: &mut OutputLedger) {
        // Who looks holds up nobody that leaves. Those that leave meanwhile count as they do now, and once.
        let (left, present) = {
            let people = self.people.lock().expect(UNPOISONED);
            (people.left.clone(), people.present.clone())
        };
        ledger.add(&left);
        for Present { address, since, account } in present {
            let mut own = OutputLedger::default();
            account.add_to(&mut own);
            ledger.add(&own);
            let OutputLedger { frames_sent, frames_queued, frames_dropped, .. } = own;
            ledger.subscribers.push(SubscriberLedger {
                address,
                since,
                frames_sent,
                frames_queued,
                frames_dropped,
            });
        }
        for (reason, count) in Rejection::ALL.iter().zip(&self.rejected) {
            let connections = count.load(Relaxed);
            if connections > 0 {
                ledger.connections_rejected.insert(reason.name().to_owned(), connections);
            }
        }
    }

    /// The accounts of those that are there.
    pub(crate) fn accounts(&self) -> Vec<Arc<OutputAccount>> {
        let people = self.people.lock().expect(UNPOISONED);
        people.present.iter().map(|present| Arc::clone(&present.account)).collect()
    }

    /// Frames lost since the start, in the order of [`DropReason::ALL`].
    pub(crate) fn dropped_now(&self) -> [u64; DropReason::ALL.len()] {
        let (left, accounts) = {
            let people = self.people.lock().expect(UNPOISONED);
            let left = DropReason::ALL
                .map(|reason| people.left.frames_dropped.get(reason.name()).copied().unwrap_or_default());
            (left, people.present.iter().map(|present| Arc::clone(&present.account)).collect::<Vec<_>>())
        };
        accounts.iter().fold(left, |mut sums, account| {
            sums.iter_mut().zip(account.dropped_now()).for_each(|(sum, frames)| *sum += frames);
            sums
        })
    }
}

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_stay_when_a_subscriber_leaves_and_the_list_has_those_that_are_there() {
        let roster = Roster::new(Arc::default());
        let ledger = || {
            let mut ledger = OutputLedger::default();
            roster.add_to(&mut ledger);
            assert!(ledger.balances(), "{ledger:?}");
            ledger
        };
        let first = roster.join("tcp://192.0.2.1:1".to_owned());
        let second = roster.join("tcp://192.0.2.1:2".to_owned());
        first.admitted(10);
        first.sent(4, 400);
        second.admitted(10);
        second.sent(10, 1000);
        assert_eq!(ledger().subscribers.len(), 2);
        first.unsubscribe();
        first.dropped(first.end_reason(), 6);
        let before = ledger();
        roster.leave(&first);
        let after = ledger();
        assert_eq!((before.frames_received, after.frames_received, after.frames_sent), (20, 20, 14));
        assert_eq!(after.frames_dropped["unsubscribed"], 6);
        assert_eq!(roster.dropped_now().iter().sum::<u64>(), 6);
        let there: Vec<_> = after.subscribers.iter().map(|there| &there.address[..]).collect();
        assert_eq!(there, ["tcp://192.0.2.1:2"]);
        // Twice is once.
        roster.leave(&first);
        assert_eq!(ledger().frames_received, 20);
    }
}
