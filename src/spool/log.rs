//! The segments on disk: which there are, which one is written to, and how much room they take. What they have room for is in
//! `room`, and what goes from them in `removal`.

mod removal;
mod room;

use std::collections::VecDeque;
use std::io;

use crate::batch::position::LogPosition;
use crate::protocol::ContentType;
use crate::spool::config::SpoolConfig;
use crate::spool::config::SyncPolicy;
use crate::spool::error::SpoolError;
use crate::spool::moment::Moment;
use crate::spool::numbered::NumberedBatch;
use crate::spool::open_segment::OpenSegment;
use crate::spool::refusal::Refusal;
use crate::spool::segment::Segment;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_start;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;

/// The segments of one spool, and the files that were set aside from them.
///
/// Segments and frames are numbered; no number is used twice.
#[derive(Debug)]
pub(super) struct Log<S: Storage> {
    storage: S,
    config: SpoolConfig,
    files: LogFiles,
    open: Option<OpenSegment<S::File>>,
    /// Bytes of all files on disk, except the cursor file.
    bytes: u64,
    /// The disk took no more although it showed room.
    refusal: Option<Refusal>,
    /// The clock was set: the open segment takes no more records, so that each segment has one clock.
    clock_moved: bool,
}

/// The files of a log.
#[derive(Debug)]
pub(super) struct LogFiles {
    /// Which spool this is, in every file of it.
    pub(super) id: [u8; 16],
    /// Content type of the frames; `None` where streams of any type, or none, are taken.
    pub(super) content_type: Option<ContentType>,
    /// Oldest first. The last one is written to while a segment is open.
    pub(super) segments: VecDeque<Segment>,
    /// Number of the next segment.
    pub(super) segment_next: u64,
    /// Files that were set aside, oldest first.
    pub(super) aside: VecDeque<Entry>,
    /// Number of the next frame to be appended.
    pub(super) head: u64,
}

/// What a reader may read of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readable {
    /// Number of the segment.
    pub(super) number: u64,
    /// Bytes that may be read.
    pub(super) len: u64,
    /// The segment is written to: more may come.
    pub(super) grows: bool,
    /// Number of the frame after the last one that a record of it may have.
    pub(super) frame_seq_end: u64,
    /// What its times are to be moved by, in nanoseconds: the clock was set since they were written.
    pub(super) clock_moved_by: i64,
}

impl<S: Storage> Log<S> {
    pub(super) fn new(storage: S, config: SpoolConfig, files: LogFiles) -> Self {
        let segments = files.segments.iter().map(|segment| segment.len).sum::<u64>();
        let aside = files.aside.iter().map(|entry| entry.len).sum::<u64>();
        Self {
            storage,
            config,
            files,
            open: None,
            bytes: segments.saturating_add(aside),
            refusal: None,
            clock_moved: false,
        }
    }

    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    pub(super) fn config(&self) -> &SpoolConfig {
        &self.config
    }

    /// Bytes of all files on disk, except the cursor file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn segments_count(&self) -> usize {
        self.files.segments.len()
    }

    pub(super) fn aside_count(&self) -> usize {
        self.files.aside.len()
    }

    /// Number of the next frame to be appended.
    pub(super) fn head(&self) -> u64 {
        self.files.head
    }

    /// The place behind everything.
    pub(super) fn end(&self) -> LogPosition {
        match self.files.segments.back() {
            Some(last) => LogPosition { segment: last.number, offset: last.len, frame_seq: self.head() },
            None => segment_start(self.files.segment_next, self.head()),
        }
    }

    /// Gives the next `frames` frames their numbers. Returns the first of them.
    pub(super) fn take_numbers(&mut self, frames: u32) -> u64 {
        let first = self.files.head;
        self.files.head += u64::from(frames);
        first
    }

    /// Takes the last `frames` numbers back, which no record has.
    pub(super) fn return_numbers(&mut self, frames: u64) {
        self.files.head -= frames;
    }

    // What is written.

    /// Whether a segment is open to be written to.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Begins a segment. Its number was never used before.
    ///
    /// # Errors
    /// What the system says. No segment is open then.
    pub(super) fn create_segment(&mut self, frame_seq: u64, now: Moment) -> io::Result<()> {
        for _ in 0..TAKEN_NAMES_MAX {
            let header = SegmentHeader {
                spool: self.files.id,
                segment: self.files.segment_next,
                frame_seq,
                created: now.unix,
                content_type: self.files.content_type.clone(),
            };
            self.files.segment_next += 1;
            let open = match OpenSegment::create(&self.storage, &header) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            // Room is reserved only where `min_free` leaves enough of it.
            let free = self.storage.free_bytes().unwrap_or(0);
            let len = self.config.segment_len().min(self.limit_room());
            if free > self.config.min_free.saturating_add(2 * self.config.segment_len()) {
                open.reserve(&self.storage, len);
            }
            let segment = Segment::begun(&header);
            self.bytes += segment.len;
            self.files.segments.push_back(segment);
            self.open = Some(open);
            self.clock_moved = false;
            return Ok(());
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes batches to the end of the open segment, as one write. Returns where each begins.
    ///
    /// # Errors
    /// What the system says. Any part of the batches may be in the file; the log does not count it.
    pub(super) fn append<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a NumberedBatch> + Clone,
    ) -> io::Result<Vec<LogPosition>> {
        let (Some(open), Some(segment)) = (&self.open, self.files.segments.back_mut()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let len_before = segment.len;
        let positions = open.append(&self.storage, segment, batches)?;
        self.bytes += segment.len - len_before;
        Ok(positions)
    }

    /// Cuts off what a write that failed has left in the open segment. Returns whether that is sure to be gone.
    pub(super) fn cut_back(&self) -> bool {
        let (Some(open), Some(segment)) = (&self.open, self.files.segments.back()) else { return true };
        open.cut_back(&self.storage, segment.len, self.syncs())
    }

    /// Removes everything from `position` on, where a record begins. Returns whether that is sure to be gone.
    pub(super) fn take_back(&mut self, position: LogPosition) -> bool {
        while let Some(last) = self.files.segments.back().filter(|last| last.number > position.segment) {
            if self.storage.unlink(&segment_name(last.number)).is_err() {
                return false;
            }
            self.open = None;
            self.bytes -= last.len;
            self.files.segments.pop_back();
        }
        let syncs = self.syncs();
        let Some(last) = self.files.segments.back_mut().filter(|last| last.number == position.segment) else {
            return false;
        };
        let cut = match &mut self.open {
            Some(open) => open.cut_to(&self.storage, position.offset, syncs),
            None => {
                let file = self.storage.open(&segment_name(last.number));
                file.is_ok_and(|file| self.storage.truncate(&file, position.offset).is_ok())
            }
        };
        if cut {
            self.bytes -= last.len - position.offset;
            last.len = position.offset;
        }
        cut
    }

    /// Makes durable what the open segment has, as far as the configuration wants it.
    ///
    /// # Errors
    /// What the system says. Then the segment must be abandoned: see [`Log::abandon_segment`].
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let syncs = self.syncs();
        if let (Some(open), Some(segment)) = (&mut self.open, self.files.segments.back()) {
            if syncs {
                open.sync(&self.storage, segment.len)?;
            } else {
                open.trust(segment.len);
            }
        }
        Ok(())
    }

    /// Closes the open segment, in order: with a footer, and durable where `durable` asks for it. `frame_seq` is the
    /// number of the frame after its last.
    ///
    /// # Errors
    /// What the system says of the sync. Then the segment is still open, and must be abandoned.
    pub(super) fn close_segment(&mut self, frame_seq: u64, durable: bool) -> io::Result<()> {
        let syncs = self.syncs() && durable;
        let (Some(open), Some(segment)) = (&mut self.open, self.files.segments.back_mut()) else {
            return Ok(());
        };
        let len_before = segment.len;
        open.end(&self.storage, segment, frame_seq);
        self.bytes += segment.len - len_before;
        if syncs {
            open.sync(&self.storage, segment.len)?;
        }
        self.open = None;
        Ok(())
    }

    /// Gives up the open segment after a failed write or sync: only what was durable before counts. (After a failed sync
    /// the kernel takes its pages for clean, and the next sync would succeed with the data gone.)
    pub(super) fn abandon_segment(&mut self) {
        let syncs = self.syncs();
        let (Some(mut open), Some(segment)) = (self.open.take(), self.files.segments.back_mut()) else {
            return;
        };
        let len_before = segment.len;
        if !syncs {
            open.trust(segment.len);
        }
        open.abandon(&self.storage, segment);
        self.bytes -= len_before - segment.len;
        if segment.has_no_records() && self.storage.unlink(&segment_name(segment.number)).is_ok() {
            self.bytes -= segment.len;
            self.files.segments.pop_back();
        }
    }

    /// Removes the open segment if it has no records.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub(super) fn discard_empty_segment(&mut self) -> Result<(), SpoolError> {
        let Some(last) = self.files.segments.back().filter(|_| self.open.is_some()) else { return Ok(()) };
        if !last.has_no_records() {
            return Ok(());
        }
        self.open = None;
        let name = segment_name(last.number);
        self.storage.unlink(&name).map_err(SpoolError::io("remove", name))?;
        self.bytes -= last.len;
        self.files.segments.pop_back();
        Ok(())
    }

    /// Whether the configuration wants anything to be made durable.
    fn syncs(&self) -> bool {
        self.config.sync != SyncPolicy::None
    }

    // What is read.

    /// The first segment from `number` on.
    pub(super) fn readable(&self, number: u64) -> Option<Readable> {
        let index = self.files.segments.partition_point(|segment| segment.number < number);
        let segment = self.files.segments.get(index)?;
        let grows = index + 1 == self.files.segments.len() && self.open.is_some();
        let &Segment { number, len, frame_seq_end, clock_moved_by, .. } = segment;
        let frame_seq_end = if frame_seq_end > 0 { frame_seq_end } else { u64::MAX };
        Some(Readable { number, len, grows, frame_seq_end, clock_moved_by })
    }

    /// The clock was set by so many nanoseconds: what was written before is as old as it was.
    pub(super) fn move_clock(&mut self, step: i64) {
        for segment in &mut self.files.segments {
            segment.created = segment.created.saturating_add_signed(step);
            if !segment.has_no_records() {
                segment.youngest = segment.youngest.saturating_add_signed(step);
                segment.clock_moved_by = segment.clock_moved_by.saturating_add(step);
            }
        }
        for file in &mut self.files.aside {
            file.modified = file.modified.saturating_add_signed(step);
        }
        self.clock_moved = true;
    }

    /// Notes that something in a segment is damaged.
    pub(super) fn mark_damaged(&mut self, number: u64) {
        if let Ok(index) = self.files.segments.binary_search_by_key(&number, |segment| segment.number)
            && let Some(segment) = self.files.segments.get_mut(index)
        {
            segment.damaged = true;
        }
    }

    /// Number of the next segment.
    pub(super) fn segment_next(&self) -> u64 {
        self.files.segment_next
    }

    /// Has the next segments begin with this number at least.
    pub(super) fn begin_segments_at(&mut self, number: u64) {
        self.files.segment_next = self.files.segment_next.max(number);
    }
}

/// A segment takes frames for this part of the time that they are kept.
pub(super) const AGE_STEPS: u32 = 8;

/// After so many names that others have taken, something else is wrong.
const TAKEN_NAMES_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::connection::ConnectionId;
    use crate::spool::fixture::batch;
    use crate::spool::fixture::empty_log;
    use crate::spool::fixture::numbered;
    use crate::spool::sim::SimFolder;

    /// A log with `segments` segments of two frames each, of which the last is open.
    fn log(folder: &SimFolder, segments: usize, now: Moment) -> Log<SimFolder> {
        let mut log = empty_log(folder, SyncPolicy::Batch);
        for _ in 0..segments {
            log.close_segment(log.head(), true).unwrap();
            log.create_segment(log.head(), now).unwrap();
            let batch = numbered(&mut log, 2, now);
            log.append([&batch].into_iter()).unwrap();
        }
        log
    }

    #[test]
    fn bytes_are_those_of_the_files() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let mut log = log(&folder, 3, now);
        assert_eq!((log.bytes(), log.segments_count()), (folder.bytes(), 3));
        log.mark_damaged(1);
        log.remove_front().unwrap();
        assert_eq!(folder.names()[0], "seg-0000000000000001.fsr.bad");
        assert_eq!((log.bytes(), log.aside_count()), (folder.bytes(), 1));
        assert!(log.remove_aside() && !log.remove_aside());
        log.remove_front().unwrap();
        assert_eq!(log.bytes(), folder.bytes());
        assert_eq!(log.end_of(1), None, "the open segment stays");
    }

    #[test]
    fn what_was_not_durable_does_not_count_in_a_segment_that_is_given_up() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let mut log = log(&folder, 1, now);
        log.sync().unwrap();
        let durable = log.end();
        let batch = numbered(&mut log, 5, now);
        log.append([&batch].into_iter()).unwrap();
        log.abandon_segment();
        assert_eq!((log.end().offset, log.bytes()), (durable.offset, folder.bytes()));
        assert!(!log.is_open() && log.end_of(1).is_some());
    }

    #[test]
    fn a_segment_without_durable_records_goes_when_it_is_given_up() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let mut log = log(&folder, 1, now);
        log.abandon_segment();
        assert_eq!((folder.names().len(), log.bytes(), log.segments_count()), (0, 0, 0));
        log.create_segment(log.head(), now).unwrap();
        assert_eq!(log.end().segment, 2, "no number is used twice");
        log.discard_empty_segment().unwrap();
        assert_eq!((folder.names().len(), log.bytes()), (0, 0));
    }

    #[test]
    fn a_write_that_failed_is_cut_back() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let mut log = log(&folder, 1, now);
        let bytes = folder.bytes();
        let batch = numbered(&mut log, 2, now);
        folder.fail_after(0, 1);
        assert!(log.append([&batch].into_iter()).is_err());
        assert!(folder.bytes() > bytes, "half of it is there");
        assert!(log.cut_back());
        assert_eq!((folder.bytes(), log.bytes()), (bytes, bytes));
    }

    #[test]
    fn a_run_keeps_within_a_segment_and_the_spool() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let mut log = empty_log(&folder, SyncPolicy::Batch);
        let batches: Vec<_> = (0..100).map(|_| (ConnectionId::default(), batch(10, now))).collect();
        let run = log.run_that_fits(&batches);
        assert_eq!(run.len(), 6, "a segment has 64 KiB, and 6 of 10 080 bytes fit");
        folder.limit(Some(20_000));
        assert_eq!(log.run_that_fits(&batches).len(), 1);
        folder.limit(None);
        log.create_segment(0, now).unwrap();
        let long = numbered(&mut log, 60, now);
        log.append([&long].into_iter()).unwrap();
        assert!(log.must_close_before(10_080, now) && !log.must_close_before(100, now));
    }
}
