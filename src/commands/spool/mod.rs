//! `tapster spool`: folders in which the relay keeps what it cannot deliver yet.

use std::process::ExitCode;

use crate::cli::spool::SpoolCommand;
use crate::commands::CommandError;

mod check;
mod drop;
mod dump;
pub(crate) mod frames;
mod list;
pub(crate) mod look;
mod time;

/// Does what is asked with the folders.
pub(crate) fn spool(command: &SpoolCommand) -> Result<ExitCode, CommandError> {
    match command {
        SpoolCommand::List(args) => list::list(args),
        SpoolCommand::Check(args) => check::check(args),
        SpoolCommand::Dump(args) => dump::dump(args),
        SpoolCommand::Drop(args) => drop::drop(args),
    }
}
