//! Waiting for a condition instead of for time.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::skips::Cause;
use crate::skips::skip;

/// How long anything may take that is not about time at all: long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Waits until `condition` holds; fails after [`PATIENCE`] with `what`.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

/// Waits until `condition` holds, and returns how long that took; fails after `limit` with `what`.
#[track_caller]
pub(crate) fn eventually_within(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Duration {
    let began = Instant::now();
    loop {
        if condition() {
            return began.elapsed();
        }
        assert!(began.elapsed() < limit, "within {limit:?}: {what}");
        thread::sleep(millis(2));
    }
}

/// Runs a scenario that measures time until it comes out well, at most [`RUNS`] times.
///
/// Fails where it comes out badly although the machine was quiet: a thread beside it that sleeps for a millisecond
/// at a time was woken late by less than a fifth of `bound`, the time that is asked for. Where the machine never was quiet,
/// the scenario proves nothing, and counts as skipped.
#[track_caller]
pub(crate) fn in_quiet(bound: Duration, mut scenario: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    for run in 1..=RUNS {
        let noise = Noise::listen();
        let result = scenario();
        let noise = noise.p99();
        let Err(fault) = result else { return };
        eprintln!("run {run}: {fault}; the machine itself was late by {noise:?}");
        let quiet = noise < bound / 5;
        assert!(!quiet || run < RUNS, "{fault}, on a quiet machine");
        last = if quiet { fault } else { last };
    }
    assert!(last.is_empty(), "{last}, on a quiet machine");
    skip(Cause::Timing, "the machine is too busy to measure time");
}

/// Runs of a scenario that measures time.
const RUNS: usize = 4;

/// How late sleeps end on this machine just now.
struct Noise {
    ended: Arc<AtomicBool>,
    sleeper: JoinHandle<Vec<Duration>>,
}

impl Noise {
    fn listen() -> Self {
        let ended = Arc::<AtomicBool>::default();
        let heard = ended.clone();
        let sleeper = thread::spawn(move || {
            let mut late = Vec::new();
            while !heard.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(millis(1));
                late.push(began.elapsed().saturating_sub(millis(1)));
            }
            late
        });
        Self { ended, sleeper }
    }

    /// The lateness that one sleep of a hundred exceeded.
    fn p99(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        let mut late = self.sleeper.join().expect("sleeping ends well");
        late.sort();
        late.get(late.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// Lets tests that measure time run alone, and all others beside each other.
static TURN: RwLock<()> = RwLock::new(());

/// Held by a test that does not mind others beside it.
pub(crate) fn beside_others() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that measures time.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}
