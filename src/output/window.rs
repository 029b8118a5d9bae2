//! What one connection was given and has not acknowledged, by byte position.

use std::collections::VecDeque;

use crate::protocol::FrameBatch;
use crate::queue::Queued;
use crate::queue::channel::charge;
use crate::spool::LogPosition;

/// A batch that an output has taken from its queue.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) batch: FrameBatch,
    /// The connection that it came from.
    pub(crate) upstream: u32,
    /// The place behind it in the spool, if it is there too.
    pub(crate) place: Option<LogPosition>,
    /// Its place among all that were taken from the queue; 0 where that is the order of the lane.
    pub(crate) number: u64,
    /// What the queue charged, to be given back whole.
    pub(crate) charge: usize,
    /// The frames that were wholly written before, on whatever connection.
    pub(crate) sent: Prefix,
    /// Whether the queue knows that it is held: it was wholly written before.
    pub(crate) held: bool,
}

/// The first frames of a batch, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) frames: u32,
    pub(crate) bytes: usize,
}

impl Taken {
    pub(crate) fn new(queued: Queued, number: u64) -> Self {
        let Queued { upstream, batch, place } = queued;
        Self { charge: charge(&batch), batch, upstream, place, number, sent: Prefix::default(), held: false }
    }

    /// The frames that lie wholly within the first `count` bytes.
    pub(crate) fn prefix(&self, count: usize) -> Prefix {
        let mut rest = self.batch.clone();
        let frames = rest.advance(count);
        Prefix { frames, bytes: self.batch.byte_len() - rest.byte_len() }
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Prefix {
        Prefix { frames: self.batch.frames(), bytes: self.batch.byte_len() }
    }

    /// Takes off the frames that lie wholly within the first `count` bytes, and returns those among them that were sent.
    pub(crate) fn advance(&mut self, count: usize) -> Prefix {
        let len = self.batch.byte_len();
        let frames = self.batch.advance(count);
        let gone = Prefix { frames, bytes: len - self.batch.byte_len() };
        let gone_sent = self.sent.min(gone);
        self.sent = self.sent.minus(gone_sent);
        gone_sent
    }
}

impl Prefix {
    /// The shorter of two prefixes of one batch.
    pub(crate) fn min(self, other: Self) -> Self {
        if self.bytes <= other.bytes { self } else { other }
    }

    /// What this has and `shorter` has not.
    pub(crate) fn minus(self, shorter: Self) -> Self {
        Self { frames: self.frames - shorter.frames, bytes: self.bytes - shorter.bytes }
    }
}

/// Batches that were wholly written to one connection, from the first that is not wholly acknowledged on.
///
/// Positions are bytes of data frames since the beginning of the connection: start <= end, and the first batch ends
/// behind what is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Window {
    batches: VecDeque<Taken>,
    start: u64,
    end: u64,
    acknowledged: u64,
    charge: usize,
}

impl Window {
    /// Adds the batch that was written next.
    pub(crate) fn push(&mut self, taken: Taken) {
        self.end += taken.batch.byte_len() as u64;
        self.charge += taken.charge;
        self.batches.push_back(taken);
    }

    /// Notes that every byte before `position` is acknowledged. Positions that go back, or beyond what was written, do
    /// no harm.
    pub(crate) fn acknowledge(&mut self, position: u64) {
        self.acknowledged = self.acknowledged.max(position);
    }

    /// Takes out the first batch if all of it is acknowledged.
    pub(crate) fn pop_acknowledged(&mut self) -> Option<Taken> {
        let first_end = self.start + self.batches.front()?.batch.byte_len() as u64;
        if first_end <= self.acknowledged { self.pop() } else { None }
    }

    /// Takes out the first batch.
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        let taken = self.batches.pop_front()?;
        self.start += taken.batch.byte_len() as u64;
        self.charge -= taken.charge;
        Some(taken)
    }

    /// Gives up the connection: what is kept, and how many bytes at the front of it, or of the batch after it, are
    /// acknowledged.
    pub(crate) fn into_unacknowledged(self) -> (VecDeque<Taken>, usize) {
        let acknowledged = self.acknowledged.saturating_sub(self.start);
        (self.batches, usize::try_from(acknowledged).unwrap_or(usize::MAX))
    }

    /// The batches that are kept.
    pub(crate) fn batches(&self) -> impl Iterator<Item = &Taken> {
        self.batches.iter()
    }

    /// The position behind the last batch that was wholly written.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// What the queue charges for what is kept.
    pub(crate) fn charge(&self) -> usize {
        self.charge
    }
}
