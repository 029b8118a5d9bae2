//! Where the spool is read: batches in the order in which they were appended.

use std::io;

use rustix::io::Errno;

use crate::batch::position::LogPosition;
use crate::protocol::FrameBatch;
use crate::spool::error::SpoolError;
use crate::spool::log::Log;
use crate::spool::moment::Moment;
use crate::spool::record::RecordHeader;
use crate::spool::scan::Found;
use crate::spool::scan::Scan;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_start;
use crate::spool::storage::Storage;
use crate::transport::buffer::ReadBuffer;

/// The place up to which a spool was read, and the segment that is open there.
#[derive(Debug)]
pub(super) struct ReadHead<F> {
    position: LogPosition,
    /// The segment of the position, once it is open.
    scan: Option<(Scan, F)>,
    /// What is read into, while no segment is open.
    blocks: ReadBuffer,
}

/// A sound record.
#[derive(Debug)]
pub(super) struct ReadRecord {
    pub(super) header: RecordHeader,
    pub(super) batch: FrameBatch,
    /// Where it begins.
    pub(super) position: LogPosition,
}

impl<F> ReadHead<F> {
    pub(super) fn new(position: LogPosition) -> Self {
        Self { position, scan: None, blocks: ReadBuffer::default() }
    }

    /// The place up to which everything was read.
    pub(super) fn position(&self) -> LogPosition {
        self.position
    }

    /// Goes to another place.
    pub(super) fn seek(&mut self, position: LogPosition) {
        self.close();
        self.position = position;
    }

    /// Goes on to `position`, if it is ahead: what is before it need not be read.
    pub(super) fn skip_to(&mut self, position: LogPosition) {
        if position.frame_seq > self.position.frame_seq {
            let file = self.close().filter(|_| position.segment == self.position.segment);
            if let Some(file) = file {
                self.open(position, file);
            }
            self.position = position;
        }
    }

    /// Takes the frames before `frame_seq` as read.
    pub(super) fn pass(&mut self, frame_seq: u64) {
        self.position.frame_seq = self.position.frame_seq.max(frame_seq);
    }

    /// Leaves the segments before number `segment`, which are about to go.
    pub(super) fn leave_before(&mut self, segment: u64) {
        if self.position.segment < segment {
            self.seek(segment_start(segment, self.position.frame_seq));
        }
    }

    /// Frees the memory that nobody needed since the last call.
    pub(super) fn free_unused(&mut self) {
        let open = self.scan.as_mut().map(|(scan, _)| scan.blocks());
        open.unwrap_or(&mut self.blocks).free_unused();
    }

    /// The next sound record, whatever its numbers, and goes behind it: the frames count as read when the caller says so,
    /// by [`ReadHead::pass`]. `None` at the end of the log. Marks the segments in which it finds damage.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it may be asked again. A segment whose file is gone is passed over.
    pub(super) fn next_record<S: Storage<File = F>>(
        &mut self,
        log: &mut Log<S>,
        now: Moment,
    ) -> Result<Option<ReadRecord>, SpoolError> {
        loop {
            let Some(segment) = log.readable(self.position.segment) else { return Ok(None) };
            self.leave_before(segment.number);
            let found = match self.scan_on(log.storage(), segment.len) {
                Ok(found) => found,
                // What cannot be read now is not damaged, however long that lasts.
                Err(source) if !is_gone(log, &source) => {
                    return Err(SpoolError::io("read", segment_name(segment.number))(source));
                }
                Err(_) => {
                    log.mark_damaged(segment.number);
                    self.leave_before(segment.number + 1);
                    continue;
                }
            };
            match found {
                Some(Found::Record(header, payload)) if !header.footer => {
                    // The frames of a record that makes no sense are missed when the next one is read.
                    let received = header.received.saturating_add_signed(segment.clock_moved_by);
                    match header.batch_of(payload, segment.frame_seq_end, now.instant_of(received)) {
                        Some(batch) => {
                            let end = self.offset();
                            let offset = end.saturating_sub(header.record_len());
                            let position =
                                LogPosition { offset, frame_seq: header.frame_seq, ..self.position };
                            self.position.offset = end;
                            return Ok(Some(ReadRecord { header, batch, position }));
                        }
                        None => log.mark_damaged(segment.number),
                    }
                }
                Some(Found::Record(..)) => {}
                // A torn tail is what a crash leaves, and no damage.
                Some(Found::Damage { .. }) if self.offset() >= segment.len => {}
                Some(Found::Damage { .. }) => log.mark_damaged(segment.number),
                None if segment.grows => return Ok(None),
                None => self.leave_before(segment.number + 1),
            }
        }
    }

    /// Goes on in the segment of the position, of which `len` bytes are readable.
    fn scan_on<S: Storage<File = F>>(&mut self, storage: &S, len: u64) -> io::Result<Option<Found>> {
        let position = self.position;
        if self.scan.is_none() {
            if position.offset >= len {
                return Ok(None);
            }
            self.open(position, storage.open(&segment_name(position.segment))?);
        }
        let Some((scan, file)) = &mut self.scan else { return Ok(None) };
        scan.next(storage, file, len)
    }

    /// Offset of the next record, in bytes.
    fn offset(&self) -> u64 {
        self.scan.as_ref().map_or(self.position.offset, |(scan, _)| scan.offset())
    }

    fn open(&mut self, position: LogPosition, file: F) {
        let blocks = std::mem::take(&mut self.blocks);
        self.scan = Some((Scan::reusing(position.segment, position.offset, blocks), file));
    }

    /// Gives up the segment. Returns its file.
    fn close(&mut self) -> Option<F> {
        let (scan, file) = self.scan.take()?;
        self.blocks = scan.into_blocks();
        Some(file)
    }
}

/// Whether an error says that the segment is not there any more, and something else may have its name. The folder is asked too:
/// if it cannot be listed, nothing is known.
fn is_gone<S: Storage>(log: &Log<S>, error: &io::Error) -> bool {
    let is_other = error.kind() == io::ErrorKind::InvalidInput
        || error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    is_other || error.kind() == io::ErrorKind::NotFound && log.storage().list().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::config::SyncPolicy;
    use crate::spool::fixture::empty_log;
    use crate::spool::fixture::numbered;
    use crate::spool::sim::SimFile;
    use crate::spool::sim::SimFolder;

    /// Two segments of two records each, and a read head at their beginning. Every record has two frames.
    fn two_segments(folder: &SimFolder, now: Moment) -> (Log<SimFolder>, ReadHead<SimFile>) {
        let mut log = empty_log(folder, SyncPolicy::Batch);
        for _ in 0..2 {
            log.close_segment(log.head(), true).unwrap();
            log.create_segment(log.head(), now).unwrap();
            for _ in 0..2 {
                let batch = numbered(&mut log, 2, now);
                log.append([&batch].into_iter()).unwrap();
            }
        }
        (log, ReadHead::new(segment_start(1, 0)))
    }

    fn read(head: &mut ReadHead<SimFile>, log: &mut Log<SimFolder>, now: Moment) -> Vec<u64> {
        let records = std::iter::from_fn(|| head.next_record(log, now).expect("nothing fails"));
        records.map(|record| record.header.frame_seq).collect()
    }

    #[test]
    fn records_come_in_order_through_all_segments_and_go_on_with_what_is_appended() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let (mut log, mut head) = two_segments(&folder, now);
        assert_eq!(read(&mut head, &mut log, now), [0, 2, 4, 6]);
        let batch = numbered(&mut log, 2, now);
        log.append([&batch].into_iter()).unwrap();
        assert_eq!(read(&mut head, &mut log, now), [8]);
        head.seek(segment_start(2, 4));
        assert_eq!(read(&mut head, &mut log, now), [4, 6, 8]);
    }

    #[test]
    fn what_the_caller_has_is_not_read() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let (mut log, mut head) = two_segments(&folder, now);
        let first = head.next_record(&mut log, now).unwrap().unwrap();
        assert_eq!(first.position, segment_start(1, 0));
        head.pass(2);
        head.skip_to(LogPosition { offset: head.position().offset, frame_seq: 4, segment: 1 });
        assert_eq!(head.position().frame_seq, 4);
        // The record that was skipped comes, and its numbers tell.
        assert_eq!(read(&mut head, &mut log, now), [2, 4, 6]);
        head.skip_to(segment_start(1, 0));
        assert_eq!(read(&mut head, &mut log, now), [0; 0], "a place behind it changes nothing");
    }

    #[test]
    fn a_segment_that_cannot_be_read_is_tried_for_as_long_as_it_lasts_and_one_that_is_gone_is_passed_over() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let (mut log, mut head) = two_segments(&folder, now);
        for attempt in 0..100 {
            folder.fail_after(0, 1);
            assert!(head.next_record(&mut log, now).is_err(), "attempt {attempt}");
        }
        assert_eq!(read(&mut head, &mut log, now), [0, 2, 4, 6]);
        head.seek(segment_start(1, 0));
        folder.unlink(&segment_name(1)).unwrap();
        folder.fail_after(1, 1);
        assert!(head.next_record(&mut log, now).is_err(), "nobody knows whether the folder is there");
        folder.heal();
        assert_eq!(read(&mut head, &mut log, now), [4, 6]);
    }

    #[test]
    fn a_segment_that_goes_is_left() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let (mut log, mut head) = two_segments(&folder, now);
        head.next_record(&mut log, now).unwrap();
        head.leave_before(2);
        log.remove_front().unwrap();
        assert_eq!(read(&mut head, &mut log, now), [4, 6]);
    }
}
