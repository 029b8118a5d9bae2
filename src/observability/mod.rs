//! Counters and what is made of them.

pub mod ledger;
pub(crate) mod metrics;

pub use ledger::InputLedger;
pub use ledger::Ledger;
pub use ledger::OutputLedger;
