//! The command line.

use std::path::PathBuf;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use tapster::config::Options;
use tracing::level_filters::LevelFilter;

/// A Frame Streams (dnstap) relay: many writers in, every frame out to every consumer.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Relay until SIGTERM or SIGINT, then drain
    #[command(after_help = RUN_EXAMPLES)]
    Run(RelayArgs),
    /// Resolve the configuration and print it, every key filled in; bind nothing
    #[command(after_help = CHECK_EXAMPLES)]
    Check(RelayArgs),
}

#[derive(Args, Debug)]
pub(crate) struct RelayArgs {
    /// TOML file; what is given here beside it is added to it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Listen here: tcp://HOST:PORT or unix:PATH, keys of an [[input]] behind a `?`; may be repeated
    /// [default: tcp://127.0.0.1:6000]
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) listen: Vec<String>,
    /// Write here: tcp://HOST:PORT, unix:PATH or file:PATH, keys of an [[output]] behind a `?`; may be repeated:
    /// every output gets every frame [default: file:tapster-%Y%m%dT%H%M%S.fstrm]
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) to: Vec<String>,
    /// Worker threads; 0 is one per core that the process may use [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<String>,
    /// auto, uring or epoll; `tapster doctor` tells what is allowed here [default: auto]
    #[arg(long, value_name = "BACKEND")]
    pub(crate) backend: Option<String>,
    /// How long a drain may take [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<String>,
    /// How the log is written, on stderr
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// off, error, warn, info, debug or trace
    #[arg(long, default_value_t = LevelFilter::INFO, value_name = "LEVEL")]
    pub(crate) log_level: LevelFilter,
    /// Write the ledger as JSON to this file at exit; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object per line
    Json,
}

impl RelayArgs {
    /// The part that makes a configuration.
    pub(crate) fn options(&self) -> Options {
        Options {
            config: self.config.clone(),
            listen: self.listen.clone(),
            to: self.to.clone(),
            workers: self.workers.clone(),
            backend: self.backend.clone(),
            drain_timeout: self.drain_timeout.clone(),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  tapster run
      Listen on tcp://127.0.0.1:6000, write a file in this folder.
  tapster run -l unix:/run/dnstap.sock -t tcp://siem.example:6000
      From the name servers of this host to a collector.
  tapster check -c tapster.toml
      What would run, every key filled in.
  tapster doctor
      What this host allows, and how to allow more.
  tapster inspect --json *.fstrm
      Are these files clean, truncated or damaged?
  tapster replay old.fstrm --to tcp://siem.example:6000 --rate 1000
      Send a file again, 1000 frames a second.

Exit status: 0 clean; 1 failed while running;
64 bad usage or configuration, found before anything was bound.
`tapster help COMMAND` tells more about a command.";

const RUN_EXAMPLES: &str = "\
Examples:
  tapster run -l 'unix:/run/dnstap.sock?socket_mode=0660' \\
              -t tcp://siem.example:6000
      Take dnstap from name servers on this host, give it to a collector.

  tapster run -l tcp://0.0.0.0:6000 -t tcp://siem.example:6000 \\
              -t 'file:/var/log/dnstap/%Y%m%dT%H%M%S.fstrm?rotate.size=1GiB'
      Every frame to a collector and into files. A collector that is away
      delays neither the writers nor the files.

  tapster run -c tapster.toml \\
              -t 'tcp://10.0.0.5:6000?when_full=block&reconnect.max=5s'
      What the file says, and one more output. A `&`, `?` or `%` within a
      value is written %26, %3F or %25.

SIGTERM or SIGINT (Ctrl-C) drains: stop accepting, take what has arrived,
answer FINISH, flush the outputs, all within the drain timeout. A second
signal ends at once.
Sizes are written with B KiB MiB GiB kB MB GB, times with ms s m h.";

const CHECK_EXAMPLES: &str = "\
Examples:
  tapster check -c tapster.toml && systemctl restart tapster
  tapster check -t 'tcp://10.0.0.5:6000?queue=256MiB' > tapster.toml

What is printed is a configuration that can be fed back. Otherwise every
fault is named, in one go, and the exit status is 64.";
