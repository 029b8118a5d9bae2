//! Places in the log of a spool.

/// A place in the log of a spool, before one of its frames. Positions are in the order of their frames.
///
/// The frame is in the record at the offset, or behind it; records before the offset have only frames before it. So a
/// position may be within a record: [`LogPosition::after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Offset in the segment, in bytes: where a record begins or ends.
    pub(crate) offset: u64,
    /// Number of the next frame.
    pub(crate) frame_seq: u64,
}

impl LogPosition {
    /// The place after the first `frames` frames of the batch that begins here: within its record, or behind it.
    #[must_use]
    pub fn after(self, frames: u32) -> Self {
        Self { frame_seq: self.frame_seq.saturating_add(u64::from(frames)), ..self }
    }

    /// Number of the frame behind it. The frames of a spool are numbered from 0, and no number is used twice.
    pub fn frame_seq(&self) -> u64 {
        self.frame_seq
    }

    /// Number of its segment.
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// Offset within the segment, in bytes: no record before it has a frame from [`LogPosition::frame_seq`] on.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}
