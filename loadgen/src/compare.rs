//! `compare`: two results of `bench`, with verdicts.

use std::path::Path;

use anyhow::Result;

use crate::bench::result::BenchResult;
use crate::bench::result::Spread;
use crate::bench::result::Summary;
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
    for (what, before, after) in [
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
        let same = |other: &&Summary| other.contender == summary.contender;
        let Some(other) = after.summary.iter().find(same) else { continue };
        let name = summary.contender.name();
        // A ratio does not depend on how fast the machine happens to be: where there is one, CPU time says less.
        match (summary.ratio_to_floor, other.ratio_to_floor) {
            (Some(before), Some(after)) => row(&mut table, name, "ratio to floor", before, after, Goal::Low),
            _ => row(
                &mut table,
                name,
                "CPU ns/frame",
                summary.cpu_ns_per_frame,
                other.cpu_ns_per_frame,
                Goal::Low,
            ),
        }
        row(&mut table, name, "frames/s", summary.frames_per_second, other.frames_per_second, Goal::High);
        let exactly = |value: f64| Spread { median: value, quartiles: (value, value) };
        if let (Some(before), Some(after)) = (summary.memory_peak, other.memory_peak) {
            let mib = |bytes: u64| exactly(bytes as f64 / f64::from(1 << 20));
            row(&mut table, name, "peak memory, MiB", mib(before), mib(after), Goal::Low);
        }
        if before.has_rate && after.has_rate {
            let p99 = |summary: &Summary| exactly(summary.latency.p99_us);
            row(&mut table, name, "p99, us", p99(summary), p99(other), Goal::Low);
        }
        if summary.lost + other.lost > 0 {
            row(
                &mut table,
                name,
                "lost",
                exactly(summary.lost as f64),
                exactly(other.lost as f64),
                Goal::Low,
            );
        }
    }
    text + &table.text()
}

fn row(table: &mut Table, name: &str, what: &str, before: Spread, after: Spread, goal: Goal) {
    let change = 100.0 * (after.median / before.median - 1.0);
    let number = |value: f64| if value < 1000.0 { format!("{value:.3}") } else { format!("{value:.0}") };
    table.row([
        format!("{name}, {what}"),
        number(before.median),
        number(after.median),
        if change.is_finite() { format!("{change:+.1}%") } else { "-".to_owned() },
        match verdict(before, after, goal) {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::WithinNoise => "within noise",
        }
        .to_owned(),
    ]);
}

/// A change counts if it is more than 3 % and more than the quartiles of both results lie apart on average.
fn verdict(before: Spread, after: Spread, goal: Goal) -> Verdict {
    let change = after.median - before.median;
    let noise = f64::max(CHANGE_MIN * before.median, (before.width() + after.width()) / 2.0);
    if change.abs() <= noise {
        Verdict::WithinNoise
    } else if (change < 0.0) == (goal == Goal::Low) {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

fn shape(result: &BenchResult) -> String {
    format!("{} outputs, {} connections, {}", result.outputs, result.connections, result.transport)
}

const CHANGE_MIN: f64 = 0.03;

#[cfg(test)]
mod tests {
    use super::*;

    use crate::bench::result::tests::result;

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
}
