//! The memory of one queue, in bytes: who has how much of it, and who waits for some.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use tokio::sync::Notify;

/// What a batch costs beside its bytes: its place in the channel and its reference counts.
const BATCH_OVERHEAD: usize = 256;

/// Bytes that a batch of `byte_len` bytes is charged with.
pub(crate) fn charge(byte_len: usize) -> usize {
    byte_len + BATCH_OVERHEAD
}

/// The memory of one queue, shared by whoever puts batches in and whoever has them.
#[derive(Debug)]
pub(crate) struct Budget {
    max: AtomicUsize,
    // What waits, what is being written, and what is held. charged <= max, except for a single batch that finds nothing but
    // what is held (<= max / 2), and between push and drop of `DropOldest`.
    charged: AtomicUsize,
    // The part of it that was written and is kept until it is acknowledged: held <= charged.
    held: AtomicUsize,
    // Batches that were written, or given back: whether the consumer moves.
    moved: AtomicUsize,
    producers_waiting: AtomicUsize,
    room: Notify,
    closed: AtomicBool,
}

impl Budget {
    /// A budget of `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            charged: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            producers_waiting: AtomicUsize::new(0),
            room: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Bytes in all.
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// It has so many bytes from now on. What is charged beyond stays charged.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Lets producers that wait look again.
    pub(crate) fn wake_producers(&self) {
        fence(Ordering::SeqCst);
        self.room.notify_waiters();
    }

    /// While no more than this waits, the consumer keeps up, and producers that waited go on.
    fn low_watermark(&self) -> usize {
        LOW_WATERMARK_MAX.min(self.max() / 2)
    }

    /// Bytes charged now.
    pub(crate) fn charged(&self) -> usize {
        self.charged.load(Ordering::Acquire)
    }

    /// Bytes held now: written, and not acknowledged.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Bytes that may be held for any batch to pass, however large, once nothing else is there.
    pub(crate) fn held_max(&self) -> usize {
        self.max() / 2
    }

    /// How often the consumer has moved.
    pub(crate) fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }

    /// Whether little waits to be written.
    pub(crate) fn is_low(&self) -> bool {
        // Two loads that others may come between: what counts is what is there when nothing moves.
        let held = self.held.load(Ordering::Relaxed);
        self.charged.load(Ordering::Relaxed).saturating_sub(held) <= self.low_watermark()
    }

    /// Whether `charge` bytes are free. A budget of which nothing but held batches is charged has room for any batch.
    pub(crate) fn has_room(&self, charge: usize) -> bool {
        self.fits(charge, self.charged())
    }

    fn fits(&self, charge: usize, charged: usize) -> bool {
        let held = self.held();
        charged == held && held <= self.held_max() || charged + charge <= self.max()
    }

    /// Charges a batch, if there is room.
    pub(crate) fn reserve(self: &Arc<Self>, charge: usize) -> Option<Permit> {
        let room = |charged| self.fits(charge, charged).then_some(charged + charge);
        self.charged.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Permit { budget: Arc::clone(self), charge, held: false })
    }

    /// Charges a batch although there may be no room: the caller makes some.
    pub(crate) fn reserve_anyway(self: &Arc<Self>, charge: usize) -> Permit {
        self.charged.fetch_add(charge, Ordering::AcqRel);
        Permit { budget: Arc::clone(self), charge, held: false }
    }

    /// Charges a batch as soon as there is room; `None` when the budget was closed, or the caller `waits` no more.
    /// Cancel-safe.
    ///
    /// Once the budget was full that is when little waits: producers are woken seldom, and what they bring next is written
    /// while it is still in the cache.
    pub(crate) async fn reserve_when_free(
        self: &Arc<Self>,
        charge: usize,
        waits: impl Fn() -> bool,
    ) -> Option<Permit> {
        if let Some(permit) = self.reserve(charge) {
            return Some(permit);
        }
        let mut permit = None;
        // In memory of its own: every connection has room for its longest wait, and most are idle.
        Box::pin(self.room_when(|| {
            permit = if self.is_low() { self.reserve(charge) } else { None };
            permit.is_some() || !waits()
        }))
        .await;
        permit
    }

    /// Waits until `condition` holds, or the budget was closed. The condition is looked at whenever little is left.
    /// Cancel-safe.
    pub(crate) async fn room_when(&self, mut condition: impl FnMut() -> bool) {
        let _waiting = Waiting::new(&self.producers_waiting);
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            // Pairs with the fence in `tell_producers`: either we see what it did or it sees that we wait.
            fence(Ordering::SeqCst);
            if condition() || self.is_closed() {
                return;
            }
            room.await;
        }
    }

    /// Whether a producer waits for room.
    pub(crate) fn has_waiting_producers(&self) -> bool {
        self.producers_waiting.load(Ordering::Relaxed) > 0
    }

    /// Nobody needs room any more: producers that wait go on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.notify_waiters();
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn hold(&self, charge: usize) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(charge, Ordering::AcqRel);
        self.tell_producers();
    }

    fn give_back(&self, charge: usize, held: bool) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        if held {
            // In this order nobody who looks in between takes a batch that waits for one that is held.
            self.held.fetch_sub(charge, Ordering::AcqRel);
        }
        self.charged.fetch_sub(charge, Ordering::AcqRel);
        self.tell_producers();
    }

    fn tell_producers(&self) {
        fence(Ordering::SeqCst);
        if self.producers_waiting.load(Ordering::Relaxed) > 0 && self.is_low() {
            self.room.notify_waiters();
        }
    }
}

/// Room that one batch takes of a budget. Dropped, it gives the room back.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    charge: usize,
    held: bool,
}

impl Permit {
    /// Bytes charged.
    pub(crate) fn charge(&self) -> usize {
        self.charge
    }

    /// Gives a part of the room to a permit of its own.
    pub(crate) fn split(&mut self, charge: usize) -> Self {
        let charge = charge.min(self.charge);
        self.charge -= charge;
        Self { budget: Arc::clone(&self.budget), charge, held: self.held }
    }

    /// The batch is written, and kept until it is acknowledged: nobody has to wait for it to be written any more.
    pub(crate) fn hold(&mut self) {
        if !std::mem::replace(&mut self.held, true) {
            self.budget.hold(self.charge);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.charge, self.held);
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

/// A reader runs no further ahead of a consumer that keeps up: more would leave the processor's cache before it is
/// written.
const LOW_WATERMARK_MAX: usize = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_gives_back_exactly_what_it_took_held_or_not() {
        let budget = Arc::new(Budget::new(1000));
        let first = budget.reserve(600).unwrap();
        assert!(budget.reserve(600).is_none());
        let mut second = budget.reserve_anyway(600);
        assert_eq!((budget.charged(), budget.held()), (1200, 0));
        second.hold();
        second.hold();
        assert_eq!((budget.charged(), budget.held()), (1200, 600));
        drop(first);
        drop(second);
        assert_eq!((budget.charged(), budget.held()), (0, 0));
    }

    #[test]
    fn a_batch_of_any_size_passes_an_empty_budget_and_one_that_is_half_held() {
        let budget = Arc::new(Budget::new(1000));
        let mut large = budget.reserve(5000).unwrap();
        assert!(budget.reserve(1).is_none());
        large.hold();
        assert!(budget.reserve(1).is_none(), "more than half is held");
        drop(large);
        let mut held = budget.reserve(500).unwrap();
        held.hold();
        assert!(budget.reserve(5000).is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_producer_that_waits_goes_on_when_little_is_left_or_nothing_is_wanted_any_more() {
        let budget = Arc::new(Budget::new(1000));
        let (first, second) = (budget.reserve(500).unwrap(), budget.reserve(400).unwrap());
        let waits = budget.reserve_when_free(400, || true);
        let mut waits = std::pin::pin!(waits);
        let pending = |_: &()| ();
        pending(&());
        assert!(futures_not_ready(waits.as_mut()).await);
        drop(first);
        let third = waits.await.expect("there is room");
        let waits = budget.reserve_when_free(400, || true);
        let (permit, ()) = tokio::join!(waits, async { budget.close() });
        assert!(permit.is_none());
        drop((second, third));
        assert_eq!(budget.charged(), 0);
    }

    async fn futures_not_ready<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(1), future).await.is_err()
    }
}
