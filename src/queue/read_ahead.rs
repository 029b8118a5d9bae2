//! How far a reader runs ahead of the consumer of a queue.
//!
//! A reader that runs ahead of writers that keep up gains nothing, and fills the processor's cache and the memory with what
//! waits. So a reader waits a moment until little waits. It waits longer while the consumer moves, and where the operator
//! chose `block`: there readers have to wait anyway. A consumer that does not keep up is waited for again when twice as much
//! waits: a few times until the queue is full.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::batch::budget::Budget;

/// What the readers of one queue know of its consumer.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    // Charged so much, the consumer did not catch up when it was waited for.
    waited_at: AtomicUsize,
}

impl ReadAhead {
    /// Waits, a moment at most, until little waits to be written. `blocks`: the operator chose `block`. Cancel-safe.
    pub(crate) async fn wait(&self, budget: &Budget, blocks: bool) {
        if budget.is_low() {
            self.waited_at.store(0, Relaxed);
            return;
        }
        let charged = budget.charged();
        if charged >= 2 * self.waited_at.load(Relaxed) {
            // In memory of its own: every connection has room for its longest wait, and most are idle.
            Box::pin(self.wait_until_low(budget, charged, blocks)).await;
        }
    }

    async fn wait_until_low(&self, budget: &Budget, charged: usize, blocks: bool) {
        for _ in 0..if blocks { WAITS_BLOCK } else { WAITS } {
            let moved = budget.moved();
            if tokio::time::timeout(WAIT, budget.room_when(|| budget.is_low())).await.is_ok() {
                self.waited_at.store(0, Relaxed);
                return;
            }
            if !blocks && moved == budget.moved() {
                break;
            }
        }
        self.waited_at.store(charged, Relaxed);
    }
}

/// How long a consumer that does not move is waited for.
const WAIT: Duration = Duration::from_millis(5);
/// How many times as long a consumer is waited for that moves.
const WAITS: u32 = 4;
/// How many times as long a consumer is waited for whose operator chose `block`.
const WAITS_BLOCK: u32 = 20;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LARGE: usize = 600 << 10;

    /// Paused time: a wait that ends does so because of what happened, or after all of its milliseconds.
    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_keeps_up_is_waited_for_and_one_that_lags_only_now_and_then() {
        let budget = Arc::new(Budget::new(64 << 20));
        let ahead = ReadAhead::default();
        let first = budget.reserve(LARGE).unwrap();
        let begin = tokio::time::Instant::now();
        tokio::join!(ahead.wait(&budget, false), async { drop(first) });
        assert_eq!(begin.elapsed(), Duration::ZERO);

        let first = budget.reserve(LARGE).unwrap();
        ahead.wait(&budget, false).await;
        let waited = begin.elapsed();
        assert!(WAIT <= waited && waited < 3 * WAIT);
        ahead.wait(&budget, false).await;
        assert_eq!(begin.elapsed(), waited);
        let second = budget.reserve(LARGE).unwrap();
        ahead.wait(&budget, false).await;
        let waited_twice = begin.elapsed();
        assert!(waited_twice > waited);

        drop((first, second));
        ahead.wait(&budget, false).await;
        let _third = budget.reserve(LARGE).unwrap();
        ahead.wait(&budget, false).await;
        assert!(begin.elapsed() > waited_twice);
    }
}
