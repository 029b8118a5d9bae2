//! The lines about lost frames: the first loss at once, then one line a minute for as long as more frames are lost, and one
//! line when that has ended. For each reason apart.
//!
//! Nothing is logged where a loss is counted. [`LossLog::look`] is called at regular intervals with the counts of all lanes or
//! workers together: so the data path pays nothing, and an output has one line, however many lanes it has.

use std::time::Duration;
use std::time::Instant;

use tracing::info;
use tracing::warn;

use crate::observability::drop_reason::DropReason;

/// Why frames are lost, and what to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossKind {
    /// The reason as it stands in the ledger.
    reason: &'static str,
    help: &'static str,
    // The log has what the end of the relay costs once, when all of it is known.
    at_end_only: bool,
}

/// The lines about the losses of one output, or of one input.
#[derive(Debug)]
pub(crate) struct LossLog {
    output: Option<String>,
    input: Option<String>,
    losses: Vec<(LossKind, Loss)>,
}

/// What was told of one reason.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    // Frames since the start.
    frames: u64,
    // When the last line was written; `None` while nothing is lost.
    told_at: Option<Instant>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// So many frames since the last line.
    Lost(u64),
    /// None for a minute.
    Ended,
}

impl LossLog {
    /// The log of an output. Counts come in the order of [`DropReason::ALL`].
    pub(crate) fn of_output(output: &str) -> Self {
        let kind = |reason: DropReason| LossKind {
            reason: reason.name(),
            help: reason.help(),
            at_end_only: reason == DropReason::Shutdown,
        };
        let losses = DropReason::ALL.map(|reason| (kind(reason), Loss::default())).to_vec();
        Self { output: Some(output.to_owned()), input: None, losses }
    }

    /// The log of an input. Counts are those of frames over the limit that were skipped, and of frames that no output takes.
    pub(crate) fn of_input(input: &str) -> Self {
        let losses = [OVERSIZE, UNROUTED].map(|kind| (kind, Loss::default())).to_vec();
        Self { output: None, input: Some(input.to_owned()), losses }
    }

    /// Writes the lines that are due. `counts` are the frames lost since the start, `peer` is a hint who sent them.
    pub(crate) fn look(&mut self, counts: &[u64], peer: Option<&str>, now: Instant) {
        for index in 0..self.losses.len() {
            let Some((kind, loss)) = self.losses.get_mut(index) else { return };
            let frames = counts.get(index).copied().unwrap_or_default();
            if kind.at_end_only {
                continue;
            }
            let kind = *kind;
            match loss.look(frames, now) {
                Some(News::Lost(more)) => self.tell(kind, frames, more, peer),
                Some(News::Ended) => self.tell_end(kind, frames),
                None => {}
            }
        }
    }

    /// Writes what was not told, at the end.
    pub(crate) fn end(&mut self, counts: &[u64]) {
        for index in 0..self.losses.len() {
            let Some((kind, loss)) = self.losses.get_mut(index) else { return };
            let (kind, frames) = (*kind, counts.get(index).copied().unwrap_or_default());
            let more = loss.take_more(frames);
            if more > 0 {
                self.tell(kind, frames, more, None);
            }
        }
    }

    fn tell(&self, kind: LossKind, frames_dropped: u64, more: u64, peer: Option<&str>) {
        let (output, input, LossKind { reason, help, .. }) = (&self.output, &self.input, kind);
        let (output, input) = (output.as_deref(), input.as_deref());
        let since_last_line = (more < frames_dropped).then_some(more);
        warn!(output, input, reason, frames_dropped, since_last_line, peer, "frames are lost: {help}");
    }

    fn tell_end(&self, kind: LossKind, frames_dropped: u64) {
        let (output, input, reason) = (self.output.as_deref(), self.input.as_deref(), kind.reason);
        info!(output, input, reason, frames_dropped, "no frame was lost for this reason in the last minute");
    }
}

impl Loss {
    fn look(&mut self, frames: u64, now: Instant) -> Option<News> {
        if self.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < TELL_EVERY) {
            return None;
        }
        let more = self.take_more(frames);
        if more > 0 {
            self.told_at = Some(now);
            return Some(News::Lost(more));
        }
        self.told_at.take().map(|_| News::Ended)
    }

    /// Frames since the last line.
    fn take_more(&mut self, frames: u64) -> u64 {
        let more = frames.saturating_sub(self.frames);
        self.frames = self.frames.max(frames);
        more
    }
}

const OVERSIZE: LossKind = LossKind {
    reason: "oversize",
    help: "they are longer than the `frame_len_max` of this input, and skipped, as oversize = \"skip\" says; \
           raise `frame_len_max` if the writer sends such frames",
    at_end_only: false,
};

const UNROUTED: LossKind = LossKind {
    reason: "unrouted",
    help: "no output takes their content type; give one `content_type`, or name the types in `content_types` of this input",
    at_end_only: false,
};

/// How often the log has a line about a loss that goes on.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observability::logging::tests::lines_of;

    const SECOND: Duration = Duration::from_secs(1);

    /// The lines that seconds with these counts make, for one reason.
    fn told(frames: impl IntoIterator<Item = u64>) -> Vec<(u64, News)> {
        let (mut loss, begin) = (Loss::default(), Instant::now());
        let look = |(second, frames)| {
            let news = loss.look(frames, begin + SECOND * u32::try_from(second).expect("few"))?;
            Some((second, news))
        };
        (0..).zip(frames).filter_map(look).collect()
    }

    #[test]
    fn every_reason_is_told_with_output_reason_count_and_what_to_do() {
        for reason in DropReason::ALL {
            let lines = lines_of(|| {
                let mut log = LossLog::of_output("siem");
                let counts = DropReason::ALL.map(|other| if other == reason { 1 } else { 0 });
                let now = Instant::now();
                log.look(&counts, None, now);
                log.look(&counts, None, now + SECOND);
                log.end(&counts);
            });
            let [line] = &lines[..] else { panic!("{reason:?}: {lines:?}") };
            let reason_field = format!("reason=\"{}\"", reason.name());
            for part in ["WARN", "output=\"siem\"", &reason_field, "frames_dropped=1", reason.help()] {
                assert!(line.contains(part), "{part} in {line}");
            }
            assert!(reason.help().len() > 20);
        }
    }

    #[test]
    fn an_input_tells_frames_that_it_skips_or_that_nobody_takes() {
        let lines = lines_of(|| {
            let mut log = LossLog::of_input("dns");
            log.look(&[3, 0], Some("192.0.2.1:53"), Instant::now());
            log.end(&[3, 7]);
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("WARN") && lines[0].contains("reason=\"oversize\" frames_dropped=3"));
        assert!(lines[0].contains("input=\"dns\"") && lines[0].contains("peer=\"192.0.2.1:53\""));
        assert!(lines[1].contains("reason=\"unrouted\" frames_dropped=7"), "{lines:?}");
    }

    #[test]
    fn a_loss_is_told_at_once_then_every_minute_with_the_sum_and_at_its_end() {
        // A frame a second for 90 seconds, then none.
        let lines = told((0..600).map(|second: u64| (second + 1).min(90)));
        assert_eq!(
            lines,
            [(0, News::Lost(1)), (60, News::Lost(60)), (120, News::Lost(29)), (180, News::Ended)]
        );
    }

    #[test]
    fn nothing_is_told_while_nothing_is_lost_and_a_loss_that_begins_again_is_told_at_once() {
        assert_eq!(told([0; 200]), []);
        let lines = told([5; 100].into_iter().chain([6; 2]));
        assert_eq!(lines, [(0, News::Lost(5)), (60, News::Ended), (100, News::Lost(1))]);
    }

    #[test]
    fn a_loss_makes_two_lines_a_minute_at_most_however_it_comes_and_goes() {
        for period in 1..200 {
            let hour = 3600;
            let lines = told((0..hour).map(|second| second / period));
            assert!(lines.len() as u64 <= 2 * hour / 60, "every {period} s: {}", lines.len());
            let sum: u64 = lines
                .iter()
                .filter_map(|(_, news)| match news {
                    News::Lost(more) => Some(*more),
                    News::Ended => None,
                })
                .sum();
            assert!((hour - 1) / period - sum <= 60 / period + 1, "nothing is left out");
        }
    }

    #[test]
    fn what_the_end_costs_is_told_once_and_only_then() {
        let shutdown =
            |frames| DropReason::ALL.map(|reason| if reason == DropReason::Shutdown { frames } else { 0 });
        let lines = lines_of(|| {
            let mut log = LossLog::of_output("siem");
            log.look(&shutdown(7), None, Instant::now());
            log.end(&shutdown(8));
            log.end(&shutdown(8));
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains("reason=\"shutdown\" frames_dropped=8"), "{line}");
    }
}
