//! What the records of one segment tell, where header and footer do not.

use std::io;

use crate::spool::scan::Found;
use crate::spool::scan::Scan;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::read_footer;
use crate::spool::storage::Storage;

/// What the records of a segment tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Number of the first frame; `None` where there is no sound record.
    pub(super) first: Option<u64>,
    /// Number of the frame after the last.
    pub(super) end: u64,
    /// When the youngest frame was read, in nanoseconds of Unix time.
    pub(super) youngest: u64,
    /// Offset behind the last sound record, in bytes.
    pub(super) len: u64,
    /// Something before the last sound record is damaged.
    pub(super) damaged: bool,
    /// There is a footer at the end.
    pub(super) closed: bool,
}

impl Summary {
    /// Reads the records of segment `number`, whose file has `len` bytes. Of a segment that was closed in order it reads
    /// the footer and the first record alone.
    ///
    /// # Errors
    /// What the system says: what cannot be read now is not damaged.
    pub(super) fn read<S: Storage>(storage: &S, file: &S::File, number: u64, len: u64) -> io::Result<Self> {
        let start = SEGMENT_HEADER_LEN as u64;
        let mut summary = Self { len: start, ..Self::default() };
        if let Some(footer) = patiently(|| read_footer(storage, file, number, len))? {
            let (end, youngest) = (footer.frame_seq, footer.received);
            summary = Self { end, youngest, len, closed: true, ..summary };
        }
        let mut scan = Scan::new(number, start);
        let mut damage = false;
        while let Some(found) = patiently(|| scan.next(storage, file, len))? {
            let Found::Record(header, _) = found else {
                damage = true;
                continue;
            };
            summary.damaged |= damage;
            summary.first.get_or_insert(header.frame_seq);
            if summary.closed {
                break;
            }
            summary.end = summary.end.max(header.frame_seq_end());
            summary.youngest = summary.youngest.max(header.received);
            summary.len = scan.offset();
        }
        Ok(summary)
    }
}

/// Tries three times: a failure that passes need not delay the start.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    attempt().or_else(|_| attempt()).or_else(|_| attempt())
}
