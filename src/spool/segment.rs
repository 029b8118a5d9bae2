//! Segment files: their names, their headers and footers.

use std::io;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;

use crate::batch::position::LogPosition;
use crate::protocol::ContentType;
use crate::spool::limits::FRAME_SEQ_MAX;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::record::RecordHeader;
use crate::spool::record::checksum;
use crate::spool::storage::Storage;
use crate::spool::storage::read_full;

/// Length of the header of a segment, in bytes.
pub const SEGMENT_HEADER_LEN: usize = 4096;

/// What stands at the beginning of a segment. The format is drawn in [`spool`](crate::spool).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The spool that the segment belongs to.
    pub spool: [u8; 16],
    /// Number of the segment, which is in its name too.
    pub segment: u64,
    /// Number of its first frame.
    pub frame_seq: u64,
    /// When it was created, in nanoseconds of Unix time.
    pub created: u64,
    /// Content type of its frames; `None` where streams of any type, or none, are taken.
    pub content_type: Option<ContentType>,
}

impl SegmentHeader {
    /// The header, encoded.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        let mut rest = &mut bytes[..];
        rest.put_slice(MAGIC);
        rest.put_u32_le(VERSION);
        rest.put_slice(&self.spool);
        rest.put_u64_le(self.segment);
        rest.put_u64_le(self.frame_seq);
        rest.put_u64_le(self.created);
        let content_type = self.content_type.as_ref().map_or(&[][..], ContentType::as_bytes);
        let len = content_type.len() as u32; // <= ContentType::LEN_MAX
        rest.put_u32_le(if self.content_type.is_some() { len } else { NO_CONTENT_TYPE });
        rest.put_slice(content_type);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The version of the format, where it is another than the one known here: then nothing else of the file can be read.
    ///
    /// Every version begins with the magic and its number. A number that was 1 before it was damaged is no other version: the
    /// checksum tells.
    pub fn other_version(bytes: &[u8; SEGMENT_HEADER_LEN]) -> Option<u32> {
        let version = bytes.strip_prefix(MAGIC)?.get_u32_le();
        let mut as_known = *bytes;
        as_known[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&VERSION.to_le_bytes());
        (version > VERSION && version <= VERSION_MAX && Self::decode(&as_known).is_none()).then_some(version)
    }

    /// Reads a header; `None` where it is damaged, or of a version that is not known here.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_LEN]) -> Option<Self> {
        let (checked, crc) = bytes.split_last_chunk::<4>()?;
        let mut rest = checked.strip_prefix(MAGIC)?;
        let version = rest.get_u32_le();
        if version != VERSION || u32::from_le_bytes(*crc) != crc32c::crc32c(checked) {
            return None;
        }
        let (spool, mut rest) = rest.split_first_chunk()?;
        let header = Self {
            spool: *spool,
            segment: rest.get_u64_le(),
            frame_seq: rest.get_u64_le(),
            created: rest.get_u64_le(),
            content_type: match rest.get_u32_le() {
                NO_CONTENT_TYPE => None,
                len => {
                    let bytes = Bytes::copy_from_slice(rest.get(..len as usize)?);
                    Some(ContentType::try_from(bytes).ok()?)
                }
            },
        };
        ((1..=SEGMENT_MAX).contains(&header.segment) && header.frame_seq <= FRAME_SEQ_MAX).then_some(header)
    }
}

/// What a log knows of one of its segments.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Number of its first frame.
    pub(super) frame_seq: u64,
    /// Of a segment that a recovery has found: no record of it has frames from this number on. 0 in one that was begun since, whose
    /// frames end where the next segment begins.
    pub(super) frame_seq_end: u64,
    /// Bytes of the header and of the records.
    pub(super) len: u64,
    /// When it was created, in nanoseconds of Unix time.
    pub(super) created: u64,
    /// When its youngest frame was read, in nanoseconds of Unix time.
    pub(super) youngest: u64,
    /// By how many nanoseconds the clock was set since its records were written.
    pub(super) clock_moved_by: i64,
    /// Something in it is damaged: in the end it is set aside, not removed.
    pub(super) damaged: bool,
}

impl Segment {
    /// A segment of which the header alone is written.
    pub(super) fn begun(header: &SegmentHeader) -> Self {
        let SegmentHeader { segment, frame_seq, created, .. } = *header;
        let len = SEGMENT_HEADER_LEN as u64;
        Self {
            number: segment,
            frame_seq,
            frame_seq_end: 0,
            len,
            created,
            youngest: 0,
            clock_moved_by: 0,
            damaged: false,
        }
    }

    pub(super) fn has_no_records(&self) -> bool {
        self.len <= SEGMENT_HEADER_LEN as u64
    }

    /// When its youngest frame was read, or it was created, in nanoseconds of Unix time.
    pub(super) fn age(&self) -> u64 {
        self.youngest.max(self.created)
    }
}

/// The name of a segment file.
pub(super) fn segment_name(segment: u64) -> String {
    format!("seg-{segment:016x}.fsr")
}

/// The number of the segment that a name is that of, or begins with: that of a file set aside too.
pub(super) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.get(..16)?;
    let segment = u64::from_str_radix(digits, 16).ok()?;
    let ours = name.starts_with(&segment_name(segment)) && (1..=SEGMENT_MAX).contains(&segment);
    ours.then_some(segment)
}

/// What stands at the beginning of a file.
#[derive(Debug)]
pub(super) enum FoundHeader {
    Sound(SegmentHeader),
    /// Nothing of the file can be read here.
    OtherVersion(u32),
    Damaged,
}

impl FoundHeader {
    pub(super) fn sound(self) -> Option<SegmentHeader> {
        match self {
            Self::Sound(header) => Some(header),
            Self::OtherVersion(_) | Self::Damaged => None,
        }
    }
}

/// Reads the header of a segment file.
///
/// # Errors
/// What the system says.
pub(super) fn read_header<S: Storage>(storage: &S, file: &S::File) -> io::Result<FoundHeader> {
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    if read_full(storage, file, &mut bytes, 0)? < bytes.len() {
        return Ok(FoundHeader::Damaged);
    }
    Ok(match (SegmentHeader::decode(&bytes), SegmentHeader::other_version(&bytes)) {
        (Some(header), _) => FoundHeader::Sound(header),
        (None, Some(version)) => FoundHeader::OtherVersion(version),
        (None, None) => FoundHeader::Damaged,
    })
}

/// The footer of a segment file, if it was closed in order.
///
/// # Errors
/// What the system says.
pub(super) fn read_footer<S: Storage>(
    storage: &S,
    file: &S::File,
    segment: u64,
    len: u64,
) -> io::Result<Option<RecordHeader>> {
    let Some(offset) = len.checked_sub(RecordHeader::LEN as u64) else { return Ok(None) };
    let mut bytes = [0; RecordHeader::LEN];
    if read_full(storage, file, &mut bytes, offset)? < bytes.len() {
        return Ok(None);
    }
    let footer = RecordHeader::decode(&bytes, segment)
        .filter(|(header, crc)| header.footer && *crc == checksum(&bytes, &[]));
    Ok(footer.map(|(header, _)| header))
}

const MAGIC: &[u8; 8] = b"tapspool";
/// The version of the format that is known here.
pub(super) const VERSION: u32 = 1;
/// No version will have a higher number: such a number is damage.
const VERSION_MAX: u32 = 255;
const NO_CONTENT_TYPE: u32 = u32::MAX;
const CRC_AT: usize = SEGMENT_HEADER_LEN - 4;
/// The place before the first record of a segment.
pub(super) fn segment_start(segment: u64, frame_seq: u64) -> LogPosition {
    LogPosition { segment, offset: SEGMENT_HEADER_LEN as u64, frame_seq }
}
