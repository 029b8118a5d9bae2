//! `tapster check`: what would run.

use std::io::Write;
use std::io::stdout;
use std::process::ExitCode;

use tapster::config::to_toml;
use tapster::config::units::format_size;
use tapster::observability::printable;
use tapster::output::OutputConfig;
use tapster::spool::Folder;
use tapster::spool::SpoolError;
use tapster::spool::SpoolSettings;

use crate::cli::RelayArgs;
use crate::commands::CommandError;
use crate::commands::resolve_args;
use crate::commands::tell::tell;

/// Prints the configuration with every key filled in, and warnings beside it on stderr. Fails, with exit status 1, where
/// a spool could not be used now. The relay that uses it may be running: that is a remark.
pub(crate) fn check(args: &RelayArgs) -> Result<ExitCode, CommandError> {
    let resolved = resolve_args(args)?;
    for warning in &resolved.warnings {
        tell(&format_args!("warning: {warning}"));
    }
    let document = to_toml(&resolved.config);
    stdout()
        .write_all(document.as_bytes())
        .map_err(|error| CommandError::Failed(format!("stdout: {error}")))?;
    let faults: Vec<String> = resolved.config.outputs.iter().filter_map(spool_fault).collect();
    if faults.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(CommandError::Failed(faults.join("\n"))) }
}

/// What keeps the spool of an output from being used.
fn spool_fault(output: &OutputConfig) -> Option<String> {
    let SpoolSettings { folder, config } = output.buffer.spool()?;
    let fault = match Folder::probe(folder) {
        // Most likely by the relay that runs with this configuration.
        Err(SpoolError::InUse { folder }) => {
            let (output, folder) = (&output.name, folder.display());
            eprintln!(
                "tapster: note: output `{output}`: a process uses the spool {folder} now; it must end before another can start"
            );
            return None;
        }
        Err(error) => error.to_string(),
        Ok(free) if free < config.min_free => format!(
            "the file system of {} has {} left, and `min_free` leaves all of {} to others: make room, or lower it",
            printable(folder),
            format_size(free),
            format_size(config.min_free)
        ),
        Ok(_) => return None,
    };
    Some(format!("output `{}`: spool: {fault}", printable(&output.name)))
}
