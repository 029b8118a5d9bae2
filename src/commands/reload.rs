//! `tapster reload`: a process that runs reads its configuration again.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::cli::AdminArgs;
use crate::commands::CommandError;
use crate::commands::print_lines;
use crate::commands::remote::Remote;
use crate::commands::remote::lines;
use crate::commands::remote::tell_warnings;

/// Prints what has changed.
///
/// # Errors
/// Every fault of the configuration; no process is reached, or it does not read its configuration now.
pub(crate) fn reload(args: &AdminArgs) -> Result<ExitCode, CommandError> {
    let answer = Remote::new(args)?.post("/api/v1/reload", &json!({}), TIME)?.into_result()?;
    tell_warnings(&answer);
    let mut changes = lines(&answer["changes"]);
    if changes.is_empty() {
        changes.push("nothing has changed".to_owned());
    }
    print_lines(&changes)
}

/// To look up a name to listen on may take its time, and another reload may come before.
const TIME: Duration = Duration::from_secs(300);
