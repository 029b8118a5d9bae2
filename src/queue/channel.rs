//! The queue of a lane: batches from any worker, to the one task that writes them.
//!
//! Three parts: a lock-free channel of batches, a budget of bytes, and two wake-ups that cost nothing while the other
//! side is awake. The channel is crossbeam's linked one, bounded by the budget: memory follows what waits, and stays in
//! the cache while little does. Producers hold a receiving end too, to take the oldest batch out again.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;
use std::time::Duration;
use std::time::Instant;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use tokio::sync::Notify;
use tracing::error;

use crate::observability::metrics::DropReason;
use crate::observability::metrics::LaneMetrics;
use crate::protocol::FrameBatch;
use crate::queue::WhenFull;
use crate::queue::arrivals::Arrivals;
use crate::queue::thinning::Thinning;
use crate::spool::LogPosition;

/// What a batch costs beside its bytes: its place in the channel and its reference count.
const BATCH_OVERHEAD: usize = 256;

/// A batch, and the connection that it came from.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    /// Number of the writer connection, of its own in this process for the first 2³¹ of them; a spool keeps it.
    pub(crate) upstream: u32,
    pub(crate) batch: FrameBatch,
    /// The place behind it in the spool, if it is there too.
    pub(crate) place: Option<LogPosition>,
}

/// A queue, shared by its producers and its one consumer.
#[derive(Debug)]
pub(crate) struct Queue {
    // The output's, for the log.
    name: String,
    sender: Sender<Queued>,
    receiver: Receiver<Queued>,
    arrivals: Arrivals,
    when_full: WhenFull,
    // Of `Sample`.
    thinning: Thinning,
    // Charged from push to release: what waits, what is being written and what is held. charged <= max, but for a
    // single batch that finds nothing but what is held (<= max / 2), and for the moment between push and drop of
    // `DropOldest`.
    charged: AtomicUsize,
    max: usize,
    // The part of it that the consumer has written and keeps until it is acknowledged: held <= charged.
    held: AtomicUsize,
    // Charged no more than this, the queue counts as low: the consumer keeps up, producers that wait go on.
    low: usize,
    consumer_asleep: AtomicBool,
    data: Notify,
    producers_waiting: AtomicUsize,
    room: Notify,
    // Batches that the consumer has written: whether it moves.
    released: AtomicUsize,
    // Charged so much, the consumer did not catch up when it was waited for.
    waited_at: AtomicUsize,
    closed: AtomicBool,
    metrics: Arc<LaneMetrics>,
    began: Instant,
    // Seconds after `began` when the next loss is told.
    tell_at: AtomicU64,
}

impl Queue {
    /// A queue of `max` bytes for the output `name`.
    pub(crate) fn new(name: String, max: usize, when_full: WhenFull, metrics: Arc<LaneMetrics>) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self {
            name,
            sender,
            receiver,
            arrivals: Arrivals::new(),
            when_full,
            thinning: Thinning::new(),
            charged: AtomicUsize::new(0),
            max,
            held: AtomicUsize::new(0),
            low: AHEAD_MAX.min(max / 2),
            consumer_asleep: AtomicBool::new(false),
            data: Notify::new(),
            producers_waiting: AtomicUsize::new(0),
            room: Notify::new(),
            released: AtomicUsize::new(0),
            waited_at: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            metrics,
            began: Instant::now(),
            tell_at: AtomicU64::new(0),
        }
    }

    /// Hands a batch to the consumer, or does what [`WhenFull`] says. Every frame is counted as received, and those
    /// that are lost as dropped. Waits under `Block` only.
    pub(crate) async fn push(&self, queued: Queued) {
        let charge = charge(&queued.batch);
        let frames = u64::from(queued.batch.frames());
        if self.when_full == WhenFull::Block {
            self.wait_for_room(charge).await;
        }
        self.metrics.received(frames);
        if self.is_closed() {
            return self.metrics.dropped(DropReason::Shutdown, frames);
        }
        match self.when_full {
            WhenFull::Block => self.send(queued),
            WhenFull::Sample if !self.keeps(queued.upstream, charge) => {
                self.lost(DropReason::Sampled, frames);
            }
            WhenFull::DropNewest | WhenFull::Sample if self.reserve(charge) => self.send(queued),
            WhenFull::DropNewest | WhenFull::Sample => self.lost(DropReason::QueueFull, frames),
            WhenFull::DropOldest => {
                self.charged.fetch_add(charge, Ordering::AcqRel);
                self.send(queued);
                self.drop_oldest();
            }
        }
    }

    /// Hands over a batch that was received before, if there is room for it.
    ///
    /// # Errors
    /// The batch, where there is none.
    pub(crate) fn offer(&self, queued: Queued) -> Result<(), Queued> {
        if !self.reserve(charge(&queued.batch)) {
            return Err(queued);
        }
        self.send(queued);
        Ok(())
    }

    /// Waits until little is left and there is room for a batch, or the queue is closed. Cancel-safe.
    pub(crate) async fn room_for(&self, batch: &FrameBatch) {
        let charge = charge(batch);
        self.room_when(|| self.is_low() && self.has_room(charge)).await;
    }

    /// The next batch. It stays charged until [`Queue::release`].
    pub(crate) fn pop(&self) -> Option<Queued> {
        self.receiver.try_recv().ok()
    }

    /// Gives back the room of a batch that was written.
    pub(crate) fn release(&self, batch_charge: usize) {
        self.released.fetch_add(1, Ordering::Relaxed);
        let before = self.charged.fetch_sub(batch_charge, Ordering::AcqRel);
        let after = before - batch_charge;
        let falls_to = |mark| after <= mark && mark < before;
        if falls_to(self.low) {
            self.waited_at.store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        if (falls_to(self.low) || after == 0) && self.producers_waiting.load(Ordering::Relaxed) > 0 {
            self.room.notify_waiters();
        }
    }

    /// Tells that a batch was written and stays charged until [`Queue::release_held`]: nobody has to wait for it to be
    /// written any more. To be told once, however often it is written again.
    pub(crate) fn hold(&self, batch_charge: usize) {
        self.released.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(batch_charge, Ordering::AcqRel);
        self.wake_producers_if_low();
    }

    /// Gives back the room of a batch that was held.
    pub(crate) fn release_held(&self, batch_charge: usize) {
        // In this order nobody who looks in between takes a batch that waits for one that is held.
        self.held.fetch_sub(batch_charge, Ordering::AcqRel);
        self.charged.fetch_sub(batch_charge, Ordering::AcqRel);
        self.wake_producers_if_low();
    }

    /// How much may be held for any batch to pass, however large, once nothing else is there.
    pub(crate) fn held_max(&self) -> usize {
        self.max / 2
    }

    /// Bytes that are to be had in all.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Waits, a moment at most, until little is left of what the consumer is writing. Cancel-safe.
    ///
    /// A reader that runs ahead of writers that keep up gains nothing, and fills the processor's cache and the memory
    /// with what waits. It is worth a longer moment while the consumer moves, and under `Block`, where readers have to
    /// wait anyway. One that does not keep up is waited for again when twice as much waits: a few times until the queue
    /// is full.
    pub(crate) async fn pace(&self) {
        let charged = self.charged.load(Ordering::Relaxed);
        if charged > self.low && charged >= 2 * self.waited_at.load(Ordering::Relaxed) {
            // In memory of its own: every connection has room for its longest wait, and most are idle.
            Box::pin(self.wait_until_low(charged)).await;
        }
    }

    async fn wait_until_low(&self, charged: usize) {
        let blocks = self.when_full == WhenFull::Block;
        for _ in 0..if blocks { AHEAD_WAITS_BLOCK } else { AHEAD_WAITS } {
            let released = self.released.load(Ordering::Relaxed);
            if tokio::time::timeout(AHEAD_WAIT, self.room_when(|| self.is_low())).await.is_ok() {
                return;
            }
            if !blocks && released == self.released.load(Ordering::Relaxed) {
                break;
            }
        }
        self.waited_at.store(charged, Ordering::Relaxed);
    }

    /// Waits until there is something to pop, or the queue is closed. Cancel-safe. For the one consumer.
    pub(crate) async fn ready(&self) {
        loop {
            if !self.is_empty() || self.is_closed() {
                return;
            }
            self.consumer_asleep.store(true, Ordering::Relaxed);
            // Pairs with the fence in `wake_consumer`: either we see its batch or it sees that we sleep.
            fence(Ordering::SeqCst);
            if self.is_empty() && !self.is_closed() {
                self.data.notified().await;
            }
            self.consumer_asleep.store(false, Ordering::Relaxed);
        }
    }

    /// No more pushes are wanted: what comes is counted as lost, producers that wait go on, the consumer wakes.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.notify_waiters();
        self.data.notify_one();
    }

    /// Counts everything that still waits as lost. For the time after the consumer.
    pub(crate) fn abandon(&self) {
        while let Some(Queued { batch, .. }) = self.pop() {
            self.metrics.dropped(DropReason::Shutdown, u64::from(batch.frames()));
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// When the oldest batch that waits was read, or a little before (see [`Arrivals`]); `None` if none waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.arrivals.oldest(|| self.receiver.len())
    }

    /// Bytes that one write may take out at once: a part of the queue, so that the policy has the rest.
    pub(crate) fn write_len_max(&self) -> usize {
        let part = match self.when_full {
            // Much at once would look like a consumer that catches up.
            WhenFull::Sample => (self.max / 64).max(SAMPLE_WRITE_LEN_MIN).min(self.max / 4),
            _ => self.max / 4,
        };
        part.clamp(1, WRITE_LEN_MAX)
    }

    /// Bytes charged now.
    #[cfg(test)]
    pub(crate) fn charged(&self) -> usize {
        self.charged.load(Ordering::Relaxed)
    }

    fn send(&self, queued: Queued) {
        let read_at = queued.batch.read_at();
        self.sender.send(queued).expect("the queue holds a receiving end itself");
        self.arrivals.add(read_at, || self.receiver.len());
        fence(Ordering::SeqCst);
        if self.consumer_asleep.load(Ordering::Relaxed) && self.consumer_asleep.swap(false, Ordering::Relaxed)
        {
            self.data.notify_one();
        }
    }

    fn drop_oldest(&self) {
        // The newest batch stays, however large, unless much is held: it would be held in turn, and so would the next.
        let spared = || usize::from(self.held.load(Ordering::Acquire) <= self.held_max());
        while self.charged.load(Ordering::Acquire) > self.max && self.receiver.len() > spared() {
            let Some(Queued { batch: oldest, .. }) = self.pop() else { return };
            self.lost(DropReason::QueueFull, u64::from(oldest.frames()));
            self.charged.fetch_sub(charge(&oldest), Ordering::AcqRel);
        }
    }

    /// Whether `Sample` keeps a batch. Its level is what waits, of the room that is not held.
    fn keeps(&self, upstream: u32, charge: usize) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        let waits = self.charged.load(Ordering::Relaxed).saturating_sub(held);
        let room = self.max.saturating_sub(held).max(1) as f64;
        self.thinning.keeps(upstream, charge as f64 / room, waits as f64 / room)
    }

    /// Counts what a queue costs that has too little room, and tells of it now and then.
    fn lost(&self, reason: DropReason, frames: u64) {
        self.metrics.dropped(reason, frames);
        let now = self.began.elapsed().as_secs();
        let due = |tell_at| (tell_at <= now).then_some(now + TELL_EVERY_SECS);
        if self.tell_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            let dropped = self.metrics.dropped_until_now(reason);
            let (output, one_in) = (&self.name, self.thinning.one_in());
            match reason {
                DropReason::Sampled => {
                    error!(
                        output,
                        frames_dropped = dropped,
                        one_in,
                        "too slow: it gets a sample of the batches"
                    );
                }
                _ => error!(output, frames_dropped = dropped, "the queue is full: frames are lost"),
            }
        }
    }

    /// Charges a batch if there is room. A queue that is empty but for what is held has room for any batch.
    fn reserve(&self, charge: usize) -> bool {
        let room = |charged| self.fits(charge, charged).then_some(charged + charge);
        self.charged.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok()
    }

    fn has_room(&self, charge: usize) -> bool {
        self.fits(charge, self.charged.load(Ordering::Acquire))
    }

    fn fits(&self, charge: usize, charged: usize) -> bool {
        let held = self.held.load(Ordering::Acquire);
        charged == held && held <= self.held_max() || charged + charge <= self.max
    }

    /// Charges a batch as soon as there is room. Once the queue was full that is when little is left in it: producers
    /// are woken seldom, and what they bring next is written while it is still in the cache.
    async fn wait_for_room(&self, charge: usize) {
        if !self.reserve(charge) {
            Box::pin(self.room_when(|| self.is_low() && self.reserve(charge))).await;
        }
    }

    fn is_low(&self) -> bool {
        // Two loads that others may come between: what counts is what is there when nothing moves.
        let held = self.held.load(Ordering::Relaxed);
        self.charged.load(Ordering::Relaxed).saturating_sub(held) <= self.low
    }

    fn wake_producers_if_low(&self) {
        fence(Ordering::SeqCst);
        if self.is_low() {
            self.waited_at.store(0, Ordering::Relaxed);
            if self.producers_waiting.load(Ordering::Relaxed) > 0 {
                self.room.notify_waiters();
            }
        }
    }

    /// Waits until `condition` holds, which is asked when the queue has become low or empty, or until the queue is
    /// closed. Cancel-safe.
    async fn room_when(&self, condition: impl Fn() -> bool) {
        let _waiting = Waiting::new(&self.producers_waiting);
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            // Pairs with the fence in `release`: either we see what it did or it sees that we wait.
            fence(Ordering::SeqCst);
            if condition() || self.is_closed() {
                return;
            }
            room.await;
        }
    }
}

/// Counts a producer that waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that a batch is charged with.
pub(crate) fn charge(batch: &FrameBatch) -> usize {
    batch.byte_len() + BATCH_OVERHEAD
}

/// Most bytes in one write: large enough that its system call is lost in the copy.
const WRITE_LEN_MAX: usize = 1 << 20;

/// Less in one write, or one read, is not worth its system call.
const SAMPLE_WRITE_LEN_MIN: usize = 16 << 10;

/// How far a reader runs ahead of a writer that keeps up, bytes.
const AHEAD_MAX: usize = 512 << 10;
/// How long a writer that does not move is waited for.
const AHEAD_WAIT: Duration = Duration::from_millis(5);
/// How many times as long one is waited for that moves.
const AHEAD_WAITS: u32 = 4;
/// How many times as long one is waited for that its operator set to `Block`.
const AHEAD_WAITS_BLOCK: u32 = 20;

/// A loss that goes on is told so often.
const TELL_EVERY_SECS: u64 = 10;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::observability::OutputLedger;

    const MAX: usize = 4 * (100 + BATCH_OVERHEAD);

    fn queue(when_full: WhenFull) -> Arc<Queue> {
        Arc::new(Queue::new("test".to_owned(), MAX, when_full, Arc::default()))
    }

    /// A batch of one frame of 100 bytes in all, which begins with `mark`.
    fn batch(mark: u8) -> Queued {
        batch_of_len(mark, 100)
    }

    fn batch_of_len(mark: u8, len: usize) -> Queued {
        let payload = [&[mark][..], &vec![0; len - 5]].concat();
        let batch = FrameBatch::from_payloads([Bytes::from(payload)], Instant::now()).unwrap();
        Queued { upstream: 0, batch, place: None }
    }

    fn marks(queue: &Queue) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop()).map(|queued| queued.batch.bytes()[4]).collect()
    }

    fn ledger(queue: &Queue) -> OutputLedger {
        let mut ledger = OutputLedger::default();
        queue.metrics.add_to(&mut ledger);
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
                queue.push(batch(mark)).await;
            }
        });
        assert_eq!(marks(&queue), [6, 7, 8, 9]);
        assert_eq!((ledger(&queue).frames_received, ledger(&queue).frames_dropped["queue_full"]), (10, 6));
    }

    #[test]
    fn drop_newest_keeps_the_oldest_and_counts_the_rest() {
        let queue = queue(WhenFull::DropNewest);
        run(async {
            for mark in 0..10 {
                queue.push(batch(mark)).await;
            }
        });
        assert_eq!(marks(&queue), [0, 1, 2, 3]);
        assert_eq!(ledger(&queue).frames_dropped["queue_full"], 6);
    }

    #[test]
    fn a_batch_larger_than_the_queue_passes_when_the_queue_is_empty() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample] {
            let queue = queue(when_full);
            run(queue.push(batch_of_len(7, 2 * MAX)));
            assert_eq!(marks(&queue), [7], "{when_full:?}");
        }
    }

    #[test]
    fn sample_leaves_out_more_and_more_before_the_queue_is_full_and_counts_it_apart() {
        let queue = queue(WhenFull::Sample);
        run(async {
            // A quarter each, of which the third finds the queue half full.
            for mark in 0..3 {
                queue.push(batch(mark)).await;
            }
            assert_eq!(queue.thinning.one_in(), 2);
            for mark in 3..30 {
                queue.push(batch(mark)).await;
            }
        });
        let kept = marks(&queue);
        assert!(kept.starts_with(&[0, 1]) && kept.is_sorted() && (3..=4).contains(&kept.len()), "{kept:?}");
        let dropped = ledger(&queue).frames_dropped;
        assert_eq!(dropped, [("sampled".to_owned(), 30 - kept.len() as u64)].into());
    }

    /// Else a consumer that is fast and waits for acknowledgements would hold more and more.
    #[test]
    fn what_is_held_counts_and_leaves_room_for_any_batch_up_to_a_half() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample] {
            let queue = queue(when_full);
            let mut held = 0;
            let mut hold_next = || {
                let taken = queue.pop().map(|queued| charge(&queued.batch));
                taken.inspect(|charge| queue.hold(*charge)).map(|charge| held += charge).is_some()
            };
            // A quarter each: a half is held.
            for mark in 0..2 {
                run(queue.push(batch(mark)));
                assert!(hold_next());
            }
            run(queue.push(batch_of_len(2, 2 * MAX)));
            assert!(hold_next(), "{when_full:?}: more than the queue, with half of it held");
            for mark in 3..9 {
                let push = queue.push(batch(mark));
                let waits = run(async { tokio::time::timeout(Duration::ZERO, push).await.is_err() });
                assert_eq!(waits, when_full == WhenFull::Block);
                assert!(!hold_next(), "{when_full:?}: more and more is held");
            }
            assert_eq!(queue.charged(), held);
            queue.release_held(held);
            run(queue.push(batch(9)));
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
                            queue.push(batch(mark)).await;
                        }
                    });
                })
            })
            .collect();
        let received = run(async {
            let mut received = 0;
            while received < 1000 {
                queue.ready().await;
                while let Some(Queued { batch, .. }) = queue.pop() {
                    assert!(queue.charged() <= MAX);
                    queue.release(charge(&batch));
                    queue.metrics.sent(1, 100);
                    received += 1;
                }
            }
            received
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert_eq!((received, queue.charged()), (1000, 0));
        assert_eq!(ledger(&queue).frames_queued, 0);
    }

    /// Paused time: a wait that ends does so because of what happened, or after all of its millisecond.
    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_keeps_up_is_waited_for_and_one_that_lags_only_now_and_then() {
        let queue = Queue::new("test".to_owned(), 64 << 20, WhenFull::DropOldest, Arc::default());
        let large = || batch_of_len(0, AHEAD_MAX);
        queue.push(large()).await;
        let begin = tokio::time::Instant::now();
        let consume = async {
            let Queued { batch, .. } = queue.pop().unwrap();
            queue.release(charge(&batch));
        };
        tokio::join!(queue.pace(), consume);
        assert_eq!(begin.elapsed(), Duration::ZERO);

        queue.push(large()).await;
        queue.pace().await;
        let waited = begin.elapsed();
        assert!(AHEAD_WAIT <= waited && waited < 3 * AHEAD_WAIT);
        queue.pace().await;
        assert_eq!(begin.elapsed(), waited);
        queue.push(large()).await;
        queue.pace().await;
        let waited_twice = begin.elapsed();
        assert!(waited_twice > waited);

        let Queued { batch, .. } = queue.pop().unwrap();
        queue.release(charge(&batch));
        let Queued { batch, .. } = queue.pop().unwrap();
        queue.release(charge(&batch));
        queue.push(large()).await;
        queue.pace().await;
        assert!(begin.elapsed() > waited_twice);
    }

    #[test]
    fn closing_lets_a_blocked_producer_go_and_counts_its_frames() {
        let queue = queue(WhenFull::Block);
        run(async {
            for mark in 0..4 {
                queue.push(batch(mark)).await;
            }
            let close = async { queue.close() };
            tokio::join!(queue.push(batch(9)), close);
        });
        assert_eq!(ledger(&queue).frames_dropped["shutdown"], 1);
        assert_eq!(ledger(&queue).frames_queued, 4);
    }
}
