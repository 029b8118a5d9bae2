//! Whether the folder of a spool, and its files, are still where they were: others may remove or replace them.

use std::collections::HashMap;

use crate::batch::connection::ConnectionId;
use crate::batch::position::LogPosition;
use crate::protocol::FrameBatch;
use crate::spool::disk_queue::Spool;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::storage::Standing;
use crate::spool::storage::Storage;

impl<S: Storage> Spool<S> {
    /// Fails while the folder is not in its place.
    pub(super) fn check_standing(&self) -> Result<(), SpoolError> {
        match self.standing {
            Standing::InPlace => Ok(()),
            Standing::Away => Err(SpoolError::Away),
            Standing::Gone => Err(SpoolError::Gone),
        }
    }

    /// Looks at the folder and its files. Frames of files that are gone, or were cut, count as lost, unless they are in memory.
    ///
    /// # Errors
    /// [`SpoolError::Away`] and [`SpoolError::Gone`]; [`SpoolError::Io`]: nothing is known.
    pub(super) fn look_at_folder(&mut self) -> Result<(), SpoolError> {
        let storage = self.log.storage();
        self.standing = storage.standing().map_err(SpoolError::io("look at", "the folder"))?;
        self.check_standing()?;
        self.progress.restore_cursor(self.log.storage())?;
        if self.log.open_segment_is_gone().map_err(SpoolError::io("look at", "the open segment"))? {
            self.durability.lose_segment(&mut self.log);
        }
        let entries = self.log.storage().list().map_err(SpoolError::io("list", "the folder"))?;
        let files = entries.into_iter().filter(|entry| entry.regular);
        let files: HashMap<String, u64> = files.map(|entry| (entry.name, entry.len)).collect();
        // What is written and not synced is in memory too.
        let in_memory = self.durability.first().unwrap_or(self.log.head());
        let unread = self.read_head.position().frame_seq.max(self.progress.acknowledged().frame_seq);
        let mut missing = self.log.forget_missing(&files);
        missing.extend(self.log.shorten_cut(&files));
        for frames in missing {
            self.missing.insert(frames.start..frames.end.min(in_memory));
            let lost = frames.start.max(unread)..frames.end.min(in_memory);
            if !lost.is_empty() {
                self.progress.lose(lost, LossReason::Damaged);
            }
        }
        Ok(())
    }

    /// Leaves out frames that begin at `position`, and that the caller has, if others have removed their file. Returns whether.
    pub(crate) fn leave_out_missing(&mut self, position: LogPosition, frames: u32) -> bool {
        let first = position.frame_seq;
        let is_missing = self.missing.end_of(first).is_some();
        if is_missing {
            self.progress.leave_out(first..position.after(frames).frame_seq);
        }
        is_missing
    }

    /// Whether the folder is where it was opened, as far as can be seen.
    pub(crate) fn is_in_place(&self) -> bool {
        self.log.storage().standing().is_ok_and(|standing| standing == Standing::InPlace)
    }

    /// What is in memory too, and was not read: all that is left of a spool whose folder is gone.
    pub(crate) fn into_unread(self) -> Vec<(ConnectionId, FrameBatch)> {
        let unread = self.read_head.position().frame_seq.max(self.progress.acknowledged().frame_seq);
        self.durability.into_batches_from(unread)
    }

    /// Number of the next segment. No place in this spool is at or behind it.
    pub(crate) fn segment_next(&self) -> u64 {
        self.log.segment_next()
    }

    /// Has the next segments begin with this number at least: no place in this spool is one in a spool before it.
    pub(crate) fn begin_segments_at(&mut self, number: u64) {
        self.log.begin_segments_at(number);
    }
}
