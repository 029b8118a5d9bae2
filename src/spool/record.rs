//! A record: one batch of frames behind a header that is checked with it.

use std::time::Instant;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;

use crate::batch::connection::ConnectionId;
use crate::protocol::FrameBatch;
use crate::spool::limits::FRAME_SEQ_MAX;

/// What stands before the frames of a batch. The format is drawn in [`spool`](crate::spool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the encoded frames behind the header, in bytes.
    pub len: u32,
    /// Number of the segment that the record was written into.
    pub segment: u64,
    /// Number of its first frame; of the next frame to come in a footer.
    pub frame_seq: u64,
    /// How many frames there are; none in a footer.
    pub frames: u32,
    /// Whether the record ends its segment, which holds nothing behind it.
    pub footer: bool,
    /// The connection that brought the frames, as the writer of the spool has told; 0 in a footer.
    pub connection: ConnectionId,
    /// When the frames were read, in nanoseconds of Unix time; of the youngest of them in a footer.
    pub received: u64,
}

impl RecordHeader {
    /// Encoded length, in bytes.
    pub const LEN: usize = 40;

    /// The header of `payload`, encoded with the checksum over both.
    pub fn encode(&self, payload: &[u8]) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = &mut bytes[..];
        rest.put_u32_le(self.len);
        rest.put_u32_le(0);
        rest.put_u64_le(self.segment);
        rest.put_u64_le(self.frame_seq);
        rest.put_u32_le(self.frames);
        rest.put_u32_le(self.connection.get() << 1 | u32::from(self.footer));
        rest.put_u64_le(self.received);
        let crc = checksum(&bytes, payload);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header of segment `segment`, and the checksum in it. `None` where no such header can be: what is not
    /// `None` may still be damaged.
    pub fn decode(bytes: &[u8; Self::LEN], segment: u64) -> Option<(Self, u32)> {
        let mut rest = &bytes[..];
        let len = rest.get_u32_le();
        let crc = rest.get_u32_le();
        let own_segment = rest.get_u64_le();
        let (frame_seq, frames) = (rest.get_u64_le(), rest.get_u32_le());
        let flags = rest.get_u32_le();
        let (footer, connection) = (flags & 1 == 1, ConnectionId::new(flags >> 1));
        let header = Self {
            len,
            segment: own_segment,
            frame_seq,
            frames,
            footer,
            connection,
            received: rest.get_u64_le(),
        };
        let shape = if footer {
            frames == 0 && len == 0 && connection == ConnectionId::default()
        } else {
            // A frame is a length word and at least one byte.
            frames > 0 && u64::from(frames) * 5 <= u64::from(len) && len <= RECORD_LEN_MAX
        };
        let plausible = shape && header.segment == segment && header.frame_seq <= FRAME_SEQ_MAX;
        plausible.then_some((header, crc))
    }

    /// Number of the frame after the last one.
    pub fn frame_seq_end(&self) -> u64 {
        self.frame_seq + u64::from(self.frames) // frame_seq <= FRAME_SEQ_MAX
    }

    /// The frames of the record. `None` where there are none, they are not what the header says, or they go beyond those of the
    /// segment, which end before number `frame_seq_end`.
    pub(super) fn batch_of(
        &self,
        payload: Bytes,
        frame_seq_end: u64,
        read_at: Instant,
    ) -> Option<FrameBatch> {
        let batch = FrameBatch::parse(payload, u32::MAX, read_at).ok()?;
        (batch.frames() == self.frames && self.frames > 0 && self.frame_seq_end() <= frame_seq_end)
            .then_some(batch)
    }

    /// Length of the whole record, in bytes.
    pub fn record_len(&self) -> u64 {
        Self::LEN as u64 + u64::from(self.len)
    }
}

/// CRC32C of everything after the checksum itself: the rest of the header, then the payload.
pub(super) fn checksum(header: &[u8; RecordHeader::LEN], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[8..]), payload)
}

/// Longest encoded frames of one record, in bytes: what a reader has in memory at once.
pub const RECORD_LEN_MAX: u32 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RecordHeader = RecordHeader {
        len: 5,
        segment: 7,
        frame_seq: 1000,
        frames: 1,
        footer: false,
        connection: ConnectionId::new(9),
        received: 123_456_789,
    };
    const PAYLOAD: &[u8] = b"\0\0\0\x01x";

    #[test]
    fn a_header_comes_back_with_its_checksum() {
        let bytes = HEADER.encode(PAYLOAD);
        assert_eq!(RecordHeader::decode(&bytes, 7), Some((HEADER, checksum(&bytes, PAYLOAD))));
        assert_eq!(RecordHeader::decode(&bytes, 8), None, "bound to its segment");
    }

    #[test]
    fn no_flipped_bit_passes() {
        let record = [&HEADER.encode(PAYLOAD)[..], PAYLOAD].concat();
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (head, payload) = damaged.split_first_chunk().unwrap();
            let passes = RecordHeader::decode(head, 7).is_some_and(|(header, crc)| {
                header.len as usize == payload.len() && crc == checksum(head, payload)
            });
            assert!(!passes, "bit {bit}");
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        let decode = |header: RecordHeader| RecordHeader::decode(&header.encode(PAYLOAD), 7);
        assert_eq!(decode(RecordHeader { frames: 0, ..HEADER }), None);
        assert_eq!(decode(RecordHeader { frames: 2, ..HEADER }), None, "no room for two frames");
        assert_eq!(decode(RecordHeader { footer: true, ..HEADER }), None);
        assert_eq!(decode(RecordHeader { frame_seq: FRAME_SEQ_MAX + 1, ..HEADER }), None);
        assert_eq!(decode(RecordHeader { len: RECORD_LEN_MAX + 1, ..HEADER }), None);
    }
}
