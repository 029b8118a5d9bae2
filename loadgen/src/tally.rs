//! What a consumer has read: counted, timed and checked.

use hdrhistogram::Histogram;

use crate::clock::NANOS_PER_SECOND;
use crate::latency;
use crate::latency::Latency;
use crate::latency::Recorder;
use crate::report::ConsumerReport;
use crate::report::Flow;
use crate::verify::Verifier;

/// The frames of one consumer.
#[derive(Debug)]
pub(crate) struct Tally {
    verifier: Verifier,
    latency: Recorder,
    /// From read to read, each as often as it has microseconds.
    gaps: Histogram<u64>,
    bytes: u64,
    streams_finished: u64,
    first_read_ns: u64,
    last_read_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            verifier: Verifier::default(),
            latency: Recorder::new(),
            gaps: latency::empty(),
            bytes: 0,
            streams_finished: 0,
            first_read_ns: 0,
            last_read_ns: 0,
        }
    }

    /// Takes the whole data frames at the front of `bytes`, which were read at `now` on the monotonic clock, and
    /// returns their length.
    pub(crate) fn take(&mut self, bytes: &[u8], now: u64) -> usize {
        let mut rest = bytes;
        while let Some((len, body)) = rest.split_first_chunk() {
            let len = u32::from_be_bytes(*len) as usize;
            if len == 0 || len > body.len() {
                break;
            }
            let (payload, after) = body.split_at(len);
            if let Some(mark) = self.verifier.frame(payload) {
                self.latency.record(now.saturating_sub(mark.intended_ns));
                self.streams_finished += u64::from(mark.last);
            }
            rest = after;
        }
        let taken = bytes.len() - rest.len();
        if taken > 0 {
            self.bytes += taken as u64;
            if self.first_read_ns == 0 {
                self.first_read_ns = now;
            } else {
                let gap = now.saturating_sub(self.last_read_ns);
                self.gaps.saturating_record_n(gap, gap.div_ceil(1000));
            }
            self.last_read_ns = now;
        }
        taken
    }

    /// Data frames taken.
    pub(crate) fn frames(&self) -> u64 {
        self.verifier.frames()
    }

    /// Their bytes, length words included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sending connections whose last frame has come.
    pub(crate) fn streams_finished(&self) -> u64 {
        self.streams_finished
    }

    /// When the first frame came; 0: none yet.
    pub(crate) fn first_read_ns(&self) -> u64 {
        self.first_read_ns
    }

    /// When the last frame came; 0: none yet.
    pub(crate) fn last_read_ns(&self) -> u64 {
        self.last_read_ns
    }

    /// Latencies so far.
    pub(crate) fn latency(&mut self) -> &Histogram<u64> {
        self.latency.histogram()
    }

    /// Fills in what concerns frames.
    pub(crate) fn report(&mut self, report: &mut ConsumerReport) {
        report.verdict = self.verifier.verdict();
        report.bytes = self.bytes;
        report.seconds = (self.last_read_ns - self.first_read_ns) as f64 / NANOS_PER_SECOND as f64;
        if report.seconds > 0.0 {
            report.frames_per_second = report.verdict.frames as f64 / report.seconds;
        }
        report.flow = Flow::of(&self.gaps);
        report.latency = Latency::of(self.latency.histogram(), false);
    }

    /// What was found out about frames.
    pub(crate) fn into_verifier(self) -> Verifier {
        self.verifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_weighs_as_much_as_it_lasts() {
        let mut tally = Tally::new();
        let frame = [0, 0, 0, 1, 7];
        // A second of reads a millisecond apart, with a rest of 20 ms: 2 moments of 100 lie in it.
        let mut now = 1_000_000;
        for read in 0..1000 {
            now += if read == 500 { 20_000_000 } else { 1_000_000 };
            assert_eq!(tally.take(&frame, now), frame.len());
        }
        let mut report = ConsumerReport::default();
        tally.report(&mut report);
        let Flow { gap_p50_us, gap_p99_us, gap_max_us } = report.flow;
        assert!((gap_p50_us - 1000.0).abs() < 2.0, "{gap_p50_us}");
        assert!((gap_p99_us - 20_000.0).abs() < 20.0, "{gap_p99_us}");
        assert_eq!(gap_p99_us, gap_max_us);
    }
}
