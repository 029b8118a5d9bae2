//! Frames of a spool that its lane has, or is about to get, and that have not ended.

use std::collections::VecDeque;

use crate::batch::Acknowledgement;
use crate::batch::position::LogPosition;

/// The unacknowledged offsets: runs of frames, in the order of the spool. They end in any order, each from its first frame on.
#[derive(Debug, Default)]
pub(super) struct UnacknowledgedOffsets {
    runs: VecDeque<Run>,
}

/// Frames of one record.
#[derive(Debug)]
struct Run {
    /// Where the first of them is.
    from: LogPosition,
    frames: u32,
    /// The first so many have ended.
    ended: u32,
    /// Their segment was dropped from the disk.
    gone: bool,
}

impl Run {
    fn end(&self) -> u64 {
        self.from.frame_seq() + u64::from(self.frames)
    }
}

impl UnacknowledgedOffsets {
    /// Adds the frames that the lane gets next.
    pub(super) fn push(&mut self, from: LogPosition, frames: u32) {
        self.runs.push_back(Run { from, frames, ended: 0, gone: false });
    }

    /// Some frames have ended. Returns the position up to which all have, if that has moved.
    pub(super) fn acknowledge(&mut self, acknowledged: Acknowledgement) -> Option<LogPosition> {
        let seq = acknowledged.from.frame_seq();
        let run = self.runs.get_mut(self.runs.partition_point(|run| run.end() <= seq))?;
        let ended = u32::try_from(seq.checked_sub(run.from.frame_seq())?).ok()? + acknowledged.frames;
        run.ended = run.ended.max(ended.min(run.frames));
        let mut position = None;
        while let Some(first) = self.runs.front().filter(|first| first.ended > 0) {
            position = Some(first.from.after(first.ended));
            if first.ended < first.frames {
                break;
            }
            self.runs.pop_front();
        }
        position
    }

    /// Everything before `position` was dropped from the disk; the spool had taken everything before `acknowledged` as ended.
    /// Returns how many of the dropped frames the lane has, or has ended: they are not lost.
    pub(super) fn drop_before(&mut self, position: LogPosition, acknowledged: u64) -> u64 {
        let mut frames = 0;
        for run in &mut self.runs {
            if run.end() > position.frame_seq() {
                break;
            }
            if !std::mem::replace(&mut run.gone, true) {
                frames += run.end().saturating_sub(run.from.frame_seq().max(acknowledged));
            }
        }
        frames
    }

    /// Whether the frame at `position` is with the lane, and on disk too.
    pub(super) fn is_on_disk(&self, position: LogPosition) -> bool {
        let seq = position.frame_seq();
        let run = self.runs.get(self.runs.partition_point(|run| run.end() <= seq));
        run.is_some_and(|run| run.from.frame_seq() <= seq && !run.gone)
    }

    /// Forgets everything: the lane has failed.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of one frame, two frames, and so on, each in a record of its own.
    fn with_runs(count: u32) -> (UnacknowledgedOffsets, Vec<LogPosition>) {
        let mut offsets = UnacknowledgedOffsets::default();
        let mut positions = Vec::new();
        let mut frame_seq = 100;
        for frames in 1..=count {
            let from = LogPosition { segment: 1, offset: 4096 + frame_seq, frame_seq };
            offsets.push(from, frames);
            positions.push(from);
            frame_seq += u64::from(frames);
        }
        (offsets, positions)
    }

    fn all(from: LogPosition, frames: u32) -> Acknowledgement {
        Acknowledgement { from, frames }
    }

    #[test]
    fn what_ends_out_of_order_waits_for_what_was_before_it() {
        let (mut offsets, at) = with_runs(4);
        assert_eq!(offsets.acknowledge(all(at[2], 3)), None);
        assert_eq!(offsets.acknowledge(all(at[1], 2)), None);
        assert_eq!(offsets.acknowledge(all(at[0], 1)), Some(at[2].after(3)));
        assert_eq!(offsets.acknowledge(all(at[0], 1)), None, "once is enough");
        assert_eq!(offsets.acknowledge(all(at[3], 4)), Some(at[3].after(4)));
        assert!(offsets.is_empty());
    }

    #[test]
    fn a_run_ends_from_its_first_frame_on() {
        let (mut offsets, at) = with_runs(3);
        assert_eq!(offsets.acknowledge(all(at[0], 1)), Some(at[0].after(1)));
        assert_eq!(offsets.acknowledge(all(at[1], 1)), Some(at[1].after(1)));
        assert_eq!(offsets.acknowledge(all(at[2], 2)), Some(at[1].after(1)));
        assert_eq!(offsets.acknowledge(all(at[1].after(1), 1)), Some(at[2].after(2)));
        assert!(offsets.is_on_disk(at[2].after(2)) && !offsets.is_on_disk(at[2].after(3)));
        assert_eq!(offsets.acknowledge(all(at[2].after(2), 1)), Some(at[2].after(3)));
        assert!(offsets.is_empty());
    }

    #[test]
    fn what_was_dropped_from_the_disk_counts_once_and_ends_like_all() {
        let (mut offsets, at) = with_runs(4);
        offsets.acknowledge(all(at[0], 1));
        offsets.acknowledge(all(at[1], 1));
        // The spool knows of the first frame of the second run.
        let known = at[1].after(1).frame_seq();
        assert_eq!(offsets.drop_before(at[2], known), 1);
        assert_eq!(offsets.drop_before(at[3], known), 3);
        assert_eq!(offsets.drop_before(at[3], known), 0);
        assert!(!offsets.is_on_disk(at[2]) && offsets.is_on_disk(at[3]));
        assert_eq!(offsets.acknowledge(all(at[1].after(1), 1)), Some(at[1].after(2)));
        assert_eq!(offsets.acknowledge(all(at[2], 3)), Some(at[2].after(3)));
    }
}
