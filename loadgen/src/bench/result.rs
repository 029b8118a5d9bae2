//! Results of a benchmark: every round, and what they come to.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

use crate::bench::peer::Peer;
use crate::bench::peer::RELAY;
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
    /// How the scheduler treated them.
    #[serde(default)]
    pub(crate) class: String,
    /// Whether the load had a rate, so that latencies mean something.
    pub(crate) has_rate: bool,
    /// Without the warm-up; in each, contenders in the order in which they are shown.
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
    pub(crate) contender: String,
    /// Frames that the generator sent.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// CPU time of the contender, user and system; `None` where nothing runs between generator and sink.
    pub(crate) cpu_ns: Option<u64>,
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
    pub(crate) contender: String,
    /// `None` where nothing runs between generator and sink.
    pub(crate) cpu_ns_per_frame: Option<Spread>,
    /// CPU per frame against the floor's in the same round; `None` without floor.
    pub(crate) ratio_to_floor: Option<Spread>,
    /// CPU per frame against the relay's in the same round; `None` for the relay itself.
    pub(crate) ratio_to_relay: Option<Spread>,
    pub(crate) frames_per_second: Spread,
    /// Frames per second against the relay's in the same round; `None` for the relay itself.
    pub(crate) speed_to_relay: Option<Spread>,
    /// What it adds to the latency of the same load without a relay; `None` where that was not measured.
    pub(crate) added: Option<Added>,
    /// Highest of all rounds, in bytes.
    pub(crate) memory_peak: Option<u64>,
    /// All rounds together.
    pub(crate) lost: u64,
    /// All rounds together.
    pub(crate) latency: Latency,
    pub(crate) problems: usize,
}

/// Latency less the latency without a relay, percentile by percentile, of pairs of the same round, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Added {
    pub(crate) p50_us: Spread,
    pub(crate) p90_us: Spread,
    pub(crate) p99_us: Spread,
    pub(crate) p99_9_us: Spread,
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
    pub(crate) fn cpu_ns_per_frame(&self) -> Option<f64> {
        Some(self.cpu_ns? as f64 / self.frames.max(1) as f64)
    }
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        if values.is_empty() {
            return None;
        }
        let at = |part: f64| {
            let position = part * (values.len() - 1) as f64;
            let (low, high) = (values[position.floor() as usize], values[position.ceil() as usize]);
            low + (high - low) * position.fract()
        };
        Some(Self { median: at(0.5), quartiles: (at(0.25), at(0.75)) })
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

    /// The rounds of a contender.
    pub(crate) fn rounds_of(&self, contender: &str) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.contender == contender)
    }

    /// The latencies of a contender, all rounds together.
    pub(crate) fn latency_of(&self, contender: &str) -> Histogram<u64> {
        merged_latency(self.rounds_of(contender))
    }
}

/// What rounds come to, contender by contender, in the order in which these come first.
pub(crate) fn summarise(rounds: &[Round]) -> Vec<Summary> {
    let mut names: Vec<&str> = Vec::new();
    for round in rounds {
        if !names.contains(&&*round.contender) {
            names.push(&round.contender);
        }
    }
    names.into_iter().filter_map(|name| summary(name, rounds)).collect()
}

fn summary(contender: &str, rounds: &[Round]) -> Option<Summary> {
    let own = || rounds.iter().filter(|round| round.contender == contender);
    // Each round of the contender, and what `other` did in it.
    let pairs = |other: &str| -> Vec<(&Round, &Round)> {
        let others = |number| {
            let mut others = rounds.iter().filter(|round| round.contender == other);
            others.find(|round| round.number == number)
        };
        own().filter_map(|round| Some((round, others(round.number)?))).collect()
    };
    let floor = pairs(Peer::Floor.name());
    let relay = if contender == RELAY { Vec::new() } else { pairs(RELAY) };
    let cpu_ratio =
        |(one, other): &(&Round, &Round)| Some(one.cpu_ns_per_frame()? / other.cpu_ns_per_frame()?);
    Some(Summary {
        contender: contender.to_owned(),
        cpu_ns_per_frame: Spread::of(own().filter_map(Round::cpu_ns_per_frame)),
        ratio_to_floor: Spread::of(floor.iter().filter_map(cpu_ratio)),
        ratio_to_relay: Spread::of(relay.iter().filter_map(cpu_ratio)),
        frames_per_second: Spread::of(own().map(|round| round.frames_per_second))?,
        speed_to_relay: Spread::of(
            relay.iter().map(|(one, other)| one.frames_per_second / other.frames_per_second),
        ),
        added: if contender == Peer::Direct.name() { None } else { added(&pairs(Peer::Direct.name())) },
        memory_peak: own().filter_map(|round| round.memory_peak).max(),
        lost: own().map(|round| round.lost).sum(),
        latency: Latency::of(&merged_latency(own()), false),
        problems: own().map(|round| round.problems.len()).sum(),
    })
}

fn added(pairs: &[(&Round, &Round)]) -> Option<Added> {
    let spread = |us: fn(&Latency) -> f64| {
        Spread::of(pairs.iter().map(|(one, direct)| us(&one.latency) - us(&direct.latency)))
    };
    Some(Added {
        p50_us: spread(|latency| latency.p50_us)?,
        p90_us: spread(|latency| latency.p90_us)?,
        p99_us: spread(|latency| latency.p99_us)?,
        p99_9_us: spread(|latency| latency.p99_9_us)?,
    })
}

/// The latencies of several rounds in one histogram.
fn merged_latency<'a>(rounds: impl Iterator<Item = &'a Round>) -> Histogram<u64> {
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
    pub(crate) fn round(number: u32, contender: &str, cpu_ns_per_frame: u64) -> Round {
        Round {
            number,
            contender: contender.to_owned(),
            frames: 1000,
            bytes: 150_000,
            cpu_ns: Some(1000 * cpu_ns_per_frame),
            memory_peak: Some(10 << 20),
            lost: 0,
            frames_per_second: 1e6,
            latency: Latency::default(),
            problems: Vec::new(),
        }
    }

    /// A round of frames that all took so long.
    pub(crate) fn timed(number: u32, contender: &str, micros: u64) -> Round {
        let latency = Latency { buckets: vec![(1000 * micros, 1000)], ..Latency::default() };
        let latency = Latency::of(&latency.histogram(), true);
        let cpu_ns = (contender != "direct").then_some(1000);
        Round { cpu_ns, latency, ..round(number, contender, 1) }
    }

    /// A benchmark of these rounds.
    pub(crate) fn result_of(rounds: Vec<Round>) -> BenchResult {
        BenchResult {
            machine: Machine::default(),
            command_line: Vec::new(),
            seed: 1,
            outputs: 1,
            connections: 1,
            transport: "unix".to_owned(),
            floor_read_size: 256 << 10,
            pin: None,
            class: "normal".to_owned(),
            has_rate: rounds.iter().all(|round| round.latency.frames > 0),
            summary: summarise(&rounds),
            rounds,
        }
    }

    /// Three rounds of floor at 100 ns per frame and the relay at `relay`.
    pub(crate) fn result(relay: u64) -> BenchResult {
        let pair = |number| [round(number, RELAY, relay), round(number, "floor", 100)];
        result_of((0..3).flat_map(pair).collect())
    }

    fn of<'a>(summaries: &'a [Summary], contender: &str) -> &'a Summary {
        summaries.iter().find(|summary| summary.contender == contender).unwrap()
    }

    fn is(spread: Option<Spread>, median: f64) -> bool {
        spread.is_some_and(|spread| (spread.median - median).abs() < 1e-9)
    }

    #[test]
    fn the_ratio_is_the_median_of_the_paired_ratios() {
        // A machine that became twice as slow in round 2 does not disturb the ratio.
        let summaries = summarise(&[
            round(0, "floor", 100),
            round(0, RELAY, 110),
            round(1, RELAY, 120),
            round(1, "floor", 100),
            round(2, RELAY, 260),
            round(2, "floor", 200),
        ]);
        let relay = of(&summaries, RELAY);
        assert!(is(relay.ratio_to_floor, 1.2) && is(relay.cpu_ns_per_frame, 120.0), "{relay:?}");
        assert_eq!((relay.ratio_to_relay, relay.added), (None, None));
    }

    #[test]
    fn a_variant_is_compared_with_the_relay_of_the_same_round() {
        let fast = |number, cpu| Round { frames_per_second: 1.8e6, ..round(number, "two", cpu) };
        let summaries = summarise(&[round(0, RELAY, 100), fast(0, 110), round(1, RELAY, 200), fast(1, 220)]);
        let two = of(&summaries, "two");
        assert!(is(two.ratio_to_relay, 1.1) && is(two.speed_to_relay, 1.8), "{two:?}");
        assert_eq!(two.ratio_to_floor, None);
    }

    #[test]
    fn what_is_added_is_the_median_of_the_paired_differences() {
        let summaries = summarise(&[
            timed(0, RELAY, 50),
            timed(0, "direct", 20),
            timed(1, RELAY, 90),
            timed(1, "direct", 70),
            timed(2, RELAY, 51),
            timed(2, "direct", 20),
        ]);
        let added = of(&summaries, RELAY).added.unwrap();
        assert!(
            (added.p50_us.median - 30.0).abs() < 0.1 && (added.p99_us.median - 30.0).abs() < 0.1,
            "{added:?}"
        );
        let direct = of(&summaries, "direct");
        assert_eq!((direct.added, direct.cpu_ns_per_frame), (None, None));
    }

    #[test]
    fn contenders_keep_their_order() {
        let summaries =
            summarise(&[round(0, RELAY, 1), round(0, "two", 1), round(0, "floor", 1), round(1, RELAY, 1)]);
        let names: Vec<&str> = summaries.iter().map(|summary| &*summary.contender).collect();
        assert_eq!(names, [RELAY, "two", "floor"]);
    }

    #[test]
    fn quartiles_lie_between_the_values() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0, 5.0]).unwrap();
        assert_eq!((spread.median, spread.quartiles), (3.0, (2.0, 4.0)));
        assert_eq!(Spread::of([7.0]).unwrap().quartiles, (7.0, 7.0));
        assert_eq!(Spread::of([]), None);
    }
}
