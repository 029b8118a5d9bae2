//! Where batches wait for their output: in memory, or on disk.

pub(crate) mod arrivals;
pub(crate) mod channel;
pub(crate) mod keeper;
pub(crate) mod outstanding;
pub(crate) mod receipts;
mod thinning;
pub mod when_full;

pub(crate) use channel::Queue;
pub(crate) use channel::Queued;
pub use keeper::SpoolUse;
pub use keeper::Takes;
pub use when_full::WhenFull;
