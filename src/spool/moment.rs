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

    /// The instant of a Unix time before this moment; this moment itself for one that is too long ago.
    pub(super) fn instant_of(&self, unix: u64) -> Instant {
        let age = Duration::from_nanos(self.unix.saturating_sub(unix));
        self.instant.checked_sub(age).unwrap_or(self.instant)
    }
}

/// Nanoseconds of a duration, or the most that there can be.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
