//! The mark in every generated frame: who sent it, which one it is, when it was due, and a checksum.
//!
//! ```text
//!  0        4          8     10            12          20              28
//!  | magic  | checksum | run | connection  | sequence  | intended time |   little endian
//! ```
//!
//! The mark lies in the `extra` field of a dnstap message, or at the start of an opaque payload. The checksum is
//! a CRC32C over the bytes before the mark, the bytes after it, and the fields behind the checksum, in this order:
//! the first two never change for a template, so that the generator computes only the last twenty bytes.

use crc32c::crc32c;
use crc32c::crc32c_append;

/// Length of a mark, in bytes.
pub(crate) const MARK_LEN: usize = 28;

/// What a mark says about its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Tells generator processes apart.
    pub(crate) run: u16,
    /// Connection of the generator, from 0.
    pub(crate) connection: u16,
    /// Number of the frame on its connection, from 0; less than 2^63.
    pub(crate) sequence: u64,
    /// Whether the connection sends nothing after this frame.
    pub(crate) last: bool,
    /// When the schedule wanted the frame sent, in nanoseconds of the monotonic clock.
    pub(crate) intended_ns: u64,
}

/// What a payload turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A mark whose checksum is right.
    Intact(Mark),
    /// A mark whose checksum is wrong: some byte of the payload was altered.
    Corrupted,
    /// No mark: not from this generator, as the frames of real DNS servers.
    Unmarked,
}

impl Mark {
    /// Checksum state of the bytes around a mark that begins at `offset`.
    pub(crate) fn checksum_around(payload: &[u8], offset: usize) -> u32 {
        let after = payload.get(offset + MARK_LEN..).unwrap_or_default();
        crc32c_append(crc32c(&payload[..offset]), after)
    }

    /// Writes the mark over `place`, given the checksum state of the bytes around it.
    pub(crate) fn write(&self, place: &mut [u8; MARK_LEN], around: u32) {
        let sequence = self.sequence | if self.last { LAST_FLAG } else { 0 };
        place[..4].copy_from_slice(&MAGIC);
        place[8..10].copy_from_slice(&self.run.to_le_bytes());
        place[10..12].copy_from_slice(&self.connection.to_le_bytes());
        place[12..20].copy_from_slice(&sequence.to_le_bytes());
        place[20..].copy_from_slice(&self.intended_ns.to_le_bytes());
        let checksum = crc32c_append(around, &place[8..]);
        place[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Finds, checks and reads the mark of a payload.
    pub(crate) fn find(payload: &[u8]) -> Found {
        let Some(offset) = locate(payload) else { return Found::Unmarked };
        let Some(place) = payload.get(offset..).and_then(<[u8]>::first_chunk::<MARK_LEN>) else {
            return Found::Unmarked;
        };
        let checksum = crc32c_append(Self::checksum_around(payload, offset), &place[8..]);
        if place[4..8] != checksum.to_le_bytes() {
            return Found::Corrupted;
        }
        let half = |at: usize| u16::from_le_bytes([place[at], place[at + 1]]);
        let whole = |at: usize| u64::from_le_bytes(*place[at..].first_chunk().expect("within MARK_LEN"));
        Found::Intact(Self {
            run: half(8),
            connection: half(10),
            sequence: whole(12) & !LAST_FLAG,
            last: whole(12) & LAST_FLAG != 0,
            intended_ns: whole(20),
        })
    }
}

/// Where the mark of a payload begins.
fn locate(payload: &[u8]) -> Option<usize> {
    if payload.starts_with(&MAGIC) {
        return Some(0);
    }
    let mut at = 0;
    // A dnstap message has five fields; what has many more is none.
    for _ in 0..8 {
        let (tag, value_at) = varint(payload, at)?;
        at = match tag & 7 {
            0 => varint(payload, value_at)?.1,
            1 => value_at + 8,
            2 => {
                let (len, bytes_at) = varint(payload, value_at)?;
                if tag >> 3 == EXTRA_FIELD && payload.get(bytes_at..)?.starts_with(&MAGIC) {
                    return Some(bytes_at);
                }
                bytes_at.checked_add(usize::try_from(len).ok()?)?
            }
            5 => value_at + 4,
            _ => return None,
        };
    }
    None
}

/// A protobuf varint at `at`, and where the next byte is.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, &byte) in bytes.get(at..)?.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, at + index + 1));
        }
    }
    None
}

const MAGIC: [u8; 4] = *b"\xf5TLG";
const EXTRA_FIELD: u64 = 3;
const LAST_FLAG: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark =
        Mark { run: 7, connection: 300, sequence: 5_000_000_000, last: false, intended_ns: u64::MAX - 1 };

    fn payload(before: &[u8], mark: Mark, after: &[u8]) -> Vec<u8> {
        let mut payload = [before, &[0; MARK_LEN], after].concat();
        let around = Mark::checksum_around(&payload, before.len());
        let place = payload[before.len()..].first_chunk_mut().unwrap();
        mark.write(place, around);
        payload
    }

    #[test]
    fn a_mark_is_found_at_the_start_and_in_the_extra_field() {
        let last = Mark { last: true, sequence: 0, ..MARK };
        assert_eq!(Mark::find(&payload(b"", MARK, b"tail")), Found::Intact(MARK));
        assert_eq!(Mark::find(&payload(b"", last, b"")), Found::Intact(last));
        let before = b"\x0a\x03ns1\x1a\x1c";
        assert_eq!(Mark::find(&payload(before, MARK, b"\x78\x01")), Found::Intact(MARK));
    }

    #[test]
    fn any_altered_byte_is_found() {
        let intact = payload(b"\x0a\x03ns1\x1a\x1c", MARK, b"\x72\x02\x08\x01\x78\x01");
        for index in 0..intact.len() {
            for bit in 0..8 {
                let mut altered = intact.clone();
                altered[index] ^= 1 << bit;
                assert!(!matches!(Mark::find(&altered), Found::Intact(_)), "byte {index}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_mark_that_moved_or_was_cut_is_not_intact() {
        let intact = payload(b"", MARK, b"some more bytes");
        for len in 0..intact.len() {
            assert!(!matches!(Mark::find(&intact[..len]), Found::Intact(_)), "{len} bytes");
        }
        let longer = [&intact[..], b"x"].concat();
        assert_eq!(Mark::find(&longer), Found::Corrupted);
    }

    #[test]
    fn payloads_of_others_are_unmarked() {
        for payload in
            [&b""[..], b"\x0a\x03ns1", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x07\x07", &[0x80; 40]]
        {
            assert_eq!(Mark::find(payload), Found::Unmarked);
        }
    }
}
