//! The clock that generator and sink share: monotonic, the same for all processes of one machine.

use std::time::Duration;

use rustix::time::ClockId;
use rustix::time::Timespec;

/// Nanoseconds on the monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * NANOS_PER_SECOND + now.tv_nsec as u64
}

/// What `epoll` takes as a timeout.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;
