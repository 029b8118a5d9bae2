//! Payloads that know who sent them, which they are and when, so that a reader can tell what is missing,
//! doubled, out of order or damaged.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;
use std::time::Instant;

use super::wire;

/// Shortest payload: writer, sequence, intended send time, checksum.
const LEN_MIN: usize = 4 + 8 + 8 + 8;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A payload of `len` bytes, or the least that a number needs.
pub(crate) fn payload(writer: u32, sequence: u64, len: usize, sent_at: Instant) -> Vec<u8> {
    let len = len.max(LEN_MIN);
    let nanos = sent_at.saturating_duration_since(*EPOCH).as_nanos() as u64;
    let mut payload = Vec::with_capacity(len);
    payload.extend(writer.to_be_bytes());
    payload.extend(sequence.to_be_bytes());
    payload.extend(nanos.to_be_bytes());
    let mut filler = checksum(&payload);
    while payload.len() < len - 8 {
        filler = filler.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let room = len - 8 - payload.len();
        payload.extend(&filler.to_be_bytes()[..room.min(8)]);
    }
    payload.extend(checksum(&payload).to_be_bytes());
    payload
}

/// A size that a dnstap payload may well have: mostly about 130 bytes, seldom up to 1400.
pub(crate) fn usual_len(sequence: u64) -> usize {
    let dice = checksum(&sequence.to_be_bytes());
    match dice % 16 {
        0 => 60 + dice as usize / 16 % 1340,
        _ => 90 + dice as usize / 16 % 80,
    }
}

/// Encoded frames of one writer, with the numbers of `sequence`, of usual sizes.
pub(crate) fn frames(writer: u32, sequence: Range<u64>) -> Vec<u8> {
    let now = Instant::now();
    let mut encoded = Vec::new();
    for number in sequence {
        encoded.extend(wire::data(&payload(writer, number, usual_len(number), now)));
    }
    encoded
}

/// Encoded frames of one writer whose payloads all have `len` bytes.
pub(crate) fn frames_of_len(writer: u32, sequence: Range<u64>, len: usize) -> Vec<u8> {
    let now = Instant::now();
    sequence.flat_map(|number| wire::data(&payload(writer, number, len, now))).collect()
}

/// What a number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) writer: u32,
    pub(crate) sequence: u64,
    /// Intended send time, after some fixed moment of this process.
    sent_at: Duration,
}

impl Number {
    /// Reads a payload; fails where a single bit of it differs.
    #[track_caller]
    pub(crate) fn of(payload: &[u8]) -> Self {
        let (body, sum) = payload.split_last_chunk().expect("a numbered payload");
        assert_eq!(u64::from_be_bytes(*sum), checksum(body), "a damaged payload of {} bytes", payload.len());
        let field = |range: Range<usize>| body[range].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        Self {
            writer: field(0..4) as u32,
            sequence: field(4..12),
            sent_at: Duration::from_nanos(field(12..20)),
        }
    }

    /// From the intended send time to `arrived_at`.
    pub(crate) fn latency(&self, arrived_at: Instant) -> Duration {
        arrived_at.saturating_duration_since(*EPOCH).saturating_sub(self.sent_at)
    }
}

/// The sequences of each writer in order of arrival.
pub(crate) fn sequences<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> BTreeMap<u32, Vec<u64>> {
    let mut sequences = BTreeMap::<u32, Vec<u64>>::new();
    for payload in payloads {
        let number = Number::of(payload);
        sequences.entry(number.writer).or_default().push(number.sequence);
    }
    sequences
}

/// Fails unless every writer's frames are there exactly once and in order.
#[track_caller]
pub(crate) fn assert_complete<'a>(
    payloads: impl IntoIterator<Item = &'a [u8]>,
    expected: &[(u32, Range<u64>)],
) {
    let sequences = sequences(payloads);
    let writers: Vec<u32> = sequences.keys().copied().collect();
    let expected_writers: Vec<u32> = expected.iter().map(|(writer, _)| *writer).collect();
    assert_eq!(writers, expected_writers, "frames of other writers than expected");
    for (writer, range) in expected {
        let got = &sequences[writer];
        if let Some((index, (got, want))) =
            got.iter().copied().zip(range.clone()).enumerate().find(|(_, (got, want))| got != want)
        {
            panic!("writer {writer}: frame {got} in place of {want}, at index {index}");
        }
        assert_eq!(got.len() as u64, range.end - range.start, "writer {writer}: frames in all");
    }
}

/// Fails unless each writer's numbers rise: some may be missing, none is doubled or out of order.
#[track_caller]
pub(crate) fn assert_rising<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) {
    for (writer, sequence) in sequences(payloads) {
        if let Some(pair) = sequence.windows(2).find(|pair| pair[0] >= pair[1]) {
            panic!("writer {writer}: frame {} came after {}", pair[1], pair[0]);
        }
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
