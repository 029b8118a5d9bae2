//! The writing end: batches go to the last segment, and to another one when that cannot be relied on any more.

use std::io;
use std::io::IoSlice;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;

use crate::protocol::FrameBatch;
use crate::spool::Segment;
use crate::spool::Spool;
use crate::spool::config::OnFull;
use crate::spool::config::SyncPolicy;
use crate::spool::connection::ConnectionId;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::moment::nanos;
use crate::spool::position::LogPosition;
use crate::spool::record::RecordHeader;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::segment_name;
use crate::spool::storage::Storage;
use crate::spool::storage::write_all;

/// What became of the batches given to [`Spool::append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The place behind each batch that was taken, from the first on.
    pub positions: Vec<LogPosition>,
    /// How many of the batches behind those are lost; [`Spool::poll_loss`] reports their frames.
    pub dropped: usize,
}

impl Appended {
    /// How many batches are settled. Those behind them have not been looked at: they are to be appended again, at once
    /// if this is not 0, otherwise when there is room.
    pub fn settled(&self) -> usize {
        self.positions.len() + self.dropped
    }
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct OpenSegment<F> {
    file: F,
    /// Bytes in the file that are durable, or as good as the configuration wants them.
    synced: u64,
}

/// A batch that is written, and kept in case that it was not.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) frame_seq: u64,
    received: u64,
    appended: Instant,
    pub(super) connection: ConnectionId,
    pub(super) batch: FrameBatch,
}

/// The connection that brought a batch, and the batch.
type Arriving = (ConnectionId, FrameBatch);

impl<S: Storage> Spool<S> {
    /// Appends batches, in order, each as one record; as many as there is room for.
    ///
    /// Under [`SyncPolicy::Batch`] they are durable when this returns. Batches of no frames take no room.
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
        self.settle(now)?;
        let head_before = self.head;
        let result = self.append_and_sync(batches, now);
        if result.is_err() {
            // Some of them may be on disk: their numbers are used up, and a record with one of them is passed over.
            self.unsynced.retain(|kept| kept.frame_seq < head_before);
            self.unsynced_bytes = self.unsynced.iter().map(Kept::record_len).sum();
            self.homeless &= !self.unsynced.is_empty();
            self.gaps.insert(head_before..self.head);
            self.pass_gaps();
        }
        result
    }

    fn append_and_sync(&mut self, batches: &[Arriving], now: Moment) -> Result<Appended, SpoolError> {
        let mut appended = Appended { positions: Vec::with_capacity(batches.len()), dropped: 0 };
        while let Some(rest) = batches.get(appended.settled()..).filter(|rest| !rest.is_empty()) {
            if rest.first().is_some_and(|(_, first)| record_len(first) > self.config.record_len_max()) {
                // What can never fit is not waited for. Batches behind it are for the next call.
                if appended.positions.is_empty() {
                    appended.dropped = self.drop_arriving(rest.get(..1).unwrap_or_default());
                }
                break;
            }
            let run = self.run_that_fits(rest);
            if !run.is_empty() {
                match self.write(run, now) {
                    Ok(positions) => {
                        appended.positions.extend(positions);
                        continue;
                    }
                    Err(error) if is_full(&error) && self.undo_write(run) => {}
                    Err(_) => {
                        self.abandon_open();
                        self.homeless = true;
                        let positions = self.settle(now)?;
                        let earlier = positions.len() - run.len(); // these are the last
                        appended.positions.extend(positions.into_iter().skip(earlier));
                        continue;
                    }
                }
            } else if rest.first().is_some_and(|(_, first)| first.frames() == 0) {
                appended.positions.push(self.end());
                continue;
            }
            if self.make_room() {
                continue;
            }
            if self.config.on_full != OnFull::Block {
                appended.dropped = self.drop_arriving(rest);
            }
            break;
        }
        if self.config.sync == SyncPolicy::Batch || self.unsynced_bytes >= self.config.unsynced_max() {
            self.sync(now)?;
        }
        Ok(appended)
    }

    /// Those batches from the front that may be written at once: within the limits, and to one segment.
    pub(super) fn run_that_fits<'a>(&self, batches: &'a [Arriving]) -> &'a [Arriving] {
        let free = self.storage.free_bytes().unwrap_or(u64::MAX).saturating_sub(self.config.min_free);
        let overhead = (SEGMENT_HEADER_LEN + RecordHeader::LEN) as u64;
        let room = self.config.max.saturating_sub(self.bytes).min(free).saturating_sub(overhead);
        let fresh = self.config.segment_len();
        let segment_room = match &self.open {
            Some(_) => self.segments.back().map_or(0, |last| fresh.saturating_sub(last.len)),
            None => fresh.saturating_sub(overhead),
        };
        let mut run_len = 0;
        let fits = |(index, (_, batch)): &(usize, &Arriving)| {
            let len = record_len(batch);
            run_len += len;
            let within = run_len <= room && len <= self.config.record_len_max() && batch.frames() > 0;
            // The first goes into a segment of its own, if need be.
            within && (*index == 0 || run_len <= segment_room.min(WRITE_LEN_MAX) && *index < BATCHES_MAX)
        };
        let count = batches.iter().enumerate().take_while(fits).count();
        batches.get(..count).unwrap_or_default()
    }

    /// Writes batches behind the last. They have their numbers even when that fails.
    fn write(&mut self, run: &[Arriving], now: Moment) -> io::Result<Vec<LogPosition>> {
        let first = self.unsynced.len();
        let frame_seq = self.head;
        for (connection, batch) in run {
            let received = now.unix_of(batch.read_at());
            let appended = now.instant;
            let kept = Kept {
                frame_seq: self.head,
                received,
                appended,
                connection: *connection,
                batch: batch.clone(),
            };
            self.unsynced_bytes += kept.record_len();
            self.unsynced.push_back(kept);
            self.head += u64::from(batch.frames());
        }
        self.open_segment_for(run, frame_seq, now)?;
        // A segment that was closed took its batches out.
        let first = first.min(self.unsynced.len() - run.len());
        let positions = self.write_kept(first)?;
        match self.config.sync {
            SyncPolicy::None => self.forget_kept(),
            SyncPolicy::Batch => {}
            SyncPolicy::Interval(interval) => {
                self.sync_due.get_or_insert(now.instant + interval);
            }
        }
        Ok(positions)
    }

    /// Writes what is kept, from index `first` on, to the end of the open segment.
    fn write_kept(&mut self, first: usize) -> io::Result<Vec<LogPosition>> {
        let (Some(open), Some(segment)) = (&self.open, self.segments.back_mut()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let headers: Vec<_> =
            self.unsynced.iter().skip(first).map(|kept| kept.encode(segment.number)).collect();
        let mut buffers = Vec::with_capacity(2 * headers.len());
        let mut positions = Vec::with_capacity(headers.len());
        let mut offset = segment.len;
        for (header, kept) in headers.iter().zip(self.unsynced.iter().skip(first)) {
            buffers.push(IoSlice::new(header));
            buffers.push(IoSlice::new(kept.batch.bytes()));
            offset += kept.record_len();
            let frame_seq = kept.frame_seq + u64::from(kept.batch.frames());
            positions.push(LogPosition { segment: segment.number, offset, frame_seq });
        }
        write_all(&self.storage, &open.file, &mut buffers, segment.len)?;
        let youngest = self.unsynced.iter().skip(first).map(|kept| kept.received).max();
        segment.youngest = segment.youngest.max(youngest.unwrap_or(0));
        self.bytes += offset - segment.len;
        segment.len = offset;
        Ok(positions)
    }

    /// Takes back what a full disk has left of a write, and the numbers of the batches. Fails where it cannot be sure.
    fn undo_write(&mut self, run: &[Arriving]) -> bool {
        if let (Some(open), Some(segment)) = (&self.open, self.segments.back()) {
            let undone = self.storage.truncate(&open.file, segment.len);
            let undone = undone.and_then(|()| match self.config.sync {
                SyncPolicy::None => Ok(()),
                _ => self.storage.sync(&open.file),
            });
            if undone.is_err() {
                return false;
            }
        }
        for _ in run {
            if let Some(kept) = self.unsynced.pop_back() {
                self.unsynced_bytes -= kept.record_len();
                self.head -= u64::from(kept.batch.frames());
            }
        }
        true
    }

    /// Has a segment open with room for the first batch of `run`, whose number is `frame_seq`.
    fn open_segment_for(&mut self, run: &[Arriving], frame_seq: u64, now: Moment) -> io::Result<()> {
        if let (Some(_), Some(segment)) = (&self.open, self.segments.back()) {
            let len = segment.len
                + run.first().map_or(0, |(_, batch)| record_len(batch))
                + RecordHeader::LEN as u64;
            let full = len > self.config.segment_len();
            let old = now.unix.saturating_sub(segment.created) > nanos(self.config.max_age / AGE_STEPS);
            if segment.len > SEGMENT_HEADER_LEN as u64 && (full || old) {
                self.close_segment(run.len(), frame_seq)?;
            }
        }
        if self.open.is_none() {
            self.create_segment(frame_seq, now)?;
        }
        Ok(())
    }

    /// Begins a segment. Its number was never used before.
    fn create_segment(&mut self, frame_seq: u64, now: Moment) -> io::Result<()> {
        for _ in 0..TAKEN_NAMES_MAX {
            let number = self.segment_next;
            self.segment_next += 1;
            let name = segment_name(number);
            let file = match self.storage.create(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            let header = SegmentHeader {
                spool: self.id,
                segment: number,
                frame_seq,
                created: now.unix,
                content_type: self.content_type.clone(),
            };
            let written = write_all(&self.storage, &file, &mut [IoSlice::new(&header.encode())], 0);
            let durable = written.and_then(|()| match self.config.sync {
                SyncPolicy::None => Ok(()),
                _ => self.storage.sync(&file).and_then(|()| self.storage.sync_folder()),
            });
            if let Err(error) = durable {
                // Should it stay, it is a segment of no records.
                let _ = self.storage.unlink(&name);
                return Err(error);
            }
            // The room that this takes must be nobody else's.
            let free = self.storage.free_bytes().unwrap_or(0);
            if free > self.config.min_free.saturating_add(2 * self.config.segment_len()) {
                let _ = self.storage.reserve(&file, self.config.segment_len());
            }
            let len = SEGMENT_HEADER_LEN as u64;
            self.bytes += len;
            self.segments.push_back(Segment {
                number,
                frame_seq,
                len,
                created: now.unix,
                youngest: 0,
                damaged: false,
            });
            self.open = Some(OpenSegment { file, synced: len });
            return Ok(());
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Ends the open segment in order; `kept` batches, from number `frame_seq` on, are not in it.
    ///
    /// One that is acknowledged is passed by a durable cursor instead of being made durable itself.
    pub(super) fn close_segment(&mut self, kept: usize, frame_seq: u64) -> io::Result<()> {
        let acknowledged = self.open.is_some()
            && self.config.sync != SyncPolicy::None
            && frame_seq <= self.watermark.frame_seq
            && self.write_cursor(self.watermark).is_ok();
        let (Some(open), Some(segment)) = (&self.open, self.segments.back_mut()) else { return Ok(()) };
        let footer = RecordHeader {
            len: 0,
            segment: segment.number,
            frame_seq,
            frames: 0,
            footer: true,
            connection: ConnectionId::default(),
            received: segment.youngest,
        };
        // Without it the segment is scanned at the next start.
        let footer = footer.encode(&[]);
        if write_all(&self.storage, &open.file, &mut [IoSlice::new(&footer)], segment.len).is_ok() {
            segment.len += footer.len() as u64;
            self.bytes += footer.len() as u64;
        }
        // Gives back what was reserved.
        let _ = self.storage.truncate(&open.file, segment.len);
        if self.config.sync != SyncPolicy::None && !acknowledged {
            self.storage.sync(&open.file)?;
        }
        self.open = None;
        self.sync_due = None;
        let durable = self.unsynced.len() - kept;
        let durable = self.unsynced.drain(..durable).map(|kept| kept.record_len()).sum::<u64>();
        self.unsynced_bytes -= durable;
        Ok(())
    }

    /// Makes durable what was written. What cannot be, moves to another segment.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`] where that fails too: it waits in memory.
    pub(super) fn sync(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.sync_due = None;
        if self.unsynced.is_empty() || self.homeless {
            return self.settle(now).map(drop);
        }
        match self.sync_open() {
            Ok(()) => Ok(()),
            Err(_) => self.sync_failed(now),
        }
    }

    /// After a sync of the open segment has failed: moves to another what is not known durable.
    pub(super) fn sync_failed(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.abandon_open();
        self.homeless = !self.unsynced.is_empty();
        self.settle(now).map(drop)
    }

    fn sync_open(&mut self) -> io::Result<()> {
        if let (Some(open), Some(segment)) = (&mut self.open, self.segments.back()) {
            if self.config.sync != SyncPolicy::None {
                self.storage.sync(&open.file)?;
            }
            open.synced = segment.len;
        }
        self.forget_kept();
        Ok(())
    }

    /// Finds a place for what is in no segment that could be relied on. Returns where it is.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`]: it waits in memory.
    pub(super) fn settle(&mut self, now: Moment) -> Result<Vec<LogPosition>, SpoolError> {
        let Some(first) = self.unsynced.front().filter(|_| self.homeless) else { return Ok(Vec::new()) };
        let frame_seq = first.frame_seq;
        // What was acknowledged, and is gone with the old segment, is not to be missed after a crash.
        let _ = self.write_cursor(self.watermark);
        let rewritten = self.create_segment(frame_seq, now).and_then(|()| {
            let positions = self.write_kept(0)?;
            self.sync_open()?;
            Ok(positions)
        });
        match rewritten {
            Ok(positions) => {
                self.homeless = false;
                Ok(positions)
            }
            Err(source) => {
                self.abandon_open();
                self.retry_due = Some(now.instant + RETRY_INTERVAL);
                Err(SpoolError::Degraded { source })
            }
        }
    }

    /// Gives up a segment after a failed write or sync: only what was durable before counts. (After a failed sync the
    /// kernel takes its pages for clean, and the next sync would succeed with the data gone.)
    fn abandon_open(&mut self) {
        let (Some(open), Some(segment)) = (self.open.take(), self.segments.back_mut()) else { return };
        let good = if self.config.sync == SyncPolicy::None { segment.len } else { open.synced };
        self.bytes -= segment.len - good;
        segment.len = good;
        // What stays in the file is a torn tail, or copies under the same numbers.
        let _ = self.storage.truncate(&open.file, good);
        if good <= SEGMENT_HEADER_LEN as u64 && self.storage.unlink(&segment_name(segment.number)).is_ok() {
            self.bytes -= good;
            self.segments.pop_back();
        }
    }

    /// Lets go of what is acknowledged, and need not be made durable any more.
    pub(super) fn forget_acknowledged(&mut self) {
        let acknowledged = self.watermark.frame_seq;
        while let Some(kept) = self.unsynced.front().filter(|kept| kept.frame_seq_end() <= acknowledged) {
            self.unsynced_bytes -= kept.record_len();
            self.unsynced.pop_front();
        }
        self.homeless &= !self.unsynced.is_empty();
        if let (SyncPolicy::Interval(interval), Some(_)) = (self.config.sync, self.sync_due) {
            self.sync_due = self.unsynced.front().map(|kept| kept.appended + interval);
        }
    }

    fn forget_kept(&mut self) {
        self.unsynced.clear();
        self.unsynced_bytes = 0;
    }

    fn drop_arriving(&mut self, batches: &[Arriving]) -> usize {
        let frames = batches.iter().map(|(_, batch)| u64::from(batch.frames())).sum();
        self.count_lost(LossReason::Full, frames);
        batches.len()
    }

    /// The place behind everything.
    pub(super) fn end(&self) -> LogPosition {
        let (segment, offset) = match self.segments.back() {
            Some(last) => (last.number, last.len),
            None => (self.segment_next, SEGMENT_HEADER_LEN as u64),
        };
        LogPosition { segment, offset, frame_seq: self.head }
    }
}

impl Kept {
    fn frame_seq_end(&self) -> u64 {
        self.frame_seq + u64::from(self.batch.frames())
    }

    pub(super) fn record_len(&self) -> u64 {
        record_len(&self.batch)
    }

    fn encode(&self, segment: u64) -> [u8; RecordHeader::LEN] {
        let header = RecordHeader {
            len: self.batch.byte_len() as u32, // <= RECORD_LEN_MAX
            segment,
            frame_seq: self.frame_seq,
            frames: self.batch.frames(),
            footer: false,
            connection: self.connection,
            received: self.received,
        };
        header.encode(self.batch.bytes())
    }
}

fn record_len(batch: &FrameBatch) -> u64 {
    (RecordHeader::LEN + batch.byte_len()) as u64
}

/// Whether room would help.
fn is_full(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}

/// Most bytes and batches of one write, so that their checksums are made while they are in the cache.
const WRITE_LEN_MAX: u64 = 256 << 10;
const BATCHES_MAX: usize = 512;

/// A segment takes frames for this part of the time that they are kept.
pub(super) const AGE_STEPS: u32 = 8;

/// After so many names that are taken by others something else is wrong.
const TAKEN_NAMES_MAX: u32 = 16;

/// How long to wait before writing is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
