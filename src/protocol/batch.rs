//! Whole, still encoded data frames: the unit that flows through the relay.

use std::time::Instant;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::Encoder;
use crate::protocol::ProtocolError;
use crate::protocol::decoder::Scan;
use crate::protocol::decoder::ScanStop;
use crate::protocol::decoder::scan;

/// Whole, encoded data frames of one content type, as they were read.
///
/// `bytes` is a sequence of `u32 length, payload` elements with neither a partial frame nor a control frame
/// in it. A clone shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBatch {
    bytes: Bytes,
    frames: u32,
    payload_len_max: u32,
    read_at: Instant,
}

impl FrameBatch {
    /// Checks that `bytes` are whole data frames of at most `frame_len_max` payload bytes.
    ///
    /// # Errors
    /// [`ProtocolError::EmptyBatch`], [`ProtocolError::PartialFrame`], [`ProtocolError::ControlInBatch`] and
    /// [`ProtocolError::FrameTooLong`].
    pub fn parse(bytes: Bytes, frame_len_max: u32, read_at: Instant) -> Result<Self, ProtocolError> {
        let scan = scan(&bytes, frame_len_max);
        match scan.stop {
            ScanStop::TooLong { len } => Err(ProtocolError::FrameTooLong { len, len_max: frame_len_max }),
            ScanStop::Escape => Err(ProtocolError::ControlInBatch { offset: scan.bytes }),
            ScanStop::Incomplete { missing } if scan.bytes < bytes.len() => {
                Err(ProtocolError::PartialFrame { missing })
            }
            ScanStop::Incomplete { .. } if scan.frames == 0 => Err(ProtocolError::EmptyBatch),
            ScanStop::Incomplete { .. } => Ok(Self::scanned(bytes, &scan, read_at)),
        }
    }

    /// Encodes payloads as a batch.
    ///
    /// # Errors
    /// [`ProtocolError::EmptyBatch`], [`ProtocolError::EmptyPayload`], and [`ProtocolError::FrameTooLong`] for a
    /// payload whose length does not fit the length word.
    pub fn from_payloads<P>(payloads: P, read_at: Instant) -> Result<Self, ProtocolError>
    where
        P: IntoIterator,
        P::Item: AsRef<[u8]>,
    {
        let encoder = Encoder::new(u32::MAX - 1);
        let mut bytes = BytesMut::new();
        for payload in payloads {
            encoder.data(payload.as_ref(), &mut bytes)?;
        }
        Self::parse(bytes.freeze(), u32::MAX - 1, read_at)
    }

    /// The frames that `scan` found at the front: `bytes` must be those, and at least one.
    pub(super) fn scanned(bytes: Bytes, scan: &Scan, read_at: Instant) -> Self {
        debug_assert!(scan.frames > 0 && scan.bytes == bytes.len());
        Self { bytes, frames: scan.frames, payload_len_max: scan.payload_len_max, read_at }
    }

    /// The encoded frames, ready to be written.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The encoded frames, ready to be written.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Length of the encoded frames, in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// How many frames there are: 0 only after [`FrameBatch::advance`] has dropped the last.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Payload bytes of the longest frame.
    pub fn payload_len_max(&self) -> u32 {
        self.payload_len_max
    }

    /// When the frames were read.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// The payloads in order; they share the bytes of the batch.
    pub fn payloads(&self) -> Payloads {
        Payloads { rest: self.bytes.clone() }
    }

    /// Drops every frame that lies wholly within the first `written` bytes, and returns how many these were.
    ///
    /// A frame that `written` cuts stays whole, to be written again on another connection. The batch may become
    /// empty.
    pub fn advance(&mut self, written: usize) -> u32 {
        let written = scan(self.bytes.get(..written).unwrap_or(&self.bytes), u32::MAX);
        self.bytes.advance(written.bytes);
        self.frames -= written.frames;
        if written.payload_len_max == self.payload_len_max {
            self.payload_len_max = scan(&self.bytes, u32::MAX).payload_len_max;
        }
        written.frames
    }

    /// Leaves out frames of more than `payload_len_max` payload bytes.
    ///
    /// Returns the other frames, copied into memory of their own, `None` where there are none, and how many were left out:
    /// the memory of long frames does not stay for the sake of short ones.
    pub fn copy_without_longer_than(&self, payload_len_max: u32) -> (Option<Self>, u32) {
        let mut kept = BytesMut::new();
        let mut frames = 0;
        let mut longest = 0;
        let mut left_out = 0;
        let mut rest = &self.bytes[..];
        loop {
            let scan = scan(rest, payload_len_max);
            let (run, behind) = rest.split_at(scan.bytes);
            kept.extend_from_slice(run);
            frames += scan.frames;
            longest = longest.max(scan.payload_len_max);
            let ScanStop::TooLong { len } = scan.stop else { break };
            rest = behind.get(4 + len as usize..).unwrap_or_default();
            left_out += 1;
        }
        let bytes = Bytes::copy_from_slice(&kept);
        let kept = Self { bytes, frames, payload_len_max: longest, read_at: self.read_at };
        ((frames > 0).then_some(kept), left_out)
    }

    /// The runs of frames of at most `payload_len_max` payload bytes, each with the index of its first frame. They share the
    /// bytes of the batch.
    pub fn runs_within(&self, payload_len_max: u32) -> Vec<(u32, Self)> {
        let mut runs = Vec::new();
        let mut index = 0;
        let mut rest = self.bytes.clone();
        loop {
            let scan = scan(&rest, payload_len_max);
            let run = rest.split_to(scan.bytes);
            if scan.frames > 0 {
                runs.push((index, Self::scanned(run, &scan, self.read_at)));
            }
            index += scan.frames;
            let ScanStop::TooLong { len } = scan.stop else { return runs };
            rest.advance(rest.len().min(4 + len as usize));
            index += 1;
        }
    }

    /// A copy of its own memory: a small batch no longer keeps the block alive in which it was read.
    pub fn compact(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..*self }
    }
}

/// The payloads of a [`FrameBatch`]: see [`FrameBatch::payloads`].
#[derive(Clone, Debug)]
pub struct Payloads {
    rest: Bytes,
}

impl Iterator for Payloads {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let len = self.rest.try_get_u32().ok()?;
        // Whole frames only: len <= rest.len()
        Some(self.rest.split_to(len as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tests::data;
    use crate::protocol::tests::stop;

    fn batch(payloads: &[&str]) -> FrameBatch {
        FrameBatch::from_payloads(payloads, Instant::now()).expect("payloads within the limits")
    }

    fn payloads(batch: &FrameBatch) -> Vec<Bytes> {
        let parsed = FrameBatch::parse(batch.bytes().clone(), u32::MAX, batch.read_at());
        if batch.frames() > 0 {
            assert_eq!(parsed.as_ref(), Ok(batch), "count and longest frame are right");
        }
        batch.payloads().collect()
    }

    #[test]
    fn a_batch_holds_its_payloads_in_order() {
        let batch = batch(&["abc", "d", "ef"]);
        assert_eq!(payloads(&batch), ["abc", "d", "ef"]);
        assert_eq!((batch.frames(), batch.payload_len_max(), batch.byte_len()), (3, 3, 18));
        assert_eq!(batch.into_bytes(), [data(b"abc"), data(b"d"), data(b"ef")].concat());
    }

    #[test]
    fn only_whole_data_frames_make_a_batch() {
        let parse =
            |bytes: Vec<u8>| FrameBatch::parse(Bytes::from(bytes), 3, Instant::now()).map(|b| b.frames());
        assert_eq!(parse([data(b"abc"), data(b"d")].concat()), Ok(2));
        assert_eq!(parse(Vec::new()), Err(ProtocolError::EmptyBatch));
        assert_eq!(parse(data(b"abc")[..5].to_vec()), Err(ProtocolError::PartialFrame { missing: 2 }));
        assert_eq!(parse([data(b"abc"), vec![0]].concat()), Err(ProtocolError::PartialFrame { missing: 3 }));
        assert_eq!(parse([data(b"abc"), stop()].concat()), Err(ProtocolError::ControlInBatch { offset: 7 }));
        assert_eq!(parse(data(b"abcd")), Err(ProtocolError::FrameTooLong { len: 4, len_max: 3 }));
    }

    #[test]
    fn payloads_without_an_encoding_make_no_batch() {
        let none: [&str; 0] = [];
        assert_eq!(FrameBatch::from_payloads(none, Instant::now()), Err(ProtocolError::EmptyBatch));
        assert_eq!(FrameBatch::from_payloads(["a", ""], Instant::now()), Err(ProtocolError::EmptyPayload));
    }

    #[test]
    fn advance_keeps_a_frame_that_was_cut_at_any_byte() {
        let whole = batch(&["abc", "d", "ef"]);
        for written in 0..=whole.byte_len() + 1 {
            let mut rest = whole.clone();
            let dropped = match written {
                0..7 => 0,
                7..12 => 1,
                12..18 => 2,
                _ => 3,
            };
            assert_eq!(rest.advance(written), dropped, "{written} bytes written");
            assert_eq!(rest.frames(), 3 - dropped);
            assert_eq!(payloads(&rest), ["abc", "d", "ef"][dropped as usize..]);
            assert_eq!(rest.payload_len_max(), [3, 2, 2, 0][dropped as usize]);
            assert_eq!(rest.read_at(), whole.read_at());
        }
    }

    #[test]
    fn long_frames_are_left_out_and_the_others_keep_nothing_of_their_memory() {
        let whole = batch(&["long", "a", "bc", "longer", "longest", "d", "long"]);
        let (short, left_out) = whole.copy_without_longer_than(2);
        let short = short.expect("there are short frames");
        assert_eq!((payloads(&short), left_out), (vec!["a".into(), "bc".into(), "d".into()], 4));
        assert_eq!((short.frames(), short.payload_len_max(), short.read_at()), (3, 2, whole.read_at()));
        assert!(!whole.bytes().as_ptr_range().contains(&short.bytes().as_ptr()), "copied");
        assert_eq!(whole.copy_without_longer_than(7), (Some(whole.clone()), 0));
        assert_eq!(whole.copy_without_longer_than(0), (None, 7));

        let mut written = whole.clone();
        written.advance(whole.byte_len());
        assert_eq!(written.copy_without_longer_than(7), (None, 0));
    }

    #[test]
    fn runs_of_short_frames_know_their_place() {
        let whole = batch(&["long", "a", "bc", "longer", "longest", "d", "long"]);
        let runs = whole.runs_within(2);
        let runs: Vec<_> = runs.iter().map(|(index, run)| (*index, payloads(run))).collect();
        assert_eq!(runs, [(1, vec![Bytes::from("a"), "bc".into()]), (5, vec!["d".into()])]);
        assert_eq!(whole.runs_within(7), [(0, whole.clone())]);
        assert_eq!(whole.runs_within(0), []);
    }

    #[test]
    fn a_compact_batch_is_equal_and_pins_nothing() {
        let block = Bytes::from([data(b"abc"), vec![0; 1000]].concat());
        let batch = FrameBatch::parse(block.slice(..7), 3, Instant::now()).unwrap();
        let compact = batch.compact();
        assert_eq!(compact, batch);
        drop(batch);
        assert!(block.is_unique());
    }
}
