//! The status line: what flows now.

use std::time::Duration;
use std::time::Instant;

use indicatif::HumanCount;

use crate::observability::Ledger;

/// Makes a line of text from the ledger and from what it said before.
#[derive(Clone, Debug)]
pub struct StatusLine {
    seen_at: Instant,
    seen: Totals,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    frames_in: u64,
    frames_out: u64,
    queued: u64,
    dropped: u64,
    oldest: Option<Duration>,
}

impl StatusLine {
    /// Rates are counted from `now` on.
    pub fn new(now: Instant) -> Self {
        Self { seen_at: now, seen: Totals::default() }
    }

    /// `in 1,000/s  out 2,000/s  queued 0  dropped 0  oldest 0.0s`: rates since the last call, the others as they stand, the
    /// age of the oldest frame that some output has not delivered.
    pub fn text(&mut self, now: Instant, ledger: &Ledger) -> String {
        let totals = Totals::of(ledger);
        let seconds = now.saturating_duration_since(self.seen_at).as_secs_f64();
        let rate = |before: u64, after: u64| {
            let frames = after.saturating_sub(before) as f64;
            HumanCount(if seconds > 0.0 { (frames / seconds).round() as u64 } else { 0 })
        };
        let text = format!(
            "in {}/s  out {}/s  queued {}  dropped {}  oldest {:.1}s",
            rate(self.seen.frames_in, totals.frames_in),
            rate(self.seen.frames_out, totals.frames_out),
            HumanCount(totals.queued),
            HumanCount(totals.dropped),
            totals.oldest.unwrap_or_default().as_secs_f64(),
        );
        (self.seen_at, self.seen) = (now, totals);
        text
    }
}

impl Totals {
    fn of(ledger: &Ledger) -> Self {
        let mut totals = Self::default();
        for input in &ledger.inputs {
            totals.frames_in += input.frames;
        }
        for output in &ledger.outputs {
            totals.frames_out += output.frames_sent;
            totals.queued += output.frames_queued + output.frames_spooled;
            totals.dropped += output.frames_dropped.values().sum::<u64>();
            totals.oldest = totals.oldest.max(output.oldest_age_us.map(Duration::from_micros));
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observability::InputLedger;
    use crate::observability::OutputLedger;

    fn ledger(frames_in: u64, frames_out: u64) -> Ledger {
        let output = OutputLedger {
            frames_sent: frames_out,
            frames_queued: 7,
            frames_dropped: [("queue_full".to_owned(), 2), ("shutdown".to_owned(), 1)].into(),
            oldest_age_us: Some(1_240_000),
            ..OutputLedger::default()
        };
        let younger = OutputLedger { oldest_age_us: None, ..output.clone() };
        Ledger {
            inputs: vec![InputLedger { frames: frames_in, ..InputLedger::default() }],
            outputs: vec![output, younger],
        }
    }

    #[test]
    fn rates_are_since_the_last_look() {
        let start = Instant::now();
        let mut line = StatusLine::new(start);
        let text = line.text(start + Duration::from_secs(2), &ledger(4_000, 3_000));
        assert_eq!(text, "in 2,000/s  out 3,000/s  queued 14  dropped 6  oldest 1.2s");
        let text = line.text(start + Duration::from_millis(2_500), &ledger(4_500, 3_000));
        assert_eq!(text, "in 1,000/s  out 0/s  queued 14  dropped 6  oldest 1.2s");
    }

    #[test]
    fn no_time_and_no_frames_make_no_nonsense() {
        let start = Instant::now();
        let mut line = StatusLine::new(start);
        assert_eq!(line.text(start, &ledger(1, 1)), "in 0/s  out 0/s  queued 14  dropped 6  oldest 1.2s");
    }
}
