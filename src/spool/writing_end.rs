//! The writing end of a spool: batches are appended, made durable, and taken back.

use std::io;

use crate::batch::connection::ConnectionId;
use crate::batch::position::LogPosition;
use crate::protocol::FrameBatch;
use crate::spool::appended::Appended;
use crate::spool::config::OnFull;
use crate::spool::disk_queue::Spool;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::numbered::ArrivingBatch;
use crate::spool::numbered::NumberedBatch;
use crate::spool::numbered::record_len;
use crate::spool::refusal::is_full;
use crate::spool::storage::Storage;

impl<S: Storage> Spool<S> {
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
                    Err(error) if is_full(&error) && self.undo_write(run.len()) => {
                        self.log.note_refusal(rest.first().map_or(0, |(_, first)| record_len(first)), &error);
                    }
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

    /// Length of the record of a batch, if the disk is the reason that it cannot be stored, or not without a loss: `max` has room
    /// for it.
    pub(super) fn kept_out_by_disk(&self, batch: &FrameBatch) -> Option<u64> {
        let len = record_len(batch);
        let short = || self.log.config().min_free > 0 && !self.log.disk_has_room_for(len);
        (self.log.limits_have_room_for(len) && (self.disk_refusal().is_some() || short())).then_some(len)
    }

    /// Whether the disk has room for a record of this length.
    pub(super) fn disk_has_room_for(&self, record_len: u64) -> bool {
        self.disk_refusal().is_none() && self.log.disk_has_room_for(record_len)
    }

    /// Why the disk takes no more although it shows room; `None` where it takes more.
    pub(super) fn disk_refusal(&self) -> Option<&str> {
        self.log.refusal()
    }

    // Durability.

    /// Makes durable what was written. What cannot be, moves to another segment.
    pub(super) fn sync(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.durability.sync(&mut self.log);
        self.find_home(now).map(drop)
    }

    /// Writes what is in no segment that can be relied on to another segment. Returns where it is.
    pub(super) fn find_home(&mut self, now: Moment) -> Result<Vec<LogPosition>, SpoolError> {
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
}
