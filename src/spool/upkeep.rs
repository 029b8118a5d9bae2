//! What a spool removes: what is delivered, too old, or more than it may hold.
//!
//! Files go a few at a time, with one write of the cursor for all of them: what arrives does not wait for thousands of old
//! segments.

use crate::batch::position::LogPosition;
use crate::spool::config::OnFull;
use crate::spool::disk_queue::Spool;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::moment::nanos;
use crate::spool::numbered::NumberedBatch;
use crate::spool::scan::Found;
use crate::spool::scan::Scan;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::segment_name;
use crate::spool::storage::Storage;

impl<S: Storage> Spool<S> {
    /// Removes a few files that are delivered, too old, or more than the spool may hold. Returns whether there may be more.
    pub(super) fn remove_some(&mut self, now: Moment) -> Result<bool, SpoolError> {
        let oldest = now.unix.saturating_sub(nanos(self.log.config().max_age));
        Ok(self.retire()? || self.drop_some_before(oldest, now)? || self.drop_some_beyond_max(now)?)
    }

    /// Drops what was read before `unix`, in nanoseconds of Unix time: whole segments, from the oldest on, as long as
    /// there is nothing younger in them, and files that were set aside. What was not acknowledged of it is reported,
    /// reason [`LossReason::Age`].
    ///
    /// # Errors
    /// [`SpoolError::Io`] and [`SpoolError::Degraded`]: the rest stays.
    pub fn drop_before(&mut self, unix: u64, now: Moment) -> Result<(), SpoolError> {
        while self.drop_some_before(unix, now)? {}
        Ok(())
    }

    fn drop_some_before(&mut self, unix: u64, now: Moment) -> Result<bool, SpoolError> {
        let mut files = 0;
        while files < STEP && self.log.aside_is_older(unix) && self.log.remove_aside() {
            files += 1;
        }
        if self.log.front_is_open_with_records() && self.log.fronts_older(unix, 1) > 0 {
            self.end_segment(now)?;
        }
        let segments = self.log.fronts_older(unix, STEP);
        // An open segment without records may be old, and stays.
        Ok(self.drop_fronts(segments, LossReason::Age)? || files > 0)
    }

    /// Drops the oldest frames as long as there are more bytes than the spool may hold: `max` was higher when they were stored.
    fn drop_some_beyond_max(&mut self, now: Moment) -> Result<bool, SpoolError> {
        let max = self.log.bytes_max();
        for _ in 0..STEP {
            if self.log.bytes() <= max {
                return Ok(false);
            }
            if self.log.aside_count() > 0 && self.log.remove_aside() {
                continue;
            }
            if self.log.segments_count() == 1 {
                self.end_segment(now)?;
                self.shorten_front(max / 2, now)?;
            }
            if !self.drop_fronts(1, LossReason::Full)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the youngest frames of the only segment, `len_max` bytes of them at most, to other segments: the rest goes with it.
    fn shorten_front(&mut self, len_max: u64, now: Moment) -> Result<(), SpoolError> {
        let Some(front) = self.log.readable(0).filter(|front| !front.grows) else { return Ok(()) };
        let name = segment_name(front.number);
        let failed = |source| SpoolError::io("shorten", name.clone())(source);
        let file = self.log.storage().open(&name).map_err(failed)?;
        // Where the records begin that are kept.
        let start = SEGMENT_HEADER_LEN as u64;
        let (mut scan, mut from) = (Scan::new(front.number, start), front.len);
        loop {
            let offset = scan.offset();
            let Some(found) = scan.next(self.log.storage(), &file, front.len).map_err(failed)? else { break };
            if front.len - offset <= len_max && matches!(found, Found::Record(..)) {
                from = offset;
                break;
            }
        }
        let mut scan = scan.at(from);
        while let Some(found) = scan.next(self.log.storage(), &file, front.len).map_err(failed)? {
            let Found::Record(header, payload) = found else { continue };
            let read_at = now.instant_of(header.received);
            let Some(batch) = header.batch_of(payload, front.frame_seq_end, read_at) else { continue };
            let record = NumberedBatch {
                frame_seq: header.frame_seq,
                received: header.received,
                appended: now.instant,
                connection: header.connection,
                batch,
            };
            if self.log.must_close_before(record.record_len(), now) {
                self.log.close_segment(record.frame_seq, true).map_err(failed)?;
            }
            if !self.log.is_open() {
                self.log.create_segment(record.frame_seq, now).map_err(failed)?;
            }
            self.log.append([&record].into_iter()).map_err(failed)?;
        }
        self.log.close_segment(self.log.head(), true).map_err(failed)
    }

    /// Frees some of the disk, if that can be done without loss, or with the loss of the oldest frames where the
    /// configuration wants it. Returns whether it did.
    pub(super) fn make_room(&mut self) -> bool {
        self.make_room_without_loss()
            || self.log.config().on_full == OnFull::DropOldest
                && self.drop_fronts(1, LossReason::Full).unwrap_or(false)
    }

    /// Frees some of the disk, if there is something that nobody waits for. Returns whether it did.
    pub(super) fn make_room_without_loss(&mut self) -> bool {
        let acknowledged = self.progress.acknowledged().frame_seq;
        if self.log.front_is_before(acknowledged) {
            return self.progress.commit(self.log.storage()).and_then(|()| self.log.remove_front()).is_ok();
        }
        self.log.remove_aside()
    }

    /// Drops the oldest `count` segments with what is not acknowledged of them. `false` where so many are not closed.
    fn drop_fronts(&mut self, count: usize, reason: LossReason) -> Result<bool, SpoolError> {
        let Some(end) = self.log.end_of(count) else { return Ok(false) };
        if end.frame_seq > self.progress.acknowledged().frame_seq {
            self.progress.drop_before(self.log.storage(), end, reason)?;
            self.durability.forget_before(self.progress.acknowledged().frame_seq);
            self.read_head.leave_before(end.segment);
        } else {
            self.progress.commit(self.log.storage())?;
        }
        self.remove_before(end)?;
        Ok(true)
    }

    fn remove_before(&mut self, end: LogPosition) -> Result<(), SpoolError> {
        while self.log.readable(0).is_some_and(|front| front.number < end.segment) {
            self.log.remove_front()?;
        }
        Ok(())
    }

    pub(super) fn commit_and_retire(&mut self) -> Result<bool, SpoolError> {
        self.progress.commit(self.log.storage())?;
        self.retire()
    }

    /// Removes a few segments that the durable cursor has passed. Returns whether there may be more.
    pub(super) fn retire(&mut self) -> Result<bool, SpoolError> {
        let durable = self.progress.durable().frame_seq;
        for _ in 0..STEP {
            if !self.log.front_is_before(durable) {
                return Ok(false);
            }
            self.log.remove_front()?;
        }
        Ok(true)
    }
}

/// Files that are removed before the caller has a turn again.
const STEP: usize = 64;
