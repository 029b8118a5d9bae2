//! Runs of frame numbers that will not be delivered.

use std::collections::VecDeque;
use std::ops::Range;

/// Ranges of frame numbers, sorted and apart. There are few at a time: each is a loss, and goes when the watermark has
/// passed it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gaps(VecDeque<Range<u64>>);

impl Gaps {
    /// Adds a range. Returns how many of its numbers were not yet in.
    pub(super) fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.0.partition_point(|gap| gap.end < range.start);
        let after = self.0.partition_point(|gap| gap.start <= range.end);
        // Those between touch the range, and become one with it.
        let (mut merged, mut new) = (range.clone(), range.end - range.start);
        for gap in self.0.drain(before..after) {
            new -= gap.end.min(range.end).saturating_sub(gap.start.max(range.start));
            merged = merged.start.min(gap.start)..merged.end.max(gap.end);
        }
        self.0.insert(before, merged);
        new
    }

    /// Forgets the numbers below `frame_seq`. Returns how many there were.
    pub(super) fn remove_below(&mut self, frame_seq: u64) -> u64 {
        let mut removed = 0;
        while let Some(first) = self.0.front_mut().filter(|first| first.start < frame_seq) {
            let end = first.end.min(frame_seq);
            removed += end - first.start;
            first.start = end;
            if first.is_empty() {
                self.0.pop_front();
            }
        }
        removed
    }

    /// Where the range ends that holds `frame_seq`.
    pub(super) fn end_of(&self, frame_seq: u64) -> Option<u64> {
        self.0.iter().find(|gap| gap.contains(&frame_seq)).map(|gap| gap.end)
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|gap| gap.end - gap.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn gaps_agree_with_a_set_of_numbers() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2000 {
            let (mut gaps, mut set) = (Gaps::default(), BTreeSet::new());
            for _ in 0..random.usize(..12) {
                let (start, len) = (random.u64(..40), random.u64(..8));
                if random.u8(..4) == 0 {
                    let kept = set.split_off(&start);
                    assert_eq!(gaps.remove_below(start), set.len() as u64);
                    set = kept;
                } else {
                    let known = set.len();
                    set.extend(start..start + len);
                    assert_eq!(gaps.insert(start..start + len), (set.len() - known) as u64);
                }
                assert_eq!(gaps.len(), set.len() as u64);
                for frame_seq in 0..50 {
                    let end = set
                        .contains(&frame_seq)
                        .then(|| (frame_seq..).find(|after| !set.contains(after)).expect("the set ends"));
                    assert_eq!(gaps.end_of(frame_seq), end);
                }
            }
        }
    }
}
