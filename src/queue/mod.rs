//! Where batches wait for their output.

pub(crate) mod channel;
pub mod when_full;

pub(crate) use channel::Queue;
pub(crate) use channel::Queued;
pub use when_full::WhenFull;
