//! From text to a [`RelayConfig`](crate::relay::RelayConfig) that cannot be wrong.
//!
//! ```text
//!  tapster.toml ──► raw ──┐
//!                         ├──► section, value ──► keys, output ──► resolve ──► RelayConfig, or every fault at once
//!  --to ADDR?k=v ─► raw ──┘
//! ```

#![forbid(unsafe_code)]

pub mod units;

mod access;
mod admin;
mod buffer;
mod conflicts;
mod delivery;
mod diff;
mod fault;
mod file;
mod files;
mod keys;
mod output;
mod places;
mod raw;
mod render;
mod resolve;
mod section;
mod subscribers;
mod tls;
mod token;
mod value;
mod words;

pub use admin::AdminConfig;
pub use admin::admin_addresses;
pub use admin::default_addresses;
pub use admin::is_local;
pub use diff::admin_differences;
pub use diff::differences;
pub use fault::Fault;
pub use fault::Faults;
pub use places::Places;
pub use render::admin_to_toml;
pub use render::to_json;
pub use render::to_toml;
pub use resolve::Options;
pub use resolve::Resolved;
pub use resolve::ResolvedOutput;
pub use resolve::resolve;
pub use resolve::resolve_output;
pub use resolve::resolve_toml;
pub use token::Token;
pub use words::Words;
pub use words::buffer_words;
