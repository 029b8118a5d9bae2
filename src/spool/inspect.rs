//! Looking at a spool without touching it, in use or not.
//!
//! No lock is taken and nothing is changed. A spool in use goes on meanwhile: a segment may be gone when it is to be
//! read, and the last record of the last one may be half there.

use std::io;

use crate::protocol::ContentType;
use crate::spool::aside::is_set_aside;
use crate::spool::cursor::CURSOR_NAME;
use crate::spool::cursor::Cursor;
use crate::spool::cursor::CursorSlot;
use crate::spool::cursor::FoundCursor;
use crate::spool::error::SpoolError;
use crate::spool::identity::identify;
use crate::spool::scan::Found;
use crate::spool::scan::Scan;
use crate::spool::segment::FoundHeader;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::read_footer;
use crate::spool::segment::read_header;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_of;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;

/// What is in the folder of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Which spool this is; `None` where no file tells.
    pub spool: Option<[u8; 16]>,
    /// Up to where everything was acknowledged; `None` where no sound cursor of this spool is there.
    pub cursor: Option<CursorSlot>,
    /// Whether there is a cursor file all the same.
    pub cursor_damaged: bool,
    /// The version of the format of the cursor, where it is one that is not known here.
    pub cursor_version: Option<u32>,
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
    /// The version of the format, where it is one that is not known here: then nothing of the file can be read.
    pub other_version: Option<u32>,
    /// Number of the frame after its last; `None` where it was not closed in order, or is written to now.
    pub frame_seq_end: Option<u64>,
    /// When its youngest frame was read, in nanoseconds of Unix time; `None` as above.
    pub youngest: Option<u64>,
}

impl Inspected {
    /// The newest sound header of this spool: its content type is that of the spool.
    pub fn newest_header(&self) -> Option<&SegmentHeader> {
        let headers = self.segments.iter().rev().filter_map(|segment| segment.header.as_ref());
        headers.filter(|header| Some(header.spool) == self.spool).max_by_key(|header| header.segment)
    }

    /// Why an output with this content type could not use the spool; `None` where it could. A recovery decides the same.
    pub fn refusal(&self, content_type: Option<&ContentType>) -> Option<SpoolError> {
        if let Some(version) = self.cursor_version {
            return Some(SpoolError::other_version(CURSOR_NAME, version));
        }
        let mut segments = self.segments.iter();
        let other = segments.find_map(|segment| Some((&segment.file.name, segment.other_version?)));
        if let Some((name, version)) = other {
            return Some(SpoolError::other_version(name, version));
        }
        let headers =
            self.segments.iter().filter_map(|segment| Some((&segment.file.name, segment.header.as_ref()?)));
        let mut own = headers.filter(|(_, header)| Some(header.spool) == self.spool);
        let (name, header) = own.find(|(_, header)| header.content_type.as_ref() != content_type)?;
        Some(SpoolError::other_content_type(name, header.content_type.as_ref(), content_type))
    }

    /// Whether there is nothing of a spool.
    pub fn is_no_spool(&self) -> bool {
        self.segments.is_empty() && self.bad.is_empty() && self.cursor.is_none() && !self.cursor_damaged
    }
}

/// Lists a folder, and reads cursor, headers and footers.
///
/// # Errors
/// [`SpoolError::Io`] for the folder itself. Files that cannot be read count as damaged.
pub fn inspect<S: Storage>(storage: &S) -> Result<Inspected, SpoolError> {
    let mut inspected = Inspected::default();
    let mut slot = None;
    for entry in storage.list().map_err(SpoolError::io("list", "the folder"))? {
        match segment_of(&entry.name) {
            Some(number) if entry.regular && entry.name == segment_name(number) => {
                let file = storage.open(&entry.name).ok();
                let found = file.as_ref().and_then(|file| read_header(storage, file).ok());
                let other_version = match found {
                    Some(FoundHeader::OtherVersion(version)) => Some(version),
                    _ => None,
                };
                let header = found.and_then(FoundHeader::sound);
                let footer =
                    file.as_ref().and_then(|file| read_footer(storage, file, number, entry.len).ok()?);
                inspected.segments.push(InspectedSegment {
                    number,
                    header,
                    other_version,
                    frame_seq_end: footer.map(|footer| footer.frame_seq),
                    youngest: footer.map(|footer| footer.received),
                    file: entry,
                });
            }
            _ if is_set_aside(&entry) => inspected.bad.push(entry),
            _ if entry.regular && entry.name == CURSOR_NAME => {
                let file = storage.open(CURSOR_NAME).ok();
                let found = file.and_then(|file| Cursor::read(storage, &file).ok());
                if let Some(FoundCursor::OtherVersion(version)) = found {
                    inspected.cursor_version = Some(version);
                }
                slot = found.and_then(FoundCursor::sound);
                inspected.cursor_damaged = true;
            }
            _ => inspected.foreign.push(entry),
        }
    }
    inspected.segments.sort_by_key(|segment| segment.number);
    inspected.bad.sort_by(|one, other| one.name.cmp(&other.name));
    inspected.foreign.sort_by(|one, other| one.name.cmp(&other.name));
    let headers = inspected.segments.iter().filter_map(|segment| segment.header.as_ref());
    (inspected.spool, inspected.cursor) = identify(headers, slot);
    inspected.cursor_damaged &= inspected.cursor.is_none();
    Ok(inspected)
}

/// The records of one file, in order, and the damage between them. Files that were set aside can be read too.
#[derive(Debug)]
pub struct SegmentItems<'a, S: Storage> {
    storage: &'a S,
    file: S::File,
    header: Option<SegmentHeader>,
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
        let header = read_header(storage, &file).ok().and_then(FoundHeader::sound);
        let number = header.as_ref().map(|header| header.segment).or_else(|| segment_of(name)).unwrap_or(0);
        Ok(Self { storage, file, header, scan: Scan::new(number, SEGMENT_HEADER_LEN as u64), len })
    }

    /// The header of the file; `None` where it is damaged.
    pub fn header(&self) -> Option<&SegmentHeader> {
        self.header.as_ref()
    }

    /// Length of the file, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length in bytes, not in items")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Goes to `offset`, where a record begins.
    pub fn seek(&mut self, offset: u64) {
        self.scan = self.scan.at(offset);
    }

    /// Whether nothing comes any more. Damage before it may be what a crash left, or a write under way.
    pub fn is_at_end(&self) -> bool {
        self.scan.offset() >= self.len
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
