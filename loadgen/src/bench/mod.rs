//! `bench`: the relay against the raw copy and others, in alternation.
//!
//! Machines are noisy and change their speed while they are looked at. So every contender runs once in every round, in
//! random order, and is compared with the floor of the same round: the median of these ratios is what counts.

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::io::stderr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Args;
use clap::ValueEnum;
use fastrand::Rng;
use tapster::config::units::parse_duration;

use crate::bench::contender::Contender;
use crate::bench::contender::Peer;
use crate::bench::contender::RELAY;
use crate::bench::process::Class;
use crate::bench::process::Pin;
use crate::bench::relay::RelayArgs;
use crate::bench::relay::Variant;
use crate::bench::result::BenchResult;
use crate::bench::result::Machine;
use crate::bench::result::Round;
use crate::bench::result::summarise;
use crate::bench::tables::text;
use crate::cli::LoadArgs;
use crate::floor;
use crate::latency::percentile_distribution;
use crate::plot;
use crate::progress::Progress;
use crate::schedule::Rate;

pub(crate) mod contender;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod result;
mod round;
mod tables;

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

/// What connections are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Unix stream sockets
    #[default]
    Unix,
    /// TCP over loopback
    Tcp,
}

impl Transport {
    /// Most bytes of one read of the floor, as [`floor`] chooses it by itself.
    fn floor_read_size(self) -> usize {
        match self {
            Self::Unix => floor::READ_SIZE_UNIX,
            Self::Tcp => floor::READ_SIZE_TCP,
        }
    }
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

/// Runs the rounds, prints the table and writes the files; `false` if anything was lost or altered.
pub(crate) fn run(args: &BenchArgs) -> Result<bool> {
    let contenders = contenders(args)?;
    let pin = match &args.pin {
        None => Pin::default_of_machine(),
        Some(PinChoice::Nowhere) => None,
        Some(PinChoice::To(pin)) => Some(pin.clone()),
    };
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("seed {seed}, {}", pin_text(pin.as_ref()));

    let rounds = all_rounds(args, &contenders, pin.as_ref(), seed)?;
    let result = BenchResult {
        machine: Machine::here(),
        command_line: env::args().collect(),
        seed,
        outputs: args.outputs,
        connections: args.load.connections,
        transport: name(&args.transport),
        floor_read_size: args.transport.floor_read_size(),
        pin: pin.map(|pin| (pin.relay, pin.load)),
        class: name(&args.class),
        has_rate: args.load.rate != Rate::Max,
        summary: summarise(&rounds),
        rounds,
    };
    print!("{}", text(&result));
    for round in result.rounds.iter().filter(|round| !round.problems.is_empty()) {
        let problems = round.problems.join("; ");
        println!("wrong: round {}, {}: {problems}", round.number + 1, round.contender);
    }
    write_files(args, &result)?;
    Ok(result.summary.iter().all(|summary| summary.problems == 0))
}

/// The relay, its variants, and those of the others that can take part.
fn contenders(args: &BenchArgs) -> Result<Vec<Contender>> {
    let mut contenders = vec![Contender::Relay { name: RELAY.to_owned(), args: args.relay.clone() }];
    for variant in &args.variants {
        if contenders.iter().any(|contender| contender.name() == variant.name) {
            bail!("two variants are called {}", variant.name);
        }
        contenders.push(Contender::Relay { name: variant.name.clone(), args: variant.of(&args.relay)? });
    }
    for contender in &contenders {
        if let Contender::Relay { args, .. } = contender {
            args.path()?;
        }
    }
    for &peer in &args.against {
        match peer.hindrance(args) {
            Some(hindrance) => eprintln!("without {}: {hindrance}", peer.name()),
            None if contenders.contains(&Contender::Peer(peer)) => {}
            None => contenders.push(Contender::Peer(peer)),
        }
    }
    Ok(contenders)
}

fn all_rounds(
    args: &BenchArgs,
    contenders: &[Contender],
    pin: Option<&Pin>,
    seed: u64,
) -> Result<Vec<Round>> {
    let mut rng = Rng::with_seed(seed);
    let mut order: Vec<&Contender> = contenders.iter().collect();
    let progress = Progress::runs(stderr().is_terminal(), u64::from(args.rounds + 1) * order.len() as u64);
    // Other programs may be installed and yet not run here; without ours there is nothing to compare.
    let warm_up = BenchArgs { duration: args.duration.min(WARM_UP), ..args.clone() };
    for contender in contenders {
        match round::run(&warm_up, contender, 0, pin) {
            Err(error)
                if matches!(contender, Contender::Peer(Peer::Dnstap | Peer::Haproxy | Peer::Socat)) =>
            {
                eprintln!("without {}: {error:#}", contender.name());
                order.retain(|other| *other != contender);
            }
            result => drop(result.with_context(|| format!("warm-up of {}", contender.name()))?),
        }
        progress.step();
    }
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        rng.shuffle(&mut order);
        for contender in &order {
            let round = round::run(args, contender, number, pin);
            rounds.push(round.with_context(|| format!("round {} of {}", number + 1, contender.name()))?);
            progress.step();
        }
    }
    // The order of the first round is random; results are shown in the order of the command line.
    rounds.sort_by_key(|round: &Round| {
        let place = contenders.iter().position(|contender| contender.name() == round.contender);
        (round.number, place)
    });
    Ok(rounds)
}

/// The name of a value as it is written on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("none is skipped").get_name().to_owned()
}

fn write_files(args: &BenchArgs, result: &BenchResult) -> Result<()> {
    if let Some(path) = &args.json {
        let json = serde_json::to_string(result)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(folder) = &args.hgrm {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for summary in &result.summary {
            let histogram = result.latency_of(&summary.contender);
            let path = folder.join(format!("{}.hgrm", summary.contender));
            fs::write(&path, percentile_distribution(&histogram))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if let Some(path) = &args.plot {
        plot::draw(result, path)?;
    }
    Ok(())
}

fn pin_text(pin: Option<&Pin>) -> String {
    match pin {
        Some(Pin { relay, load }) => format!("relay on CPUs {relay:?}, load on {load:?}"),
        None => "nothing pinned".to_owned(),
    }
}

const WARM_UP: Duration = Duration::from_secs(1);
