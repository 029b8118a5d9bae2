//! Signs of life of the workers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// When each worker had its last turn. A worker ticks about once a second, from its own runtime: one that hangs does not.
///
/// Reading costs a load for each worker, waits for nobody, and works as long as the relay lives and afterwards.
#[derive(Clone, Debug)]
pub struct Ticks {
    begin: Instant,
    // Milliseconds since the beginning, for each worker; `ENDED` of one that has ended in order.
    last: Arc<[AtomicU64]>,
}

impl Ticks {
    /// Of so many workers. As if each of them had ticked now.
    pub(crate) fn new(workers: usize) -> Self {
        Self { begin: Instant::now(), last: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The ticks of this worker.
    ///
    /// # Panics
    /// There is no worker of this index.
    pub(crate) fn of(&self, worker: usize) -> Ticker {
        assert!(worker < self.last.len(), "worker {worker} of {}", self.last.len());
        Ticker { ticks: self.clone(), worker }
    }

    /// How long ago each worker ticked, in order of the workers; `None`: it has ended in order, at the end of a drain.
    pub fn ages(&self) -> impl Iterator<Item = Option<Duration>> {
        let now = self.begin.elapsed();
        self.last.iter().map(move |last| match last.load(Ordering::Relaxed) {
            ENDED => None,
            millis => Some(now.saturating_sub(Duration::from_millis(millis))),
        })
    }

    /// How long ago the worker ticked that has been silent for longest. Zero when every worker has ended in order.
    pub fn oldest(&self) -> Duration {
        self.ages().flatten().max().unwrap_or_default()
    }
}

/// The ticks of one worker.
#[derive(Debug)]
pub(crate) struct Ticker {
    ticks: Ticks,
    worker: usize,
}

impl Ticker {
    /// The worker lives.
    pub(crate) fn tick(&self) {
        let millis = u64::try_from(self.ticks.begin.elapsed().as_millis()).unwrap_or(ENDED - 1);
        self.ticks.last[self.worker].store(millis, Ordering::Relaxed);
    }

    /// The worker ends in order, and nobody is to miss it.
    pub(crate) fn end(&self) {
        self.ticks.last[self.worker].store(ENDED, Ordering::Relaxed);
    }
}

const ENDED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn the_worker_that_is_silent_for_longest_counts_and_one_that_has_ended_does_not() {
        let ticks = Ticks::new(3);
        sleep(Duration::from_millis(20));
        let [ended, silent, alive] = [0, 1, 2].map(|worker| ticks.of(worker));
        ended.end();
        alive.tick();
        let ages: Vec<_> = ticks.ages().collect();
        assert_eq!(ages[0], None);
        assert!(ages[1].unwrap() >= Duration::from_millis(20));
        assert!(ages[2].unwrap() < ages[1].unwrap());
        assert!(ticks.oldest() >= ages[1].unwrap());
        silent.end();
        alive.end();
        assert_eq!(ticks.oldest(), Duration::ZERO);
    }
}
