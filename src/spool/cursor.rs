//! The cursor: a file of two slots that says up to where everything was acknowledged.

use std::io;
use std::io::IoSlice;

use bytes::Buf;
use bytes::BufMut;

use crate::batch::position::LogPosition;
use crate::spool::limits::FRAME_SEQ_MAX;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::storage::Storage;
use crate::spool::storage::read_full;
use crate::spool::storage::write_all;

/// One slot of the cursor file. The format is drawn in [`spool`](crate::spool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorSlot {
    /// The slot with the higher generation counts.
    pub generation: u64,
    /// Everything before it was acknowledged.
    pub position: LogPosition,
    /// The spool that the cursor belongs to.
    pub spool: [u8; 16],
}

impl CursorSlot {
    /// Encoded length, in bytes.
    pub const LEN: usize = 64;

    /// The slot, encoded.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = &mut bytes[..];
        rest.put_slice(MAGIC);
        rest.put_u64_le(self.generation);
        rest.put_u64_le(self.position.segment);
        rest.put_u64_le(self.position.offset);
        rest.put_u64_le(self.position.frame_seq);
        rest.put_slice(&self.spool);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a slot; `None` where it is damaged.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (checked, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(checked) {
            return None;
        }
        let mut rest = checked.strip_prefix(MAGIC)?;
        let generation = rest.get_u64_le();
        let position = LogPosition {
            segment: rest.get_u64_le(),
            offset: rest.get_u64_le(),
            frame_seq: rest.get_u64_le(),
        };
        let slot = Self { generation, position, spool: *rest.first_chunk()? };
        let possible = position.segment <= SEGMENT_MAX && position.frame_seq <= FRAME_SEQ_MAX;
        (possible && generation < u64::MAX).then_some(slot)
    }

    /// The slot that counts in a cursor file; `None` where none is sound.
    pub fn newest(file: &[u8]) -> Option<Self> {
        let slots = SLOTS_AT.iter().filter_map(|&at| file.get(at as usize..)?.first_chunk());
        slots.filter_map(Self::decode).max_by_key(|slot| slot.generation)
    }
}

/// The version of the format of a cursor file, where it is another than the one known here. See [`SegmentHeader::other_version`].
///
/// [`SegmentHeader::other_version`]: crate::spool::SegmentHeader::other_version
fn other_version(file: &[u8]) -> Option<u32> {
    let slots =
        SLOTS_AT.iter().filter_map(|&at| file.get(at as usize..)?.first_chunk::<{ CursorSlot::LEN }>());
    let versions = slots.filter_map(|slot| {
        let version = slot.strip_prefix(MAGIC_WITHOUT_VERSION)?.first()?.checked_sub(b'0')?;
        let mut as_known = *slot;
        as_known[..MAGIC.len()].copy_from_slice(MAGIC);
        ((2..=9).contains(&version) && CursorSlot::decode(&as_known).is_none()).then_some(u32::from(version))
    });
    versions.max()
}

/// What a cursor file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundCursor {
    Sound(CursorSlot),
    /// Nothing of the file can be read here.
    OtherVersion(u32),
    Damaged,
}

impl FoundCursor {
    pub(super) fn sound(self) -> Option<CursorSlot> {
        match self {
            Self::Sound(slot) => Some(slot),
            Self::OtherVersion(_) | Self::Damaged => None,
        }
    }
}

/// The cursor file, open.
#[derive(Debug)]
pub(super) struct Cursor<F> {
    file: F,
    newest: CursorSlot,
}

impl<F> Cursor<F> {
    /// Reads the slot that counts.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn read<S: Storage<File = F>>(storage: &S, file: &F) -> io::Result<FoundCursor> {
        let mut bytes = vec![0; CURSOR_FILE_LEN];
        let len = read_full(storage, file, &mut bytes, 0)?;
        bytes.truncate(len);
        Ok(match (other_version(&bytes), CursorSlot::newest(&bytes)) {
            (Some(version), _) => FoundCursor::OtherVersion(version),
            (None, Some(slot)) => FoundCursor::Sound(slot),
            (None, None) => FoundCursor::Damaged,
        })
    }

    /// A cursor that goes on from `newest`.
    pub(super) fn new(file: F, newest: CursorSlot) -> Self {
        Self { file, newest }
    }

    /// Where the cursor stands on disk.
    pub(super) fn position(&self) -> LogPosition {
        self.newest.position
    }

    /// Creates the file again if it is not in the folder any more.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn restore<S: Storage<File = F>>(&mut self, storage: &S, durable: bool) -> io::Result<()> {
        if storage.has_name(&self.file, CURSOR_NAME)? {
            return Ok(());
        }
        self.file = storage.create(CURSOR_NAME)?;
        self.commit(storage, self.newest.position, durable)?;
        if durable {
            storage.sync_folder()?;
        }
        Ok(())
    }

    /// Writes a position into the older slot, and makes it durable.
    ///
    /// # Errors
    /// What the system says. The position before is still there, or this one.
    pub(super) fn commit<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        position: LogPosition,
        durable: bool,
    ) -> io::Result<()> {
        let next = CursorSlot { generation: self.newest.generation + 1, position, ..self.newest };
        let at = if next.generation.is_multiple_of(2) { SLOTS_AT[0] } else { SLOTS_AT[1] };
        write_all(storage, &self.file, &mut [IoSlice::new(&next.encode())], at)?;
        if durable {
            storage.sync(&self.file)?;
        }
        self.newest = next;
        Ok(())
    }
}

/// Name of the cursor file.
pub(super) const CURSOR_NAME: &str = "cursor";

/// Each slot has a block of its own: a write that is torn spoils one.
const SLOTS_AT: [u64; 2] = [0, 4096];
/// Length of the file once both slots were written, in bytes.
pub(super) const CURSOR_FILE_LEN: usize = 4096 + CursorSlot::LEN;
const MAGIC: &[u8; 8] = b"tapcurs1";
const MAGIC_WITHOUT_VERSION: &[u8; 7] = b"tapcurs";
const CRC_AT: usize = CursorSlot::LEN - 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(generation: u64) -> CursorSlot {
        let position = LogPosition { segment: generation + 1, offset: 4096, frame_seq: 10 * generation };
        CursorSlot { generation, position, spool: [7; 16] }
    }

    #[test]
    fn the_newest_sound_slot_counts() {
        let mut file = vec![0; CURSOR_FILE_LEN];
        assert_eq!(CursorSlot::newest(&file), None);
        file[..64].copy_from_slice(&slot(4).encode());
        file[4096..].copy_from_slice(&slot(5).encode());
        assert_eq!(CursorSlot::newest(&file), Some(slot(5)));
        for byte in 4096..file.len() {
            file[byte] ^= 1;
            assert_eq!(CursorSlot::newest(&file), Some(slot(4)), "byte {byte}");
            file[byte] ^= 1;
        }
        for len in 0..file.len() {
            let expected = (len >= 64).then_some(slot(4));
            assert_eq!(CursorSlot::newest(&file[..len]), expected, "cut to {len}");
        }
    }
}
