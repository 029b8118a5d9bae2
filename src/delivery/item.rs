//! A batch that an output has taken from its queue.

use crate::batch::Batch;

/// A batch, and its place in the order in which batches were taken.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) batch: Batch,
    /// Counts the batches that this output has taken: batches are written in this order, and those that come back go before
    /// younger ones.
    pub(super) number: u64,
    /// How many connections in a row ended with this batch as the first that was not delivered, and with as many frames of it
    /// left as now.
    pub(super) breaks: u32,
    pub(super) broke_with: u32,
}

impl Item {
    pub(super) fn new(batch: Batch, number: u64) -> Self {
        Self { batch, number, breaks: 0, broke_with: 0 }
    }
}
