//! What is due now and then: syncs, the cursor, and the removal of what was acknowledged, is too old, or has to make
//! room.

use std::io;
use std::time::Duration;
use std::time::Instant;

use crate::protocol::FrameBatch;
use crate::spool::Segment;
use crate::spool::Spool;
use crate::spool::config::OnFull;
use crate::spool::config::SyncPolicy;
use crate::spool::connection::ConnectionId;
use crate::spool::cursor::CURSOR_NAME;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::moment::nanos;
use crate::spool::position::LogPosition;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_of;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;
use crate::spool::writer::AGE_STEPS;

impl<S: Storage> Spool<S> {
    /// When [`Spool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let due = [self.sync_due, self.cursor_due, self.retry_due];
        due.into_iter().flatten().fold(self.upkeep_due, Instant::min)
    }

    /// Does what is due: syncs, writes the cursor, removes what is acknowledged or too old, and tries again what failed.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`] and [`SpoolError::Io`]: nothing is lost by it, and it is tried again when
    /// [`Spool::poll_timeout`] says.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), SpoolError> {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now.instant);
        if is_due(self.retry_due) {
            self.retry_due = None;
            self.settle(now)?;
        }
        if is_due(self.sync_due) {
            self.sync(now)?;
        }
        if is_due(self.cursor_due) {
            // Whatever comes of it, the next attempt is not due at once.
            self.cursor_due = None;
            let kept = self.commit_cursor().and_then(|()| self.retire());
            if kept.is_err() {
                self.cursor_due = Some(now.instant + self.cursor_interval());
            }
            kept?;
        }
        if self.upkeep_due <= now.instant {
            self.upkeep_due = now.instant + (self.config.max_age / AGE_STEPS).min(UPKEEP_INTERVAL_MAX);
            self.reader.free_unused();
            self.expire(now)?;
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
        self.commit_cursor()?;
        self.retire()
    }

    /// Frames that were appended and are not known to be durable.
    pub fn unsynced_frames(&self) -> u64 {
        self.unsynced.front().map_or(0, |first| self.head - first.frame_seq)
    }

    /// Duplicates after a crash are those of this time.
    pub(super) fn cursor_interval(&self) -> Duration {
        match self.config.sync {
            SyncPolicy::Interval(interval) => interval,
            SyncPolicy::None | SyncPolicy::Batch => CURSOR_INTERVAL,
        }
    }

    /// Makes the watermark durable.
    fn commit_cursor(&mut self) -> Result<(), SpoolError> {
        if self.cursor.position() == self.watermark {
            return Ok(());
        }
        self.write_cursor(self.watermark)
    }

    pub(super) fn write_cursor(&mut self, position: LogPosition) -> Result<(), SpoolError> {
        let durable = self.config.sync != SyncPolicy::None;
        self.cursor.commit(&self.storage, position, durable).map_err(SpoolError::io("write", "the cursor"))
    }

    /// Removes segments that the durable cursor has passed.
    pub(super) fn retire(&mut self) -> Result<(), SpoolError> {
        while self.has_closed_segment() && self.frame_seq_end(0) <= self.cursor.position().frame_seq {
            self.remove_front()?;
        }
        Ok(())
    }

    /// Frees some of the disk, if that can be done without loss, or with the loss of the oldest frames where the
    /// configuration wants it. Returns whether it did.
    pub(super) fn make_room(&mut self) -> bool {
        self.make_room_without_loss()
            || self.config.on_full == OnFull::DropOldest && self.drop_front(LossReason::Full).unwrap_or(false)
    }

    /// Frees some of the disk, if there is something that nobody waits for. Returns whether it did.
    fn make_room_without_loss(&mut self) -> bool {
        let acknowledged = self.has_closed_segment() && self.frame_seq_end(0) <= self.watermark.frame_seq;
        if acknowledged {
            return self.write_cursor(self.watermark).and_then(|()| self.remove_front()).is_ok();
        }
        self.remove_bad()
    }

    /// Whether a batch can be appended without the loss of any frame. Removes for it what nobody waits for.
    pub fn has_room_for(&mut self, batch: &FrameBatch) -> bool {
        let batch = (ConnectionId::default(), batch.clone());
        loop {
            if !self.run_that_fits(std::slice::from_ref(&batch)).is_empty() {
                return true;
            }
            if !self.make_room_without_loss() {
                return false;
            }
        }
    }

    /// Drops the oldest segment with what is not acknowledged of it. `false` where none is closed.
    fn drop_front(&mut self, reason: LossReason) -> Result<bool, SpoolError> {
        if !self.has_closed_segment() {
            return Ok(false);
        }
        let frame_seq = self.frame_seq_end(0);
        if frame_seq > self.watermark.frame_seq {
            let segment = self.segments.get(1).map_or(self.segment_next, |next| next.number);
            let position = LogPosition::at_start(segment, frame_seq);
            self.write_cursor(position)?;
            let dropped = frame_seq - self.watermark.frame_seq;
            let lost = dropped - self.gaps.remove_below(frame_seq);
            self.count_lost(reason, lost);
            self.watermark = position;
            self.pass_gaps();
            self.forget_acknowledged();
            if self.reader.position.segment < segment {
                self.reader.seek(LogPosition::at_start(segment, self.reader.position.frame_seq));
            }
        } else {
            self.write_cursor(self.watermark)?;
        }
        self.remove_front()?;
        Ok(true)
    }

    /// Drops what is older than the configuration allows.
    fn expire(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.drop_before(now.unix.saturating_sub(nanos(self.config.max_age)), now)
    }

    /// Drops what was read before `unix`, in nanoseconds of Unix time: whole segments, from the oldest on, as long as
    /// there is nothing younger in them, and files that were set aside. What was not acknowledged of it is reported,
    /// reason [`LossReason::Age`].
    ///
    /// # Errors
    /// [`SpoolError::Io`] and [`SpoolError::Degraded`]: the rest stays.
    pub fn drop_before(&mut self, unix: u64, now: Moment) -> Result<(), SpoolError> {
        while self.bad.front().is_some_and(|file| file.modified < unix) {
            if !self.remove_bad() {
                break;
            }
        }
        let age_of = |segment: &Segment| segment.youngest.max(segment.created);
        while let Some(front) = self.segments.front().filter(|front| age_of(front) < unix) {
            let has_records = front.len > SEGMENT_HEADER_LEN as u64;
            if self.segments.len() == 1 && self.open.is_some() {
                if !has_records {
                    break;
                }
                self.end_segment(now)?;
            }
            if !self.drop_front(LossReason::Age)? {
                break;
            }
        }
        Ok(())
    }

    /// Ends the open segment; one without records is removed.
    fn end_segment(&mut self, now: Moment) -> Result<(), SpoolError> {
        let empty = self.segments.back().is_some_and(|last| last.len <= SEGMENT_HEADER_LEN as u64);
        if self.open.is_some() && empty {
            self.open = None;
            if let Some(last) = self.segments.back() {
                let name = segment_name(last.number);
                self.storage.unlink(&name).map_err(SpoolError::io("remove", name))?;
                self.bytes -= last.len;
                self.segments.pop_back();
            }
        }
        match self.close_segment(0, self.head) {
            Ok(()) => Ok(()),
            Err(_) => self.sync_failed(now),
        }
    }

    /// Whether the front segment is not the one that is written to.
    fn has_closed_segment(&self) -> bool {
        self.segments.len() > usize::from(self.open.is_some())
    }

    /// Removes the oldest segment, or sets it aside where something in it is damaged.
    fn remove_front(&mut self) -> Result<(), SpoolError> {
        let Some(front) = self.segments.front() else { return Ok(()) };
        let name = segment_name(front.number);
        if front.damaged {
            let aside = set_aside(&self.storage, &name).map_err(SpoolError::io("set aside", name))?;
            let modified = front.youngest.max(front.created);
            self.bad.push_back(Entry { name: aside, regular: true, len: front.len, modified });
        } else {
            match self.storage.unlink(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SpoolError::io("remove", name)(error));
                }
                _ => self.bytes -= front.len,
            }
        }
        self.segments.pop_front();
        Ok(())
    }

    /// Removes the oldest of the files that were set aside. Returns whether that freed something.
    fn remove_bad(&mut self) -> bool {
        let Some(file) = self.bad.pop_front() else { return false };
        self.bytes -= file.len;
        // One that cannot be removed is not ours to count any more.
        self.storage.unlink(&file.name).is_ok() || self.remove_bad()
    }
}

/// Gives a file a name that ends with [`BAD_SUFFIX`], and returns it.
///
/// # Errors
/// What the system says.
pub(super) fn set_aside<S: Storage>(storage: &S, name: &str) -> io::Result<String> {
    for number in 0..BAD_NAMES_MAX {
        let aside =
            if number == 0 { format!("{name}{BAD_SUFFIX}") } else { format!("{name}.{number}{BAD_SUFFIX}") };
        match storage.rename(name, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether a file was set aside from a spool.
pub(super) fn is_set_aside(entry: &Entry) -> bool {
    let Some(name) = entry.name.strip_suffix(BAD_SUFFIX) else { return false };
    let is_cursor = name.split('.').next() == Some(CURSOR_NAME);
    entry.regular && (is_cursor || segment_of(name).is_some())
}

/// How the names of files end that were set aside.
const BAD_SUFFIX: &str = ".bad";

/// Files of one name that are set aside; then something else is wrong.
const BAD_NAMES_MAX: u32 = 100;

/// How often the cursor is written where `sync` has no interval.
const CURSOR_INTERVAL: Duration = Duration::from_millis(100);

/// Ages are looked at no less often.
const UPKEEP_INTERVAL_MAX: Duration = Duration::from_secs(60);
