//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use tapster::config::units::parse_duration;
use tapster::transport::Address;

use crate::bench::args::BenchArgs;
use crate::demo::DemoArgs;
use crate::idle::IdleArgs;
use crate::load::LoadArgs;
use crate::payload::PayloadKind;
use crate::plot::PlotArgs;
use crate::target::Place;
use crate::target::Target;
use crate::units;

/// Load generator, verifying sink and benchmark for Frame Streams relays.
///
/// Every frame that `send` generates says which connection sent it, which one it is and when it was due, and
/// carries a checksum, all inside the `extra` field of a valid dnstap message. So any relay can be measured: `sink`
/// tells exactly what is missing, duplicate, reordered or corrupted, and how long every frame took.
///
/// Addresses are tcp://HOST:PORT and unix:PATH; of `send` and `sink` also tls://HOST:PORT?KEYS, with the keys tls.ca, tls.cert,
/// tls.key and others of an output or input of tapster. Sizes take B, KiB, MiB, GiB, kB, MB, GB; times ms, s, m, h.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Send(SendArgs),
    Sink(SinkArgs),
    Floor(FloorArgs),
    Bench(BenchArgs),
    Compare(CompareArgs),
    Idle(IdleArgs),
    Plot(PlotArgs),
    Demo(DemoArgs),
}

/// Generate frames and send them to a reader
///
/// Frame n goes to connection n modulo the number of connections. With a rate the schedule is open-loop: frame n is
/// due at n / rate after the start, however late the reader makes us, and latency counts from then. Ends every
/// connection with STOP and waits for FINISH. Exits with 1 if a connection breaks or FINISH does not come.
///
/// Example: loadgen send --to unix:/tmp/in.sock --connections 4 --rate 200k --duration 10s
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// Where the reader listens
    #[arg(long, value_name = "ADDR")]
    pub(crate) to: Target,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Frames to send, all connections together; without it, --duration counts
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub(crate) frames: Option<u64>,
    /// How long to send
    #[arg(long, value_name = "T", default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// What payloads hold
    #[arg(long, value_enum, default_value_t)]
    pub(crate) payload: PayloadKind,
    /// With READY, ACCEPT and FINISH, or with START, data and STOP alone
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: Mode,
    /// How long to try to connect, and to wait for ACCEPT
    #[arg(long, value_name = "T", default_value = "10s", value_parser = parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// How long to wait for FINISH
    #[arg(long, value_name = "T", default_value = "30s", value_parser = parse_duration)]
    pub(crate) finish_timeout: Duration,
    /// How long to bear a reader that takes nothing
    #[arg(long, value_name = "T", default_value = "60s", value_parser = parse_duration)]
    pub(crate) give_up: Duration,
    /// Seed of the frames' sizes and contents
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The shape of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// READY, ACCEPT, START, data, STOP, FINISH
    #[default]
    Bidirectional,
    /// START, data, STOP
    Unidirectional,
}

/// Receive frames and verify every one
///
/// Each listener is a consumer of its own, on a thread of its own, and has to get every frame once, in order and
/// unaltered. Frames of real DNS servers carry no mark: they are counted as unmarked. Prints the addresses bound
/// (port 0 lets the kernel choose) on standard error. Ends when what was expected has come, or on SIGINT, and
/// exits with 1 if anything was wrong.
///
/// Example: loadgen sink --listen unix:/tmp/a.sock --listen tcp://127.0.0.1:6001 --idle-exit 2s
#[derive(Debug, Args)]
pub(crate) struct SinkArgs {
    /// Where to listen; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub(crate) listen: Vec<Place>,
    /// The listeners are the members of a group: every frame has to come to one of them
    #[arg(long)]
    pub(crate) group: bool,
    /// End after so many frames, all listeners together, and the end of the connections; fewer are an error
    #[arg(long, value_name = "N")]
    pub(crate) expect: Option<u64>,
    /// End once the last frames of so many sending connections have come to every listener, or to the group
    #[arg(long, value_name = "N")]
    pub(crate) streams: Option<u64>,
    /// End once frames have come and none has for so long
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub(crate) idle_exit: Option<Duration>,
    /// Fail after so long [default: 60s with --expect or --streams]
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    pub(crate) time_limit: Option<Duration>,
    /// Read slowly: bytes per second on each listener
    #[arg(long, value_name = "BYTES", value_parser = units::size)]
    pub(crate) read_rate: Option<usize>,
    /// Read nothing for --stall-for after so many frames, once
    #[arg(long, value_name = "N", requires = "stall_for")]
    pub(crate) stall_after: Option<u64>,
    /// How long to stall
    #[arg(long, value_name = "T", requires = "stall_after", value_parser = parse_duration)]
    pub(crate) stall_for: Option<Duration>,
    /// Close every connection and the listener after so many frames, once
    #[arg(long, value_name = "N", requires = "revive_after")]
    pub(crate) die_after: Option<u64>,
    /// How long until it listens again
    #[arg(long, value_name = "T", requires = "die_after", value_parser = parse_duration)]
    pub(crate) revive_after: Option<Duration>,
    /// Write the percentile distribution of all latencies, as HdrHistogram's plotter reads it
    #[arg(long, value_name = "FILE")]
    pub(crate) hgrm: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Whole latency histograms in the JSON report
    #[arg(long, hide = true)]
    pub(crate) buckets: bool,
}

/// Copy bytes from one to many: the limit to compare a relay with
///
/// A blocking read, then a blocking write to every output, without looking at frames: a set of output connections for
/// each input connection. The first output's answers (ACCEPT, FINISH) go back to the writer.
/// Unix outputs send from a buffer of 1 MiB. Runs until it is killed.
#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Address,
    /// Where to copy to; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub(crate) to: Vec<Address>,
    /// Most bytes of one read [default: 256KiB on unix sockets, 1MiB on TCP]
    #[arg(long, value_name = "BYTES", value_parser = units::size)]
    pub(crate) read_size: Option<usize>,
    /// Connections that share a thread: it waits until so many have come, then copies what is there to be read
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) together: usize,
}

/// Compare two results of `bench --json`, with verdicts
///
/// A change counts as better or worse if it is more than 3 % and more than what the rounds of either result scatter.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Result before
    #[arg(value_name = "A.json")]
    pub(crate) before: PathBuf,
    /// Result after
    #[arg(value_name = "B.json")]
    pub(crate) after: PathBuf,
}
