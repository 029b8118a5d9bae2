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
/// at a time was woken late by less than a fifth of `bound`, the time that is asked for, and other processes took less than a
/// quarter of a processor. Where the machine never was quiet, the scenario proves nothing, and counts as skipped.
#[track_caller]
pub(crate) fn in_quiet(bound: Duration, mut scenario: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    for run in 1..=RUNS {
        let noise = Noise::listen();
        let (began, elsewhere) = (Instant::now(), busy_elsewhere());
        let result = scenario();
        let elsewhere =
            busy_elsewhere().saturating_sub(elsewhere).as_secs_f64() / began.elapsed().as_secs_f64();
        let noise = noise.p99();
        let Err(fault) = result else { return };
        eprintln!(
            "run {run}: {fault}; the machine itself was late by {noise:?}, others took {elsewhere:.2} processors"
        );
        let quiet = noise < bound / 5 && elsewhere < 0.25;
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

/// Processor time since the start of the machine that was not spent for this process, nor for those that it waited for.
fn busy_elsewhere() -> Duration {
    let ticks = |text: &str, fields: std::ops::Range<usize>| -> u64 {
        let fields = text.split_whitespace().skip(fields.start).take(fields.len());
        fields.map(|field| field.parse::<u64>().unwrap_or_default()).sum()
    };
    // proc(5): user, nice and system; irq, softirq and steal stand behind idle and iowait.
    let all = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = ticks(&all, 1..4) + ticks(&all, 6..9);
    // utime, stime, cutime and cstime are the twelfth field behind the name, and the next three.
    let own = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let own = own.rsplit_once(')').map_or(0, |(_, fields)| ticks(fields, 11..15));
    TICK * u32::try_from(all.saturating_sub(own)).unwrap_or(u32::MAX)
}

/// The unit of processor times in `/proc`: USER_HZ is 100 on every architecture that this runs on.
const TICK: Duration = Duration::from_millis(10);

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
