//! What one consumer received, checked frame by frame: missing, duplicate, reordered, corrupted.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::mark::Found;
use crate::mark::Mark;

/// Checks the frames that one consumer receives, from any number of sending connections.
///
/// Frames are told apart by their marks alone, so that it makes no difference how a relay spreads or merges
/// connections.
#[derive(Debug, Default)]
pub(crate) struct Verifier {
    frames: u64,
    unmarked: u64,
    corrupted: u64,
    /// By run; hardly ever more than one.
    runs: Vec<(u16, Vec<Option<Stream>>)>,
}

/// The frames of one sending connection.
#[derive(Debug, Default)]
struct Stream {
    /// One more than the highest sequence number seen.
    next: u64,
    /// Numbers below `next` that have not come: start and end of each gap.
    gaps: BTreeMap<u64, u64>,
    frames: u64,
    duplicate: u64,
    reordered: u64,
    finished: bool,
}

/// What a consumer received in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Data frames of any kind.
    pub(crate) frames: u64,
    /// Frames without a mark, as real DNS servers send them: counted, not checked.
    pub(crate) unmarked: u64,
    /// Frames whose checksum is wrong. Their number cannot be trusted: each is missing, too.
    pub(crate) corrupted: u64,
    /// Frames that never came although a later one of their connection did.
    pub(crate) missing: u64,
    /// Frames that came again.
    pub(crate) duplicate: u64,
    /// Frames that came after a later one of their connection.
    pub(crate) reordered: u64,
    /// Connections whose last frame has not come.
    pub(crate) unfinished: u64,
    /// Sending connections.
    pub(crate) streams: Vec<StreamVerdict>,
}

/// What came from one sending connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamVerdict {
    /// Generator process.
    pub(crate) run: u16,
    /// Its connection.
    pub(crate) connection: u16,
    /// Frames received, duplicates included.
    pub(crate) frames: u64,
    /// See [`Verdict::missing`].
    pub(crate) missing: u64,
    /// See [`Verdict::duplicate`].
    pub(crate) duplicate: u64,
    /// See [`Verdict::reordered`].
    pub(crate) reordered: u64,
    /// Whether the last frame has come.
    pub(crate) finished: bool,
}

impl Verifier {
    /// Takes note of one payload; returns its mark if it is intact.
    pub(crate) fn frame(&mut self, payload: &[u8]) -> Option<Mark> {
        self.frames += 1;
        match Mark::find(payload) {
            Found::Intact(mark) => {
                self.stream(mark.run, mark.connection).frame(mark);
                Some(mark)
            }
            Found::Corrupted => {
                self.corrupted += 1;
                None
            }
            Found::Unmarked => {
                self.unmarked += 1;
                None
            }
        }
    }

    /// Adds what another consumer has received of the same frames: each had to come to one of the two.
    pub(crate) fn merge(&mut self, other: Self) {
        self.frames += other.frames;
        self.unmarked += other.unmarked;
        self.corrupted += other.corrupted;
        for (run, streams) in other.runs {
            for (connection, stream) in (0..).zip(streams) {
                if let Some(stream) = stream {
                    self.stream(run, connection).merge(stream);
                }
            }
        }
    }

    /// Data frames seen, of any kind.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// The state of affairs.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict {
            frames: self.frames,
            unmarked: self.unmarked,
            corrupted: self.corrupted,
            ..Verdict::default()
        };
        for (run, streams) in &self.runs {
            for (connection, stream) in (0..).zip(streams) {
                let Some(stream) = stream else { continue };
                let missing = stream.missing();
                verdict.missing += missing;
                verdict.duplicate += stream.duplicate;
                verdict.reordered += stream.reordered;
                verdict.unfinished += u64::from(!stream.finished);
                verdict.streams.push(StreamVerdict {
                    run: *run,
                    connection,
                    frames: stream.frames,
                    missing,
                    duplicate: stream.duplicate,
                    reordered: stream.reordered,
                    finished: stream.finished,
                });
            }
        }
        verdict
    }

    fn stream(&mut self, run: u16, connection: u16) -> &mut Stream {
        let known = self.runs.iter().position(|(known, _)| *known == run);
        let index = known.unwrap_or_else(|| {
            self.runs.push((run, Vec::new()));
            self.runs.len() - 1
        });
        let streams = &mut self.runs[index].1;
        let connection = usize::from(connection);
        if streams.len() <= connection {
            streams.resize_with(connection + 1, || None);
        }
        streams[connection].get_or_insert_default()
    }
}

impl Stream {
    fn frame(&mut self, mark: Mark) {
        self.frames += 1;
        self.finished |= mark.last;
        if mark.sequence == self.next {
            self.next += 1;
        } else if mark.sequence > self.next {
            self.gaps.insert(self.next, mark.sequence);
            self.next = mark.sequence + 1;
        } else if self.fill_gap(mark.sequence) {
            self.reordered += 1;
        } else {
            self.duplicate += 1;
        }
    }

    fn missing(&self) -> u64 {
        self.gaps.iter().map(|(start, end)| end - start).sum()
    }

    /// Frames that have come, each counted once.
    fn distinct(&self) -> u64 {
        self.next - self.missing()
    }

    fn merge(&mut self, mut other: Self) {
        let distinct = self.distinct() + other.distinct();
        let next = self.next.max(other.next);
        // Missing are the numbers that neither has.
        for stream in [&mut *self, &mut other] {
            if stream.next < next {
                stream.gaps.insert(stream.next, next);
                stream.next = next;
            }
        }
        let mut gaps = BTreeMap::new();
        for (&start, &end) in &self.gaps {
            // The last one that begins at or before `start`, and those that begin within.
            let first = other.gaps.range(..=start).next_back().map_or(start, |(&first, _)| first);
            for (&other_start, &other_end) in other.gaps.range(first..end) {
                if start.max(other_start) < end.min(other_end) {
                    gaps.insert(start.max(other_start), end.min(other_end));
                }
            }
        }
        self.gaps = gaps;
        self.frames += other.frames;
        self.duplicate += other.duplicate + distinct - self.distinct();
        self.reordered += other.reordered;
        self.finished |= other.finished;
    }

    /// Takes a number out of the gap that it lies in; `false` if it lies in none.
    fn fill_gap(&mut self, sequence: u64) -> bool {
        let Some((&start, &end)) = self.gaps.range(..=sequence).next_back() else { return false };
        if sequence >= end {
            return false;
        }
        self.gaps.remove(&start);
        if start < sequence {
            self.gaps.insert(start, sequence);
        }
        if sequence + 1 < end {
            self.gaps.insert(sequence + 1, end);
        }
        true
    }
}

impl StreamVerdict {
    /// Whether every frame came once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.finished && self.missing == 0 && self.duplicate == 0 && self.reordered == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mark::MARK_LEN;

    fn frame(connection: u16, sequence: u64, last: bool) -> Vec<u8> {
        let mut payload = vec![0; MARK_LEN + 3];
        let around = Mark::checksum_around(&payload, 0);
        let mark = Mark { run: 1, connection, sequence, last, intended_ns: 5 };
        mark.write(payload.first_chunk_mut().unwrap(), around);
        payload
    }

    /// The verdict on one connection's frames with these numbers, of which `last` is the last.
    fn verdict(sequences: &[u64], last: u64) -> Verdict {
        let mut verifier = Verifier::default();
        for &sequence in sequences {
            verifier.frame(&frame(0, sequence, sequence == last));
        }
        verifier.verdict()
    }

    impl Verdict {
        fn is_clean(&self) -> bool {
            self.corrupted == 0 && self.streams.iter().all(StreamVerdict::is_clean)
        }
    }

    #[test]
    fn frames_in_order_are_clean() {
        let verdict = verdict(&[0, 1, 2, 3], 3);
        assert!(verdict.is_clean());
        assert_eq!(verdict.frames, 4);
    }

    #[test]
    fn missing_frames_are_counted_at_the_start_and_in_the_middle() {
        let verdict = verdict(&[2, 3, 7], 7);
        assert_eq!((verdict.missing, verdict.reordered, verdict.duplicate), (2 + 3, 0, 0));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn missing_frames_at_the_end_leave_the_connection_unfinished() {
        let verdict = verdict(&[0, 1], 2);
        assert_eq!((verdict.missing, verdict.unfinished), (0, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_frame_that_comes_again_is_a_duplicate() {
        let verdict = verdict(&[0, 1, 1, 0, 2], 2);
        assert_eq!((verdict.missing, verdict.reordered, verdict.duplicate), (0, 0, 2));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn late_frames_are_reordered_and_no_longer_missing() {
        let shuffled = verdict(&[0, 4, 2, 1, 3, 5], 5);
        assert_eq!((shuffled.missing, shuffled.reordered, shuffled.duplicate), (0, 3, 0));
        assert!(!shuffled.is_clean());
        let twice = verdict(&[3, 1, 1], 3);
        assert_eq!((twice.missing, twice.reordered, twice.duplicate), (2, 1, 1));
    }

    #[test]
    fn frames_that_one_consumer_or_another_has_are_not_missing_and_those_of_both_are_duplicate() {
        let sets: [&[u64]; 6] =
            [&[], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[0, 3, 4, 9], &[1, 2, 5, 8], &[2, 3, 4, 5], &[9]];
        let verifier = |sequences: &[u64]| {
            let mut verifier = Verifier::default();
            sequences.iter().for_each(|&sequence| {
                verifier.frame(&frame(0, sequence, sequence == 9));
            });
            verifier
        };
        for one in sets {
            for other in sets {
                let mut merged = verifier(one);
                merged.merge(verifier(other));
                let mut all = [one, other].concat();
                all.sort_unstable();
                let expected = verifier(&all).verdict();
                assert_eq!(merged.verdict(), expected, "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn a_corrupted_frame_is_corrupted_and_missing() {
        let mut verifier = Verifier::default();
        for sequence in 0..3 {
            let mut payload = frame(0, sequence, sequence == 2);
            if sequence == 1 {
                *payload.last_mut().unwrap() ^= 1;
            }
            verifier.frame(&payload);
        }
        let verdict = verifier.verdict();
        assert_eq!((verdict.corrupted, verdict.missing), (1, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn connections_are_told_apart_and_frames_of_others_do_no_harm() {
        let mut verifier = Verifier::default();
        for sequence in 0..3 {
            verifier.frame(&frame(9, sequence, sequence == 2));
            verifier.frame(&frame(4, sequence, sequence == 2));
            verifier.frame(b"\x0a\x03ns1");
        }
        let verdict = verifier.verdict();
        assert!(verdict.is_clean());
        assert_eq!((verdict.frames, verdict.unmarked, verdict.streams.len()), (9, 3, 2));
        assert_eq!(verdict.streams[0].connection, 4);
    }
}
