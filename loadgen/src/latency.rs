//! Latencies, from the intended send time to the read that brought the frame.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

/// Records latencies; runs of equal ones, as frames of one write and one read have them, cost next to nothing.
#[derive(Debug)]
pub(crate) struct Recorder {
    histogram: Histogram<u64>,
    nanos: u64,
    count: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { histogram: empty(), nanos: 0, count: 0 }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        if nanos != self.nanos {
            self.flush();
            self.nanos = nanos;
        }
        self.count += 1;
    }

    /// What was recorded so far.
    pub(crate) fn histogram(&mut self) -> &Histogram<u64> {
        self.flush();
        &self.histogram
    }

    fn flush(&mut self) {
        if self.count > 0 {
            self.histogram.saturating_record_n(self.nanos, self.count);
            self.count = 0;
        }
    }
}

/// An empty histogram of nanoseconds, up to an hour, exact to three digits.
pub(crate) fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds are valid")
}

/// Latency percentiles, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) frames: u64,
    pub(crate) min_us: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
    /// The whole histogram, when it was asked for: nanoseconds and frames.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) buckets: Vec<(u64, u64)>,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>, with_buckets: bool) -> Self {
        let us = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        let mut latency = Self {
            frames: histogram.len(),
            min_us: us(histogram.min()),
            mean_us: (histogram.mean() / 10.0).round() / 100.0,
            p50_us: at(0.50),
            p90_us: at(0.90),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: us(histogram.max()),
            buckets: Vec::new(),
        };
        if with_buckets {
            let buckets = histogram.iter_recorded();
            latency.buckets =
                buckets.map(|value| (value.value_iterated_to(), value.count_at_value())).collect();
        }
        latency
    }

    /// The histogram that `buckets` came from.
    pub(crate) fn histogram(&self) -> Histogram<u64> {
        let mut histogram = empty();
        for &(nanos, frames) in &self.buckets {
            histogram.saturating_record_n(nanos, frames);
        }
        histogram
    }
}

/// The percentile distribution as text, in microseconds: what HdrHistogram's plotter reads (`.hgrm`).
pub(crate) fn percentile_distribution(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for value in histogram.iter_quantiles(5) {
        total += value.count_since_last_iteration();
        let quantile = value.quantile_iterated_to();
        let us = histogram.highest_equivalent(value.value_iterated_to()) as f64 / 1e3;
        let _ = write!(text, "{us:>12.3} {quantile:>14.12} {total:>10}");
        let _ =
            if quantile < 1.0 { writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)) } else { writeln!(text) };
    }
    let us = |nanos: f64| nanos / 1e3;
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    = {:>12}]",
        us(histogram.mean()),
        us(histogram.stdev()),
        us(histogram.max() as f64),
        histogram.len(),
    );
    text
}

const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_equal_latencies_count_like_single_ones() {
        let mut recorder = Recorder::new();
        for nanos in [1000, 1000, 1000, 2_000_000, 0] {
            recorder.record(nanos);
        }
        let latency = Latency::of(recorder.histogram(), false);
        assert_eq!(latency.frames, 5);
        assert!((latency.p50_us - 1.0).abs() < 0.01, "{}", latency.p50_us);
        assert!((latency.max_us - 2000.0).abs() < 2.0, "{}", latency.max_us);
    }

    #[test]
    fn buckets_carry_the_whole_histogram() {
        let mut recorder = Recorder::new();
        for nanos in (0..10_000).map(|n| n * 977) {
            recorder.record(nanos);
        }
        let latency = Latency::of(recorder.histogram(), true);
        let again = Latency::of(&latency.histogram(), true);
        assert_eq!(again, latency);
    }

    #[test]
    fn the_distribution_ends_with_all_frames_at_the_maximum() {
        let mut recorder = Recorder::new();
        (1..=1000).for_each(|n| recorder.record(n * 1000));
        let text = percentile_distribution(recorder.histogram());
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(fields[1..], ["1.000000000000", "1000"]);
    }
}
