//! When each frame of a replay is due.

use std::time::Duration;
use std::time::Instant;

use tapster::dnstap::Message;

/// How fast frames are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As fast as the reader takes them.
    Max,
    /// Frames per second.
    Rate(f64),
    /// As recorded, this many times as fast.
    Speed(f64),
}

/// Gives every frame its time, counted from the first.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    start: Instant,
    frames: u64,
    /// Time of the first frame that has one.
    recorded_start: Option<Duration>,
    last: Duration,
    /// Longest pause between two frames.
    pause_max: Duration,
    /// Time that pauses were cut by.
    cut: Duration,
    /// How long the last pause would have been, if it was cut.
    uncut: Option<Duration>,
}

impl Pacer {
    /// Frames of a recording are at most `pause_max` apart.
    pub(crate) fn new(pace: Pace, pause_max: Duration, start: Instant) -> Self {
        let (last, cut) = (Duration::ZERO, Duration::ZERO);
        Self { pace, start, frames: 0, recorded_start: None, last, pause_max, cut, uncut: None }
    }

    /// How long the pause before the last frame would be, if it is cut.
    pub(crate) fn uncut_pause(&self) -> Option<Duration> {
        self.uncut
    }

    /// Whether frames need not be looked at one by one.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.pace == Pace::Max
    }

    /// Whether frames are sent by the times in them.
    pub(crate) fn needs_times(&self) -> bool {
        matches!(self.pace, Pace::Speed(_))
    }

    /// When the next frame is due. It was recorded at `received`, since the Unix epoch, or as the dnstap in it says. Frames
    /// stay in order: one that was recorded earlier than the one before it, or has no time, is due together with that
    /// one.
    pub(crate) fn due(&mut self, payload: &[u8], received: Option<Duration>) -> Instant {
        let after = match self.pace {
            Pace::Max => Duration::ZERO,
            Pace::Rate(rate) => Duration::try_from_secs_f64(self.frames as f64 / rate).unwrap_or(self.last),
            Pace::Speed(speed) => self.recorded(payload, received, speed).unwrap_or(self.last),
        };
        self.frames += 1;
        let due = self.start.checked_add(after.max(self.last));
        due.inspect(|due| self.last = due.duration_since(self.start)).unwrap_or(self.start + self.last)
    }

    fn recorded(&mut self, payload: &[u8], received: Option<Duration>, speed: f64) -> Option<Duration> {
        let time = received.or_else(|| Message::parse(payload).ok()?.time())?;
        let start = *self.recorded_start.get_or_insert(time);
        let after = Duration::try_from_secs_f64(time.saturating_sub(start).as_secs_f64() / speed).ok()?;
        let pause = after.saturating_sub(self.cut + self.last);
        let too_long = pause.saturating_sub(self.pause_max);
        self.uncut = (!too_long.is_zero()).then_some(pause);
        self.cut += too_long;
        Some(after.saturating_sub(self.cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CLIENT_QUERY seen `seconds` after the epoch.
    fn query(seconds: u8) -> Vec<u8> {
        vec![0x72, 4, 0x08, 5, 0x40, seconds]
    }

    fn millis(pace: Pace, payloads: &[Vec<u8>]) -> Vec<u128> {
        let start = Instant::now();
        let mut pacer = Pacer::new(pace, Duration::from_secs(10), start);
        payloads.iter().map(|payload| pacer.due(payload, None).duration_since(start).as_millis()).collect()
    }

    #[test]
    fn a_rate_spaces_frames_evenly() {
        assert_eq!(millis(Pace::Rate(4.0), &[vec![], vec![], vec![]]), [0, 250, 500]);
        assert_eq!(millis(Pace::Max, &[vec![], vec![]]), [0, 0]);
    }

    #[test]
    fn a_speed_divides_recorded_times_and_keeps_the_order() {
        let payloads = [query(10), query(12), b"no dnstap".to_vec(), query(11), query(20)];
        assert_eq!(millis(Pace::Speed(2.0), &payloads), [0, 1000, 1000, 1000, 5000]);
    }

    #[test]
    fn what_is_known_of_the_recording_counts_more_than_what_is_in_the_frame() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Pace::Speed(2.0), Duration::MAX, start);
        let seconds = [100, 104, 103].map(Duration::from_secs);
        let due = seconds.map(|second| pacer.due(&query(1), Some(second)).duration_since(start).as_secs());
        assert_eq!(due, [0, 2, 2]);
    }

    #[test]
    fn a_pause_is_cut_to_the_longest_one_and_what_follows_comes_sooner() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Pace::Speed(1.0), Duration::from_secs(10), start);
        let mut due = |second| {
            let due = pacer.due(b"", Some(Duration::from_secs(second))).duration_since(start).as_secs();
            (due, pacer.uncut_pause().map(|pause| pause.as_secs()))
        };
        assert_eq!(
            [due(100), due(110), due(3710), due(3712)],
            [(0, None), (10, None), (20, Some(3600)), (22, None)]
        );
        // A clock that was set back, and on again.
        assert_eq!([due(50), due(3713), due(9999)], [(22, None), (23, None), (33, Some(6286))]);
    }

    #[test]
    fn times_beyond_all_clocks_do_no_harm() {
        let never = vec![0x72, 13, 0x08, 5, 0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(millis(Pace::Speed(1e-300), &[query(1), query(2), never.clone()]), [0, 0, 0]);
        assert_eq!(millis(Pace::Speed(0.01), &[query(1), never, query(2)]), [0, 0, 10_000]);
        assert_eq!(millis(Pace::Rate(1e-300), &[vec![], vec![]]), [0, 0]);
    }
}
