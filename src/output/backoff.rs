//! How long to wait before the next attempt.

use std::time::Duration;
use std::time::Instant;

use crate::output::streams::Reconnect;

/// Doubling pauses with jitter: a crowd of relays does not come back to a collector in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    limits: Reconnect,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(limits: Reconnect) -> Self {
        Self { limits, next: limits.min }
    }

    /// The next pause: between half and all of a time that doubles up to the limit.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (2 * pause).min(self.limits.max);
        pause.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// Tells how a session went: one that lasted begins anew with the shortest pause, a collector that takes
    /// connections only to close them does not.
    pub(crate) fn session_lasted(&mut self, since: Instant) {
        if since.elapsed() >= LASTING {
            self.next = self.limits.min;
        }
    }
}

/// A session of this length was a good one.
const LASTING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew_after_a_session_that_lasted() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(500));
        let mut backoff = Backoff::new(Reconnect { min, max });
        for full in [100, 200, 400, 500, 500].map(Duration::from_millis) {
            let pause = backoff.pause();
            assert!(full / 2 <= pause && pause <= full, "{pause:?}");
        }
        let now = Instant::now();
        backoff.session_lasted(now);
        assert!(backoff.pause() >= max / 2);
        if let Some(earlier) = now.checked_sub(LASTING) {
            backoff.session_lasted(earlier);
            assert!(backoff.pause() <= min);
        }
    }
}
