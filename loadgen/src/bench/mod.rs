//! `bench`: the relay against the raw copy and others, in alternation.
//!
//! Machines are noisy and change their speed while they are looked at. So every contender runs once in every round, in
//! random order, and is compared with the floor of the same round: the median of these ratios is what counts.

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::io::stderr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::ValueEnum;
use fastrand::Rng;

use crate::bench::args::BenchArgs;
use crate::bench::args::PinChoice;
use crate::bench::contender::Contender;
use crate::bench::contender::hindrance;
use crate::bench::peer::Peer;
use crate::bench::peer::RELAY;
use crate::bench::process::Pin;
use crate::bench::result::BenchResult;
use crate::bench::result::Machine;
use crate::bench::result::Round;
use crate::bench::result::summarise;
use crate::bench::tables::text;
use crate::latency::percentile_distribution;
use crate::plot;
use crate::progress::Progress;
use crate::schedule::Rate;

pub(crate) mod args;
mod contender;
mod peer;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod result;
mod round;
mod tables;
pub(crate) mod transport;

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
        match hindrance(peer, args) {
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
