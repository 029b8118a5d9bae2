//! What happens to a batch that finds its queue full.

/// What a full queue does with data. Every frame lost by it is counted, reason `queue_full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest waiting frames are dropped: the newest data survives a long absence.
    #[default]
    DropOldest,
    /// The arriving frames are dropped: the data from the beginning of an absence survives.
    DropNewest,
    /// Nothing is dropped: inputs that feed this queue are not read until there is room.
    Block,
}
