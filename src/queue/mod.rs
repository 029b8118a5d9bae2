//! Where batches wait for their output, in memory.

pub(crate) mod block_limit;
pub(crate) mod channel;
pub(crate) mod enqueue_times;
pub(crate) mod read_ahead;
pub(crate) mod takers;
mod thinning;
pub mod when_full;

pub(crate) use channel::Queue;
pub use when_full::WhenFull;
