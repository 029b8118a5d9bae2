//! Places in the log of a spool.

use crate::spool::segment::SEGMENT_HEADER_LEN;

/// A place between two records. Positions are in the order of their frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Number of the segment.
    pub(super) segment: u64,
    /// Offset in the segment, in bytes.
    pub(super) offset: u64,
    /// Number of the next frame.
    pub(super) frame_seq: u64,
}

impl LogPosition {
    /// The place before the first record of a segment.
    pub(super) fn at_start(segment: u64, frame_seq: u64) -> Self {
        Self { segment, offset: SEGMENT_HEADER_LEN as u64, frame_seq }
    }

    /// Number of the frame behind it. The frames of a spool are numbered from 0, and no number is used twice.
    pub fn frame_seq(&self) -> u64 {
        self.frame_seq
    }

    /// Number of its segment.
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// Its offset within the segment, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}
