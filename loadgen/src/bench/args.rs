//! The command line of `bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tapster::config::units::parse_duration;

use crate::bench::peer::Peer;
use crate::bench::process::Class;
use crate::bench::process::Pin;
use crate::bench::relay::RelayArgs;
use crate::bench::relay::Variant;
use crate::bench::transport::Transport;
use crate::load::LoadArgs;

/// Measure the relay against the raw copy and other programs
///
/// Runs relay, generator and sink as processes, the relay on CPUs of its own. Every contender runs once in every round,
/// in random order, after a warm-up; "ratio" is the median of the CPU per frame relative to the floor of the same
/// round. CPU is user and system time of the relay process per frame sent, whatever the number of outputs.
/// With a rate and `--against direct`, "added" is the latency less that of the same load without a relay, percentile by
/// percentile, the median of the differences within a round.
/// Builds nothing: `cargo build --release` first. Exits with 1 if frames were lost or altered.
///
/// Examples: loadgen bench --outputs 2 --rounds 11 --json result.json;
/// loadgen bench --variant two:workers=2,connections=per_worker --variant old:path=/tmp/tapster --pin none;
/// loadgen bench --rate 1000 --against direct,floor --pin 0:0 --class fifo
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    /// The relay once more with other settings, in the same rounds: path, workers, backend, and keys of its outputs; may
    /// be repeated
    #[arg(long = "variant", value_name = "NAME:KEY=VALUE,...")]
    pub(crate) variants: Vec<Variant>,
    /// Outputs of the relay, each with a verifying sink
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = outputs)]
    pub(crate) outputs: usize,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// What all connections are made of
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    /// How long the generator sends in every round
    #[arg(long, value_name = "T", default_value = "3s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// CPUs of the relay and of the load, or `none` [default: 0:1 where there are two]
    #[arg(long, value_name = "RELAYCPUS:LOADCPUS", value_parser = pin)]
    pub(crate) pin: Option<PinChoice>,
    /// How the scheduler treats relay and load; latencies are repeatable on one CPU (--pin 0:0) in class fifo
    #[arg(long, value_enum, default_value_t)]
    pub(crate) class: Class,
    /// What to compare with; what is not installed or cannot do it is left out
    #[arg(long, value_enum, value_delimiter = ',', default_value = "floor,dnstap,haproxy,socat")]
    pub(crate) against: Vec<Peer>,
    /// How many times
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Seed of the order [default: random, printed]
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Write every round as JSON, for `compare`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the percentile distribution of latencies, a file for each contender
    #[arg(long, value_name = "FOLDER")]
    pub(crate) hgrm: Option<PathBuf>,
    /// Draw CPU per frame and frames per second
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// Where processes run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PinChoice {
    Nowhere,
    To(Pin),
}

fn pin(text: &str) -> Result<PinChoice, String> {
    if text == "none" { Ok(PinChoice::Nowhere) } else { text.parse().map(PinChoice::To) }
}

fn outputs(text: &str) -> Result<usize, String> {
    let outputs = text.parse().ok().filter(|outputs| (1..=64).contains(outputs));
    outputs.ok_or_else(|| format!("`{text}`: 1 to 64 outputs"))
}
