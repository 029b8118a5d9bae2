//! The queues of an output whose readers come and go: a table of takers, which a reader that comes or goes renews in one go.
//!
//! Whoever has frames takes the table as it is, and gives a reference to each taker in it. So a reader that comes or goes costs
//! a worker nothing, however often that happens. A taker ends with the last of those that have it: by then nobody fills its
//! queue any more.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::RwLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::observability::account::OutputAccount;
use crate::observability::roster::Roster;
use crate::queue::Queue;
use crate::queue::WhenFull;

/// The takers of one output, and what the next one gets.
#[derive(Debug)]
pub(crate) struct Takers {
    table: RwLock<Table>,
    roster: Arc<Roster>,
    // When the takers were waited for, and one of them did not catch up.
    waited_at: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Table {
    present: Arc<Vec<Arc<Taker>>>,
    // Room in bytes for each, and what happens to frames that find none.
    max: usize,
    when_full: WhenFull,
    closed: bool,
}

/// One reader's queue and account.
#[derive(Debug)]
pub(crate) struct Taker {
    pub(crate) queue: Arc<Queue>,
    pub(crate) account: Arc<OutputAccount>,
    roster: Arc<Roster>,
}

impl Drop for Taker {
    /// Nobody puts anything into the queue any more. What still waits is lost: the reader has left.
    fn drop(&mut self) {
        self.queue.abandon();
        self.roster.leave(&self.account);
    }
}

impl Takers {
    /// Nobody yet. Each has a queue of `max` bytes. The policy is none that waits.
    pub(crate) fn new(max: usize, when_full: WhenFull, roster: Arc<Roster>) -> Self {
        let table = Table { present: Arc::default(), max, when_full, closed: false };
        Self { table: RwLock::new(table), roster, waited_at: Mutex::default() }
    }

    /// A reader comes: it gets every frame that arrives from now on. `None` where nobody is taken any more.
    pub(crate) fn join(&self, address: String) -> Option<Arc<Taker>> {
        let mut table = self.table.write().expect(UNPOISONED);
        if table.closed {
            return None;
        }
        let account = self.roster.join(address);
        let queue = Arc::new(Queue::new(table.max, table.when_full, Arc::clone(&account)));
        let taker = Arc::new(Taker { queue, account, roster: Arc::clone(&self.roster) });
        let others = table.present.iter().cloned();
        table.present = Arc::new(others.chain([Arc::clone(&taker)]).collect());
        Some(taker)
    }

    /// A reader goes, or is to go: nothing comes for it any more.
    pub(crate) fn dismiss(&self, taker: &Arc<Taker>) {
        let mut table = self.table.write().expect(UNPOISONED);
        let others = table.present.iter().filter(|other| !Arc::ptr_eq(other, taker)).cloned().collect();
        let former = std::mem::replace(&mut table.present, Arc::new(others));
        drop(table);
        drop(former);
        taker.queue.close();
    }

    /// Each has so much room from now on, and this policy.
    pub(crate) fn reconfigure(&self, max: usize, when_full: WhenFull) {
        let mut table = self.table.write().expect(UNPOISONED);
        (table.max, table.when_full) = (max, when_full);
        let present = Arc::clone(&table.present);
        drop(table);
        present.iter().for_each(|taker| taker.queue.reconfigure(max, when_full));
    }

    /// Those that are there now.
    pub(crate) fn present(&self) -> Arc<Vec<Arc<Taker>>> {
        Arc::clone(&self.table.read().expect(UNPOISONED).present)
    }

    /// Nothing comes any more, for anybody, and nobody is taken.
    pub(crate) fn close(&self) {
        let mut table = self.table.write().expect(UNPOISONED);
        table.closed = true;
        let former = std::mem::take(&mut table.present);
        drop(table);
        former.iter().for_each(|taker| taker.queue.close());
    }

    /// Bytes that wait for all of them.
    pub(crate) fn charged(&self) -> usize {
        self.present().iter().map(|taker| taker.queue.budget().charged()).sum()
    }

    /// Bytes that one write takes out of a queue at most.
    pub(crate) fn write_len_max(&self) -> usize {
        let table = self.table.read().expect(UNPOISONED);
        table.when_full.write_len_max(table.max)
    }

    /// Waits a moment for those that are behind: for all of them together, and seldom for those that stay behind. However many of
    /// them are slow, others notice little of it. Cancel-safe.
    pub(crate) async fn wait_for_consumers(&self) {
        let present = self.present();
        if present.iter().all(|taker| taker.queue.budget().is_low()) || !self.may_wait(Instant::now()) {
            return;
        }
        // In memory of its own: every connection has room for its longest wait, and most are idle.
        Box::pin(async move {
            let all = async {
                for taker in present.iter() {
                    let budget = taker.queue.budget();
                    budget.room_when(|| budget.is_low()).await;
                }
            };
            if tokio::time::timeout(WAIT, all).await.is_err() {
                *self.waited_at.lock().expect(UNPOISONED) = Some(Instant::now());
            }
        })
        .await;
    }

    fn may_wait(&self, now: Instant) -> bool {
        let waited_at = *self.waited_at.lock().expect(UNPOISONED);
        waited_at.is_none_or(|waited_at| now.saturating_duration_since(waited_at) >= WAIT_EVERY)
    }
}

/// How long readers that are behind are waited for.
const WAIT: Duration = Duration::from_millis(5);
/// And how often, at most, where that did not help: slow readers cost writers a fortieth of their time.
const WAIT_EVERY: Duration = Duration::from_millis(200);

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::connection::ConnectionId;
    use crate::observability::OutputLedger;
    use crate::protocol::FrameBatch;

    struct Output {
        takers: Takers,
        roster: Arc<Roster>,
    }

    impl Output {
        fn new(max: usize) -> Self {
            let roster = Arc::new(Roster::new(Arc::default()));
            Self { takers: Takers::new(max, WhenFull::DropOldest, Arc::clone(&roster)), roster }
        }

        fn join(&self) -> Arc<Taker> {
            self.takers.join("tcp://192.0.2.1:1".to_owned()).unwrap()
        }

        async fn give(&self, to: &[Arc<Taker>], frames: usize) {
            for _ in 0..frames {
                let frame = FrameBatch::from_payloads([Bytes::from(vec![7; 100])], std::time::Instant::now());
                let frame = frame.unwrap();
                for taker in to {
                    taker.queue.push(frame.clone(), ConnectionId::new(0)).await;
                }
            }
        }

        fn ledger(&self) -> OutputLedger {
            let mut ledger = OutputLedger::default();
            self.roster.add_to(&mut ledger);
            assert!(ledger.balances(), "{ledger:?}");
            ledger
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_reader_gets_what_comes_while_it_is_there_and_what_waits_for_it_when_it_leaves_is_lost() {
        let output = Output::new(1 << 20);
        output.give(&output.takers.present(), 5).await;
        assert_eq!(output.ledger(), OutputLedger::default());
        let first = output.join();
        output.give(&output.takers.present(), 3).await;
        let _second = output.join();
        output.give(&output.takers.present(), 2).await;
        assert_eq!((output.ledger().frames_received, output.ledger().subscribers.len()), (7, 2));
        first.account.unsubscribe();
        output.takers.dismiss(&first);
        output.give(&output.takers.present(), 1).await;
        drop(first);
        let ledger = output.ledger();
        assert_eq!((ledger.frames_received, ledger.frames_dropped["unsubscribed"]), (8, 5));
        assert_eq!((ledger.subscribers.len(), ledger.frames_queued), (1, 3));
        output.takers.close();
        output.give(&output.takers.present(), 9).await;
        assert_eq!(output.ledger().frames_received, 8);
        assert!(output.takers.join(String::new()).is_none());
    }

    /// Who gives frames may have the former table.
    #[tokio::test(flavor = "current_thread")]
    async fn a_batch_that_meets_a_reader_on_its_way_out_is_counted() {
        let output = Output::new(1 << 20);
        let taker = output.join();
        let former = output.takers.present();
        taker.account.unsubscribe();
        output.takers.dismiss(&taker);
        drop(taker);
        output.give(&former, 4).await;
        assert_eq!(output.ledger().frames_dropped["unsubscribed"], 4);
        assert_eq!(output.ledger().subscribers.len(), 1);
        drop(former);
        let ledger = output.ledger();
        assert_eq!((ledger.subscribers.len(), ledger.frames_dropped["unsubscribed"]), (0, 4));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_queue_that_changes_changes_for_those_that_are_there_and_those_that_come() {
        let output = Output::new(1 << 20);
        let first = output.join();
        output.give(&output.takers.present(), 10).await;
        output.takers.reconfigure(4 * (104 + 256), WhenFull::DropOldest);
        assert_eq!(output.ledger().frames_dropped["queue_full"], 6);
        let second = output.join();
        output.give(std::slice::from_ref(&second), 10).await;
        assert_eq!((output.ledger().frames_queued, output.takers.charged()), (8, 8 * (104 + 256)));
        [&first, &second].into_iter().for_each(|taker| output.takers.dismiss(taker));
    }

    /// Paused time: waits alone let it pass.
    #[tokio::test(start_paused = true)]
    async fn however_many_are_behind_they_are_waited_for_together_and_seldom() {
        let output = Output::new(64 << 20);
        let slow: Vec<_> = (0..20).map(|_| output.join()).collect();
        output.give(&slow, 10_000).await;
        let begin = Instant::now();
        for _ in 0..1000 {
            output.takers.wait_for_consumers().await;
        }
        assert!(begin.elapsed() >= WAIT && begin.elapsed() < 2 * WAIT, "{:?}", begin.elapsed());
        tokio::time::advance(WAIT_EVERY).await;
        let begin = Instant::now();
        output.takers.wait_for_consumers().await;
        assert!(begin.elapsed() >= WAIT);
        slow.iter().for_each(|taker| output.takers.dismiss(taker));
    }
}
