//! Which spool the files of a folder belong to.

use std::collections::BTreeMap;

use crate::spool::cursor::CursorSlot;
use crate::spool::limits::FRAME_SEQ_MAX;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::segment::SegmentHeader;

/// Returns the spool that most files are of, and the cursor if it is of that spool.
pub(super) fn identify<'a>(
    headers: impl Iterator<Item = &'a SegmentHeader>,
    slot: Option<CursorSlot>,
) -> (Option<[u8; 16]>, Option<CursorSlot>) {
    let within = |slot: &CursorSlot| {
        slot.position.segment <= SEGMENT_MAX / 2 && slot.position.frame_seq <= FRAME_SEQ_MAX / 2
    };
    let slot = slot.filter(within);
    let mut votes = BTreeMap::<[u8; 16], usize>::new();
    let ids = headers.map(|header| header.spool).chain(slot.map(|slot| slot.spool));
    ids.for_each(|id| *votes.entry(id).or_default() += 1);
    let id = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(id, _)| id);
    (id, slot.filter(|slot| Some(slot.spool) == id))
}
