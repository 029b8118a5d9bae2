//! When a reader that has something to take, and takes nothing, is given up.

use std::time::Duration;
use std::time::Instant;

/// Notes what the reader of a stream takes, as far as can be seen.
#[derive(Debug)]
pub(super) struct Stall {
    timeout: Duration,
    taken: u64,
    since: Instant,
    look_at: Instant,
    has_work: bool,
    // A look was asked for, and has not come.
    looking: bool,
}

impl Stall {
    /// For a stream that begins now.
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, taken: 0, since: now, look_at: now, has_work: false, looking: false }
    }

    /// Waits for so long from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.look_at = self.look_at.min(self.since + timeout);
    }

    /// The time to look again; `None` while the reader has nothing to take, or a look is under way.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (self.has_work && !self.looking).then_some(self.look_at)
    }

    /// Whether it is time to look. The look is under way from now on.
    pub(super) fn wants_look(&mut self, now: Instant) -> bool {
        let due = self.look_at().is_some_and(|look_at| look_at <= now);
        self.looking |= due;
        due
    }

    /// Tells whether there is something for the reader to take. Without, no time passes for it.
    pub(super) fn set_work(&mut self, has_work: bool, now: Instant) {
        if has_work && !self.has_work {
            self.since = now;
            self.look_at = now + self.timeout / LOOKS;
        }
        self.has_work = has_work;
    }

    /// Tells what the reader has taken. Returns whether it has taken nothing for too long.
    pub(super) fn is_over(&mut self, taken: u64, now: Instant) -> bool {
        self.looking = false;
        // Less than before: on another connection.
        if !self.has_work || taken != self.taken {
            self.taken = taken;
            self.since = now;
        }
        let over_at = self.since + self.timeout;
        self.look_at = (now + self.timeout / LOOKS).min(over_at);
        self.has_work && now >= over_at
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
        stall.set_work(true, begin);
        assert!(!stall.is_over(0, at(700)));
        assert!(!stall.is_over(1, at(740)));
        assert!(!stall.is_over(2, at(1480)));
        assert!(!stall.is_over(2, at(2000)));
        assert!(stall.is_over(2, at(2230)));
        stall.set_work(false, at(2240));
        assert_eq!(stall.look_at(), None);
        assert!(!stall.is_over(2, at(9000)));
        stall.set_work(true, at(9000));
        assert!(!stall.is_over(2, at(9700)));
        assert!(stall.is_over(2, at(9750)));
    }

    /// However the last progress falls between two looks.
    #[test]
    fn a_stall_is_seen_soon_after_the_timeout() {
        let timeout = Duration::from_millis(800);
        let begin = Instant::now();
        for progress in (1..200).map(Duration::from_millis) {
            let mut stall = Stall::new(timeout, begin);
            stall.set_work(true, begin);
            let mut now = begin;
            while !stall.is_over(u64::from(now >= begin + progress), now) {
                let next = stall.look_at().expect("it has work");
                assert!(next > now);
                now = next;
            }
            let took = now - begin - progress;
            assert!(took >= timeout && took <= timeout + timeout / LOOKS, "{took:?}");
        }
    }
}
