//! Waiting for a condition instead of for time.

use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::Duration;
use std::time::Instant;

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
