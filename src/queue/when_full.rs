//! What happens to a batch that finds its queue full.

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

/// What a full queue does with data. Every frame lost by it is counted, reason `queue_full` or `sampled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest waiting frames are dropped: the newest data survives a long absence.
    #[default]
    DropOldest,
    /// The arriving frames are dropped: the data from the beginning of an absence survives.
    DropNewest,
    /// Nothing is dropped: inputs that feed this queue are not read until there is room.
    Block,
    /// From half full on, of the arriving batches one in n is kept, with n a power of two as large as it takes: an evenly
    /// thinned stream rather than a gap. What was left out is counted as `sampled`. A queue that is full all the same, with
    /// a reader that stands still, drops as `DropNewest` does.
    Sample,
}

impl WhenFull {
    const ALL: [Self; 4] = [Self::DropOldest, Self::DropNewest, Self::Block, Self::Sample];

    /// Bytes that one write may take out at once of a queue of `max` bytes: a part of the queue, so that the policy has the rest.
    pub(super) fn write_len_max(self, max: usize) -> usize {
        let part = match self {
            // Much at once would look like a consumer that catches up.
            Self::Sample => (max / 64).max(SAMPLE_WRITE_LEN_MIN).min(max / 4),
            _ => max / 4,
        };
        part.clamp(1, WRITE_LEN_MAX)
    }
}

/// The policy of a queue, which an operator may change while the queue is in use.
#[derive(Debug)]
pub(super) struct Policy(AtomicU8);

impl Policy {
    pub(super) fn new(when_full: WhenFull) -> Self {
        Self(AtomicU8::new(when_full as u8))
    }

    pub(super) fn get(&self) -> WhenFull {
        WhenFull::ALL[usize::from(self.0.load(Relaxed))]
    }

    pub(super) fn set(&self, when_full: WhenFull) {
        self.0.store(when_full as u8, Relaxed);
    }
}

/// Most bytes in one write: large enough that its system call is lost in the copy.
const WRITE_LEN_MAX: usize = 1 << 20;

/// Less in one write, or one read, is not worth its system call.
const SAMPLE_WRITE_LEN_MIN: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_what_it_was_set_to() {
        let policy = Policy::new(WhenFull::default());
        for when_full in WhenFull::ALL {
            policy.set(when_full);
            assert_eq!(policy.get(), when_full);
        }
    }
}
