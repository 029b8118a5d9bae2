//! The `tapster` command.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::cli::Command;
use crate::commands::EXIT_USAGE;

mod cli;
mod commands;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version are no faults; nothing can be done if they cannot be printed.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Check(args) => commands::check::check(args),
        Command::Doctor => commands::doctor::doctor(),
        Command::Inspect(args) => commands::inspect::inspect(args),
        Command::Replay(args) => commands::replay::replay(args),
        Command::Spool(command) => commands::spool::spool(command),
    };
    result.unwrap_or_else(|error| {
        // Nothing can be done if nobody reads it.
        let _ = writeln!(io::stderr(), "tapster: {error}");
        error.exit_code()
    })
}
