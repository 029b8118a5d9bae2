//! The reading end: batches in the order in which they were appended, and the watermark below which they are
//! acknowledged.

use std::io;

use crate::protocol::FrameBatch;
use crate::spool::Spool;
use crate::spool::connection::ConnectionId;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::position::LogPosition;
use crate::spool::record::RecordHeader;
use crate::spool::segment::Found;
use crate::spool::segment::Scan;
use crate::spool::segment::segment_name;
use crate::spool::storage::Storage;
use crate::transport::buffer::ReadBuffer;

/// Where the reader is.
#[derive(Debug)]
pub(super) struct Reader<F> {
    pub(super) position: LogPosition,
    /// The segment of the position, once it is open.
    scan: Option<(Scan, F)>,
    /// Attempts that failed since the last that did not.
    failures: u32,
    /// What is read into, while no segment is open.
    blocks: ReadBuffer,
}

impl<F> Reader<F> {
    pub(super) fn new(position: LogPosition) -> Self {
        Self { position, scan: None, failures: 0, blocks: ReadBuffer::default() }
    }

    pub(super) fn seek(&mut self, position: LogPosition) {
        self.close();
        self.position = position;
        self.failures = 0;
    }

    /// Gives up the segment. Returns its file.
    fn close(&mut self) -> Option<F> {
        let (scan, file) = self.scan.take()?;
        self.blocks = scan.into_blocks();
        Some(file)
    }

    fn open(&mut self, position: LogPosition, file: F) -> &mut (Scan, F) {
        let blocks = std::mem::take(&mut self.blocks);
        self.scan.insert((Scan::reusing(position.segment, position.offset, blocks), file))
    }

    /// Frees the memory that nobody needed since the last call.
    pub(super) fn free_unused(&mut self) {
        let open = self.scan.as_mut().map(|(scan, _)| scan.blocks());
        open.unwrap_or(&mut self.blocks).free_unused();
    }
}

impl<S: Storage> Spool<S> {
    /// The next batch and the place behind it, for [`Spool::done`]. `None` when everything readable was read.
    ///
    /// Under [`SyncPolicy::Batch`](crate::spool::SyncPolicy::Batch) only what is durable is readable. Batches of one read
    /// share its memory.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it may be asked again; a segment that cannot be read three times is passed over.
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
        loop {
            let Some(index) = self.segment_from(self.reader.position.segment) else {
                return Ok(self.next_beyond_segments());
            };
            let last = index + 1 == self.segments.len();
            let Some(segment) = self.segments.get_mut(index) else { return Ok(None) };
            if segment.number != self.reader.position.segment {
                let frame_seq = self.reader.position.frame_seq;
                self.reader.seek(LogPosition::at_start(segment.number, frame_seq));
            }
            let found = scan_on(&self.storage, &mut self.reader, segment.len);
            let found = match found {
                Ok(found) => found,
                Err(source) => {
                    self.reader.failures += 1;
                    if self.reader.failures < READ_TRIES || is_passing(&source) {
                        let name = segment_name(segment.number);
                        return Err(SpoolError::io("read", name)(source));
                    }
                    segment.damaged = true;
                    self.reader
                        .seek(LogPosition::at_start(segment.number + 1, self.reader.position.frame_seq));
                    continue;
                }
            };
            self.reader.failures = 0;
            match found {
                Some(Found::Record(header, payload)) if !header.footer => {
                    let behind = self.reader.behind(&header);
                    let Ok(batch) = FrameBatch::parse(payload, u32::MAX, now.instant_of(header.received))
                    else {
                        segment.damaged = true; // the frames are missed when the next are seen
                        continue;
                    };
                    if batch.frames() != header.frames {
                        segment.damaged = true;
                        continue;
                    }
                    if self.is_new(&header) {
                        self.miss_until(header.frame_seq);
                        self.reader.position = behind;
                        return Ok(Some((header.connection, batch, behind)));
                    }
                }
                Some(Found::Record(..)) => {}
                Some(Found::Damage { .. }) => {
                    let at_end =
                        self.reader.scan.as_ref().is_none_or(|(scan, _)| scan.offset() >= segment.len);
                    // A torn tail is what a crash leaves.
                    segment.damaged |= !at_end;
                }
                None if last && self.open.is_some() => {
                    self.miss_until(self.head);
                    return Ok(None);
                }
                None => {
                    self.reader
                        .seek(LogPosition::at_start(segment.number + 1, self.reader.position.frame_seq));
                }
            }
        }
    }

    /// Everything up to `position`, which [`Spool::next`] or [`Spool::append`] gave, is delivered. Returns how many
    /// frames were acknowledged by it: not those that were reported as lost in the meantime.
    pub fn done(&mut self, position: LogPosition, now: Moment) -> u64 {
        if position.frame_seq <= self.watermark.frame_seq || position.frame_seq > self.head {
            return 0;
        }
        let frames = position.frame_seq - self.watermark.frame_seq;
        let acknowledged = frames - self.gaps.remove_below(position.frame_seq);
        self.watermark = position;
        self.pass_gaps();
        self.forget_acknowledged();
        self.cursor_due.get_or_insert(now.instant + self.cursor_interval());
        acknowledged
    }

    /// Reads again what is not acknowledged, from the oldest on: after a failed delivery.
    pub fn rewind(&mut self) {
        self.reader.seek(self.watermark);
    }

    /// Whether everything that was appended has been read. Then a batch may be passed on from memory, as soon as it is
    /// appended, with [`Spool::skip_to`].
    pub fn reader_caught_up(&self) -> bool {
        self.reader.position.frame_seq >= self.head
    }

    /// Takes everything up to `position`, which [`Spool::append`] gave, as read: the caller has it.
    pub fn skip_to(&mut self, position: LogPosition) {
        if position.frame_seq > self.reader.position.frame_seq {
            let file = self.reader.close().filter(|_| position.segment == self.reader.position.segment);
            if let Some(file) = file {
                self.reader.open(position, file);
            }
            self.reader.position = position;
        }
    }

    /// Behind the last segment: what is in memory only, or nothing.
    fn next_beyond_segments(&mut self) -> Option<(ConnectionId, FrameBatch, LogPosition)> {
        if !self.homeless {
            self.miss_until(self.head);
            return None;
        }
        let frame_seq = self.reader.position.frame_seq;
        let kept = self.unsynced.iter().find(|kept| kept.frame_seq >= frame_seq)?;
        let end = kept.frame_seq + u64::from(kept.batch.frames());
        let (first, connection, batch) = (kept.frame_seq, kept.connection, kept.batch.clone());
        self.miss_until(first);
        self.reader.position = LogPosition { frame_seq: end, ..self.reader.position };
        Some((connection, batch, self.reader.position))
    }

    /// Whether a record is neither one that was read before, nor one that is lost.
    fn is_new(&self, header: &RecordHeader) -> bool {
        header.frame_seq_end() > self.reader.position.frame_seq
            && self.gaps.end_of(header.frame_seq).is_none()
    }

    /// What lies before `frame_seq` and was not read is lost.
    fn miss_until(&mut self, frame_seq: u64) {
        let missed = self.reader.position.frame_seq..frame_seq;
        if !missed.is_empty() {
            self.reader.position.frame_seq = frame_seq;
            let frames = self.gaps.insert(missed);
            self.count_lost(LossReason::Damaged, frames);
            self.pass_gaps();
        }
    }

    /// Moves the watermark over what is lost.
    pub(super) fn pass_gaps(&mut self) {
        if let Some(end) = self.gaps.end_of(self.watermark.frame_seq) {
            self.gaps.remove_below(end);
            self.watermark.frame_seq = end;
        }
        if self.reader.position.frame_seq < self.watermark.frame_seq {
            self.reader.position.frame_seq = self.watermark.frame_seq;
        }
    }
}

impl<F> Reader<F> {
    /// The place behind the record that was found last.
    fn behind(&self, header: &RecordHeader) -> LogPosition {
        let offset = self.scan.as_ref().map_or(self.position.offset, |(scan, _)| scan.offset());
        LogPosition { offset, frame_seq: header.frame_seq_end(), ..self.position }
    }
}

/// Goes on in the reader's segment, of which `len` bytes are readable.
fn scan_on<S: Storage>(storage: &S, reader: &mut Reader<S::File>, len: u64) -> io::Result<Option<Found>> {
    let position = reader.position;
    if reader.scan.is_none() {
        if position.offset >= len {
            return Ok(None);
        }
        reader.open(position, storage.open(&segment_name(position.segment))?);
    }
    let Some((scan, file)) = &mut reader.scan else { return Ok(None) };
    scan.next(storage, file, len)
}

/// Whether an error says nothing about the file.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::AGAIN))
}

/// A segment is read so many times before it is passed over.
const READ_TRIES: u32 = 3;
