//! Frames of a spool that its lane has, or is about to get, and that have not ended.

use std::collections::VecDeque;

use crate::batch::Acknowledgement;
use crate::batch::position::LogPosition;
use crate::observability::drop_reason::DropReason;

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
    /// The lane does not get them.
    left_out: bool,
    /// Their segment was dropped from the disk, for this reason.
    gone: Option<DropReason>,
}

impl Run {
    fn end(&self) -> u64 {
        self.from.frame_seq() + u64::from(self.frames)
    }
}

/// How far everything has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// Everything before it has ended; `None` where that has not moved.
    pub(super) position: Option<LogPosition>,
    /// Frames that were left out, and whose turn has come now.
    pub(super) left_out: u64,
}

impl UnacknowledgedOffsets {
    /// Adds the frames that the lane gets next.
    pub(super) fn push(&mut self, from: LogPosition, frames: u32) {
        self.add(from, frames, false);
    }

    /// Adds the frames that come next, and that the lane does not get: they end when everything before them has ended. Until
    /// then they are on disk like all, and the next run has to leave them out.
    pub(super) fn push_left_out(&mut self, from: LogPosition, frames: u32) {
        if frames > 0 {
            self.add(from, frames, true);
        }
    }

    fn add(&mut self, from: LogPosition, frames: u32, left_out: bool) {
        self.runs.push_back(Run { from, frames, ended: 0, left_out, gone: None });
    }

    /// Some frames have ended.
    pub(super) fn acknowledge(&mut self, acknowledged: Acknowledgement) -> Ended {
        // An acknowledgement of what is not known any more says nothing.
        let _ = self.mark(acknowledged);
        self.take_ended()
    }

    /// Some frames have ended. What that ends in its turn is not asked for.
    pub(super) fn note(&mut self, ended: Acknowledgement) {
        let _ = self.mark(ended);
    }

    /// Frames that the lane has, and that were dropped from the disk, with the reason for each run.
    pub(super) fn gone_and_not_ended(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.runs.iter().filter_map(|run| Some((run.gone?, u64::from(run.frames - run.ended))))
    }

    fn mark(&mut self, acknowledged: Acknowledgement) -> Option<()> {
        let seq = acknowledged.from.frame_seq();
        let run = self.runs.get_mut(self.runs.partition_point(|run| run.end() <= seq))?;
        let ended = u32::try_from(seq.checked_sub(run.from.frame_seq())?).ok()? + acknowledged.frames;
        run.ended = run.ended.max(ended.min(run.frames));
        Some(())
    }

    /// Forgets what has ended, as far as everything before it has.
    pub(super) fn take_ended(&mut self) -> Ended {
        let mut ended = Ended::default();
        while let Some(first) = self.runs.front().filter(|first| first.left_out || first.ended > 0) {
            if first.left_out {
                ended.left_out += u64::from(first.frames);
            } else if first.ended < first.frames {
                ended.position = Some(first.from.after(first.ended));
                break;
            }
            ended.position = Some(first.from.after(first.frames));
            self.runs.pop_front();
        }
        ended
    }

    /// Forgets the frames from `first` on that are before `end`: the lane does not get them.
    pub(super) fn remove(&mut self, first: LogPosition, end: LogPosition) {
        self.runs.retain(|run| run.from.frame_seq() < first.frame_seq() || run.end() > end.frame_seq());
    }

    /// Everything before `position` was dropped from the disk, for this reason; the spool had taken everything before
    /// `acknowledged` as ended. Returns how many of the dropped frames the lane has, or has ended: they are not lost.
    pub(super) fn drop_before(
        &mut self,
        position: LogPosition,
        acknowledged: u64,
        reason: Option<DropReason>,
    ) -> u64 {
        let mut frames = 0;
        for run in &mut self.runs {
            if run.end() > position.frame_seq() {
                break;
            }
            if run.gone.is_none() {
                run.gone = reason;
                frames += run.end().saturating_sub(run.from.frame_seq().max(acknowledged));
            }
        }
        // Nobody has those that are left out: they are lost with their segment.
        self.runs.retain(|run| {
            let lost = run.left_out && run.gone.is_some();
            frames -= if lost { u64::from(run.frames) } else { 0 };
            !lost
        });
        frames
    }

    /// Why the frame at `position`, which the lane has, is not on disk any more; `None` while it is.
    pub(super) fn gone(&self, position: LogPosition) -> Option<DropReason> {
        let seq = position.frame_seq();
        let run = self.runs.get(self.runs.partition_point(|run| run.end() <= seq));
        run.filter(|run| run.from.frame_seq() <= seq)?.gone
    }

    /// Adds frames that were sent, and are on disk all the same: the end of the lane. See [`UnacknowledgedOffsets::keep_sent`].
    pub(super) fn push_sent(&mut self, from: LogPosition, frames: u32) {
        if frames > 0 {
            self.add(from, frames, false);
        }
    }

    /// The lane has ended, and left these batches: where each begins, and how many of its first frames were sent. Keeps what
    /// was sent, or has ended, although it is still on disk: if the disk drops it now, it is not lost.
    pub(super) fn keep_sent(&mut self, left: &[(LogPosition, u32)]) {
        for (position, sent) in left {
            let _ = self.mark(Acknowledgement { from: *position, frames: *sent });
        }
        self.runs.retain_mut(|run| {
            run.frames = run.ended;
            run.ended > 0
        });
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

    fn acknowledge(
        offsets: &mut UnacknowledgedOffsets,
        from: LogPosition,
        frames: u32,
    ) -> Option<LogPosition> {
        offsets.acknowledge(Acknowledgement { from, frames }).position
    }

    #[test]
    fn what_ends_out_of_order_waits_for_what_was_before_it() {
        let (mut offsets, at) = with_runs(4);
        assert_eq!(acknowledge(&mut offsets, at[2], 3), None);
        assert_eq!(acknowledge(&mut offsets, at[1], 2), None);
        assert_eq!(acknowledge(&mut offsets, at[0], 1), Some(at[2].after(3)));
        assert_eq!(acknowledge(&mut offsets, at[0], 1), None, "once is enough");
        assert_eq!(acknowledge(&mut offsets, at[3], 4), Some(at[3].after(4)));
        assert!(offsets.is_empty());
    }

    #[test]
    fn a_run_ends_from_its_first_frame_on() {
        let (mut offsets, at) = with_runs(3);
        assert_eq!(acknowledge(&mut offsets, at[0], 1), Some(at[0].after(1)));
        assert_eq!(acknowledge(&mut offsets, at[1], 1), Some(at[1].after(1)));
        assert_eq!(acknowledge(&mut offsets, at[2], 2), Some(at[1].after(1)));
        assert_eq!(acknowledge(&mut offsets, at[1].after(1), 1), Some(at[2].after(2)));
        assert_eq!(acknowledge(&mut offsets, at[2].after(2), 1), Some(at[2].after(3)));
        assert!(offsets.is_empty());
    }

    #[test]
    fn what_was_dropped_from_the_disk_counts_once_and_ends_like_all() {
        let (mut offsets, at) = with_runs(4);
        let full = Some(DropReason::SpoolFull);
        acknowledge(&mut offsets, at[0], 1);
        acknowledge(&mut offsets, at[1], 1);
        // The spool knows of the first frame of the second run.
        let known = at[1].after(1).frame_seq();
        assert_eq!(offsets.drop_before(at[2], known, full), 1);
        assert_eq!(offsets.drop_before(at[3], known, full), 3);
        assert_eq!(offsets.drop_before(at[3], known, full), 0);
        assert_eq!((offsets.gone(at[2]), offsets.gone(at[3])), (full, None));
        assert_eq!(offsets.gone_and_not_ended().map(|(_, frames)| frames).sum::<u64>(), 1 + 3);
        assert_eq!(acknowledge(&mut offsets, at[1].after(1), 1), Some(at[1].after(2)));
        assert_eq!(acknowledge(&mut offsets, at[2], 3), Some(at[2].after(3)));
    }

    #[test]
    fn frames_that_are_left_out_end_when_their_turn_has_come_and_no_other_by_them() {
        let at = LogPosition { segment: 1, offset: 4096, frame_seq: 100 };
        let mut offsets = UnacknowledgedOffsets::default();
        offsets.push_left_out(at, 2);
        assert_eq!(offsets.take_ended(), Ended { position: Some(at.after(2)), left_out: 2 });
        offsets.push(at.after(2), 3);
        offsets.push_left_out(at.after(5), 1);
        offsets.push(at.after(6), 1);
        assert_eq!(offsets.take_ended(), Ended::default());
        assert_eq!(acknowledge(&mut offsets, at.after(6), 1), None);
        assert_eq!(acknowledge(&mut offsets, at.after(2), 2), Some(at.after(4)));
        let ended = offsets.acknowledge(Acknowledgement { from: at.after(4), frames: 1 });
        assert_eq!(ended, Ended { position: Some(at.after(7)), left_out: 1 });
        // One whose segment goes is lost like all that nobody has.
        offsets.push(at.after(7), 2);
        offsets.push_left_out(at.after(9), 4);
        assert_eq!(offsets.drop_before(at.after(13), 107, Some(DropReason::SpoolAge)), 2);
        assert_eq!(acknowledge(&mut offsets, at.after(7), 2), Some(at.after(9)));
        assert!(offsets.is_empty());
    }

    #[test]
    fn after_the_lane_only_what_was_sent_is_not_lost_with_its_segment() {
        let (mut offsets, at) = with_runs(4);
        acknowledge(&mut offsets, at[1], 2);
        offsets.keep_sent(&[(at[0], 0), (at[2], 0), (at[3], 3)]);
        offsets.push_sent(at[3].after(4), 0);
        offsets.push_sent(at[3].after(4), 5);
        let full = Some(DropReason::SpoolFull);
        assert_eq!(offsets.drop_before(at[3].after(4), at[0].frame_seq(), full), 2 + 3);
        assert_eq!(offsets.drop_before(at[3].after(9), at[3].after(4).frame_seq(), full), 5);
    }
}
