//! The frames of a file within a stretch of time, by the times that dnstap has in them.

use std::time::Duration;

use tapster::dnstap::Message;
use tapster::protocol::FrameBatch;

use crate::cli::time::TimeRange;

/// Takes the frames within a stretch of time. A frame without a time goes with the one before it; before the first that
/// has one, it is earlier than any.
#[derive(Debug)]
pub(crate) struct Selection {
    range: TimeRange,
    last: Duration,
}

impl Selection {
    pub(crate) fn new(range: TimeRange) -> Self {
        Self { range, last: Duration::ZERO }
    }

    /// The runs of frames of `batch` that are wanted; they share its bytes.
    pub(crate) fn of(&mut self, batch: FrameBatch) -> Vec<FrameBatch> {
        if self.range.is_everything() {
            return vec![batch];
        }
        let mut runs = Vec::new();
        let (mut start, mut end) = (0, 0);
        for payload in batch.payloads() {
            if let Some(time) = Message::parse(&payload).ok().and_then(|message| message.time()) {
                self.last = time;
            }
            let next = end + LENGTH_WORD + payload.len();
            if !self.range.contains(self.last) {
                runs.extend(run(&batch, start, end));
                start = next;
            }
            end = next;
        }
        runs.extend(run(&batch, start, end));
        runs
    }
}

/// The frames at these bytes of a batch; `None` where there are none.
fn run(batch: &FrameBatch, start: usize, end: usize) -> Option<FrameBatch> {
    FrameBatch::parse(batch.bytes().slice(start..end), u32::MAX, batch.read_at()).ok()
}

const LENGTH_WORD: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use jiff::Timestamp;

    use super::*;

    /// A CLIENT_QUERY seen `seconds` after the epoch; none says nothing of times.
    fn frame(seconds: Option<u8>) -> Vec<u8> {
        seconds.map_or(b"no dnstap".to_vec(), |seconds| vec![0x72, 4, 0x08, 5, 0x40, seconds])
    }

    /// How many frames each run has.
    fn runs(range: TimeRange, times: &[Option<u8>]) -> Vec<u32> {
        let frames = times.iter().map(|time| frame(*time));
        let batch = FrameBatch::from_payloads(frames, Instant::now()).unwrap();
        Selection::new(range).of(batch).iter().map(FrameBatch::frames).collect()
    }

    #[test]
    fn frames_are_taken_by_their_times_and_those_without_go_with_the_one_before() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let range = TimeRange { from: at(10), until: at(20) };
        let times = [None, Some(9), Some(10), None, Some(25), None, Some(12), Some(19), Some(20)];
        assert_eq!(runs(range, &times), [2, 2]);
        assert_eq!(runs(TimeRange { from: None, ..range }, &times), [4, 2]);
        assert_eq!(runs(TimeRange { until: None, ..range }, &times), [7]);
        assert_eq!(runs(range, &[Some(1), None]), [0; 0]);
        assert_eq!(runs(TimeRange::default(), &times), [9]);
    }
}
