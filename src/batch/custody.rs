//! What is owed for the frames of one batch.

use std::sync::Arc;

use crate::batch::budget::Permit;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;

/// The frames of one batch that have not ended yet, and the room that the batch takes.
///
/// The frames of a batch end from the first on: `open` counts those that were never wholly written, `unacknowledged` those
/// that were written and are kept.
#[derive(Debug)]
pub(crate) struct Custody {
    permit: Permit,
    account: Arc<OutputAccount>,
    open: u32,
    unacknowledged: u32,
    // The frames are on disk too: dropped, the batch is read from there again.
    on_disk: bool,
}

impl Custody {
    /// Takes `frames` frames that an input had for this output into custody.
    pub(crate) fn admit(account: Arc<OutputAccount>, permit: Permit, frames: u32) -> Self {
        account.admitted(u64::from(frames));
        Self { permit, account, open: frames, unacknowledged: 0, on_disk: false }
    }

    /// Takes `frames` frames out of the spool, where they stay until they are acknowledged.
    pub(crate) fn load(account: Arc<OutputAccount>, permit: Permit, frames: u32) -> Self {
        account.loaded(u64::from(frames));
        Self { permit, account, open: frames, unacknowledged: 0, on_disk: true }
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

    /// `frames` more frames, of `bytes` bytes, are wholly written, for the first time.
    pub(crate) fn sent(&mut self, frames: u32, bytes: u64) {
        debug_assert!(frames <= self.open);
        self.open -= frames;
        self.account.sent(u64::from(frames), bytes);
    }

    /// The same, of a batch that is kept until it is acknowledged.
    pub(crate) fn sent_and_kept(&mut self, frames: u32, bytes: u64) {
        self.sent(frames, bytes);
        self.unacknowledged += frames;
        self.account.unacknowledged(u64::from(frames));
    }

    /// All of the batch is written, and kept: nobody has to wait for it to be written any more.
    pub(crate) fn hold(&mut self) {
        self.permit.hold();
    }

    /// `frames` frames of those that were written are acknowledged.
    pub(crate) fn acknowledged(&mut self, frames: u32) {
        debug_assert!(frames <= self.unacknowledged);
        self.unacknowledged -= frames;
        self.account.acknowledged(u64::from(frames));
    }

    /// `frames` frames that were never written are lost.
    pub(crate) fn lost(&mut self, reason: DropReason, frames: u32) {
        debug_assert!(frames <= self.open);
        self.open -= frames;
        self.account.dropped(reason, u64::from(frames));
    }

    /// A frame of `bytes` bytes that was written, and kept, is lost after all: no reader takes it.
    pub(crate) fn refused_after_sending(&mut self, bytes: u64) {
        debug_assert!(self.unacknowledged > 0);
        self.unacknowledged -= 1;
        self.account.refused_after_sending(bytes);
    }

    /// All frames have arrived.
    pub(crate) fn delivered(mut self) {
        debug_assert_eq!(self.open, 0);
        let unacknowledged = self.unacknowledged;
        self.acknowledged(unacknowledged);
    }

    /// The frames that were never written are lost. Whether the others arrived, nobody knows.
    pub(crate) fn dropped(mut self, reason: DropReason) {
        let open = self.open;
        self.lost(reason, open);
        self.unacknowledged = 0;
    }

    /// The frames that were never written are on disk, and nowhere else; the next run sends them, and those once more of
    /// which nobody knows whether they arrived.
    pub(crate) fn stored(mut self) {
        self.account.stored(u64::from(self.open));
        (self.open, self.unacknowledged) = (0, 0);
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        if self.on_disk {
            // A lane that failed: the spool gives these frames to the next one, which sends all of them.
            self.account.stored(u64::from(self.open));
            self.account.unsent(u64::from(self.unacknowledged));
        } else if self.open > 0 {
            self.account.dropped(DropReason::Internal, u64::from(self.open));
        }
        debug_assert!(
            self.open == 0 && self.unacknowledged == 0 || std::thread::panicking(),
            "{} frames of a batch have no end",
            self.open
        );
    }
}
