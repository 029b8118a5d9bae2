//! What is owed for the frames of one batch.

use std::sync::Arc;

use crate::batch::budget::Permit;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;

/// The frames of one batch that have not ended yet, and the room that the batch takes.
///
/// The frames of a batch end from the first on: `open` counts those that were never wholly written, `written` those that were
/// and that the batch still has.
#[derive(Debug)]
pub(crate) struct Custody {
    permit: Permit,
    account: Arc<OutputAccount>,
    open: u32,
    written: u32,
    written_bytes: u64,
    // Frames that were written wait for their acknowledgement.
    kept: bool,
    // The frames are on disk too: dropped, the batch is read from there again.
    on_disk: bool,
}

impl Custody {
    /// Takes `frames` frames that an input had for this output into custody.
    pub(crate) fn admit(account: Arc<OutputAccount>, permit: Permit, frames: u32) -> Self {
        account.admitted(u64::from(frames));
        Self::new(account, permit, frames, false)
    }

    /// Takes `frames` frames out of the spool, where they stay until they are acknowledged.
    pub(crate) fn load(account: Arc<OutputAccount>, permit: Permit, frames: u32) -> Self {
        account.loaded(u64::from(frames));
        Self::new(account, permit, frames, true)
    }

    fn new(account: Arc<OutputAccount>, permit: Permit, open: u32, on_disk: bool) -> Self {
        Self { permit, account, open, written: 0, written_bytes: 0, kept: false, on_disk }
    }

    /// Keeps the first frame, of `bytes` bytes, and gives the others away.
    pub(crate) fn split_off_first(&mut self, bytes: u64) -> Self {
        let rest_charge = self.permit.charge().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        let permit = self.permit.split(rest_charge);
        let mut rest = Self::new(Arc::clone(&self.account), permit, self.open, self.on_disk);
        rest.kept = self.kept;
        if self.written > 0 {
            (rest.written, rest.written_bytes) = (self.written - 1, self.written_bytes - bytes);
            (self.open, self.written, self.written_bytes) = (0, 1, bytes);
        } else {
            rest.open -= 1;
            self.open = 1;
        }
        rest
    }

    /// Frames that were never wholly written.
    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    /// Bytes that the queue is charged with.
    pub(crate) fn charge(&self) -> usize {
        self.permit.charge()
    }

    /// Moves the batch to the budget of another queue.
    pub(crate) fn move_to(&mut self, permit: Permit) {
        self.permit = permit;
    }

    /// The batch is on disk now, and stays in memory too.
    pub(crate) fn copied_to_disk(&mut self) {
        self.on_disk = true;
    }

    /// The disk has lost the batch: it is in memory alone.
    pub(crate) fn gone_from_disk(&mut self) {
        self.on_disk = false;
    }

    /// `frames` more frames, of `bytes` bytes, are wholly written, for the first time. `kept`: they wait for their
    /// acknowledgement.
    pub(crate) fn sent(&mut self, frames: u32, bytes: u64, kept: bool) {
        debug_assert!(frames <= self.open);
        self.open -= frames;
        self.written += frames;
        self.written_bytes += bytes;
        self.kept = kept;
        self.account.sent(u64::from(frames), bytes);
        if kept {
            self.account.unacknowledged(u64::from(frames));
        }
    }

    /// All of the batch is written, and kept: nobody has to wait for it to be written any more.
    pub(crate) fn hold(&mut self) {
        self.permit.hold();
    }

    /// `frames` frames of those that were written, of `bytes` bytes, are acknowledged, or are not kept.
    pub(crate) fn taken_off(&mut self, frames: u32, bytes: u64) {
        debug_assert!(frames <= self.written);
        self.written -= frames;
        self.written_bytes -= bytes;
        if self.kept {
            self.account.acknowledged(u64::from(frames));
        }
    }

    /// `frames` frames that were never written are lost.
    pub(crate) fn lost(&mut self, reason: DropReason, frames: u32) {
        debug_assert!(frames <= self.open);
        self.open -= frames;
        self.account.dropped(reason, u64::from(frames));
    }

    /// A frame of `bytes` bytes that was written, and kept, is lost after all: no reader takes it.
    pub(crate) fn refused_after_sending(&mut self, bytes: u64) {
        debug_assert!(self.kept && self.written > 0);
        self.written -= 1;
        self.written_bytes -= bytes;
        self.account.refused_after_sending(bytes);
    }

    /// All frames have arrived.
    pub(crate) fn delivered(mut self) {
        debug_assert_eq!(self.open, 0);
        self.taken_off(self.written, self.written_bytes);
    }

    /// Why frames are lost that are left at the end of the output.
    pub(crate) fn end_reason(&self) -> DropReason {
        self.account.end_reason()
    }

    /// The frames that were never written are lost. Whether the others arrived, nobody knows.
    pub(crate) fn dropped(mut self, reason: DropReason) {
        let open = self.open;
        self.lost(reason, open);
        self.written = 0;
    }

    /// The same, and nobody waits for the acknowledgement of the others any more.
    pub(crate) fn given_up(self, reason: DropReason) {
        if self.kept {
            self.account.never_acknowledged(u64::from(self.written));
        }
        self.dropped(reason);
    }

    /// The frames that were never written are on disk, and nowhere else; the next run sends them, and those once more of
    /// which nobody knows whether they arrived.
    pub(crate) fn stored(mut self) {
        self.account.stored(u64::from(self.open));
        (self.open, self.written) = (0, 0);
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        let (open, written) = (u64::from(self.open), u64::from(self.written));
        if self.on_disk && open + written > 0 {
            // A lane that failed: the spool gives these frames to the next one, which sends all of them.
            self.account.stored(open);
            self.account.unsent(written, self.written_bytes);
            if self.kept {
                self.account.never_acknowledged(written);
            }
        } else if open > 0 {
            self.account.dropped(DropReason::Internal, open);
        }
        debug_assert!(
            open + written == 0 || std::thread::panicking(),
            "{open} frames of a batch have no end"
        );
    }
}
