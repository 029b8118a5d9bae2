//! The largest numbers that can be right. Higher ones are forged or damaged: nobody can count so far.

/// Largest number of a segment.
pub(super) const SEGMENT_MAX: u64 = 1 << 62;

/// Largest number of a frame.
pub(super) const FRAME_SEQ_MAX: u64 = 1 << 62;
