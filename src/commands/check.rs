//! `tapster check`: what would run.

use std::io::Write;
use std::io::stdout;
use std::process::ExitCode;

use tapster::config::to_toml;

use crate::cli::RelayArgs;
use crate::commands::CommandError;
use crate::commands::resolve_args;

/// Prints the configuration with every key filled in, and warnings beside it on stderr.
pub(crate) fn check(args: &RelayArgs) -> Result<ExitCode, CommandError> {
    let resolved = resolve_args(args)?;
    for warning in &resolved.warnings {
        eprintln!("tapster: warning: {warning}");
    }
    let document = to_toml(&resolved.config);
    stdout()
        .write_all(document.as_bytes())
        .map_err(|error| CommandError::Failed(format!("stdout: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
