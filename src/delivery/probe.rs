//! When to look at what the peer of a stream has, for outputs whose frames are acknowledged by that.

use std::time::Duration;
use std::time::Instant;

/// The looks at one stream. One look costs a system call.
#[derive(Debug)]
pub(super) struct AckProbe {
    // A look for so many bytes written at least.
    len: u64,
    // From the first byte written since the last look to the next look.
    first_pause: Duration,
    looked_at: u64,
    arrived: u64,
    pause: Duration,
    look_at: Option<Instant>,
}

impl AckProbe {
    /// For a stream that begins.
    pub(super) fn new(len: u64, first_pause: Duration) -> Self {
        Self { len, first_pause, looked_at: 0, arrived: 0, pause: first_pause, look_at: None }
    }

    /// The stream was written to, up to `position`. Returns whether to look now.
    pub(super) fn written(&mut self, position: u64, now: Instant) -> bool {
        self.pause = self.first_pause;
        self.look_at.get_or_insert(now + self.first_pause);
        position - self.looked_at >= self.len
    }

    /// A look has shown that everything before `arrived` has arrived, of what was written up to `position`; `None`: it cannot
    /// be told.
    pub(super) fn looked(&mut self, arrived: Option<u64>, position: u64, now: Instant) {
        self.looked_at = position;
        self.arrived = self.arrived.max(arrived.unwrap_or(0));
        self.look_at = (self.arrived < position).then(|| {
            let pause = self.pause;
            self.pause = (2 * pause).min(PAUSE_MAX.max(self.first_pause));
            now + pause
        });
    }

    /// The time to look again, while not everything has arrived that was written.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether every byte before `position` has arrived.
    pub(super) fn has_arrived(&self, position: u64) -> bool {
        self.arrived >= position
    }
}

/// While something has not arrived and nothing is written, looks come after pauses that double, up to this one.
const PAUSE_MAX: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_written_is_looked_at_soon_and_little_after_pauses_that_double() {
        let now = Instant::now();
        let mut probe = AckProbe::new(1000, Duration::from_millis(1));
        assert_eq!(probe.look_at(), None);
        assert!(!probe.written(999, now));
        assert!(probe.written(1000, now));
        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..6 {
            probe.looked(Some(500), 1000, at);
            let next = probe.look_at().unwrap();
            pauses.push((next - at).as_millis());
            at = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert!(!probe.has_arrived(1000));
        probe.looked(Some(1000), 1000, at);
        assert!(probe.has_arrived(1000) && probe.look_at().is_none());
        assert!(!probe.written(1999, at) && probe.written(2000, at));
        assert_eq!(probe.look_at(), Some(at + Duration::from_millis(1)));
    }
}
