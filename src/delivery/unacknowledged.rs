//! What one stream was given and has not acknowledged, by byte position.

use std::collections::VecDeque;
use std::time::Instant;

use crate::delivery::item::Item;

/// Batches that were wholly written to one stream, from the first that is not wholly acknowledged on.
///
/// Positions are bytes of data frames since the stream began. The first batch ends behind what is acknowledged.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    items: VecDeque<Item>,
    start: u64,
    acknowledged: u64,
    charge: usize,
}

impl Unacknowledged {
    /// Adds the batch that was written next.
    pub(super) fn push(&mut self, item: Item) {
        self.charge += item.batch.charge();
        self.items.push_back(item);
    }

    /// The stream has acknowledged every byte before `position`. Positions that go back, or beyond what was written, do no
    /// harm.
    pub(super) fn acknowledge(&mut self, position: u64) {
        self.acknowledged = self.acknowledged.max(position);
    }

    /// Takes out the first batch if all of it is acknowledged.
    pub(super) fn pop_acknowledged(&mut self) -> Option<Item> {
        let first_end = self.start + self.items.front()?.batch.byte_len() as u64;
        if first_end <= self.acknowledged { self.pop() } else { None }
    }

    /// Takes out the first batch.
    pub(super) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.start += item.batch.byte_len() as u64;
        self.charge -= item.batch.charge();
        Some(item)
    }

    /// Gives up the stream: what is kept, and how many bytes at the front of it, or of the batch after it, are acknowledged.
    pub(super) fn into_parts(self) -> (VecDeque<Item>, usize) {
        let acknowledged = self.acknowledged.saturating_sub(self.start);
        (self.items, usize::try_from(acknowledged).unwrap_or(usize::MAX))
    }

    /// When the oldest batch was read that is kept.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.items.front().map(|item| item.batch.read_at())
    }

    /// The batches that are kept.
    pub(super) fn items(&self) -> impl DoubleEndedIterator<Item = &Item> {
        self.items.iter()
    }

    /// The position of the first batch that is kept; without one, of the next that is written.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// What the queue charges for what is kept.
    pub(super) fn charge(&self) -> usize {
        self.charge
    }
}
