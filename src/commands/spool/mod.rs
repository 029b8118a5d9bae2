//! `tapster spool`: folders in which the relay keeps what it cannot deliver yet.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use serde::Serializer;
use tapster::spool::Folder;
use tapster::spool::Inspected;
use tapster::spool::SpoolError;
use tapster::spool::inspect;

use crate::cli::spool::SpoolCommand;
use crate::commands::CommandError;

mod check;
mod drop;
mod dump;
pub(crate) mod frames;
mod list;

/// Does what is asked with the folders.
pub(crate) fn spool(command: &SpoolCommand) -> Result<ExitCode, CommandError> {
    match command {
        SpoolCommand::List(args) => list::list(args),
        SpoolCommand::Check(args) => check::check(args),
        SpoolCommand::Dump(args) => dump::dump(args),
        SpoolCommand::Drop(args) => drop::drop(args),
    }
}

/// Why a folder is not looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("there is no spool in it")]
    NoSpool,
}

/// Opens the folder of a spool, without a lock, and lists what is in it.
pub(crate) fn look(path: &Path) -> Result<(Folder, Inspected), LookError> {
    let folder = Folder::open_to_inspect(path)?;
    let inspected = inspect(&folder)?;
    if inspected.is_no_spool() { Err(LookError::NoSpool) } else { Ok((folder, inspected)) }
}

/// Nanoseconds of Unix time; written in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every u64 is within the years that there are.
        let time = Timestamp::from_nanosecond(self.0.into()).unwrap_or(Timestamp::MAX);
        time.fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
