//! The queue on disk: what its four parts do together.

use std::io;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::batch::connection::ConnectionId;
use crate::batch::position::LogPosition;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::spool::appended::Appended;
use crate::spool::config::OnFull;
use crate::spool::config::SpoolConfig;
use crate::spool::durability::Durability;
use crate::spool::error::SpoolError;
use crate::spool::folder::Folder;
use crate::spool::gaps::Gaps;
use crate::spool::log::AGE_STEPS;
use crate::spool::log::Log;
use crate::spool::log::is_full;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::numbered::ArrivingBatch;
use crate::spool::numbered::NumberedBatch;
use crate::spool::numbered::record_len;
use crate::spool::numbered::without_first;
use crate::spool::progress::Progress;
use crate::spool::read_head::ReadHead;
use crate::spool::recovery::Recovered;
use crate::spool::recovery::RecoveryReport;
use crate::spool::recovery::recover;
use crate::spool::storage::Standing;
use crate::spool::storage::Storage;

/// A queue of batches on disk, with one writer and one reader. See the [module](crate::spool).
#[derive(Debug)]
pub struct Spool<S: Storage = Folder> {
    pub(super) log: Log<S>,
    pub(super) durability: Durability,
    pub(super) progress: Progress<S::File>,
    pub(super) read_head: ReadHead<S::File>,
    upkeep_due: Instant,
    /// When the folder is looked at next.
    look_due: Instant,
    /// How the folder stood when it was looked at last.
    pub(super) standing: Standing,
    /// Numbers of frames whose files others have removed. The lane may have some of them.
    pub(super) missing: Gaps,
    /// When the clock was read last.
    clock: Moment,
    /// By how many nanoseconds the clock was set since that was asked last.
    clock_step: i64,
}

impl Spool {
    /// Opens the spool in `folder`, which is created (mode 0700) where it is missing, and goes on with what is there.
    ///
    /// Reads header and footer of every segment, and the whole of those that were not closed in order: the last one, after a crash.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] and [`SpoolError::Io`]; [`SpoolError::OtherVersion`] and [`SpoolError::OtherContentType`], which leave
    /// everything as it is. Never for what is damaged.
    pub fn open(
        folder: &Path,
        config: SpoolConfig,
        content_type: Option<ContentType>,
        now: Moment,
    ) -> Result<(Self, RecoveryReport), SpoolError> {
        Self::open_in(Folder::open(folder)?, config, content_type, now)
    }
}

impl<S: Storage> Spool<S> {
    /// Opens the spool in a folder that is open and locked. See [`Spool::open`].
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn open_in(
        storage: S,
        config: SpoolConfig,
        content_type: Option<ContentType>,
        now: Moment,
    ) -> Result<(Self, RecoveryReport), SpoolError> {
        let Recovered { log, progress, mut report } = recover(storage, config, content_type, now)?;
        let durability = Durability::new(log.config());
        let read_head = ReadHead::new(progress.acknowledged());
        let (upkeep_due, look_due) = (now.instant, now.instant + LOOK_INTERVAL);
        let (standing, missing) = (Standing::InPlace, Gaps::default());
        let mut spool = Self {
            log,
            durability,
            progress,
            read_head,
            upkeep_due,
            look_due,
            standing,
            missing,
            clock: now,
            clock_step: 0,
        };
        // What was delivered before is removed. If that fails, it goes with the next segment.
        let _ = spool.retire();
        report.frames = spool.frames();
        report.bytes = spool.bytes();
        report.segments = spool.log.segments_count();
        report.bad_files = spool.log.aside_count();
        Ok((spool, report))
    }

    /// Frames in the spool that are neither acknowledged nor lost.
    pub fn frames(&self) -> u64 {
        self.progress.waiting(self.log.head())
    }

    /// Everything before it is acknowledged, or was lost.
    pub fn acknowledged(&self) -> LogPosition {
        self.progress.acknowledged()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// Bytes that a power cut would lose now.
    pub fn unsynced_bytes(&self) -> u64 {
        self.durability.bytes()
    }

    /// Frames that were appended and are neither acknowledged nor known to be durable.
    pub fn unsynced_frames(&self) -> u64 {
        let acknowledged = self.progress.acknowledged().frame_seq;
        self.durability.first().map_or(0, |first| self.log.head() - first.max(acknowledged))
    }

    /// Whether nothing can be stored now: what was written last could not be made durable anywhere, and waits in memory until that
    /// works; or the folder is away.
    pub fn is_degraded(&self) -> bool {
        self.durability.is_homeless() || self.standing != Standing::InPlace
    }

    /// Frames that were lost since this was asked last, one reason at a time.
    pub fn poll_loss(&mut self) -> Option<(LossReason, u64)> {
        self.progress.poll_loss()
    }

    /// By how many nanoseconds the clock was set since this was asked last; 0 where it was not.
    pub fn poll_clock_step(&mut self) -> i64 {
        std::mem::take(&mut self.clock_step)
    }

    /// Ages go by the time that has passed: if the clock was set, the times of all segments are moved with it.
    fn follow_clock(&mut self, now: Moment) {
        if let Some(step) = now.step_since(self.clock) {
            self.log.move_clock(step);
            self.clock_step = self.clock_step.saturating_add(step);
        }
        self.clock = now;
    }

    // The writing end.

    /// Appends batches, in order, each as one record; as many as there is room for.
    ///
    /// Under [`SyncPolicy::Batch`](crate::spool::SyncPolicy::Batch) they are durable when this returns. Batches of no
    /// frames take no room.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`]: none of these batches is in the spool, and their frames are the caller's to count.
    pub fn append(&mut self, batches: &[FrameBatch], now: Moment) -> Result<Appended, SpoolError> {
        let batches: Vec<_> = batches.iter().map(|batch| (ConnectionId::default(), batch.clone())).collect();
        self.append_from(&batches, now)
    }

    /// The same, with the connection that brought each batch. [`Spool::next_from`] gives it back.
    ///
    /// # Errors
    /// As [`Spool::append`].
    pub fn append_from(
        &mut self,
        batches: &[(ConnectionId, FrameBatch)],
        now: Moment,
    ) -> Result<Appended, SpoolError> {
        self.check_standing()?;
        self.follow_clock(now);
        self.find_home(now)?;
        let head = self.log.head();
        let result = self.append_and_sync(batches, now);
        if result.is_err() {
            // Some of them may be on disk: their numbers are used up, and a record with one of them is passed over.
            self.durability.forget_from(head);
            self.progress.leave_out(head..self.log.head());
        }
        result
    }

    fn append_and_sync(&mut self, batches: &[ArrivingBatch], now: Moment) -> Result<Appended, SpoolError> {
        let mut appended = Appended { positions: Vec::with_capacity(batches.len()), dropped: 0 };
        while let Some(rest) = batches.get(appended.settled()..).filter(|rest| !rest.is_empty()) {
            if rest.first().is_some_and(|(_, first)| record_len(first) > self.log.config().record_len_max()) {
                // What can never fit is not waited for. Batches behind it are for the next call.
                appended.dropped = usize::from(appended.positions.is_empty());
                break;
            }
            let run = self.log.run_that_fits(rest);
            if !run.is_empty() {
                match self.write(run, now) {
                    Ok(positions) => {
                        appended.positions.extend(positions);
                        continue;
                    }
                    Err(error) if is_full(&error) && self.undo_write(run.len()) => {}
                    Err(_) => {
                        self.durability.lose_segment(&mut self.log);
                        let positions = self.find_home(now)?;
                        let earlier = positions.len() - run.len(); // the batches of the run are the last
                        appended.positions.extend(positions.into_iter().skip(earlier));
                        continue;
                    }
                }
            } else if rest.first().is_some_and(|(_, first)| first.frames() == 0) {
                appended.positions.push(self.log.end());
                continue;
            }
            if self.make_room() {
                continue;
            }
            if self.log.config().on_full != OnFull::Block {
                appended.dropped = rest.len();
            }
            break;
        }
        if self.durability.must_sync() {
            self.sync(now)?;
        }
        // Not before: after an error, all of them are the caller's to count.
        let dropped = batches.iter().skip(appended.positions.len()).take(appended.dropped);
        let frames_dropped = dropped.map(|(_, batch)| u64::from(batch.frames())).sum();
        self.progress.count_lost(frames_dropped, LossReason::Full);
        Ok(appended)
    }

    /// Writes batches behind the last one. They have their numbers even when that fails.
    fn write(&mut self, run: &[ArrivingBatch], now: Moment) -> io::Result<Vec<LogPosition>> {
        let head = self.log.head();
        for batch in run {
            let frame_seq = self.log.take_numbers(batch.1.frames());
            self.durability.push(NumberedBatch::new(frame_seq, batch.clone(), now));
        }
        let first_len = run.first().map_or(0, |(_, batch)| record_len(batch));
        if self.log.must_close_before(first_len, now) {
            // A disk that gets full in a sync has lost something: there is nothing that could be undone.
            self.close_segment(head).map_err(io::Error::other)?;
        }
        if !self.log.is_open() {
            self.log.create_segment(head, now)?;
        }
        let positions = self.log.append(self.durability.last(run.len()))?;
        self.durability.written(now);
        Ok(positions)
    }

    /// Takes back what a full disk has left of a write, and the numbers of the batches. Fails where it cannot be sure.
    fn undo_write(&mut self, batches: usize) -> bool {
        let undone = self.log.cut_back();
        if undone {
            let frames = self.durability.take_back(batches);
            self.log.return_numbers(frames);
        }
        undone
    }

    /// Whether a batch can be appended without the loss of any frame. Removes for it what nobody waits for.
    pub fn has_room_for(&mut self, batch: &FrameBatch) -> bool {
        let batch = (ConnectionId::default(), batch.clone());
        loop {
            if !self.log.run_that_fits(std::slice::from_ref(&batch)).is_empty() {
                return true;
            }
            if !self.make_room_without_loss() {
                return false;
            }
        }
    }

    /// Length of the record of a batch that was not stored, if `min_free` is the reason: `max` has room for it.
    pub(super) fn kept_out_by_min_free(&self, batch: &FrameBatch) -> Option<u64> {
        let len = Some(record_len(batch)).filter(|_| self.log.config().min_free > 0);
        len.filter(|len| self.log.limits_have_room_for(*len) && !self.log.disk_has_room_for(*len))
    }

    /// Whether the disk has room for a record of this length.
    pub(super) fn disk_has_room_for(&self, record_len: u64) -> bool {
        self.log.disk_has_room_for(record_len)
    }

    // Durability.

    /// Makes durable what was written. What cannot be, moves to another segment.
    fn sync(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.durability.sync(&mut self.log);
        self.find_home(now).map(drop)
    }

    /// Writes what is in no segment that can be relied on to another segment. Returns where it is.
    fn find_home(&mut self, now: Moment) -> Result<Vec<LogPosition>, SpoolError> {
        if !self.durability.is_homeless() {
            return Ok(Vec::new());
        }
        // What was acknowledged, and is gone with the old segment, is not to be missed after a crash.
        let _ = self.progress.commit(self.log.storage());
        self.durability.rewrite(&mut self.log, now)
    }

    /// Ends the open segment, in order; it has the frames before `frame_seq`.
    ///
    /// If all of them are acknowledged, a durable cursor passes the segment, which need not be durable itself.
    fn close_segment(&mut self, frame_seq: u64) -> io::Result<()> {
        let acknowledged = self.log.is_open()
            && frame_seq <= self.progress.acknowledged().frame_seq
            && self.progress.commit(self.log.storage()).is_ok();
        self.log.close_segment(frame_seq, !acknowledged)?;
        self.durability.forget_before(frame_seq);
        Ok(())
    }

    /// Ends the open segment. If it has no records, it is removed.
    pub(super) fn end_segment(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.log.discard_empty_segment()?;
        if self.close_segment(self.log.head()).is_err() {
            self.durability.lose_segment(&mut self.log);
        }
        self.find_home(now).map(drop)
    }

    // The reading end.

    /// The next batch, and where it begins. `None` when everything readable was read.
    ///
    /// Of a record whose first frames are acknowledged, the batch has the rest.
    ///
    /// Under [`SyncPolicy::Batch`](crate::spool::SyncPolicy::Batch) only what is durable is readable. Batches of one read
    /// share its memory.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it may be asked again. What cannot be read now is not lost; a segment that is gone is passed over.
    pub fn next(&mut self, now: Moment) -> Result<Option<(FrameBatch, LogPosition)>, SpoolError> {
        let read = self.next_from(now)?;
        Ok(read.map(|(_, batch, position)| (batch, position)))
    }

    /// The same, and what [`Spool::append_from`] was told of where the batch came from.
    ///
    /// # Errors
    /// As [`Spool::next`].
    pub fn next_from(
        &mut self,
        now: Moment,
    ) -> Result<Option<(ConnectionId, FrameBatch, LogPosition)>, SpoolError> {
        self.follow_clock(now);
        self.read_head.pass(self.progress.acknowledged().frame_seq);
        if self.reader_caught_up() {
            // The read head may stand at the beginning of a record whose frames the caller has.
            return Ok(None);
        }
        while let Some(record) = self.read_head.next_record(&mut self.log, now)? {
            let header = record.header;
            // The first frames of the record may be delivered.
            let first = header.frame_seq.max(self.read_head.position().frame_seq);
            let first = self.progress.first_not_lost(first);
            if first >= header.frame_seq_end() {
                continue;
            }
            self.miss_until(first);
            self.read_head.pass(header.frame_seq_end());
            let batch = without_first(record.batch, first - header.frame_seq);
            let position = LogPosition { frame_seq: first, ..record.position };
            return Ok(Some((header.connection, batch, position)));
        }
        if self.durability.is_homeless() {
            return Ok(self.next_in_memory());
        }
        self.miss_until(self.log.head());
        Ok(None)
    }

    /// Behind the last segment: what is in memory only.
    fn next_in_memory(&mut self) -> Option<(ConnectionId, FrameBatch, LogPosition)> {
        while let Some(kept) = self.durability.batch_from(self.read_head.position().frame_seq) {
            let read = self.read_head.position();
            let first = self.progress.first_not_lost(kept.frame_seq.max(read.frame_seq));
            let (connection, start, end) = (kept.connection, kept.frame_seq, kept.frame_seq_end());
            let rest = (first < end).then(|| without_first(kept.batch.clone(), first - start));
            self.miss_until(first);
            if let Some(batch) = rest {
                self.read_head.pass(end);
                return Some((connection, batch, LogPosition { frame_seq: first, ..read }));
            }
            // It was counted as lost when its record was read.
        }
        // The last numbers may be of batches that were refused.
        self.miss_until(self.log.head());
        None
    }

    /// Counts as lost what lies before `frame_seq` and was not read.
    fn miss_until(&mut self, frame_seq: u64) {
        let missed = self.read_head.position().frame_seq..frame_seq;
        if !missed.is_empty() {
            self.progress.lose(missed, LossReason::Damaged);
            self.read_head.pass(frame_seq);
            self.read_head.pass(self.progress.acknowledged().frame_seq);
        }
    }

    /// Notes that everything before `position` is delivered: a batch that begins at a position which [`Spool::next`] or
    /// [`Spool::append`] gave, and its first `n` frames, are delivered with [`position.after(n)`](LogPosition::after).
    ///
    /// Returns how many frames that acknowledges: not those that were reported as lost in the meantime. A position that
    /// goes back, or beyond what was appended, changes nothing.
    pub fn acknowledge(&mut self, position: LogPosition, now: Moment) -> u64 {
        if position.frame_seq > self.log.head() {
            return 0;
        }
        let acknowledged = self.progress.acknowledge(position, now);
        self.durability.forget_before(self.progress.acknowledged().frame_seq);
        acknowledged
    }

    /// Reads again what is not acknowledged, from the oldest on: after a failed delivery.
    pub fn rewind(&mut self) {
        self.read_head.seek(self.progress.acknowledged());
    }

    /// Whether everything that was appended has been read. Then a batch may be passed on from memory, as soon as it is
    /// appended, with [`Spool::skip_to`].
    pub fn reader_caught_up(&self) -> bool {
        let acknowledged = self.progress.acknowledged().frame_seq;
        self.read_head.position().frame_seq.max(acknowledged) >= self.log.head()
    }

    /// Takes everything before `position` as read: the caller has it. See [`Spool::acknowledge`].
    pub fn skip_to(&mut self, position: LogPosition) {
        self.read_head.skip_to(position);
    }

    /// Takes back what was appended from `position` on, and what nobody has read: the caller delivers it in another way.
    ///
    /// Where the disk does not let go of it, it comes once more after a restart.
    pub fn take_back(&mut self, position: LogPosition) {
        let (first, head) = (position.frame_seq, self.log.head());
        self.durability.forget_from(first);
        if self.log.take_back(position) {
            self.log.return_numbers(head - first);
        } else {
            self.progress.leave_out(first..head);
            self.skip_to(LogPosition { frame_seq: head, ..self.log.end() });
        }
    }

    // What is due now and then.

    /// When [`Spool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let due = [self.durability.poll_timeout(), self.progress.poll_timeout()];
        due.into_iter().flatten().fold(self.upkeep_due.min(self.look_due), Instant::min)
    }

    /// Does what is due: syncs, writes the cursor, removes what is acknowledged or too old, and tries again what failed. There may
    /// be more to do at once: [`Spool::poll_timeout`] tells. So nobody waits for two syncs at a time.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`] and [`SpoolError::Io`]: nothing is lost by it, and it is tried again when
    /// [`Spool::poll_timeout`] says.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.follow_clock(now);
        if self.look_due <= now.instant {
            self.look_due = now.instant + LOOK_INTERVAL;
            self.look_at_folder()?;
        }
        if self.durability.take_retry(now) {
            self.find_home(now)?;
        }
        if self.durability.sync_is_due(now) {
            return self.sync(now);
        }
        let mut more = false;
        if self.progress.take_due(now) {
            match self.commit_and_retire() {
                Ok(rest) => more = rest,
                Err(error) => {
                    self.progress.retry_later(now);
                    return Err(error);
                }
            }
        }
        if self.upkeep_due <= now.instant {
            self.upkeep_due = now.instant + (self.log.config().max_age / AGE_STEPS).min(UPKEEP_INTERVAL_MAX);
            self.read_head.free_unused();
            more |= self.remove_some(now)?;
        }
        if more {
            self.upkeep_due = now.instant;
        }
        Ok(())
    }

    /// Makes everything durable, cursor and all, and ends the last segment in order.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`]: what is not durable is lost, [`Spool::unsynced_frames`] of it; and [`SpoolError::Io`]:
    /// at the next start some frames come again, or more time is taken.
    pub fn close(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.sync(now)?;
        self.end_segment(now)?;
        // What is left of the files goes at the next start.
        self.commit_and_retire().map(drop)
    }
}

/// How often the folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Ages are looked at no less often.
const UPKEEP_INTERVAL_MAX: Duration = Duration::from_secs(60);
