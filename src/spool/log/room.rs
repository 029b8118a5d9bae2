//! What a log has room for: within `max`, beyond `min_free`, and in a segment.

use std::io;

use crate::spool::cursor::CURSOR_FILE_LEN;
use crate::spool::log::AGE_STEPS;
use crate::spool::log::Log;
use crate::spool::moment::Moment;
use crate::spool::moment::nanos;
use crate::spool::numbered::ArrivingBatch;
use crate::spool::numbered::record_len;
use crate::spool::record::RecordHeader;
use crate::spool::refusal::Refusal;
use crate::spool::refusal::is_full;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::storage::Storage;

impl<S: Storage> Log<S> {
    /// The batches from the front that may be written at once: within the limits, and to one segment.
    pub(in crate::spool) fn run_that_fits<'a>(&self, batches: &'a [ArrivingBatch]) -> &'a [ArrivingBatch] {
        let overhead = SEGMENT_OVERHEAD;
        let room = self.limit_room().min(self.disk_room()).saturating_sub(overhead);
        let fresh = self.config.segment_len();
        let segment_room = match &self.open {
            Some(_) => self.files.segments.back().map_or(0, |last| fresh.saturating_sub(last.len)),
            None => fresh.saturating_sub(overhead),
        };
        let mut run_len = 0;
        let fits = |(index, (_, batch)): &(usize, &ArrivingBatch)| {
            let len = record_len(batch);
            run_len += len;
            let within = run_len <= room && len <= self.config.record_len_max() && batch.frames() > 0;
            // The first one gets a segment of its own, if need be.
            within && (*index == 0 || run_len <= segment_room.min(WRITE_LEN_MAX) && *index < BATCHES_MAX)
        };
        let count = batches.iter().enumerate().take_while(fits).count();
        batches.get(..count).unwrap_or_default()
    }

    /// Bytes that the files of the log may have: `max` holds for the cursor file too.
    pub(in crate::spool) fn bytes_max(&self) -> u64 {
        self.config.max.saturating_sub(CURSOR_FILE_LEN as u64)
    }

    /// Bytes that `max` leaves.
    pub(super) fn limit_room(&self) -> u64 {
        self.bytes_max().saturating_sub(self.bytes)
    }

    /// Bytes that the disk has beyond `min_free`, and within what it held when it refused to take more.
    fn disk_room(&self) -> u64 {
        let shown = self.storage.free_bytes().unwrap_or(u64::MAX).saturating_sub(self.config.min_free);
        self.refusal.as_ref().map_or(shown, |refusal| shown.min(refusal.bytes.saturating_sub(self.bytes)))
    }

    /// Notes that the disk took no batch of this length, and that it has no room beyond what the log has now.
    pub(in crate::spool) fn note_refusal(&mut self, record_len: u64, error: &io::Error) {
        self.refusal = Some(Refusal { bytes: self.bytes, record_len, reason: error.to_string() });
    }

    /// Why the disk takes no more although it shows room; `None` where it takes more.
    pub(in crate::spool) fn refusal(&self) -> Option<&str> {
        self.refusal.as_ref().map(|refusal| refusal.reason.as_str())
    }

    /// Asks the disk again that took no more: whether the open segment may have what was removed since, a segment at most, and what
    /// the disk did not take. Without an open segment, the next write asks.
    pub(in crate::spool) fn ask_disk_again(&mut self) {
        let Some(refusal) = &self.refusal else { return };
        if let (Some(open), Some(segment)) = (&self.open, self.files.segments.back()) {
            let removed = refusal.bytes.saturating_sub(self.bytes).min(self.config.segment_len());
            let len = segment.len + removed + refusal.record_len + SEGMENT_OVERHEAD;
            if open.has_room(&self.storage, len).is_err_and(|error| is_full(&error)) {
                return;
            }
        }
        self.refusal = None;
    }

    /// Whether the disk has room for a record of `record_len` bytes in a segment of its own.
    pub(in crate::spool) fn disk_has_room_for(&self, record_len: u64) -> bool {
        record_len.saturating_add(SEGMENT_OVERHEAD) <= self.disk_room()
    }

    /// Whether the limits of the spool have room for it.
    pub(in crate::spool) fn limits_have_room_for(&self, record_len: u64) -> bool {
        let within = record_len.saturating_add(SEGMENT_OVERHEAD) <= self.limit_room();
        within && record_len <= self.config.record_len_max()
    }

    /// Whether the open segment must be closed before a record of `record_len` bytes is written.
    pub(in crate::spool) fn must_close_before(&self, record_len: u64, now: Moment) -> bool {
        let (Some(_), Some(segment)) = (&self.open, self.files.segments.back()) else { return false };
        let len = segment.len + record_len + RecordHeader::LEN as u64;
        let full = len > self.config.segment_len();
        let old = now.unix.saturating_sub(segment.created) > nanos(self.config.max_age / AGE_STEPS);
        !segment.has_no_records() && (full || old || self.clock_moved)
    }
}

/// Bytes that records may need beside themselves: the header and the footer of a new segment, and the footer of the segment that
/// is open before it.
const SEGMENT_OVERHEAD: u64 = (SEGMENT_HEADER_LEN + 2 * RecordHeader::LEN) as u64;
/// Most bytes and batches of one write, so that their checksums are made while they are in the cache.
const WRITE_LEN_MAX: u64 = 256 << 10;
const BATCHES_MAX: usize = 512;
