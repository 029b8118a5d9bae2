//! Whole, still encoded data frames: the unit that flows through the relay.

use std::time::Instant;

use bytes::Bytes;

/// Whole, encoded data frames of one content type, as they were read.
///
/// `bytes` is a sequence of `u32 length, payload` elements with neither a partial frame nor a control frame
/// in it. A clone shares the bytes.
#[derive(Clone, Debug)]
pub struct FrameBatch {
    bytes: Bytes,
    frames: u32,
    payload_len_max: u32,
    read_at: Instant,
}
