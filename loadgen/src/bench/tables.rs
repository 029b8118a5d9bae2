//! The result of a benchmark as text.

use crate::bench::peer::Peer;
use crate::bench::peer::RELAY;
use crate::bench::result::BenchResult;
use crate::bench::result::Spread;
use crate::report::bytes;
use crate::report::micros;
use crate::report::thousands;
use crate::table::Table;

/// Every table that the result has something for.
pub(crate) fn text(result: &BenchResult) -> String {
    let BenchResult { outputs, connections, transport, machine, .. } = result;
    let mut text = format!(
        "{outputs} outputs, {connections} connections, {transport}, floor reads {}; {}, {}\n{}",
        bytes(result.floor_read_size as u64),
        machine.processor,
        machine.kernel,
        costs(result).text()
    );
    let shown_above = [RELAY, Peer::Floor.name(), Peer::Direct.name()];
    if result.summary.iter().any(|summary| !shown_above.contains(&&*summary.contender)) {
        text += &against_relay(result).text();
    }
    if result.has_rate {
        text += &latencies(result).text();
        if result.summary.iter().any(|summary| summary.added.is_some()) {
            text += &added(result).text();
        }
    }
    text
}

fn costs(result: &BenchResult) -> Table {
    let mut table = Table::new(["", "CPU ns/frame", "ratio", "quartiles", "frames/s", "peak memory", "lost"]);
    for summary in &result.summary {
        let ratio = summary.ratio_to_floor;
        table.row([
            summary.contender.clone(),
            or_dash(summary.cpu_ns_per_frame, |cpu| format!("{:.1}", cpu.median)),
            or_dash(ratio, |ratio| format!("{:.3}", ratio.median)),
            or_dash(ratio, quartiles),
            thousands(summary.frames_per_second.median as u64),
            or_dash(summary.memory_peak, bytes),
            summary.lost.to_string(),
        ]);
    }
    table
}

/// Variants and other programs, in multiples of the relay.
fn against_relay(result: &BenchResult) -> Table {
    let mut table = Table::new(["against relay", "CPU/frame", "quartiles", "frames/s", "quartiles"]);
    for summary in &result.summary {
        let (Some(cpu), Some(speed)) = (summary.ratio_to_relay, summary.speed_to_relay) else { continue };
        table.row([
            summary.contender.clone(),
            format!("{:.3}", cpu.median),
            quartiles(cpu),
            format!("{:.3}", speed.median),
            quartiles(speed),
        ]);
    }
    table
}

fn latencies(result: &BenchResult) -> Table {
    let mut table = Table::new(["latency", "p50", "p90", "p99", "p99.9", "max"]);
    for summary in &result.summary {
        let latency = &summary.latency;
        let values = [latency.p50_us, latency.p90_us, latency.p99_us, latency.p99_9_us, latency.max_us];
        let [p50, p90, p99, p99_9, max] = values.map(micros);
        table.row([summary.contender.clone(), p50, p90, p99, p99_9, max]);
    }
    table
}

fn added(result: &BenchResult) -> Table {
    let mut table =
        Table::new(["added to direct, us", "p50", "quartiles", "p90", "p99", "quartiles", "p99.9"]);
    let us = |spread: Spread| format!("{:.1}", spread.median);
    let quartiles = |Spread { quartiles: (low, high), .. }| format!("{low:.1}-{high:.1}");
    for summary in &result.summary {
        let Some(added) = summary.added else { continue };
        table.row([
            summary.contender.clone(),
            us(added.p50_us),
            quartiles(added.p50_us),
            us(added.p90_us),
            us(added.p99_us),
            quartiles(added.p99_us),
            us(added.p99_9_us),
        ]);
    }
    table
}

fn quartiles(spread: Spread) -> String {
    format!("{:.3}-{:.3}", spread.quartiles.0, spread.quartiles.1)
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::bench::result::tests::result;
    use crate::bench::result::tests::result_of;
    use crate::bench::result::tests::round;
    use crate::bench::result::tests::timed;

    #[test]
    fn the_relay_and_the_floor_need_one_table() {
        let text = text(&result(150));
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("1.500"), "{text}");
    }

    #[test]
    fn variants_are_shown_in_multiples_of_the_relay() {
        let text = text(&result_of(vec![round(0, RELAY, 100), round(0, "two", 125)]));
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("two") && line.contains("1.250"), "{text}");
    }

    #[test]
    fn what_is_added_is_shown_for_all_but_the_direct_way() {
        let text = text(&result_of(vec![timed(0, RELAY, 70), timed(0, "floor", 50), timed(0, "direct", 20)]));
        let (_, added) = text.split_once("added to direct").unwrap();
        let lines: Vec<&str> = added.lines().skip(1).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("relay") && lines[0].contains(" 50.0"), "{text}");
        assert!(lines[1].starts_with("floor") && lines[1].contains(" 30.0"), "{text}");
    }
}
