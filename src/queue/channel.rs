//! The queue of a lane: batches from any worker, to the one task that writes them.
//!
//! Three parts: a lock-free channel of batches, a budget of bytes, and wake-ups that cost nothing while the other side is
//! awake. The channel is crossbeam's linked one, bounded by the budget: memory follows what waits, and stays in the cache
//! while little does. Producers hold a receiving end too, to take the oldest batch out again.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;
use std::time::Instant;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::batch::budget::Budget;
use crate::batch::budget::Permit;
use crate::batch::budget::charge;
use crate::batch::connection::ConnectionId;
use crate::batch::custody::Custody;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;
use crate::protocol::FrameBatch;
use crate::queue::enqueue_times::EnqueueTimes;
use crate::queue::read_ahead::ReadAhead;
use crate::queue::thinning::Thinning;
use crate::queue::when_full::Policy;
use crate::queue::when_full::WhenFull;

/// How far the end of a queue has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum QueueEnd {
    /// Batches come.
    Open,
    /// Nothing comes from inputs any more; a spool before the queue still has something.
    InputsEnded,
    /// Nothing is put in any more.
    Closed,
}

/// A queue, shared by its producers and its one consumer.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: Sender<Batch>,
    receiver: Receiver<Batch>,
    times: EnqueueTimes,
    policy: Policy,
    // Of `Sample`.
    thinning: Thinning,
    budget: Arc<Budget>,
    read_ahead: ReadAhead,
    consumer_asleep: AtomicBool,
    data: Notify,
    inputs_ended: AtomicBool,
    account: Arc<OutputAccount>,
}

impl Queue {
    /// A queue of `max` bytes for the lane with this account.
    pub(crate) fn new(max: usize, when_full: WhenFull, account: Arc<OutputAccount>) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self {
            sender,
            receiver,
            times: EnqueueTimes::new(),
            policy: Policy::new(when_full),
            thinning: Thinning::new(),
            budget: Arc::new(Budget::new(max)),
            read_ahead: ReadAhead::default(),
            consumer_asleep: AtomicBool::new(false),
            data: Notify::new(),
            inputs_ended: AtomicBool::new(false),
            account,
        }
    }

    /// The policy.
    pub(crate) fn when_full(&self) -> WhenFull {
        self.policy.get()
    }

    /// Has `max` bytes from now on, and this policy. What waits in a queue that has become smaller stays, except under
    /// `DropOldest`.
    pub(crate) fn reconfigure(&self, max: usize, when_full: WhenFull) {
        self.budget.set_max(max);
        self.policy.set(when_full);
        self.budget.wake_producers();
        if when_full == WhenFull::DropOldest {
            self.drop_oldest();
        }
    }

    /// Takes frames that an input has for this lane into custody and hands them to the consumer, or does what [`WhenFull`]
    /// says. Waits under `Block` only. Returns `false` when the relay
    /// has ended, and the frames are lost with it.
    pub(crate) async fn push(&self, frames: FrameBatch, connection: ConnectionId) -> bool {
        let charge = charge(frames.byte_len());
        let mut policy = self.policy.get();
        let mut waited = None;
        if policy == WhenFull::Block {
            let blocks = || self.policy.get() == WhenFull::Block;
            waited = self.budget.reserve_when_free(charge, blocks).await;
            // The operator may have chosen another one meanwhile.
            policy = if waited.is_some() { policy } else { self.policy.get() };
        }
        let permit = match policy {
            WhenFull::Block => match waited {
                Some(permit) => permit,
                None => return self.turn_away_at_end(&frames),
            },
            _ if self.is_closed() => return self.turn_away_at_end(&frames),
            WhenFull::Sample if !self.keeps(connection, charge, frames.read_at()) => {
                return self.turn_away(DropReason::Sampled, &frames);
            }
            WhenFull::DropNewest | WhenFull::Sample => match self.budget.reserve(charge) {
                Some(permit) => permit,
                None => return self.turn_away(DropReason::QueueFull, &frames),
            },
            WhenFull::DropOldest => self.budget.reserve_anyway(charge),
        };
        let custody = Custody::admit(Arc::clone(&self.account), permit, frames.frames());
        self.send(Batch::new(frames, connection, None, custody));
        if policy == WhenFull::DropOldest {
            self.drop_oldest();
        }
        true
    }

    /// Returns whether the frames are lost by a rule of the operator, and not with the relay's end.
    fn turn_away(&self, reason: DropReason, frames: &FrameBatch) -> bool {
        self.account.turned_away(reason, u64::from(frames.frames()));
        reason != DropReason::Shutdown
    }

    fn turn_away_at_end(&self, frames: &FrameBatch) -> bool {
        self.turn_away(self.account.end_reason(), frames)
    }

    /// Room for a batch that another queue has, or the disk; `None` where there is none.
    pub(crate) fn reserve(&self, byte_len: usize) -> Option<Permit> {
        self.budget.reserve(charge(byte_len))
    }

    /// The same although there may be none: nobody fills this queue any more.
    pub(crate) fn reserve_anyway(&self, byte_len: usize) -> Permit {
        self.budget.reserve_anyway(charge(byte_len))
    }

    /// Hands a batch that was received before to the consumer. Its permit is one of this queue.
    pub(crate) fn send(&self, batch: Batch) {
        let read_at = batch.read_at();
        self.sender.send(batch).expect("the queue holds a receiving end itself");
        self.times.add(read_at, || self.receiver.len());
        fence(Ordering::SeqCst);
        if self.consumer_asleep.load(Ordering::Relaxed) && self.consumer_asleep.swap(false, Ordering::Relaxed)
        {
            self.data.notify_one();
        }
    }

    /// Waits until little is left and there is room for a batch of `byte_len` bytes, or the queue is closed. Cancel-safe.
    pub(crate) async fn room_for(&self, byte_len: usize) {
        let charge = charge(byte_len);
        self.budget.room_when(|| self.budget.is_low() && self.budget.has_room(charge)).await;
    }

    /// The next batch. It stays charged until it is dropped.
    pub(crate) fn pop(&self) -> Option<Batch> {
        self.receiver.try_recv().ok()
    }

    /// Waits, a moment at most, until little is left of what the consumer is writing. Cancel-safe. See
    /// [`read_ahead`](crate::queue::read_ahead).
    pub(crate) async fn wait_for_consumer(&self) {
        self.read_ahead.wait(&self.budget, self.policy.get() == WhenFull::Block).await;
    }

    /// Waits for news of the queue: that there is something to pop, for a consumer that `wants` it, or that its end has come
    /// further than the consumer has `seen`. Cancel-safe. For the one consumer.
    pub(crate) async fn news(&self, wants: bool, seen: QueueEnd) {
        let has_news = || wants && !self.is_empty() || self.end() > seen;
        while !has_news() {
            if wants {
                self.consumer_asleep.store(true, Ordering::Relaxed);
                // Pairs with the fence in `send`: either we see its batch or it sees that we sleep.
                fence(Ordering::SeqCst);
                if has_news() {
                    break;
                }
            }
            self.data.notified().await;
        }
        self.consumer_asleep.store(false, Ordering::Relaxed);
    }

    /// How far the end has come.
    pub(crate) fn end(&self) -> QueueEnd {
        if self.is_closed() {
            QueueEnd::Closed
        } else if self.inputs_ended.load(Ordering::Acquire) {
            QueueEnd::InputsEnded
        } else {
            QueueEnd::Open
        }
    }

    /// Nothing comes from inputs any more, but something may still come from a spool.
    pub(crate) fn end_inputs(&self) {
        if !self.inputs_ended.swap(true, Ordering::AcqRel) {
            self.data.notify_one();
        }
    }

    /// No more pushes are wanted: what comes is counted as lost, producers that wait go on, the consumer wakes.
    pub(crate) fn close(&self) {
        self.budget.close();
        self.data.notify_one();
    }

    /// Counts everything that still waits, and is not on disk, as lost. For the time after the consumer.
    pub(crate) fn abandon(&self) {
        while let Some(batch) = self.pop() {
            batch.abandoned();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.budget.is_closed()
    }

    /// Whether an input waits for room here.
    pub(crate) fn blocks(&self) -> bool {
        self.policy.get() == WhenFull::Block && self.budget.has_waiting_producers()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// The budget that its batches are charged to.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// When the oldest batch that waits was read, or a little before (see [`EnqueueTimes`]); `None` if none waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.times.oldest(|| self.receiver.len())
    }

    /// Bytes that one write may take out at once: a part of the queue, so that the policy has the rest.
    pub(crate) fn write_len_max(&self) -> usize {
        self.policy.get().write_len_max(self.budget.max())
    }

    fn drop_oldest(&self) {
        let budget = &self.budget;
        // The newest batch stays, however large, unless much is held: it would be held in turn, and so would the next.
        let spared = || usize::from(budget.held() <= budget.held_max());
        while budget.charged() > budget.max() && self.receiver.len() > spared() {
            let Some(oldest) = self.pop() else { return };
            oldest.dropped(DropReason::QueueFull);
        }
    }

    /// Whether `Sample` keeps a batch. Its level is what waits, of the room that is not held.
    fn keeps(&self, connection: ConnectionId, charge: usize, now: Instant) -> bool {
        let held = self.budget.held();
        let waits = self.budget.charged().saturating_sub(held);
        let room = self.budget.max().saturating_sub(held).max(1) as f64;
        self.thinning.keeps(connection, charge as f64 / room, waits as f64 / room, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::batch::tests::ledger;
    use crate::observability::OutputLedger;

    fn queue(when_full: WhenFull) -> Arc<Queue> {
        Arc::new(Queue::new(MAX, when_full, Arc::default()))
    }

    const MAX: usize = 4 * (100 + 256);

    /// One frame of 100 bytes in all, which begins with `mark`.
    fn frame(mark: u8) -> FrameBatch {
        frame_of_len(mark, 100)
    }

    fn frame_of_len(mark: u8, len: usize) -> FrameBatch {
        let payload = [&[mark][..], &vec![0; len - 5]].concat();
        FrameBatch::from_payloads([Bytes::from(payload)], Instant::now()).unwrap()
    }

    async fn push(queue: &Queue, frame: FrameBatch) {
        queue.push(frame, ConnectionId::new(0)).await;
    }

    /// Takes everything out, as written at once.
    fn marks(queue: &Queue) -> Vec<u8> {
        let written = |mut batch: Batch| {
            let mark = batch.frames().bytes()[4];
            batch.written(usize::MAX, false);
            batch.delivered();
            mark
        };
        std::iter::from_fn(|| queue.pop()).map(written).collect()
    }

    fn account(queue: &Queue) -> OutputLedger {
        let ledger = ledger(&queue.account);
        assert!(ledger.balances());
        ledger
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn drop_oldest_keeps_the_newest_and_counts_the_rest() {
        let queue = queue(WhenFull::DropOldest);
        run(async {
            for mark in 0..10 {
                push(&queue, frame(mark)).await;
            }
        });
        assert_eq!(account(&queue).frames_queued, 4);
        assert_eq!(marks(&queue), [6, 7, 8, 9]);
        assert_eq!((account(&queue).frames_received, account(&queue).frames_dropped["queue_full"]), (10, 6));
    }

    #[test]
    fn a_queue_that_becomes_smaller_drops_by_its_policy_and_one_that_becomes_larger_takes_more() {
        let queue = queue(WhenFull::DropOldest);
        run(async {
            for mark in 0..4 {
                push(&queue, frame(mark)).await;
            }
            queue.reconfigure(MAX / 2, WhenFull::DropOldest);
            assert_eq!(account(&queue).frames_dropped["queue_full"], 2);
            queue.reconfigure(MAX, WhenFull::DropNewest);
            for mark in 4..8 {
                push(&queue, frame(mark)).await;
            }
        });
        assert_eq!(marks(&queue), [2, 3, 4, 5]);
        assert_eq!(account(&queue).frames_dropped["queue_full"], 4);
    }

    #[test]
    fn a_producer_that_waits_goes_on_under_another_policy() {
        let queue = queue(WhenFull::Block);
        run(async {
            for mark in 0..4 {
                push(&queue, frame(mark)).await;
            }
            let mut waits = std::pin::pin!(push(&queue, frame(4)));
            let limit = Duration::from_millis(5);
            assert!(tokio::time::timeout(limit, &mut waits).await.is_err());
            queue.reconfigure(MAX, WhenFull::DropOldest);
            waits.await;
        });
        assert_eq!(marks(&queue), [1, 2, 3, 4]);
    }

    #[test]
    fn drop_newest_keeps_the_oldest_and_counts_the_rest() {
        let queue = queue(WhenFull::DropNewest);
        run(async {
            for mark in 0..10 {
                push(&queue, frame(mark)).await;
            }
        });
        assert_eq!(marks(&queue), [0, 1, 2, 3]);
        assert_eq!(account(&queue).frames_dropped["queue_full"], 6);
    }

    #[test]
    fn a_batch_larger_than_the_queue_passes_when_the_queue_is_empty() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample] {
            let queue = queue(when_full);
            run(push(&queue, frame_of_len(7, 2 * MAX)));
            assert_eq!(marks(&queue), [7], "{when_full:?}");
            assert_eq!(queue.budget.charged(), 0);
        }
    }

    #[test]
    fn sample_leaves_out_more_and_more_before_the_queue_is_full_and_counts_it_apart() {
        let queue = queue(WhenFull::Sample);
        run(async {
            // A quarter each, of which the third finds the queue half full.
            for mark in 0..3 {
                push(&queue, frame(mark)).await;
            }
            assert_eq!(queue.thinning.one_in(), 2);
            for mark in 3..30 {
                push(&queue, frame(mark)).await;
            }
        });
        let kept = marks(&queue);
        assert!(kept.starts_with(&[0, 1]) && kept.is_sorted() && (3..=4).contains(&kept.len()), "{kept:?}");
        let dropped = account(&queue).frames_dropped;
        assert_eq!(dropped, [("sampled".to_owned(), 30 - kept.len() as u64)].into());
    }

    /// Else a consumer that is fast and waits for acknowledgements would hold more and more.
    #[test]
    fn what_is_held_counts_and_leaves_room_for_any_batch_up_to_a_half() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample] {
            let queue = queue(when_full);
            let mut held = Vec::new();
            let mut hold_next = || {
                let Some(mut batch) = queue.pop() else { return false };
                batch.written(usize::MAX, true);
                batch.custody.hold();
                held.push(batch);
                true
            };
            // A quarter each: a half is held.
            for mark in 0..2 {
                run(push(&queue, frame(mark)));
                assert!(hold_next());
            }
            run(push(&queue, frame_of_len(2, 2 * MAX)));
            assert!(hold_next(), "{when_full:?}: more than the queue, with half of it held");
            for mark in 3..9 {
                let push = push(&queue, frame(mark));
                let waits = run(async { tokio::time::timeout(Duration::ZERO, push).await.is_err() });
                assert_eq!(waits, when_full == WhenFull::Block);
                assert!(!hold_next(), "{when_full:?}: more and more is held");
            }
            assert_eq!(queue.budget.charged(), queue.budget.held());
            held.into_iter().for_each(|batch| {
                batch.delivered();
            });
            run(push(&queue, frame(9)));
            assert_eq!(marks(&queue), [9]);
        }
    }

    #[test]
    fn block_waits_for_room_and_loses_nothing_with_many_producers() {
        let queue = queue(WhenFull::Block);
        let producers: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    run(async {
                        for mark in 0..250 {
                            push(&queue, frame(mark)).await;
                        }
                    });
                })
            })
            .collect();
        let received = run(async {
            let mut received = 0;
            while received < 1000 {
                queue.news(true, QueueEnd::Closed).await;
                assert!(queue.budget.charged() <= MAX);
                received += marks(&queue).len();
            }
            received
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert_eq!((received, queue.budget.charged()), (1000, 0));
        assert_eq!(account(&queue).frames_queued, 0);
    }

    #[test]
    fn closing_lets_a_blocked_producer_go_and_counts_its_frames() {
        let queue = queue(WhenFull::Block);
        run(async {
            for mark in 0..4 {
                push(&queue, frame(mark)).await;
            }
            let close = async { queue.close() };
            tokio::join!(push(&queue, frame(9)), close);
        });
        assert_eq!(account(&queue).frames_dropped["shutdown"], 1);
        assert_eq!(account(&queue).frames_queued, 4);
        marks(&queue);
    }
}
