//! When to connect again, and when to give up.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::config::Reconnect;
use crate::delivery::config::Retry;
use crate::delivery::shared::Shared;
use crate::lifecycle::Phase;

/// The attempts of one endpoint.
#[derive(Debug)]
pub(super) struct Attempts {
    backoff: Backoff,
    // While the relay ends, a stream has broken, or has ended without FINISH: another one is tried, once.
    last_chance_used: bool,
}

impl Attempts {
    /// Attempts with pauses within these limits; `seed` decides their jitter.
    pub(super) fn new(limits: Reconnect, seed: u64) -> Self {
        Self { backoff: Backoff::new(limits, seed), last_chance_used: false }
    }

    /// Pauses within these limits from now on.
    pub(super) fn reconfigure(&mut self, limits: Reconnect) {
        self.backoff.limits = limits;
        self.backoff.next = self.backoff.next.clamp(limits.min, limits.max);
    }

    /// When to try again after an attempt that failed, or after a stream that was given up; `None`: not any more. A
    /// collector that is away when the relay ends gets one more attempt, which this was.
    pub(super) fn after_failure(&mut self, shared: &Shared, now: Instant) -> Option<Instant> {
        let goes_on = match shared.config.retry {
            Retry::Never => false,
            Retry::WhileRunning => !shared.inputs_ended,
            Retry::ToTheEnd => true,
        };
        goes_on.then(|| self.next(shared, now))
    }

    /// When to try again after a stream that began at `since`, and that the peer has ended; `None`: not any more. A collector
    /// that closes while the relay ends gets one more attempt, as one does that is away.
    pub(super) fn after_break(&mut self, since: Instant, shared: &Shared, now: Instant) -> Option<Instant> {
        self.backoff.session_lasted(since, now);
        let again = shared.config.retry != Retry::Never;
        if again && shared.inputs_ended && !std::mem::replace(&mut self.last_chance_used, true) {
            return Some(self.next(shared, now));
        }
        self.after_failure(shared, now)
    }

    /// When to try again after a stream that began at `since`, got everything, and was not acknowledged; `None`: not any more.
    /// What is not acknowledged is sent again, once.
    pub(super) fn after_last_stream(
        &mut self,
        since: Instant,
        shared: &Shared,
        now: Instant,
    ) -> Option<Instant> {
        self.backoff.session_lasted(since, now);
        if std::mem::replace(&mut self.last_chance_used, true) {
            return None;
        }
        self.after_failure(shared, now)
    }

    /// When to try next.
    pub(super) fn next(&mut self, shared: &Shared, now: Instant) -> Instant {
        let pause = self.backoff.pause();
        now + if shared.phase == Phase::Running { pause } else { pause.min(DRAIN_PAUSE_MAX) }
    }
}

/// Doubling pauses with jitter: a crowd of relays does not come back to a collector in step.
#[derive(Debug)]
struct Backoff {
    limits: Reconnect,
    next: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Pauses within these limits; `seed` decides their jitter.
    fn new(limits: Reconnect, seed: u64) -> Self {
        Self { limits, next: limits.min, random: fastrand::Rng::with_seed(seed) }
    }

    /// The next pause: between half and all of a time that doubles up to the limit.
    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (2 * pause).min(self.limits.max);
        pause / 2 + pause.mul_f64(self.random.f64() / 2.0)
    }

    /// A session that began at `since` has ended now. After one that lasted, the next attempt comes soon; a collector that
    /// closes at once is left alone longer and longer.
    fn session_lasted(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= LASTING {
            self.next = self.limits.min;
        }
    }
}

/// Longest pause between attempts while the relay ends.
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(500);

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
