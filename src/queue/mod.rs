//! Where batches wait for their output.

pub mod when_full;

pub use when_full::WhenFull;
