//! What becomes of batches that are on disk too, from the lane that has them to the keeper of the spool.

use std::convert::Infallible;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use tokio::sync::mpsc;

use crate::queue::Queued;
use crate::spool::LogPosition;

/// What a lane has to say of a batch.
#[derive(Debug)]
pub(crate) enum Receipt {
    /// Everything up to this place of the spool that the lane has got, and had not settled before, is settled.
    Settled(LogPosition),
    /// The lane has ended with this batch, of which so many frames were never sent.
    Left { queued: Queued, frames_never_sent: u64 },
}

/// The end of a lane; each of several members of a group has one.
#[derive(Clone, Debug)]
pub(crate) struct ReceiptSender {
    // Dropped in this order: who sees that nobody is there any more has everything.
    receipts: Sender<Receipt>,
    _alive: mpsc::Sender<Infallible>,
}

/// The end of the keeper.
#[derive(Debug)]
pub(crate) struct ReceiptReceiver {
    receipts: Receiver<Receipt>,
    alive: mpsc::Receiver<Infallible>,
}

/// Receipts for the batches of one spool.
pub(crate) fn receipts() -> (ReceiptSender, ReceiptReceiver) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let (alive_sender, alive) = mpsc::channel(1);
    let sender = ReceiptSender { receipts: sender, _alive: alive_sender };
    (sender, ReceiptReceiver { receipts: receiver, alive })
}

impl ReceiptSender {
    /// Nobody is woken: the keeper looks when it has to.
    pub(crate) fn send(&self, receipt: Receipt) {
        // After the keeper nobody wants to know.
        let _ = self.receipts.send(receipt);
    }
}

impl ReceiptReceiver {
    /// The next receipt, if there is one.
    pub(crate) fn next(&self) -> Option<Receipt> {
        self.receipts.try_recv().ok()
    }

    /// Whether every lane has ended.
    pub(crate) fn lanes_ended(&self) -> bool {
        self.alive.is_closed()
    }

    /// Waits until every lane has ended. Cancel-safe.
    pub(crate) async fn all_lanes_ended(&mut self) {
        if let Some(never) = self.alive.recv().await {
            match never {}
        }
    }
}
