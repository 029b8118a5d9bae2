//! Frames that come in again and again: the sign of a loop, and no proof. Some writers repeat themselves.
//!
//! Now and then a few frames are kept, and looked for among those that come in next. One that has come back several times
//! raises suspicion. A diamond of relays, or a file that is sent twice, brings each frame back fewer times than that.

use std::time::Duration;
use std::time::Instant;

/// The frames that are looked for, and when.
#[derive(Debug)]
pub(crate) struct Echoes {
    phase: Phase,
    kept: Vec<Kept>,
    // How long the next frames are looked for.
    listening: Duration,
    // How long nothing is looked for after the next suspicion.
    rest: Duration,
    suspected_at: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    Listening { until: Instant },
    Resting { until: Instant },
}

/// A frame as it is encoded, and how often it came back.
#[derive(Debug)]
struct Kept {
    encoded: Box<[u8]>,
    returns: u32,
}

impl Echoes {
    /// Looks for the first frames that come.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Resting { until: now },
            kept: Vec::new(),
            listening: LISTENING_MIN,
            rest: REST_MIN,
            suspected_at: None,
        }
    }

    /// Until when frames need not be told.
    pub(crate) fn resting_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Resting { until } => Some(until),
            Phase::Listening { .. } => None,
        }
    }

    /// A new connection of an output may have closed a loop: frames are looked for again, if not from now on then very soon.
    pub(crate) fn output_connected(&mut self, now: Instant) {
        (self.listening, self.rest) = (LISTENING_MIN, REST_MIN);
        let rested = self.suspected_at.map_or(now, |suspected| suspected + CONNECTED_REST);
        self.phase = Phase::Resting { until: rested.max(now) };
    }

    /// Takes encoded frames that have come in. Returns whether one of those that are kept has come back so often that there may
    /// be a loop.
    pub(crate) fn hear(&mut self, frames: &[u8], now: Instant) -> bool {
        match self.phase {
            Phase::Resting { until } if now < until => return false,
            Phase::Resting { .. } => {
                self.kept.clear();
                self.phase = Phase::Listening { until: now + self.listening };
            }
            Phase::Listening { until } if now < until => {}
            Phase::Listening { .. } => {
                self.phase = Phase::Resting { until: now + PAUSE_PART * self.listening };
                self.listening = (2 * self.listening).min(LISTENING_MAX);
                self.kept.clear();
                return false;
            }
        }
        if self.has_come_back(frames) {
            self.phase = Phase::Resting { until: now + self.rest };
            self.rest = (2 * self.rest).min(REST_MAX);
            self.suspected_at = Some(now);
            self.kept.clear();
            return true;
        }
        self.keep_first_of(frames);
        false
    }

    fn has_come_back(&mut self, frames: &[u8]) -> bool {
        for frame in each(frames) {
            for kept in &mut self.kept {
                if *kept.encoded == *frame {
                    kept.returns += 1;
                    if kept.returns >= RETURNS {
                        return true;
                    }
                }
            }
        }
        false
    }

    fn keep_first_of(&mut self, frames: &[u8]) {
        let Some(frame) = each(frames).next() else { return };
        let known = self.kept.iter().any(|kept| *kept.encoded == *frame);
        if self.kept.len() < KEPT_MAX && frame.len() <= KEPT_LEN_MAX && !known {
            self.kept.push(Kept { encoded: frame.into(), returns: 0 });
        }
    }
}

/// The frames of whole encoded ones, each with its length word.
fn each(mut frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = 4 + u32::from_be_bytes(*frames.first_chunk()?) as usize;
        let (frame, rest) = frames.split_at_checked(len)?;
        frames = rest;
        Some(frame)
    })
}

/// A frame that has come back so often raises suspicion.
const RETURNS: u32 = 4;
/// Frames that are looked for at the same time.
const KEPT_MAX: usize = 8;
/// Longer frames are not looked for.
const KEPT_LEN_MAX: usize = 64 << 10;

/// How long frames are looked for, at first. A loop that goes round slowly takes longer: the time doubles.
const LISTENING_MIN: Duration = Duration::from_secs(1);
const LISTENING_MAX: Duration = Duration::from_secs(64);
/// Nothing is looked for during so many times that time: looking costs a little for each frame.
const PAUSE_PART: u32 = 15;

/// How long nothing is looked for after a suspicion, at first: the time doubles. Every output is asked after a suspicion, and
/// most collectors write a line about it.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(3600);
/// The same where an output connects meanwhile, which outputs that are refused do less and less often.
const CONNECTED_REST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames with these payloads.
    fn frames(payloads: &[&str]) -> Vec<u8> {
        let encoded = |text: &&str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        payloads.iter().flat_map(encoded).collect()
    }

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_frame_that_goes_round_is_noticed_wherever_it_is_in_what_comes() {
        let start = Instant::now();
        let mut echoes = Echoes::new(start);
        assert!(!echoes.hear(&frames(&["a", "b", "c"]), start));
        for round in 1..4 {
            let text = format!("other {round}");
            assert!(!echoes.hear(&frames(&[&text, "c", "a"]), at(start, 0.01 * f64::from(round))));
        }
        assert!(echoes.hear(&frames(&["x", "a"]), at(start, 0.1)));
    }

    #[test]
    fn frames_that_come_by_several_ways_or_are_alike_raise_no_suspicion() {
        let start = Instant::now();
        let mut echoes = Echoes::new(start);
        for number in 0..1000 {
            let text = format!("frame {number}");
            for _way in 0..4 {
                assert!(!echoes.hear(&frames(&[&text, "frame 0 and more"]), start), "{text}");
            }
        }
    }

    #[test]
    fn after_a_suspicion_nothing_is_looked_for_for_times_that_double_up_to_an_hour() {
        let start = Instant::now();
        let mut echoes = Echoes::new(start);
        let same = frames(&["same"]);
        let mut suspicions = Vec::new();
        for second in 0..20_000 {
            let now = at(start, f64::from(second));
            for _ in 0..10 {
                if echoes.hear(&same, now) {
                    suspicions.push(second);
                }
            }
        }
        assert_eq!(suspicions[..6], [0, 1, 3, 7, 15, 31]);
        assert!(suspicions.len() < 18 && suspicions.windows(2).all(|pair| pair[1] - pair[0] <= 3600));
        // A connection of an output begins it anew.
        let now = at(start, 20_000.0);
        echoes.output_connected(now);
        assert!((0..10).any(|_| echoes.hear(&same, now)));
        echoes.output_connected(now);
        assert!((0..10).all(|_| !echoes.hear(&same, at(now, 0.09))));
        assert!((0..10).any(|_| echoes.hear(&same, at(now, 0.1))));
    }

    #[test]
    fn frames_are_looked_for_in_a_small_part_of_the_time_and_slow_loops_are_noticed_too() {
        let start = Instant::now();
        let mut echoes = Echoes::new(start);
        let mut listening = 0;
        let mut noticed = None;
        for second in 0..10_000 {
            let now = at(start, f64::from(second));
            if echoes.resting_until().is_some_and(|until| now < until) {
                continue;
            }
            listening += 1;
            // Every frame takes 5 s for one round.
            if echoes.hear(&frames(&[&format!("{}", second % 5)]), now) {
                noticed.get_or_insert(second);
                break;
            }
        }
        assert!(noticed.is_some_and(|second| second < 1000), "{noticed:?}");
        let mut echoes = Echoes::new(start);
        for second in 0..10_000 {
            let now = at(start, f64::from(second));
            listening += u32::from(echoes.resting_until().is_none_or(|until| now >= until));
            echoes.hear(&frames(&[&format!("{second}")]), now);
        }
        assert!(listening < 1000, "{listening} of 10 000 s");
    }
}
