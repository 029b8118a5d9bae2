//! What the subcommands do.

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use tapster::config::Fault;
use tapster::config::Faults;
use tapster::config::Options;
use tapster::config::Resolved;
use tapster::config::resolve;
use tapster::observability::printable;
use tapster::transport::PassedSocket;

use crate::cli::RelayArgs;
use crate::cli::time::TimeRange;

pub(crate) mod check;
pub(crate) mod check_connect;
mod check_producers;
pub(crate) mod connection;
pub(crate) mod contents;
pub(crate) mod count;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod file;
pub(crate) mod file_sink;
pub(crate) mod inspect;
pub(crate) mod manager;
pub(crate) mod pace;
pub(crate) mod reload;
pub(crate) mod reloading;
pub(crate) mod remote;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod select;
pub(crate) mod service;
pub(crate) mod signals;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod spool;
pub(crate) mod stages;
pub(crate) mod start;
pub(crate) mod successor;
pub(crate) mod summary;
pub(crate) mod tell;
pub(crate) mod upgrade;
pub(crate) mod verdict;

/// Bad usage or configuration, found before anything is bound (`EX_USAGE` of `sysexits.h`).
pub(crate) const EXIT_USAGE: u8 = 64;

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Found before anything was bound; exit status 64.
    #[error(transparent)]
    Configuration(#[from] Faults),
    /// Found before anything was done; exit status 64.
    #[error("{0}")]
    Usage(String),
    /// Exit status 1.
    #[error("{0}")]
    Failed(String),
}

impl CommandError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

/// The configuration that the options make, or everything that is wrong with them. The service manager has `passed` these sockets;
/// `None` where nobody knows.
pub(crate) fn resolve_args(args: &RelayArgs, passed: Option<Vec<PassedSocket>>) -> Result<Resolved, Faults> {
    let summary_fault = args.summary.as_deref().and_then(summary_fault);
    match (resolve(&Options { passed, ..args.options() }), summary_fault) {
        (result, None) => result,
        (Ok(_), Some(fault)) => Err(Faults(vec![fault])),
        (Err(Faults(mut faults)), Some(fault)) => {
            faults.push(fault);
            Err(Faults(faults))
        }
    }
}

/// Prints lines on stdout.
pub(crate) fn print_lines(lines: &[String]) -> Result<ExitCode, CommandError> {
    match io::stdout().write_all(format!("{}\n", lines.join("\n")).as_bytes()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => stdout_failed(&error),
    }
}

/// `tapster inspect … | head` ends when `head` does; that is no fault.
pub(crate) fn stdout_failed(error: &io::Error) -> Result<ExitCode, CommandError> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CommandError::Failed(format!("stdout: {error}")))
}

/// A stretch of time must have a beginning before its end.
pub(crate) fn check_range(range: &TimeRange) -> Result<(), CommandError> {
    if range.is_nothing() {
        return Err(CommandError::Usage("--until must be later than --from".to_owned()));
    }
    Ok(())
}

/// A run of days must not end with a summary that has nowhere to go.
fn summary_fault(path: &Path) -> Option<Fault> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let message = if path.is_dir() {
        format!("{} is a folder: name a file in it, or `-` for stdout", printable(path))
    } else {
        let folder = folder.filter(|folder| !folder.is_dir())?;
        format!("the folder {} is not there: create it, or write `-` for stdout", printable(folder))
    };
    Some(Fault { place: "command line".to_owned(), key: "--summary".to_owned(), message })
}
