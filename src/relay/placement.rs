//! Which worker serves what.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    workers: Arc<[Load]>,
}

#[derive(Debug, Default)]
struct Load {
    connections: AtomicUsize,
    // Whether the thread is there.
    alive: AtomicBool,
}

impl Placement {
    /// No worker is alive.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Load::default()).collect() }
    }

    /// A worker lives from now on, until this is dropped.
    pub(crate) fn alive(&self, worker: usize) -> Alive {
        self.workers[worker].alive.store(true, Ordering::Release);
        Alive { placement: self.clone(), worker }
    }

    /// Takes a place on the worker with the fewest connections; on `here` where there are no fewer elsewhere.
    pub(crate) fn take(&self, here: usize) -> Place {
        let load = |worker: usize| self.workers[worker].connections.load(Ordering::Relaxed);
        let alive =
            (0..self.workers.len()).filter(|&worker| self.workers[worker].alive.load(Ordering::Acquire));
        let worker = alive.min_by_key(|&worker| (load(worker), worker != here)).unwrap_or(here);
        self.workers[worker].connections.fetch_add(1, Ordering::Relaxed);
        Place { placement: self.clone(), worker }
    }
}

/// A place for one connection on a worker. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    placement: Placement,
    worker: usize,
}

impl Place {
    /// The worker.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.placement.workers[self.worker].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A worker whose thread is there. Dropped, it gets no connection any more.
#[derive(Debug)]
pub(crate) struct Alive {
    placement: Placement,
    worker: usize,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.placement.workers[self.worker].alive.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_the_fewest_are() {
        let placement = Placement::new(4);
        let _alive = [0, 1, 2].map(|worker| placement.alive(worker));
        let mut places: Vec<_> = [1, 1, 1, 1].into_iter().map(|here| placement.take(here)).collect();
        assert_eq!(places.iter().map(Place::worker).collect::<Vec<_>>(), [1, 0, 2, 1]);
        drop(places.remove(2));
        assert_eq!(placement.take(0).worker(), 2);
    }

    #[test]
    fn a_worker_that_is_gone_gets_no_connection() {
        let placement = Placement::new(2);
        let alive = [placement.alive(0), placement.alive(1)];
        let [_here, gone] = alive;
        drop(gone);
        let places: Vec<_> = (0..5).map(|_| placement.take(1)).collect();
        assert!(places.iter().all(|place| place.worker() == 0));
    }

    #[test]
    fn there_is_a_worker_and_a_processor_for_it() {
        assert!(worker_count(0) >= 1);
        assert_eq!((worker_count(7), processors(7).len()), (7, 7));
    }
}
