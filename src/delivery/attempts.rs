//! When to connect again, and when to give up.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::backoff::Backoff;
use crate::delivery::config::Reconnect;
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
        self.backoff.reconfigure(limits);
    }

    /// When to try again after an attempt that failed, or after a stream that was given up; `None`: not any more. A
    /// collector that is away when the relay ends gets one more attempt, which this was.
    pub(super) fn after_failure(&mut self, shared: &Shared, now: Instant) -> Option<Instant> {
        let goes_on = !shared.inputs_ended || shared.config.tries_to_the_end;
        goes_on.then(|| self.next(shared, now))
    }

    /// When to try again after a stream that began at `since`, and that the peer has ended; `None`: not any more. A collector
    /// that closes while the relay ends gets one more attempt, as one does that is away.
    pub(super) fn after_break(&mut self, since: Instant, shared: &Shared, now: Instant) -> Option<Instant> {
        self.backoff.session_lasted(since, now);
        if shared.inputs_ended && !std::mem::replace(&mut self.last_chance_used, true) {
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

/// Longest pause between attempts while the relay ends.
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(500);
