//! Looking at a spool without touching it, in use or not.
//!
//! No lock is taken and nothing is changed. A spool in use goes on meanwhile: a segment may be gone when it is to be
//! read, and the last record of the last one may be half there.

use std::io;

use crate::protocol::ContentType;
use crate::queue::spool::CursorSlot;
use crate::queue::spool::SpoolError;
use crate::queue::spool::cursor::CURSOR_NAME;
use crate::queue::spool::cursor::Cursor;
use crate::queue::spool::segment::Found;
use crate::queue::spool::segment::SEGMENT_HEADER_LEN;
use crate::queue::spool::segment::Scan;
use crate::queue::spool::segment::SegmentHeader;
use crate::queue::spool::segment::read_footer;
use crate::queue::spool::segment::read_header;
use crate::queue::spool::segment::segment_name;
use crate::queue::spool::segment::segment_of;
use crate::queue::spool::storage::Entry;
use crate::queue::spool::storage::Storage;
use crate::queue::spool::upkeep::BAD_SUFFIX;

/// What is in the folder of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Up to where everything was acknowledged; `None` where no sound cursor is there.
    pub cursor: Option<CursorSlot>,
    /// Segments, oldest first.
    pub segments: Vec<InspectedSegment>,
    /// Files that were set aside.
    pub bad: Vec<Entry>,
    /// What else is there.
    pub foreign: Vec<Entry>,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSegment {
    /// The file.
    pub file: Entry,
    /// Its number, by its name.
    pub number: u64,
    /// Its header; `None` where that is damaged.
    pub header: Option<SegmentHeader>,
    /// Number of the frame after its last; `None` where it was not closed in order, or is written to now.
    pub frame_seq_end: Option<u64>,
}

impl Inspected {
    /// Content type of the newest segment that has a sound header.
    pub fn content_type(&self) -> Option<&ContentType> {
        let newest = self.segments.iter().rev().find_map(|segment| segment.header.as_ref());
        newest.and_then(|header| header.content_type.as_ref())
    }
}

/// Lists a folder, and reads cursor, headers and footers.
///
/// # Errors
/// [`SpoolError::Io`] for the folder itself. Files that cannot be read count as damaged.
pub fn inspect<S: Storage>(storage: &S) -> Result<Inspected, SpoolError> {
    let mut inspected = Inspected::default();
    for entry in storage.list().map_err(SpoolError::io("list", "the folder"))? {
        match segment_of(&entry.name) {
            Some(number) if entry.regular && entry.name == segment_name(number) => {
                let file = storage.open(&entry.name).ok();
                let header = file.as_ref().and_then(|file| read_header(storage, file).ok()?);
                let footer =
                    file.as_ref().and_then(|file| read_footer(storage, file, number, entry.len).ok()?);
                inspected.segments.push(InspectedSegment {
                    number,
                    header,
                    frame_seq_end: footer.map(|footer| footer.frame_seq),
                    file: entry,
                });
            }
            _ if entry.regular && entry.name.ends_with(BAD_SUFFIX) => inspected.bad.push(entry),
            _ if entry.regular && entry.name == CURSOR_NAME => {
                let file = storage.open(CURSOR_NAME).ok();
                inspected.cursor = file.and_then(|file| Cursor::read(storage, &file).ok()?);
            }
            _ => inspected.foreign.push(entry),
        }
    }
    inspected.segments.sort_by_key(|segment| segment.number);
    Ok(inspected)
}

/// The records of one file, in order, and the damage between them. Files that were set aside can be read too.
#[derive(Debug)]
pub struct SegmentItems<'a, S: Storage> {
    storage: &'a S,
    file: S::File,
    scan: Scan,
    len: u64,
}

impl<'a, S: Storage> SegmentItems<'a, S> {
    /// Opens the file `name`. Where neither name nor header tell the number of the segment, nothing will be found.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(storage: &'a S, name: &str) -> io::Result<Self> {
        let file = storage.open(name)?;
        let len = storage.len(&file)?;
        let header = read_header(storage, &file).unwrap_or(None);
        let number = header.map(|header| header.segment).or_else(|| segment_of(name)).unwrap_or(0);
        Ok(Self { storage, file, scan: Scan::new(number, SEGMENT_HEADER_LEN as u64), len })
    }

    /// Offset of what comes next, in bytes.
    pub fn offset(&self) -> u64 {
        self.scan.offset()
    }
}

impl<S: Storage> Iterator for SegmentItems<'_, S> {
    type Item = io::Result<Found>;

    /// After an error it is the same again: stop there.
    fn next(&mut self) -> Option<Self::Item> {
        self.scan.next(self.storage, &self.file, self.len).transpose()
    }
}
