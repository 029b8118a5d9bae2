//! `tapster upgrade`: a new process takes over from one that runs.

use std::path::absolute;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::cli::UpgradeArgs;
use crate::commands::CommandError;
use crate::commands::print_lines;
use crate::commands::remote::Remote;

/// Returns when the new process reads every connection that can pass. The old one may still drain its outputs.
///
/// # Errors
/// The new process has not taken over: its faults in the configuration, or another reason. No process is reached.
pub(crate) fn upgrade(args: &UpgradeArgs) -> Result<ExitCode, CommandError> {
    let binary = args.binary.as_ref().map(absolute).transpose();
    let binary = binary.map_err(|error| CommandError::Usage(format!("--binary: {error}")))?;
    let body = json!({ "binary": binary });
    let answer = Remote::new(&args.admin)?.post("/api/v1/upgrade", &body, TIME)?.into_result()?;
    print_lines(&[format!("a new process has taken over, number {} of the chain", answer["generation"])])
}

/// The process answers within 15 s.
const TIME: Duration = Duration::from_secs(15);
