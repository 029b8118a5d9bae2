//! Batches of a spool that its lane has, or is about to get, and that are not settled.

use std::collections::VecDeque;

use crate::spool::LogPosition;

/// The batches, in the order of the spool. They are settled in any order.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    batches: VecDeque<Batch>,
    // Of the batches that are still on disk.
    frames: u64,
}

#[derive(Debug)]
struct Batch {
    // The place behind it.
    place: LogPosition,
    frames: u64,
    settled: bool,
    // Its segment was dropped.
    gone: bool,
}

impl Outstanding {
    /// Adds the batch before `place`, which is the next of the spool.
    pub(crate) fn push(&mut self, place: LogPosition, frames: u64) {
        self.batches.push_back(Batch { place, frames, settled: false, gone: false });
        self.frames += frames;
    }

    /// Notes that the batch before `place` is settled. Returns the place up to which all are, if that has moved.
    pub(crate) fn settled(&mut self, place: LogPosition) -> Option<LogPosition> {
        let index = self.index_of(place)?;
        self.batches[index].settled = true;
        let mut done = None;
        while let Some(first) = self.batches.front().filter(|first| first.settled) {
            self.frames -= if first.gone { 0 } else { first.frames };
            done = Some(first.place);
            self.batches.pop_front();
        }
        done
    }

    /// Notes that everything before `place` that is here was dropped from the disk. Returns how many frames of it were
    /// not noted before.
    pub(crate) fn drop_before(&mut self, place: LogPosition) -> u64 {
        let mut frames = 0;
        for batch in &mut self.batches {
            if batch.place.frame_seq() > place.frame_seq() {
                break;
            }
            if !std::mem::replace(&mut batch.gone, true) {
                frames += batch.frames;
            }
        }
        self.frames -= frames;
        frames
    }

    /// Whether the batch before `place` is here, and still on disk.
    pub(crate) fn is_on_disk(&self, place: LogPosition) -> bool {
        self.index_of(place).is_some_and(|index| !self.batches[index].gone)
    }

    /// Frames that are here and still on disk.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn index_of(&self, place: LogPosition) -> Option<usize> {
        self.batches.binary_search_by_key(&place.frame_seq(), |batch| batch.place.frame_seq()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::protocol::FrameBatch;
    use crate::spool::Moment;
    use crate::spool::SimFolder;
    use crate::spool::Spool;
    use crate::spool::SpoolConfig;

    /// The places behind batches of one frame, two frames, and so on.
    fn places(count: u64) -> Vec<LogPosition> {
        let now = Moment::now();
        let (mut spool, _) = Spool::open_in(SimFolder::new(), SpoolConfig::default(), None, now).unwrap();
        let batch =
            |frames: u64| FrameBatch::from_payloads((0..frames).map(|_| "a frame"), Instant::now()).unwrap();
        let batches: Vec<_> = (1..=count).map(batch).collect();
        let starts = spool.append(&batches, now).unwrap().positions;
        starts.into_iter().zip(batches).map(|(start, batch)| start.after(batch.frames())).collect()
    }

    fn with_all(places: &[LogPosition]) -> Outstanding {
        let mut outstanding = Outstanding::default();
        (1..).zip(places).for_each(|(frames, place)| outstanding.push(*place, frames));
        outstanding
    }

    #[test]
    fn what_is_settled_out_of_order_waits_for_what_was_before_it() {
        let places = places(4);
        let mut outstanding = with_all(&places);
        assert_eq!(outstanding.settled(places[2]), None);
        assert_eq!(outstanding.settled(places[1]), None);
        assert_eq!(outstanding.settled(places[0]), Some(places[2]));
        assert_eq!(outstanding.frames(), 4);
        assert_eq!(outstanding.settled(places[0]), None, "once is enough");
        assert_eq!(outstanding.settled(places[3]), Some(places[3]));
        assert!(outstanding.is_empty() && outstanding.frames() == 0);
    }

    #[test]
    fn what_was_dropped_from_the_disk_counts_once_and_is_settled_like_all() {
        let places = places(4);
        let mut outstanding = with_all(&places);
        assert_eq!(outstanding.drop_before(places[1]), 1 + 2);
        assert_eq!(outstanding.drop_before(places[2]), 3);
        assert_eq!(outstanding.frames(), 4);
        assert!(!outstanding.is_on_disk(places[2]) && outstanding.is_on_disk(places[3]));
        assert_eq!(outstanding.settled(places[3]), None);
        assert_eq!(outstanding.frames(), 4);
        for place in &places[..2] {
            assert_eq!(outstanding.settled(*place), Some(*place));
        }
        assert_eq!(outstanding.settled(places[2]), Some(places[3]));
        assert_eq!(outstanding.frames(), 0);
    }
}
