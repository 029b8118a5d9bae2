//! Looking at a spool without touching it, in use or not.
//!
//! No lock is taken and nothing is changed. A spool in use goes on meanwhile: a segment may be gone when it is to be
//! read, and the last record of the last one may be half there. A recovery begins with the same look, and then mends what it saw.

use std::io;

use crate::protocol::ContentType;
use crate::spool::arrangement::Arrangement;
use crate::spool::arrangement::InspectedSegment;
use crate::spool::arrangement::LeftOut;
use crate::spool::arrangement::arrange;
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
use crate::spool::summary::Summary;
use crate::spool::summary::patiently;

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
    /// The segments of the spool, oldest first.
    pub segments: Vec<InspectedSegment>,
    /// Files with names of segments that are not read, and why.
    pub left_out: Vec<(InspectedSegment, LeftOut)>,
    /// Number of the frame after the last one.
    pub head: u64,
    /// Files that were set aside.
    pub bad: Vec<Entry>,
    /// What else is there.
    pub foreign: Vec<Entry>,
}

impl Inspected {
    /// The newest sound header of this spool: its content type is that of the spool.
    pub fn newest_header(&self) -> Option<&SegmentHeader> {
        let headers = self.segments.iter().filter_map(|segment| segment.header.as_ref());
        headers.max_by_key(|header| header.segment)
    }

    /// Why an output with this content type could not use the spool; `None` where it could. A recovery decides the same.
    pub fn refusal(&self, content_type: Option<&ContentType>) -> Option<SpoolError> {
        if let Some(version) = self.cursor_version {
            return Some(SpoolError::other_version(CURSOR_NAME, version));
        }
        let other = self.left_out.iter().find_map(|(segment, reason)| match reason {
            LeftOut::OtherVersion(version) => Some((&segment.file.name, *version)),
            _ => None,
        });
        if let Some((name, version)) = other {
            return Some(SpoolError::other_version(name, version));
        }
        let files = self.segments.iter().chain(self.left_out.iter().map(|(segment, _)| segment));
        let headers = files.filter_map(|segment| Some((&segment.file.name, segment.header.as_ref()?)));
        let own = headers.filter(|(_, header)| Some(header.spool) == self.spool);
        let (name, header) = own
            .filter(|(_, header)| header.content_type.as_ref() != content_type)
            .min_by_key(|(name, _)| *name)?;
        Some(SpoolError::other_content_type(name, header.content_type.as_ref(), content_type))
    }

    /// Whether there is nothing of a spool.
    pub fn is_no_spool(&self) -> bool {
        self.segments.is_empty()
            && self.left_out.is_empty()
            && self.bad.is_empty()
            && self.cursor.is_none()
            && !self.cursor_damaged
    }

    /// Where the frames begin that are still to be delivered; `None` where there are none, and no cursor.
    pub(super) fn first_waiting(&self) -> Option<u64> {
        let first = || self.segments.iter().find(|segment| !segment.has_no_records());
        let cursor = self.cursor.map(|slot| slot.position.frame_seq);
        cursor.or_else(|| first().and_then(InspectedSegment::first_frame))
    }
}

/// Lists a folder, and reads cursor, headers and footers, and the records of segments that were not closed in order.
///
/// # Errors
/// [`SpoolError::Io`] for the folder itself. A segment that cannot be read stays in its place: [`Contents`](crate::spool::Contents) tries
/// again, and tells.
pub fn inspect<S: Storage>(storage: &S) -> Result<Inspected, SpoolError> {
    survey(storage, |_| Ok(()))
}

/// The same for a recovery: what cannot be read now is not damaged.
///
/// # Errors
/// [`SpoolError::Io`].
pub(super) fn inspect_strictly<S: Storage>(storage: &S) -> Result<Inspected, SpoolError> {
    survey(storage, Err)
}

fn survey<S: Storage>(
    storage: &S,
    unreadable: impl Fn(SpoolError) -> Result<(), SpoolError>,
) -> Result<Inspected, SpoolError> {
    let mut inspected = Inspected::default();
    let (mut found, mut slot) = (Vec::new(), None);
    let entries = patiently(|| storage.list()).map_err(SpoolError::io("list", "the folder"))?;
    for entry in entries {
        match segment_of(&entry.name) {
            Some(number) if entry.name == segment_name(number) => {
                let mut segment = InspectedSegment {
                    file: entry,
                    number,
                    header: None,
                    other_version: None,
                    frame_seq_end: None,
                    footer_youngest: None,
                    summary: None,
                    unread: false,
                };
                if let Err(error) = examine(storage, &mut segment) {
                    unreadable(error)?;
                    segment.unread = true;
                }
                found.push(segment);
            }
            _ if is_set_aside(&entry) => inspected.bad.push(entry),
            None if entry.name == CURSOR_NAME => {
                inspected.cursor_damaged = true;
                match read_cursor(storage, &entry) {
                    Ok(FoundCursor::OtherVersion(version)) => inspected.cursor_version = Some(version),
                    Ok(found) => slot = found.sound(),
                    Err(error) => unreadable(error)?,
                }
            }
            _ => inspected.foreign.push(entry),
        }
    }
    inspected.bad.sort_by(|one, other| one.name.cmp(&other.name));
    inspected.foreign.sort_by(|one, other| one.name.cmp(&other.name));
    let headers = found.iter().filter_map(|segment| segment.header.as_ref());
    (inspected.spool, inspected.cursor) = identify(headers, slot);
    inspected.cursor_damaged &= inspected.cursor.is_none();
    let Arrangement { segments, left_out, head } = arrange(found, inspected.spool);
    let acknowledged = inspected.cursor.map_or(0, |slot| slot.position.frame_seq);
    (inspected.segments, inspected.left_out, inspected.head) = (segments, left_out, head.max(acknowledged));
    Ok(inspected)
}

fn read_cursor<S: Storage>(storage: &S, entry: &Entry) -> Result<FoundCursor, SpoolError> {
    if !entry.regular {
        return Ok(FoundCursor::Damaged);
    }
    let file = patiently(|| storage.open(CURSOR_NAME)).map_err(SpoolError::io("open", CURSOR_NAME))?;
    patiently(|| Cursor::read(storage, &file)).map_err(SpoolError::io("read", CURSOR_NAME))
}

/// Reads header and footer; of a segment that has not both, all records.
fn examine<S: Storage>(storage: &S, segment: &mut InspectedSegment) -> Result<(), SpoolError> {
    let Entry { regular, len, .. } = segment.file;
    if !regular || len < SEGMENT_HEADER_LEN as u64 {
        return Ok(());
    }
    let name = segment.file.name.as_str();
    let file = patiently(|| storage.open(name)).map_err(SpoolError::io("open", name))?;
    let failed = || SpoolError::io("read", name);
    segment.header = match patiently(|| read_header(storage, &file)).map_err(failed())? {
        FoundHeader::OtherVersion(version) => {
            segment.other_version = Some(version);
            return Ok(());
        }
        found => found.sound(),
    };
    segment.number = segment.header.as_ref().map_or(segment.number, |header| header.segment);
    let footer = patiently(|| read_footer(storage, &file, segment.number, len)).map_err(failed())?;
    segment.frame_seq_end = footer.map(|footer| footer.frame_seq);
    segment.footer_youngest = footer.map(|footer| footer.received);
    if segment.header.is_none() || footer.is_none() {
        segment.summary = Some(Summary::read(storage, &file, segment.number, len).map_err(failed())?);
    }
    Ok(())
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
