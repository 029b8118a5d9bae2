//! Which worker serves what.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use rustix::thread::CpuSet;

/// Workers to start: as many as asked for, or one for each core that the process may use (its affinity mask and CPU
/// quota).
pub(crate) fn worker_count(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// The processor of each worker, from the affinity mask of the process. Empty where the mask cannot be read.
pub(crate) fn processors(workers: usize) -> Vec<usize> {
    let Ok(mask) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let allowed: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect();
    allowed.iter().copied().cycle().take(if allowed.is_empty() { 0 } else { workers }).collect()
}

/// Pins the calling thread. Best effort: an unpinned worker works.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Connections on each worker, to give new ones to the worker that has the fewest: the kernel's choice among
/// SO_REUSEPORT listeners is a hash, and a shared unix listener favours whoever is awake.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    connections: Arc<[AtomicUsize]>,
}

impl Placement {
    pub(crate) fn new(workers: usize) -> Self {
        Self { connections: (0..workers).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Takes a place on the worker with the fewest connections; on `here` where there are no fewer elsewhere.
    pub(crate) fn take(&self, here: usize) -> usize {
        let load = |worker: usize| self.connections[worker].load(Ordering::Relaxed);
        let others = 0..self.connections.len();
        let least = others.min_by_key(|&worker| (load(worker), worker != here)).unwrap_or(here);
        self.connections[least].fetch_add(1, Ordering::Relaxed);
        least
    }

    /// Gives a place back.
    pub(crate) fn release(&self, worker: usize) {
        self.connections[worker].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_the_fewest_are() {
        let placement = Placement::new(3);
        assert_eq!([1, 1, 1, 1].map(|here| placement.take(here)), [1, 0, 2, 1]);
        placement.release(2);
        assert_eq!(placement.take(0), 2);
    }

    #[test]
    fn there_is_a_worker_and_a_processor_for_it() {
        assert!(worker_count(0) >= 1);
        assert_eq!((worker_count(7), processors(7).len()), (7, 7));
    }
}
