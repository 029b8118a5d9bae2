//! How far the frames were delivered, and which of them are lost.

use std::io;
use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use crate::batch::position::LogPosition;
use crate::spool::config::SyncPolicy;
use crate::spool::cursor::Cursor;
use crate::spool::error::SpoolError;
use crate::spool::gaps::Gaps;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::storage::Storage;

/// What was acknowledged, what is lost, and the cursor that outlives the process.
///
/// cursor <= watermark <= head of the log
#[derive(Debug)]
pub(super) struct Progress<F> {
    sync: SyncPolicy,
    /// Everything before it is acknowledged or lost.
    watermark: LogPosition,
    /// Numbers from the watermark on that nobody will get: they are lost, or no frame has them.
    gaps: Gaps,
    /// Lost, and not yet polled, by reason.
    lost: [u64; LossReason::ALL.len()],
    cursor: Cursor<F>,
    cursor_due: Option<Instant>,
}

impl<F> Progress<F> {
    /// The progress of a spool whose frames before `watermark` are acknowledged.
    pub(super) fn new(cursor: Cursor<F>, watermark: LogPosition, sync: SyncPolicy) -> Self {
        let (gaps, lost) = (Gaps::default(), [0; LossReason::ALL.len()]);
        Self { sync, watermark, gaps, lost, cursor, cursor_due: None }
    }

    /// Everything before it is acknowledged or lost.
    pub(super) fn acknowledged(&self) -> LogPosition {
        self.watermark
    }

    /// Frames before `head` that are neither acknowledged nor lost.
    pub(super) fn waiting(&self, head: u64) -> u64 {
        head - self.watermark.frame_seq - self.gaps.len()
    }

    /// Number of the first frame from `frame_seq` on that is not lost.
    pub(super) fn first_not_lost(&self, frame_seq: u64) -> u64 {
        self.gaps.end_of(frame_seq).unwrap_or(frame_seq)
    }

    /// Notes that everything up to `position` is delivered. Returns how many frames that acknowledges: not those that
    /// were acknowledged or reported as lost before.
    pub(super) fn acknowledge(&mut self, position: LogPosition, now: Moment) -> u64 {
        if position.frame_seq <= self.watermark.frame_seq {
            return 0;
        }
        let acknowledged = self.pass(position);
        self.cursor_due.get_or_insert(now.instant + self.cursor_interval());
        acknowledged
    }

    /// Moves the watermark. Returns how many frames it passes that are not lost.
    fn pass(&mut self, position: LogPosition) -> u64 {
        let passed = position.frame_seq - self.watermark.frame_seq;
        let passed = passed - self.gaps.remove_below(position.frame_seq);
        self.watermark = position;
        self.pass_gap();
        passed
    }

    /// Moves the watermark over the gap that begins there.
    fn pass_gap(&mut self) {
        if let Some(end) = self.gaps.end_of(self.watermark.frame_seq) {
            self.gaps.remove_below(end);
            self.watermark.frame_seq = end;
        }
    }

    /// Counts frames that never got a number as lost.
    pub(super) fn count_lost(&mut self, frames: u64, reason: LossReason) {
        self.lost[reason as usize] += frames;
    }

    /// Counts frames as lost, except those that were counted before.
    pub(super) fn lose(&mut self, frames: Range<u64>, reason: LossReason) {
        let lost = self.gaps.insert(frames);
        self.count_lost(lost, reason);
        self.pass_gap();
    }

    /// Leaves out numbers that no frame of the spool has.
    pub(super) fn leave_out(&mut self, numbers: Range<u64>) {
        self.gaps.insert(numbers);
        self.pass_gap();
    }

    /// Drops everything up to `position`, and counts as lost what was not acknowledged of it. The cursor comes first: what
    /// is dropped must not be missed at the next start.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: nothing is dropped.
    pub(super) fn drop_before<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        position: LogPosition,
        reason: LossReason,
    ) -> Result<(), SpoolError> {
        self.write_cursor(storage, position)?;
        let lost = self.pass(position);
        self.count_lost(lost, reason);
        Ok(())
    }

    /// Frames that were lost since the last call, one reason at a time.
    pub(super) fn poll_loss(&mut self) -> Option<(LossReason, u64)> {
        let (reason, lost) = LossReason::ALL.into_iter().zip(&mut self.lost).find(|(_, lost)| **lost > 0)?;
        Some((reason, std::mem::take(lost)))
    }

    // The cursor.

    /// Where the cursor stands on disk.
    pub(super) fn durable(&self) -> LogPosition {
        self.cursor.position()
    }

    /// Brings the cursor on disk to the watermark.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it stays where it was.
    pub(super) fn commit<S: Storage<File = F>>(&mut self, storage: &S) -> Result<(), SpoolError> {
        if self.cursor.position() == self.watermark {
            return Ok(());
        }
        self.write_cursor(storage, self.watermark)
    }

    /// Begins a new cursor file if the file is not in the folder any more.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub(super) fn restore_cursor<S: Storage<File = F>>(&mut self, storage: &S) -> Result<(), SpoolError> {
        let durable = self.sync != SyncPolicy::None;
        self.cursor.restore(storage, durable).map_err(SpoolError::io("write", "the cursor"))
    }

    fn write_cursor<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        position: LogPosition,
    ) -> Result<(), SpoolError> {
        let durable = self.sync != SyncPolicy::None;
        let written: io::Result<()> = self.cursor.commit(storage, position, durable);
        written.map_err(SpoolError::io("write", "the cursor"))
    }

    /// When the cursor is to be written.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.cursor_due
    }

    /// Whether the cursor is to be written now. It is asked for once: after a failure see [`Progress::retry_later`].
    pub(super) fn take_due(&mut self, now: Moment) -> bool {
        self.cursor_due.take_if(|due| *due <= now.instant).is_some()
    }

    /// Has the cursor written later.
    pub(super) fn retry_later(&mut self, now: Moment) {
        self.cursor_due = Some(now.instant + self.cursor_interval());
    }

    /// What was acknowledged for less than this time comes again after a crash.
    fn cursor_interval(&self) -> Duration {
        match self.sync {
            SyncPolicy::Interval(interval) => interval,
            SyncPolicy::None | SyncPolicy::Batch => CURSOR_INTERVAL,
        }
    }
}

/// How often the cursor is written where `sync` has no interval.
const CURSOR_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::cursor::CursorSlot;
    use crate::spool::sim::SimFile;
    use crate::spool::sim::SimFolder;

    fn at(frame_seq: u64) -> LogPosition {
        LogPosition { segment: 1, offset: 4096 + 100 * frame_seq, frame_seq }
    }

    fn progress(folder: &SimFolder) -> Progress<SimFile> {
        let file = folder.create("cursor").unwrap();
        let newest = CursorSlot { generation: 0, position: at(0), spool: [7; 16] };
        Progress::new(Cursor::new(file, newest), at(0), SyncPolicy::Batch)
    }

    #[test]
    fn frames_are_acknowledged_once_and_in_order() {
        let (mut progress, now) = (progress(&SimFolder::new()), Moment::now());
        assert_eq!(progress.waiting(10), 10);
        assert_eq!(progress.acknowledge(at(4), now), 4);
        assert_eq!(progress.acknowledge(at(3), now), 0);
        assert_eq!((progress.acknowledged(), progress.waiting(10)), (at(4), 6));
    }

    #[test]
    fn what_is_lost_is_reported_once_and_not_acknowledged() {
        let (mut progress, now) = (progress(&SimFolder::new()), Moment::now());
        progress.lose(2..5, LossReason::Damaged);
        progress.lose(4..6, LossReason::Damaged);
        progress.count_lost(3, LossReason::Full);
        assert_eq!(progress.waiting(10), 6);
        assert_eq!([1, 2, 5, 6].map(|frame_seq| progress.first_not_lost(frame_seq)), [1, 6, 6, 6]);
        assert_eq!(progress.poll_loss(), Some((LossReason::Full, 3)));
        assert_eq!(progress.poll_loss(), Some((LossReason::Damaged, 4)));
        assert_eq!(progress.poll_loss(), None);
        assert_eq!(progress.acknowledge(at(2), now), 2);
        assert_eq!(progress.acknowledged().frame_seq, 6, "the watermark passes what is lost");
        assert_eq!(progress.acknowledge(at(10), now), 4);
    }

    #[test]
    fn numbers_that_no_frame_has_are_passed_and_not_lost() {
        let (mut progress, now) = (progress(&SimFolder::new()), Moment::now());
        progress.leave_out(0..3);
        progress.leave_out(5..7);
        assert_eq!((progress.acknowledged().frame_seq, progress.waiting(10)), (3, 5));
        assert_eq!(progress.acknowledge(at(8), now), 3);
        assert_eq!(progress.poll_loss(), None);
    }

    #[test]
    fn the_cursor_is_due_an_interval_after_the_first_acknowledgement_and_again_after_a_failure() {
        let folder = SimFolder::new();
        let (mut progress, mut now) = (progress(&folder), Moment::now());
        progress.acknowledge(at(1), now);
        let due = progress.poll_timeout().expect("the cursor is old");
        assert_eq!(due, now.instant + CURSOR_INTERVAL);
        assert!(!progress.take_due(now));
        now.instant = due;
        progress.acknowledge(at(2), now);
        assert!(progress.take_due(now) && !progress.take_due(now));
        folder.fail_after(0, 1);
        assert!(progress.commit(&folder).is_err());
        assert_eq!(progress.durable(), at(0));
        progress.retry_later(now);
        now.instant += CURSOR_INTERVAL;
        assert!(progress.take_due(now));
        progress.commit(&folder).unwrap();
        assert_eq!((progress.durable(), progress.poll_timeout()), (at(2), None));
    }

    #[test]
    fn nothing_is_dropped_before_the_cursor_is_durable() {
        let folder = SimFolder::new();
        let mut progress = progress(&folder);
        folder.fail_after(0, 1);
        assert!(progress.drop_before(&folder, at(4), LossReason::Age).is_err());
        assert_eq!((progress.acknowledged(), progress.poll_loss()), (at(0), None));
        progress.drop_before(&folder, at(4), LossReason::Age).unwrap();
        assert_eq!((progress.acknowledged(), progress.durable()), (at(4), at(4)));
        assert_eq!(progress.poll_loss(), Some((LossReason::Age, 4)));
    }
}
