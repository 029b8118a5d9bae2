//! Whether the reader of a group's member still takes something.

use std::time::Duration;
use std::time::Instant;

/// Notes progress. What counts is that it is another than before, not how much.
#[derive(Debug)]
pub(crate) struct Stall {
    pub(crate) timeout: Duration,
    seen: (u64, u64),
    since: Instant,
}

impl Stall {
    pub(crate) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, seen: (0, 0), since: now }
    }

    /// Told of what was written and what has arrived, and whether there is anything that the reader could take. Returns
    /// whether it has taken nothing for too long.
    pub(crate) fn is_over(&mut self, now: Instant, seen: (u64, u64), has_work: bool) -> bool {
        if !has_work || seen != self.seen {
            self.seen = seen;
            self.since = now;
        }
        now.saturating_duration_since(self.since) >= self.timeout
    }

    /// How long one write is waited for: so short that the moment of the last progress is known.
    pub(crate) fn write_limit(&self) -> Duration {
        self.timeout / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_with_work_that_does_not_move_is_stalled() {
        let timeout = Duration::from_millis(750);
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut stall = Stall::new(timeout, begin);
        assert!(!stall.is_over(at(700), (0, 0), true));
        assert!(!stall.is_over(at(740), (1, 0), true));
        assert!(!stall.is_over(at(1480), (1, 1), true));
        assert!(!stall.is_over(at(2000), (1, 1), true));
        assert!(stall.is_over(at(2230), (1, 1), true));
        assert!(!stall.is_over(at(9000), (1, 1), false));
        assert!(!stall.is_over(at(9700), (1, 1), true));
    }
}
