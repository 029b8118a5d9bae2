//! The segment that is written to.

use std::io;
use std::io::IoSlice;

use crate::batch::connection::ConnectionId;
use crate::batch::position::LogPosition;
use crate::spool::numbered::NumberedBatch;
use crate::spool::record::RecordHeader;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::Segment;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::segment_name;
use crate::spool::storage::Storage;
use crate::spool::storage::write_all;

/// The open file of the last segment. What the log knows of that segment is its [`Segment`].
#[derive(Debug)]
pub(super) struct OpenSegment<F> {
    file: F,
    /// Bytes of the file that are durable, or as good as the configuration wants them: synced <= len of the segment.
    synced: u64,
    /// The name of the file is not known to be durable.
    unnamed: bool,
}

impl<F> OpenSegment<F> {
    /// Creates the file of a segment, and writes its header, which becomes durable with the first records.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken; what the system says.
    pub(super) fn create<S: Storage<File = F>>(storage: &S, header: &SegmentHeader) -> io::Result<Self> {
        let name = segment_name(header.segment);
        let file = storage.create(&name)?;
        if let Err(error) = write_all(storage, &file, &mut [IoSlice::new(&header.encode())], 0) {
            // If the file stays, it is a segment of no records, which does no harm.
            let _ = storage.unlink(&name);
            return Err(error);
        }
        Ok(Self { file, synced: SEGMENT_HEADER_LEN as u64, unnamed: true })
    }

    /// Reserves room on the disk: what is written there takes less work. Nothing depends on it.
    pub(super) fn reserve<S: Storage<File = F>>(&self, storage: &S, len: u64) {
        let _ = storage.reserve(&self.file, len);
    }

    /// Whether the disk has room for a segment of `len` bytes: reserves it.
    ///
    /// # Errors
    /// What the system says: nothing is known where the file system cannot reserve room.
    pub(super) fn has_room<S: Storage<File = F>>(&self, storage: &S, len: u64) -> io::Result<()> {
        storage.reserve(&self.file, len)
    }

    /// Writes batches to the end of the segment, as one write. Returns where each begins.
    ///
    /// # Errors
    /// What the system says. Any part of the batches may be in the file; the segment does not count it.
    pub(super) fn append<'a, S: Storage<File = F>>(
        &self,
        storage: &S,
        segment: &mut Segment,
        batches: impl Iterator<Item = &'a NumberedBatch> + Clone,
    ) -> io::Result<Vec<LogPosition>> {
        let headers: Vec<_> = batches.clone().map(|batch| batch.encode_header(segment.number)).collect();
        let mut buffers = Vec::with_capacity(2 * headers.len());
        let mut positions = Vec::with_capacity(headers.len());
        let mut offset = segment.len;
        for (header, batch) in headers.iter().zip(batches.clone()) {
            buffers.push(IoSlice::new(header));
            buffers.push(IoSlice::new(batch.batch.bytes()));
            positions.push(LogPosition { segment: segment.number, offset, frame_seq: batch.frame_seq });
            offset += batch.record_len();
        }
        write_all(storage, &self.file, &mut buffers, segment.len)?;
        let youngest = batches.map(|batch| batch.received).max();
        segment.youngest = segment.youngest.max(youngest.unwrap_or(0));
        segment.len = offset;
        Ok(positions)
    }

    /// Cuts off what a write that failed has left behind `len` bytes. Returns whether that is sure to be gone.
    pub(super) fn cut_back<S: Storage<File = F>>(&self, storage: &S, len: u64, durable: bool) -> bool {
        let cut = storage.truncate(&self.file, len);
        cut.and_then(|()| if durable { storage.sync(&self.file) } else { Ok(()) }).is_ok()
    }

    /// Cuts off whole records, from `len` bytes on. Returns whether they are sure to be gone.
    pub(super) fn cut_to<S: Storage<File = F>>(&mut self, storage: &S, len: u64, durable: bool) -> bool {
        let cut = self.cut_back(storage, len, durable);
        if cut {
            self.synced = self.synced.min(len);
        }
        cut
    }

    /// Makes durable what the segment has.
    ///
    /// # Errors
    /// What the system says. Then the segment must be abandoned.
    pub(super) fn sync<S: Storage<File = F>>(&mut self, storage: &S, len: u64) -> io::Result<()> {
        storage.sync(&self.file)?;
        if self.unnamed {
            storage.sync_folder()?;
            self.unnamed = false;
        }
        self.synced = len;
        Ok(())
    }

    /// Takes what the segment has as good enough, without a sync.
    pub(super) fn trust(&mut self, len: u64) {
        self.synced = len;
    }

    /// Whether the file has this name in the folder, and as many bytes at least.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn has_name<S: Storage<File = F>>(
        &self,
        storage: &S,
        name: &str,
        len: u64,
    ) -> io::Result<bool> {
        Ok(storage.has_name(&self.file, name)? && storage.len(&self.file)? >= len)
    }

    /// Writes the footer, and gives back the room that was reserved. `frame_seq` is the number of the frame after the
    /// last of the segment. Failures do no harm: the whole segment is read at the next start.
    pub(super) fn end<S: Storage<File = F>>(&self, storage: &S, segment: &mut Segment, frame_seq: u64) {
        let footer = RecordHeader {
            len: 0,
            segment: segment.number,
            frame_seq,
            frames: 0,
            footer: true,
            connection: ConnectionId::default(),
            received: segment.youngest,
        };
        let footer = footer.encode(&[]);
        if write_all(storage, &self.file, &mut [IoSlice::new(&footer)], segment.len).is_ok() {
            segment.len += footer.len() as u64;
        }
        let _ = storage.truncate(&self.file, segment.len);
    }

    /// Cuts the segment to what is durable. What stays in the file is a torn tail, or copies under the same numbers.
    pub(super) fn abandon<S: Storage<File = F>>(self, storage: &S, segment: &mut Segment) {
        segment.len = self.synced;
        let _ = storage.truncate(&self.file, segment.len);
    }
}
