//! Pauses between attempts to connect: a crowd of relays does not come back to a peer in step.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::config::Reconnect;

/// Doubling pauses with jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    limits: Reconnect,
    next: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Pauses within these limits; `seed` decides their jitter.
    pub(crate) fn new(limits: Reconnect, seed: u64) -> Self {
        Self { limits, next: limits.min, random: fastrand::Rng::with_seed(seed) }
    }

    /// Pauses within these limits from now on.
    pub(crate) fn reconfigure(&mut self, limits: Reconnect) {
        self.limits = limits;
        self.next = self.next.clamp(limits.min, limits.max);
    }

    /// The next pause: between half and all of a time that doubles up to the limit.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (2 * pause).min(self.limits.max);
        pause / 2 + pause.mul_f64(self.random.f64() / 2.0)
    }

    /// A session that began at `since` has ended now. After one that lasted, the next attempt comes soon; a peer that
    /// closes at once is left alone longer and longer.
    pub(crate) fn session_lasted(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= LASTING {
            self.next = self.limits.min;
        }
    }
}

/// A session of this length has been a good one.
const LASTING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew_after_a_session_that_lasted() {
        let limits = Reconnect { min: Duration::from_millis(100), max: Duration::from_secs(1) };
        let mut backoff = Backoff::new(limits, 7);
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause}, expected up to {expected}");
        }
        let since = Instant::now();
        backoff.session_lasted(since, since + Duration::from_millis(999));
        assert!(backoff.pause() >= Duration::from_millis(500));
        backoff.session_lasted(since, since + Duration::from_secs(1));
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
