//! A batch and what a record says of it.

use std::time::Instant;

use crate::batch::connection::ConnectionId;
use crate::protocol::FrameBatch;
use crate::spool::moment::Moment;
use crate::spool::record::RecordHeader;

/// The connection that brought a batch, and the batch.
pub(super) type ArrivingBatch = (ConnectionId, FrameBatch);

/// A batch whose frames have their numbers.
#[derive(Debug)]
pub(super) struct NumberedBatch {
    /// Number of its first frame.
    pub(super) frame_seq: u64,
    /// When its frames were read, in nanoseconds of Unix time.
    pub(super) received: u64,
    /// When it was appended to the spool.
    pub(super) appended: Instant,
    pub(super) connection: ConnectionId,
    pub(super) batch: FrameBatch,
}

impl NumberedBatch {
    pub(super) fn new(frame_seq: u64, (connection, batch): ArrivingBatch, now: Moment) -> Self {
        let received = now.unix_of(batch.read_at());
        Self { frame_seq, received, appended: now.instant, connection, batch }
    }

    /// Number of the frame after the last one.
    pub(super) fn frame_seq_end(&self) -> u64 {
        self.frame_seq + u64::from(self.batch.frames())
    }

    /// Length of its record, in bytes.
    pub(super) fn record_len(&self) -> u64 {
        record_len(&self.batch)
    }

    /// The header of its record in segment `segment`.
    pub(super) fn encode_header(&self, segment: u64) -> [u8; RecordHeader::LEN] {
        let header = RecordHeader {
            len: self.batch.byte_len() as u32, // <= RECORD_LEN_MAX
            segment,
            frame_seq: self.frame_seq,
            frames: self.batch.frames(),
            footer: false,
            connection: self.connection,
            received: self.received,
        };
        header.encode(self.batch.bytes())
    }
}

/// The batch without its first `frames` frames.
pub(super) fn without_first(mut batch: FrameBatch, frames: u64) -> FrameBatch {
    let frames = usize::try_from(frames).unwrap_or(usize::MAX);
    if frames > 0 {
        let len = batch.payloads().take(frames).map(|payload| LENGTH_WORD_LEN + payload.len()).sum();
        batch.advance(len);
    }
    batch
}

/// Length of the word before each payload, in bytes.
const LENGTH_WORD_LEN: usize = 4;

/// Length of the record of a batch, in bytes.
pub(super) fn record_len(batch: &FrameBatch) -> u64 {
    (RecordHeader::LEN + batch.byte_len()) as u64
}
