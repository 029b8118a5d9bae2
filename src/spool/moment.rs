//! Time, as the caller tells it: no other file of a spool reads a clock.

use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// One moment on two clocks: deadlines go by the one that never jumps, ages by the one that outlives the process.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// On the monotonic clock.
    pub instant: Instant,
    /// Nanoseconds of Unix time.
    pub unix: u64,
}

impl Moment {
    /// Reads both clocks.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix: nanos(unix) }
    }

    /// Unix time of an instant before this moment.
    pub(super) fn unix_of(&self, instant: Instant) -> u64 {
        self.unix.saturating_sub(nanos(self.instant.saturating_duration_since(instant)))
    }

    /// A Unix time that was written when the clock may have been wrong. One in the future, or before there was tapster, tells nothing:
    /// it counts as now.
    pub(super) fn plausible(&self, unix: u64) -> u64 {
        if (UNIX_MIN..=self.unix).contains(&unix) { unix } else { self.unix }
    }

    /// By how many nanoseconds the clock was set since `before`, beyond the time that has passed; `None` where it was not.
    pub(super) fn step_since(&self, before: Self) -> Option<i64> {
        let expected =
            before.unix.saturating_add(nanos(self.instant.saturating_duration_since(before.instant)));
        let step = i64::try_from(i128::from(self.unix) - i128::from(expected)).ok()?;
        (step.unsigned_abs() >= STEP_MIN).then_some(step)
    }

    /// The instant of a Unix time before this moment; this moment itself for one that is too long ago, or tells nothing.
    pub(super) fn instant_of(&self, unix: u64) -> Instant {
        let unix = self.plausible(unix);
        let age = Duration::from_nanos(self.unix.saturating_sub(unix));
        self.instant.checked_sub(age).unwrap_or(self.instant)
    }
}

/// Nanoseconds of a duration, or the most that there can be.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// 2020, in nanoseconds of Unix time. A clock without a battery begins long before.
const UNIX_MIN: u64 = 1_577_836_800_000_000_000;
/// A clock that is put right bit by bit does not step so far at once, in nanoseconds.
const STEP_MIN: u64 = 1_000_000_000;
