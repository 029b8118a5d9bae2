//! `compare`: two results of `bench`, with verdicts.

use std::path::Path;

use anyhow::Result;

use crate::bench::result::BenchResult;
use crate::bench::result::Spread;
use crate::bench::result::Summary;
use crate::latency::Latency;
use crate::table::Table;

/// What a change amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    WithinNoise,
}

/// Which way a value should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Low,
    High,
}

/// Prints what changed from one result to another.
pub(crate) fn run(before: &Path, after: &Path) -> Result<()> {
    let (before, after) = (BenchResult::read(before)?, BenchResult::read(after)?);
    print!("{}", text(&before, &after));
    Ok(())
}

fn text(before: &BenchResult, after: &BenchResult) -> String {
    let mut text = String::new();
    let commit = |result: &BenchResult| result.machine.commit.clone().unwrap_or_default();
    for (what, before, after) in [
        ("commit", &commit(before), &commit(after)),
        ("kernel", &before.machine.kernel, &after.machine.kernel),
        ("processor", &before.machine.processor, &after.machine.processor),
        ("shape", &shape(before), &shape(after)),
    ] {
        if before != after {
            text += &format!("{what} differs: {before} | {after}\n");
        }
    }
    let mut table = Table::new(["", "before", "after", "change", "verdict"]);
    for summary in &before.summary {
        match after.summary.iter().find(|other| other.contender == summary.contender) {
            Some(other) => rows(&mut table, (before, summary), (after, other)),
            None => text += &format!("{} is in the first result only\n", summary.contender),
        }
    }
    for summary in &after.summary {
        if before.summary.iter().all(|other| other.contender != summary.contender) {
            text += &format!("{} is in the second result only\n", summary.contender);
        }
    }
    text += &table.text();
    text + "better, worse: by more than 3 % and by more than the quartiles of the rounds lie apart\n"
}

/// Everything that both results say about a contender.
fn rows(table: &mut Table, before: (&BenchResult, &Summary), after: (&BenchResult, &Summary)) {
    let mut row = |what: &str, goal: Goal, value: &dyn Fn(&BenchResult, &Summary) -> Option<Spread>| {
        if let (Some(before), Some(now)) = (value(before.0, before.1), value(after.0, after.1)) {
            table.row(cells(&format!("{}, {what}", after.1.contender), before, now, goal));
        }
    };
    // A ratio does not depend on how fast the machine happens to be: where there is one, CPU time says less.
    if before.1.ratio_to_floor.is_some() && after.1.ratio_to_floor.is_some() {
        row("ratio to floor", Goal::Low, &|_, summary| summary.ratio_to_floor);
    } else {
        row("CPU ns/frame", Goal::Low, &|_, summary| summary.cpu_ns_per_frame);
    }
    row("CPU against relay", Goal::Low, &|_, summary| summary.ratio_to_relay);
    row("frames/s", Goal::High, &|_, summary| Some(summary.frames_per_second));
    row("frames/s against relay", Goal::High, &|_, summary| summary.speed_to_relay);
    row("peak memory, MiB", Goal::Low, &|result, summary| {
        let rounds = result.rounds_of(&summary.contender);
        Spread::of(rounds.filter_map(|round| Some(round.memory_peak? as f64 / f64::from(1 << 20))))
    });
    if before.0.has_rate && after.0.has_rate {
        let latency = |result: &BenchResult, summary: &Summary, us: fn(&Latency) -> f64| {
            Spread::of(result.rounds_of(&summary.contender).map(|round| us(&round.latency)))
        };
        row("p50, us", Goal::Low, &|result, summary| latency(result, summary, |latency| latency.p50_us));
        row("p99, us", Goal::Low, &|result, summary| latency(result, summary, |latency| latency.p99_us));
        row("p50 added, us", Goal::Low, &|_, summary| Some(summary.added?.p50_us));
        row("p99 added, us", Goal::Low, &|_, summary| Some(summary.added?.p99_us));
    }
    if before.1.lost + after.1.lost > 0 {
        row("lost", Goal::Low, &|_, summary| Spread::of([summary.lost as f64]));
    }
}

fn cells(name: &str, before: Spread, after: Spread, goal: Goal) -> [String; 5] {
    let change = 100.0 * (after.median / before.median - 1.0);
    let number = |value: f64| if value < 1000.0 { format!("{value:.3}") } else { format!("{value:.0}") };
    [
        name.to_owned(),
        number(before.median),
        number(after.median),
        if change.is_finite() { format!("{change:+.1}%") } else { "-".to_owned() },
        match verdict(before, after, goal) {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::WithinNoise => "within noise",
        }
        .to_owned(),
    ]
}

/// A change counts if it is more than 3 % and more than the quartiles of both results lie apart on average.
fn verdict(before: Spread, after: Spread, goal: Goal) -> Verdict {
    let change = after.median - before.median;
    let noise = f64::max(CHANGE_MIN * before.median.abs(), (before.width() + after.width()) / 2.0);
    if change.abs() <= noise {
        Verdict::WithinNoise
    } else if (change < 0.0) == (goal == Goal::Low) {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

fn shape(result: &BenchResult) -> String {
    let BenchResult { outputs, connections, transport, class, .. } = result;
    let pin = result.pin.as_ref().map_or("nothing pinned".to_owned(), |(relay, load)| {
        format!("relay on CPUs {relay:?}, load on {load:?}")
    });
    format!("{outputs} outputs, {connections} connections, {transport}, {pin}, class {class}")
}

const CHANGE_MIN: f64 = 0.03;

#[cfg(test)]
mod tests {
    use super::*;

    use crate::bench::result::tests::result;
    use crate::bench::result::tests::result_of;
    use crate::bench::result::tests::round;
    use crate::bench::result::tests::timed;

    fn spread(median: f64, width: f64) -> Spread {
        Spread { median, quartiles: (median - width / 2.0, median + width / 2.0) }
    }

    #[test]
    fn a_change_counts_only_beyond_the_noise() {
        let before = spread(100.0, 4.0);
        assert_eq!(verdict(before, spread(98.0, 4.0), Goal::Low), Verdict::WithinNoise);
        assert_eq!(verdict(before, spread(90.0, 4.0), Goal::Low), Verdict::Better);
        assert_eq!(verdict(before, spread(110.0, 4.0), Goal::Low), Verdict::Worse);
        assert_eq!(verdict(before, spread(110.0, 4.0), Goal::High), Verdict::Better);
        assert_eq!(verdict(before, spread(110.0, 30.0), Goal::Low), Verdict::WithinNoise);
        assert_eq!(verdict(spread(0.0, 0.0), spread(0.0, 0.0), Goal::Low), Verdict::WithinNoise);
    }

    #[test]
    fn ratios_are_compared_where_there_is_a_floor() {
        let text = text(&result(150), &result(110));
        let line = text.lines().find(|line| line.starts_with("relay, ratio to floor")).unwrap();
        assert!(line.contains("1.500") && line.contains("1.100") && line.ends_with("better"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("floor") && line.ends_with("within noise")),
            "{text}"
        );
    }

    #[test]
    fn variants_and_added_latencies_are_compared_under_their_names() {
        let result =
            |two: u64| result_of(vec![timed(0, "relay", 50), timed(0, "two", two), timed(0, "direct", 20)]);
        let text = text(&result(80), &result(60));
        let line =
            |what: &str| text.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{text}"));
        let added = line("two, p99 added");
        assert!(added.contains(" 60.0") && added.contains(" 40.0") && added.ends_with("better"), "{text}");
        assert!(line("relay, p99 added").ends_with("within noise"), "{text}");
        assert!(line("two, CPU against relay").ends_with("within noise"), "{text}");
        assert!(!text.contains("direct, CPU") && !text.contains("direct, p99 added"), "{text}");
    }

    #[test]
    fn a_contender_of_one_result_only_is_named() {
        let one = result_of(vec![round(0, "relay", 100), round(0, "two", 100)]);
        let text = text(&one, &result(100));
        assert!(text.contains("two is in the first result only"), "{text}");
        assert!(text.contains("floor is in the second result only"), "{text}");
    }

    #[test]
    fn a_percentile_that_scatters_from_round_to_round_is_noise() {
        let result = |micros: [u64; 3]| {
            let rounds = (0..).zip(micros).map(|(number, micros)| timed(number, "relay", micros));
            result_of(rounds.collect())
        };
        let text = text(&result([40, 50, 90]), &result([45, 60, 100]));
        let p99 = text.lines().find(|line| line.starts_with("relay, p99, us")).unwrap();
        assert!(p99.contains("+20") && p99.ends_with("within noise"), "{text}");
    }
}
