//! Counters and what is made of them.

pub(crate) mod absence;
pub(crate) mod account;
pub(crate) mod age;
pub(crate) mod drop_reason;
pub(crate) mod event_limit;
pub(crate) mod input_account;
pub mod ledger;
pub(crate) mod listener_log;
pub mod logging;
pub(crate) mod loss_log;
pub(crate) mod member_account;
pub(crate) mod output_log;
pub(crate) mod peer_name;
mod printable;
pub(crate) mod rejection;
pub(crate) mod spool_account;
pub mod standing;
pub mod status;
pub(crate) mod wait_log;

pub use ledger::InputLedger;
pub use ledger::Ledger;
pub use ledger::MemberLedger;
pub use ledger::MemberState;
pub use ledger::OutputLedger;
pub use ledger::Residence;
pub use ledger::SpoolLedger;
pub use logging::Log;
pub use logging::LogFormat;
pub use printable::Printable;
pub use printable::printable;
pub use printable::printable_json;
pub use printable::printable_lines;
pub use standing::OutputStanding;
pub use standing::Standing;
pub use standing::StandingLine;
pub use status::StatusLine;
