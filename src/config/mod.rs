//! From text to a [`RelayConfig`](crate::relay::RelayConfig) that cannot be wrong.
//!
//! ```text
//!  tapster.toml ──► raw ──┐
//!                         ├──► section, value ──► resolve ──► RelayConfig, or every fault at once
//!  --to ADDR?k=v ─► raw ──┘
//! ```

#![forbid(unsafe_code)]

pub mod units;

mod conflicts;
mod fault;
mod keys;
mod raw;
mod render;
mod resolve;
mod section;
mod spool;
mod value;

pub use fault::Fault;
pub use fault::Faults;
pub use render::to_toml;
pub use resolve::Options;
pub use resolve::Resolved;
pub use resolve::resolve;
pub use resolve::resolve_output;
