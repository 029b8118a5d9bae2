//! Results of a benchmark: every round, and what they come to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

use crate::bench::contender::Contender;
use crate::latency;
use crate::latency::Latency;

/// A whole benchmark, as it is kept in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BenchResult {
    pub(crate) machine: Machine,
    /// Every argument, so that it can be run again.
    pub(crate) command_line: Vec<String>,
    /// Of the order of the contenders.
    pub(crate) seed: u64,
    pub(crate) outputs: usize,
    pub(crate) connections: u16,
    pub(crate) transport: String,
    /// Most bytes of one read of the floor.
    pub(crate) floor_read_size: usize,
    /// CPUs of the relay and of the load; `None`: any.
    pub(crate) pin: Option<(Vec<usize>, Vec<usize>)>,
    /// Whether the load had a rate, so that latencies mean something.
    pub(crate) has_rate: bool,
    /// Without the warm-up.
    pub(crate) rounds: Vec<Round>,
    pub(crate) summary: Vec<Summary>,
}

/// Where and with what it ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cpus: usize,
    /// Commit of the checkout in the current folder.
    pub(crate) commit: Option<String>,
}

/// One contender, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) contender: Contender,
    /// Frames that the generator sent.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// CPU time of the contender, user and system.
    pub(crate) cpu_ns: u64,
    /// In bytes; `None` where the contender ends with the stream.
    pub(crate) memory_peak: Option<u64>,
    /// Frames that did not arrive, all outputs together.
    pub(crate) lost: u64,
    /// What the generator got rid of.
    pub(crate) frames_per_second: f64,
    pub(crate) latency: Latency,
    pub(crate) problems: Vec<String>,
}

/// All rounds of a contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) contender: Contender,
    pub(crate) cpu_ns_per_frame: Spread,
    /// CPU per frame against the floor's in the same round; `None` without floor.
    pub(crate) ratio_to_floor: Option<Spread>,
    pub(crate) frames_per_second: Spread,
    /// Highest of all rounds, in bytes.
    pub(crate) memory_peak: Option<u64>,
    /// All rounds together.
    pub(crate) lost: u64,
    /// All rounds together.
    pub(crate) latency: Latency,
    pub(crate) problems: usize,
}

/// Median and quartiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) quartiles: (f64, f64),
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let uname = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let git = Command::new("git").args(["rev-parse", "HEAD"]).output();
        let commit = git.ok().filter(|output| output.status.success());
        Self {
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            processor: model.map_or_else(
                || uname.machine().to_string_lossy().into_owned(),
                |(_, model)| model.to_owned(),
            ),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            commit: commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        }
    }
}

impl Round {
    /// Nanoseconds of CPU for every frame of the generator.
    pub(crate) fn cpu_ns_per_frame(&self) -> f64 {
        self.cpu_ns as f64 / self.frames.max(1) as f64
    }
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let position = part * (values.len() - 1) as f64;
            let (low, high) = (values[position.floor() as usize], values[position.ceil() as usize]);
            low + (high - low) * position.fract()
        };
        Self { median: at(0.5), quartiles: (at(0.25), at(0.75)) }
    }

    /// How far apart the quartiles are.
    pub(crate) fn width(&self) -> f64 {
        self.quartiles.1 - self.quartiles.0
    }
}

impl BenchResult {
    /// Reads one that `bench --json` wrote.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of `bench --json`", path.display()))
    }
}

/// What rounds come to, contender by contender.
pub(crate) fn summarise(rounds: &[Round]) -> Vec<Summary> {
    let mut by_contender: BTreeMap<Contender, Vec<&Round>> = BTreeMap::new();
    for round in rounds {
        by_contender.entry(round.contender).or_default().push(round);
    }
    let floor: BTreeMap<u32, f64> = by_contender
        .get(&Contender::Floor)
        .map(|rounds| rounds.iter().map(|round| (round.number, round.cpu_ns_per_frame())).collect())
        .unwrap_or_default();
    let summary = |(contender, rounds): (&Contender, &Vec<&Round>)| {
        let spread =
            |value: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(|round| value(round)).collect());
        let paired =
            rounds.iter().filter_map(|round| Some(round.cpu_ns_per_frame() / floor.get(&round.number)?));
        let paired: Vec<f64> = paired.collect();
        Summary {
            contender: *contender,
            cpu_ns_per_frame: spread(&Round::cpu_ns_per_frame),
            ratio_to_floor: (!paired.is_empty()).then(|| Spread::of(paired)),
            frames_per_second: spread(&|round| round.frames_per_second),
            memory_peak: rounds.iter().filter_map(|round| round.memory_peak).max(),
            lost: rounds.iter().map(|round| round.lost).sum(),
            latency: Latency::of(&merged_latency(rounds), false),
            problems: rounds.iter().map(|round| round.problems.len()).sum(),
        }
    };
    by_contender.iter().map(summary).collect()
}

/// The latencies of several rounds in one histogram.
pub(crate) fn merged_latency(rounds: &[&Round]) -> Histogram<u64> {
    let mut merged = latency::empty();
    for round in rounds {
        merged.add(round.latency.histogram()).expect("histograms have the same bounds");
    }
    merged
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A round in which a frame cost so many nanoseconds.
    pub(crate) fn round(number: u32, contender: Contender, cpu_ns_per_frame: u64) -> Round {
        Round {
            number,
            contender,
            frames: 1000,
            bytes: 150_000,
            cpu_ns: 1000 * cpu_ns_per_frame,
            memory_peak: Some(10 << 20),
            lost: 0,
            frames_per_second: 1e6,
            latency: Latency::default(),
            problems: Vec::new(),
        }
    }

    /// Three rounds of floor at 100 ns per frame and the relay at `relay`.
    pub(crate) fn result(relay: u64) -> BenchResult {
        let pair = |number| [round(number, Contender::Floor, 100), round(number, Contender::Relay, relay)];
        let rounds: Vec<Round> = (0..3).flat_map(pair).collect();
        BenchResult {
            machine: Machine::default(),
            command_line: Vec::new(),
            seed: 1,
            outputs: 1,
            connections: 1,
            transport: "unix".to_owned(),
            floor_read_size: 256 << 10,
            pin: None,
            has_rate: false,
            summary: summarise(&rounds),
            rounds,
        }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_paired_ratios() {
        // A machine that became twice as slow in round 2 does not disturb the ratio.
        let rounds = [
            round(0, Contender::Floor, 100),
            round(0, Contender::Relay, 110),
            round(1, Contender::Relay, 120),
            round(1, Contender::Floor, 100),
            round(2, Contender::Relay, 260),
            round(2, Contender::Floor, 200),
        ];
        let summary = summarise(&rounds);
        let relay = summary.iter().find(|summary| summary.contender == Contender::Relay).unwrap();
        assert!((relay.ratio_to_floor.unwrap().median - 1.2).abs() < 1e-9);
        assert!((relay.cpu_ns_per_frame.median - 120.0).abs() < 1e-9);
    }

    #[test]
    fn without_floor_there_is_no_ratio() {
        let summary = summarise(&[round(0, Contender::Relay, 110)]);
        assert_eq!(summary[0].ratio_to_floor, None);
    }

    #[test]
    fn quartiles_lie_between_the_values() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0, 5.0]);
        assert_eq!((spread.median, spread.quartiles), (3.0, (2.0, 4.0)));
        assert_eq!(Spread::of(vec![7.0]).quartiles, (7.0, 7.0));
    }
}
