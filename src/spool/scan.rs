//! The scan of a segment: it finds every sound record, whatever else there is.

use std::io;

use bytes::Buf;
use bytes::Bytes;

use crate::spool::record::RecordHeader;
use crate::spool::record::checksum;
use crate::spool::storage::Storage;
use crate::spool::storage::read_full;
use crate::transport::buffer::ReadBuffer;
use crate::transport::buffer::Tail;

/// What a scan comes across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A record whose checksum is right, and its encoded frames. A footer has none.
    Record(RecordHeader, Bytes),
    /// Bytes that are no record. Where they reach the end of the file, a crash may have left them.
    Damage {
        /// Length of the stretch, in bytes.
        len: u64,
    },
}

/// Goes through the records of one segment in the order in which they were written.
///
/// Reads [`READ_LEN`] bytes at a time; the records of one read share its memory. Total: each byte of the file is
/// passed, and none twice.
#[derive(Debug)]
pub(super) struct Scan {
    segment: u64,
    offset: u64,
    /// Bytes of the file from `offset` on: what is left of the last read.
    chunk: Bytes,
    /// Bytes that may still be checked to find out what looks like a record and is none.
    search_budget: Option<u64>,
    /// What is read into.
    blocks: ReadBuffer,
}

impl Scan {
    /// A scan of segment `segment` from `offset` on, where a record begins.
    pub(super) fn new(segment: u64, offset: u64) -> Self {
        Self::reusing(segment, offset, ReadBuffer::default())
    }

    /// The same, with the blocks of another scan.
    pub(super) fn reusing(segment: u64, offset: u64, blocks: ReadBuffer) -> Self {
        Self { segment, offset, chunk: Bytes::new(), search_budget: None, blocks }
    }

    pub(super) fn blocks(&mut self) -> &mut ReadBuffer {
        &mut self.blocks
    }

    /// Ends the scan.
    pub(super) fn into_blocks(self) -> ReadBuffer {
        self.blocks
    }

    /// A scan of the same segment from another offset on.
    pub(super) fn at(&self, offset: u64) -> Self {
        Self::new(self.segment, offset)
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on by one record, or to the end of one stretch of damage. `None` at `end`, before which whatever there is
    /// has been written.
    ///
    /// # Errors
    /// What the system says. The scan stays where it was.
    pub(super) fn next<S: Storage>(
        &mut self,
        storage: &S,
        file: &S::File,
        end: u64,
    ) -> io::Result<Option<Found>> {
        if self.offset >= end {
            return Ok(None);
        }
        if let Some((header, payload)) = self.record(storage, file, end)? {
            return Ok(Some(Found::Record(header, payload)));
        }
        let from = self.offset;
        let result = self.search(storage, file, end);
        if result.is_err() {
            (self.offset, self.chunk) = (from, Bytes::new());
        }
        result.map(|()| Some(Found::Damage { len: self.offset - from }))
    }

    /// Takes the record at the offset; `None`, and nothing is taken, where there is none.
    fn record<S: Storage>(
        &mut self,
        storage: &S,
        file: &S::File,
        end: u64,
    ) -> io::Result<Option<(RecordHeader, Bytes)>> {
        self.fill(storage, file, RecordHeader::LEN as u64, end)?;
        let Some((header, crc)) = self.header(end) else { return Ok(None) };
        self.fill(storage, file, header.record_len(), end)?;
        let Some((head, payload)) = self.chunk.split_first_chunk() else { return Ok(None) };
        let Some(payload) = payload.get(..header.len as usize) else {
            return Ok(None); // the file is shorter than it was
        };
        if checksum(head, payload) != crc {
            return Ok(None);
        }
        let payload = self.chunk.slice_ref(payload);
        self.skip(header.record_len());
        Ok(Some((header, payload)))
    }

    /// What may be a header at the offset, and its checksum.
    fn header(&self, end: u64) -> Option<(RecordHeader, u32)> {
        let (head, _) = self.chunk.split_first_chunk()?;
        let header = RecordHeader::decode(head, self.segment);
        header.filter(|(header, _)| header.record_len() <= end - self.offset)
    }

    /// Goes to the next sound record, or to the end.
    fn search<S: Storage>(&mut self, storage: &S, file: &S::File, end: u64) -> io::Result<()> {
        let number = self.segment.to_le_bytes();
        self.skip(1);
        loop {
            self.fill(storage, file, RecordHeader::LEN as u64, end)?;
            if self.chunk.len() < RecordHeader::LEN {
                self.skip(end - self.offset);
                return Ok(());
            }
            // The number of the segment is at 8..16 of every header.
            let numbers = self.chunk.get(8..).unwrap_or_default();
            let Some(at) = numbers.windows(8).position(|window| window == number) else {
                self.skip(numbers.len() as u64 - 7);
                continue;
            };
            self.skip(at as u64);
            self.fill(storage, file, RecordHeader::LEN as u64, end)?;
            if let Some((header, _)) = self.header(end) {
                let budget = self.search_budget.get_or_insert(end.saturating_mul(SEARCH_EFFORT));
                let Some(rest) = budget.checked_sub(header.record_len()) else {
                    self.skip(end - self.offset);
                    return Ok(());
                };
                *budget = rest;
                let here = self.offset;
                if self.record(storage, file, end)?.is_some() {
                    (self.offset, self.chunk) = (here, Bytes::new());
                    return Ok(());
                }
            }
            self.skip(1);
        }
    }

    /// Has `len` bytes at hand, if there are so many before `end`.
    fn fill<S: Storage>(&mut self, storage: &S, file: &S::File, len: u64, end: u64) -> io::Result<()> {
        let left = end - self.offset;
        if self.chunk.len() as u64 >= len.min(left) {
            return Ok(());
        }
        let to_usize = |len| usize::try_from(len).map_err(io::Error::other);
        // There is room for half of what is asked for, at least.
        let (len_max, left) = (to_usize(READ_LEN.max(2 * len))?, to_usize(left)?);
        let offset = self.offset;
        self.chunk = Bytes::new();
        self.chunk = self.blocks.with_room(&mut Tail::default(), len_max, |block| {
            block.resize(block.capacity().min(len_max).min(left), 0);
            let filled = read_full(storage, file, block, offset);
            block.truncate(*filled.as_ref().unwrap_or(&0));
            filled.map(|_| block.split().freeze())
        })?;
        Ok(())
    }

    fn skip(&mut self, len: u64) {
        self.offset += len;
        self.chunk.advance(self.chunk.len().min(len as usize));
    }
}

/// Most bytes of one read, unless one record has more.
pub(super) const READ_LEN: u64 = 512 << 10;

/// A search for a sound record checks candidates of no more than so many times the length of the file.
const SEARCH_EFFORT: u64 = 4;
