//! The `tapster` command.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tapster::observability::printable_lines;

use crate::cli::Cli;
use crate::cli::Command;
use crate::commands::EXIT_USAGE;
use crate::commands::tell::tell;

mod cli;
mod commands;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            return print_usage(&usage);
        }
    };
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Check(args) => commands::check::check(args),
        Command::Doctor => commands::doctor::doctor(),
        Command::Inspect(args) => commands::inspect::inspect(args),
        Command::Replay(args) => commands::replay::replay(args),
        Command::Reload(args) => commands::reload::reload(args),
        Command::Upgrade(args) => commands::upgrade::upgrade(args),
        Command::Spool(command) => commands::spool::spool(command),
    };
    result.unwrap_or_else(|error| {
        tell(&error);
        error.exit_code()
    })
}

/// Prints help, or what is wrong with the arguments. Nothing can be done if it cannot be printed.
fn print_usage(usage: &clap::Error) -> ExitCode {
    if !usage.use_stderr() {
        let _ = usage.print();
        return ExitCode::SUCCESS;
    }
    // It quotes arguments, and colours would be escaped with them.
    let _ = write!(io::stderr(), "{}", printable_lines(&usage.render()));
    ExitCode::from(EXIT_USAGE)
}
