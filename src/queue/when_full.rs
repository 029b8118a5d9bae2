//! What happens to a batch that finds its queue full.

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
