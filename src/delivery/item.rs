//! A batch that an output has taken from its queue.

use crate::batch::Batch;

/// A batch, and its place in the order in which batches were taken.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) batch: Batch,
    /// Grows with the batches that this output has taken: batches are written in this order, and those that come back go
    /// before younger ones. Between two of them is a number for each frame.
    pub(super) number: u64,
    /// One frame, written with nothing behind it: a connection that ends then ended at this frame.
    pub(super) alone: bool,
    /// How many connections in a row ended at the frame that is the first of this batch now.
    pub(super) breaks: u32,
    pub(super) broke_with: u32,
}

impl Item {
    /// The `index`th batch that this output has taken.
    pub(super) fn new(batch: Batch, index: u64) -> Self {
        Self { batch, number: index << u32::BITS, alone: false, breaks: 0, broke_with: 0 }
    }

    /// Sets the first frame apart from the others, which it gives away.
    pub(super) fn set_apart_first(&mut self) -> Option<Self> {
        self.alone = true;
        let batch = self.batch.split_off_first()?;
        self.broke_with = 1;
        Some(Self { batch, number: self.number + 1, alone: false, breaks: 0, broke_with: 0 })
    }
}
