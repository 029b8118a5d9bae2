//! Whether the reader of a group's member still takes something.

use std::time::Duration;
use std::time::Instant;

use crate::session::write::WriteFault;
use crate::session::write::WriteSession;

/// Notes what the reader of a member takes: as far as can be seen, a reader of a unix socket itself, over TCP its kernel.
#[derive(Debug)]
pub(crate) struct Stall {
    timeout: Duration,
    taken: u64,
    since: Instant,
    look_at: Instant,
}

impl Stall {
    pub(crate) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, taken: 0, since: now, look_at: now }
    }

    /// There is something to take from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since = now;
        self.look_at = now;
    }

    /// Looks, if it is time to; `more` waits to be written. Returns after which time to look again, `None` if there is
    /// nothing that the reader could take. One look costs a system call.
    pub(crate) fn look(
        &mut self,
        session: &mut WriteSession,
        more: bool,
    ) -> Result<Option<Duration>, WriteFault> {
        let now = Instant::now();
        if now >= self.look_at || !more {
            let written = session.written_bytes();
            // What cannot be told apart counts as taken. A reader that has gone ends the session by that.
            let taken = session.arrived_bytes().unwrap_or(written);
            let has_work = more || taken < written;
            if self.is_over(now, taken, has_work) {
                return Err(WriteFault::Stalled(self.timeout));
            }
            if !has_work {
                return Ok(None);
            }
        }
        Ok(Some(self.look_at.saturating_duration_since(now)))
    }

    /// Told of what the reader has taken, and whether there is anything more for it. Returns whether it has taken nothing
    /// for too long.
    fn is_over(&mut self, now: Instant, taken: u64, has_work: bool) -> bool {
        // Less than before: on another connection.
        if !has_work || taken != self.taken {
            self.taken = taken;
            self.since = now;
        }
        let over_at = self.since + self.timeout;
        self.look_at = (now + self.timeout / LOOKS).min(over_at);
        now >= over_at
    }

    /// Until when one write is waited for.
    pub(crate) fn look_at(&self) -> Instant {
        self.look_at
    }
}

/// Looks within the timeout: a stall is seen at most a part of so many later than it should.
const LOOKS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_with_work_that_does_not_move_is_stalled() {
        let timeout = Duration::from_millis(750);
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut stall = Stall::new(timeout, begin);
        assert!(!stall.is_over(at(700), 0, true));
        assert!(!stall.is_over(at(740), 1, true));
        assert!(!stall.is_over(at(1480), 2, true));
        assert!(!stall.is_over(at(2000), 2, true));
        assert!(stall.is_over(at(2230), 2, true));
        assert!(!stall.is_over(at(9000), 2, false));
        assert!(!stall.is_over(at(9700), 2, true));
    }

    /// However the last progress falls between two looks.
    #[test]
    fn a_stall_is_seen_soon_after_the_timeout() {
        let timeout = Duration::from_millis(800);
        let begin = Instant::now();
        for progress in (1..200).map(Duration::from_millis) {
            let mut stall = Stall::new(timeout, begin);
            let mut now = begin;
            while !stall.is_over(now, u64::from(now >= begin + progress), true) {
                assert!(stall.look_at() > now);
                now = stall.look_at();
            }
            let took = now - begin - progress;
            assert!(took >= timeout && took <= timeout + timeout / LOOKS, "{took:?}");
        }
    }
}
