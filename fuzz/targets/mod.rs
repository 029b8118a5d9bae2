//! What the fuzzers run; `cargo test` runs it over the corpora.
//!
//! A target asserts what must hold for every input; that nothing panics is the least of it.

pub(crate) mod config;
pub(crate) mod dnstap;
pub(crate) mod file;
pub(crate) mod frames;
pub(crate) mod handover;
mod input;
pub(crate) mod memory;
pub(crate) mod proxy;
pub(crate) mod sessions;
pub(crate) mod spool;
