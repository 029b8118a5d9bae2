//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use tapster::config::Options;
use tapster::config::units::parse_duration;
use tapster::config::units::parse_size;
use tapster::transport::Address;
use tracing::level_filters::LevelFilter;

use crate::cli::spool::SPOOL_EXAMPLES;
use crate::cli::spool::SpoolCommand;
use crate::cli::time::TimeRange;

pub(crate) mod spool;
pub(crate) mod time;

/// A Frame Streams (dnstap) relay: many writers in, every frame out to every consumer.
#[derive(Debug, Parser)]
#[command(version, about, bin_name = "tapster", max_term_width = 110, after_help = EXAMPLES)]
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
    Check(CheckArgs),
    /// Tell what this host allows, and how to allow more
    #[command(after_help = DOCTOR_NOTES)]
    Doctor,
    /// Print Frame Streams files and tell whether they are clean, truncated or damaged
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Send files or spools to a reader, then STOP, and wait for FINISH
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
    /// Let a process that runs read its configuration again; print what changed, or every fault
    #[command(after_help = RELOAD_NOTES)]
    Reload(AdminArgs),
    /// Let a new process take over from one that runs, with its connections
    #[command(after_help = UPGRADE_NOTES)]
    Upgrade(UpgradeArgs),
    /// Look into spools, take frames out of them, or empty them
    #[command(subcommand, after_help = SPOOL_EXAMPLES)]
    Spool(SpoolCommand),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RelayArgs {
    /// TOML file, or a folder of which every *.toml is read in order of name; may be repeated: inputs and outputs add up, and
    /// what is given here beside it is added to it
    #[arg(short, long, value_name = "FILE|DIR")]
    pub(crate) config: Vec<PathBuf>,
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
    /// Answer `tapster reload`, `upgrade` and HTTP here: unix:PATH or tcp://HOST:PORT; may be repeated; `off`: nowhere
    /// [default: admin.sock in /run/tapster or the run-time folder of the user, and tcp://127.0.0.1:9653]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Vec<String>,
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

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    /// Connect to the readers of all outputs, too, and to what inputs dial, and say what is found; readers get a session without
    /// frames
    #[arg(long)]
    pub(crate) connect: bool,
}

/// How a process that runs is found.
#[derive(Args, Debug)]
pub(crate) struct AdminArgs {
    /// Its admin address: unix:PATH or tcp://HOST:PORT [default: that of --config, else the default ones]
    #[arg(long, conflicts_with = "config", value_name = "ADDR")]
    pub(crate) admin: Option<Address>,
    /// The configuration that it runs with, whose `admin` says where it is
    #[arg(short, long, value_name = "FILE|DIR")]
    pub(crate) config: Vec<PathBuf>,
    /// The file that `admin_token_file` names there, for an address on TCP
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// The program that takes over [default: the path that the process was started with, looked up again]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Frame Streams files; `-` is stdin
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print an object per file instead of text for people
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the first N frames of each file [default: 10, and with --json --payload all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Print the bytes of these frames too, in hexadecimal; with --json an object per frame, before that of the file
    #[arg(long)]
    pub(crate) payload: bool,
    /// Take a longer frame for damage; as much memory may be needed
    #[arg(long, default_value = "1MiB", value_parser = frame_len, value_name = "SIZE")]
    pub(crate) frame_len_max: u32,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// Frame Streams files and folders of spools, sent in this order, each in a session of its own; `-` is stdin
    #[arg(required = true, value_name = "FILE|DIR")]
    pub(crate) files: Vec<PathBuf>,
    /// Send there: tcp://HOST:PORT or unix:PATH, keys of an [[output]] behind a `?`; or write all into file:PATH,
    /// which must not exist (`file:-` is stdout)
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) to: String,
    /// Frames per second, or `max`
    #[arg(long, default_value = "max", value_parser = rate, value_name = "R")]
    pub(crate) rate: Rate,
    /// Keep the pace of the recording, X times as fast; spools have times, and files of dnstap
    #[arg(long, value_parser = positive, conflicts_with = "rate", value_name = "X")]
    pub(crate) speed: Option<f64>,
    /// With --speed, wait no longer than this for a frame; what follows then comes sooner
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) pause_max: Duration,
    #[command(flatten)]
    pub(crate) range: TimeRange,
    /// Of a spool, everything that is still there, not only what waits
    #[arg(long)]
    pub(crate) all: bool,
}

/// Frames per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// As fast as the reader takes them.
    Max,
    PerSecond(f64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object per line
    Json,
}

impl InspectArgs {
    /// How many frames of each file are printed.
    pub(crate) fn frames_shown(&self) -> u64 {
        self.limit.unwrap_or(if self.json { u64::MAX } else { 10 })
    }
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
            passed: None,
            admin: self.admin.clone(),
        }
    }
}

fn frame_len(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| "a frame has less than 4GiB".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" { Ok(Rate::Max) } else { positive(text).map(Rate::PerSecond) }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a number above 0".to_owned())
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
  tapster reload && tapster upgrade
      A process that runs takes a new configuration, then a new program.
  tapster spool list /var/spool/tapster/*
      What waits on disk, and since when?

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
  tapster check -c tapster.toml --connect > /dev/null

What is printed is a configuration that can be fed back. Otherwise every
fault is named, in one go, and the exit status is 64. A reader or producer that
--connect does not find, and a spool that cannot be used, make it 1.";

const DOCTOR_NOTES: &str = "\
Nothing is changed. What is printed after `->` mends what is written before it.
The exit status is 0: what is not allowed here costs speed or room, and the
relay runs all the same.";

const RELOAD_NOTES: &str = "\
The process reads the files and options again that it was started with. Where
one key cannot be taken, nothing changes, and every fault is named.

Exit status: 0 done; 64 the configuration has faults, or keys that cannot
change while tapster runs; 1 the process was not reached, or is draining.";

const UPGRADE_NOTES: &str = "\
Examples:
  apt install ./tapster.deb && tapster upgrade
  tapster upgrade --binary ./target/release/tapster
      What was started with another path goes on with this one.

The new process reads the files and options of the old one. If it does not
take over, the old one goes on.

Exit status: 0 the new process reads every connection that can pass (the old
one may still drain its outputs); 64 the new process found faults in the
configuration; 1 anything else, after at most 15 s.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  tapster inspect today.fstrm
  tapster inspect --limit 1 --payload today.fstrm
  tapster inspect --json *.fstrm | jq 'select(.status != \"clean\")'
  tail -c +1 -f today.fstrm | tapster inspect --limit 1000000 -

Streams that follow each other in one file are read one after the other. gzip
and zstd are unpacked.

clean       ends with STOP
truncated   ends before STOP, or before START was complete; its frames are good
damaged     has bytes that are not Frame Streams; the frames before are good

With --json an object per file: {\"file\",\"content_type\" (of the first stream),
\"streams\",\"frames\",\"bytes\",\"status\",\"detail\",\"offset\" (where whole frames end,
of a file that is not clean),\"longest\" (payload bytes),\"first\",\"last\" (times),
\"types\" (frames by dnstap type),\"not_dnstap\" (frames)}. `bytes` counts data
frames with their length words. --payload prints an object per frame before it:
{\"file\",\"frame\",\"bytes\",\"type\",\"time\",\"payload\" (hexadecimal)}.

Exit status: 0 every file is clean; 1 any is not, or cannot be read.";

const REPLAY_EXAMPLES: &str = "\
Examples:
  tapster replay today.fstrm --to tcp://127.0.0.1:6000
  tapster replay today.fstrm --to unix:/run/dnstap.sock --rate 1000
  tapster replay today.fstrm --to tcp://siem.example:6000 --speed 10
  tapster replay today.fstrm --to 'tcp://siem.example:6000?finish_timeout=1m'
  tapster replay today.fstrm --to tcp://127.0.0.1:6000 --from 08:00 --until 09:00
  tapster replay /var/spool/tapster/siem --to tcp://other.example:6000 --speed 1
  tapster replay a.fstrm b.fstrm.gz --to file:both.fstrm --from 08:00

A spool is sent from its cursor on, and nothing is removed from it: its relay,
which may be running, sends it too. The time of its frames is when the relay
read them. The frames of a file are taken at the times in them; one without a
time goes with the one before it.

`?content_type=TYPE` behind the address is sent in place of the type of each
file. Into file:PATH go the frames of all of them, as one clean stream; a file
that is there already is never overwritten.

Of a truncated or damaged file the whole frames are sent, of a spool all that
are sound. What cannot be read does not keep the others from being sent. Frames longer than `frame_len_max` of the output are taken for
damage of a file, and left out of a spool.

Exit status: 0 FINISH came for every file and spool, and each was sound and
clean; 1 not so.";
