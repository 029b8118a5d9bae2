//! What `send` and `sink` report, as JSON and for people.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

use crate::latency::Latency;
use crate::verify::Verdict;

/// What a generator did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SendReport {
    /// Whether every frame was sent and every STOP answered.
    pub(crate) ok: bool,
    pub(crate) connections: u64,
    /// Data frames written.
    pub(crate) frames: u64,
    /// Their bytes, length words included.
    pub(crate) bytes: u64,
    /// From the first frame to the last.
    pub(crate) seconds: f64,
    pub(crate) frames_per_second: f64,
    /// How late the latest frame was against the schedule, in microseconds.
    pub(crate) late_max_us: f64,
    /// From STOP to FINISH; empty where there is no FINISH.
    pub(crate) finish: Latency,
    /// What went wrong, by connection.
    pub(crate) problems: Vec<String>,
}

/// What one listener of a sink received.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConsumerReport {
    pub(crate) address: String,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// Bytes of data frames, length words included.
    pub(crate) bytes: u64,
    /// From the first frame to the last.
    pub(crate) seconds: f64,
    pub(crate) frames_per_second: f64,
    /// Connections accepted.
    pub(crate) connections: u64,
    /// Sessions that ended with STOP.
    pub(crate) sessions_finished: u64,
    /// Sessions that ended between two frames without STOP: the writer went away, or the consumer died on purpose.
    pub(crate) sessions_unclean: u64,
    /// Sessions that ended within a frame.
    pub(crate) sessions_truncated: u64,
    /// Sessions closed because the writer broke the protocol.
    pub(crate) protocol_errors: Vec<String>,
    #[serde(default)]
    pub(crate) flow: Flow,
    pub(crate) latency: Latency,
}

/// How evenly frames came: gaps between one read that brought some and the next, on whatever connection, in microseconds.
///
/// A gap counts by its length: of 100 moments, 99 lie in one of `gap_p99_us` or less.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flow {
    pub(crate) gap_p50_us: f64,
    pub(crate) gap_p99_us: f64,
    pub(crate) gap_max_us: f64,
}

/// What a sink received.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SinkReport {
    /// Whether every frame came once, in order and unaltered, to every listener.
    pub(crate) ok: bool,
    /// Data frames, all listeners together.
    pub(crate) frames: u64,
    /// One for every listener.
    pub(crate) consumers: Vec<ConsumerReport>,
    /// Of a group: what came to its members together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Verdict>,
    /// All listeners together.
    pub(crate) latency: Latency,
    /// What went wrong.
    pub(crate) problems: Vec<String>,
}

impl Flow {
    /// Of gaps that were recorded as often as they have microseconds.
    pub(crate) fn of(gaps: &Histogram<u64>) -> Self {
        let us = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| us(gaps.value_at_quantile(quantile));
        Self { gap_p50_us: at(0.50), gap_p99_us: at(0.99), gap_max_us: at(1.0) }
    }
}

impl Verdict {
    /// What is wrong with the frames of `whose`, in words; empty if nothing is.
    pub(crate) fn problems(&self, whose: &str) -> Vec<String> {
        let counts = [
            (self.missing, "frames missing"),
            (self.duplicate, "frames duplicate"),
            (self.reordered, "frames reordered"),
            (self.corrupted, "frames corrupted"),
            (self.unfinished, "sending connections without their last frame"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, what)| format!("{whose}: {count} {what}")).collect()
    }
}

impl ConsumerReport {
    /// What is wrong with the sessions, in words; empty if nothing is.
    pub(crate) fn session_problems(&self) -> Vec<String> {
        let truncated = self.sessions_truncated;
        let truncated =
            (truncated > 0).then(|| format!("{}: {truncated} sessions ended within a frame", self.address));
        let errors = self.protocol_errors.iter().map(|error| format!("{}: {error}", self.address));
        truncated.into_iter().chain(errors).collect()
    }
}

impl SendReport {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "sent {} frames, {} in {:.3} s on {} connections: {} frames/s\n",
            thousands(self.frames),
            bytes(self.bytes),
            self.seconds,
            self.connections,
            thousands(self.frames_per_second as u64),
        );
        if self.late_max_us > 0.0 {
            let _ = writeln!(text, "latest frame {} behind schedule", micros(self.late_max_us));
        }
        if self.finish.frames > 0 {
            let Latency { p50_us, max_us, .. } = self.finish;
            let _ = writeln!(
                text,
                "FINISH came {} after STOP (median), {} at most",
                micros(p50_us),
                micros(max_us)
            );
        }
        add_problems(&mut text, &self.problems);
        text
    }
}

impl SinkReport {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for consumer in &self.consumers {
            let verdict = &consumer.verdict;
            let _ = writeln!(
                text,
                "{}: {} frames, {} in {:.3} s ({} frames/s) from {} sending connections",
                consumer.address,
                thousands(verdict.frames),
                bytes(consumer.bytes),
                consumer.seconds,
                thousands(consumer.frames_per_second as u64),
                verdict.streams.len(),
            );
            add_verdict(&mut text, "  ", verdict);
            let faulty = verdict.streams.iter().filter(|stream| !stream.is_clean());
            for stream in faulty.take(STREAMS_SHOWN_MAX) {
                let _ = writeln!(
                    text,
                    "  of these, connection {} of generator {}: missing {}, duplicate {}, reordered {}{}",
                    stream.connection,
                    stream.run,
                    stream.missing,
                    stream.duplicate,
                    stream.reordered,
                    if stream.finished { "" } else { ", without its last frame" },
                );
            }
            let Flow { gap_p50_us, gap_p99_us, gap_max_us } = consumer.flow;
            let _ = writeln!(
                text,
                "  gaps in the flow p50 {}, p99 {}, max {}",
                micros(gap_p50_us),
                micros(gap_p99_us),
                micros(gap_max_us),
            );
            if consumer.latency.frames > 0 {
                let Latency { p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = consumer.latency;
                let _ = writeln!(
                    text,
                    "  latency p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                    micros(p50_us),
                    micros(p90_us),
                    micros(p99_us),
                    micros(p99_9_us),
                    micros(max_us),
                );
            }
        }
        if let Some(verdict) = &self.group {
            add_verdict(&mut text, "together: ", verdict);
        }
        add_problems(&mut text, &self.problems);
        text
    }
}

fn add_verdict(text: &mut String, begin: &str, verdict: &Verdict) {
    let _ = writeln!(
        text,
        "{begin}missing {}, duplicate {}, reordered {}, corrupted {}, unmarked {}",
        verdict.missing, verdict.duplicate, verdict.reordered, verdict.corrupted, verdict.unmarked,
    );
}

/// What went wrong, a line each.
pub(crate) fn add_problems(text: &mut String, problems: &[String]) {
    if problems.is_empty() {
        text.push_str("nothing wrong\n");
    }
    for problem in problems {
        let _ = writeln!(text, "wrong: {problem}");
    }
}

/// `1234567` as `1 234 567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=10_485_759 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        10_485_760..=10_737_418_239 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Microseconds with a unit that keeps the number short.
pub(crate) fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.1} us"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// The JSON report has them all.
const STREAMS_SHOWN_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_consumer_has_no_problems_and_each_fault_is_one() {
        let clean = ConsumerReport { address: "unix:a".to_owned(), ..ConsumerReport::default() };
        assert!(clean.session_problems().is_empty() && clean.verdict.problems("unix:a").is_empty());
        let verdict = Verdict { missing: 3, corrupted: 1, unmarked: 9, ..Verdict::default() };
        assert_eq!(verdict.problems("unix:a"), ["unix:a: 3 frames missing", "unix:a: 1 frames corrupted"]);
        let faulty = ConsumerReport { sessions_truncated: 2, ..clean };
        assert_eq!(faulty.session_problems(), ["unix:a: 2 sessions ended within a frame"]);
    }

    #[test]
    fn reports_survive_json() {
        let verdict = Verdict { frames: 7, unmarked: 2, ..Verdict::default() };
        let consumer = ConsumerReport { verdict, ..ConsumerReport::default() };
        let report = SinkReport { ok: true, consumers: vec![consumer], ..SinkReport::default() };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<SinkReport>(&json).unwrap(), report);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1 234 567");
        assert_eq!(bytes(100), "100 B");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(micros(12.34), "12.3 us");
        assert_eq!(micros(12_340.0), "12.34 ms");
    }
}
