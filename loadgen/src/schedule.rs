//! When frames are due.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::NANOS_PER_SECOND;

/// Frames per second of a whole generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// As fast as the peer takes them.
    Max,
    /// So many, whether the peer takes them or not.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let (number, scale) = match text.as_bytes().last() {
            Some(b'k') => (&text[..text.len() - 1], 1e3),
            Some(b'M') => (&text[..text.len() - 1], 1e6),
            _ => (text, 1.0),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 && number * scale <= 1e9 => Ok(Self::PerSecond(number * scale)),
            _ => Err(format!(
                "`{text}` is not a rate: write frames per second, as in 1000, 200k or 1.5M, or max"
            )),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::PerSecond(rate) => write!(f, "{rate}"),
        }
    }
}

/// The open-loop schedule: frame `n` is due at `start + n / rate`, however late we are.
///
/// Latency counts from there, so that a relay that holds up the generator cannot hide the frames that it held up.
/// Without a rate every frame is due at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    nanos_per_frame: Option<f64>,
}

impl Schedule {
    /// A schedule that begins at `start_ns` of the monotonic clock.
    pub(crate) fn new(rate: Rate, start_ns: u64) -> Self {
        let nanos_per_frame = match rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(NANOS_PER_SECOND as f64 / rate),
        };
        Self { start_ns, nanos_per_frame }
    }

    /// How many frames are due by `now_ns`; frame 0 is due at the start.
    pub(crate) fn due(&self, now_ns: u64) -> u64 {
        match self.nanos_per_frame {
            None => u64::MAX,
            Some(nanos) => match now_ns.checked_sub(self.start_ns) {
                Some(elapsed) => (elapsed as f64 / nanos) as u64 + 1,
                None => 0,
            },
        }
    }

    /// When frame `n` is due; `now_ns` where there is no rate.
    pub(crate) fn intended_ns(&self, n: u64, now_ns: u64) -> u64 {
        match self.nanos_per_frame {
            None => now_ns,
            Some(nanos) => self.start_ns + (n as f64 * nanos) as u64,
        }
    }

    /// How many frames fall into a duration; `None` where there is no rate.
    pub(crate) fn frames_in(&self, duration: Duration) -> Option<u64> {
        self.nanos_per_frame.map(|nanos| (duration.as_nanos() as f64 / nanos).ceil() as u64)
    }
}

/// How many of the first `total` frames belong to `connection` when frame `n` goes to connection `n % connections`.
pub(crate) fn share(total: u64, connection: u64, connections: u64) -> u64 {
    total / connections + u64::from(total % connections > connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_due_evenly_from_the_start() {
        let schedule = Schedule::new(Rate::PerSecond(1000.0), 5_000);
        assert_eq!(schedule.due(4_999), 0);
        assert_eq!(schedule.due(5_000), 1);
        assert_eq!(schedule.due(1_004_999), 1);
        assert_eq!(schedule.due(1_005_000), 2);
        assert_eq!(schedule.intended_ns(1, 77), 1_005_000);
        assert_eq!(schedule.frames_in(Duration::from_secs(2)), Some(2000));
    }

    #[test]
    fn a_frame_is_due_at_its_intended_time_and_not_a_nanosecond_before() {
        let schedule = Schedule::new(Rate::PerSecond(333_333.0), 12_345);
        for n in [1, 2, 3, 1_000, 999_999_999] {
            let intended = schedule.intended_ns(n, 0);
            assert!(schedule.due(intended + 1) > n, "frame {n} is due");
            assert!(schedule.due(intended - 1) <= n, "frame {n} is not due yet");
        }
    }

    #[test]
    fn without_a_rate_everything_is_due_now() {
        let schedule = Schedule::new(Rate::Max, 5_000);
        assert_eq!(schedule.due(5_000), u64::MAX);
        assert_eq!(schedule.intended_ns(9, 77), 77);
        assert_eq!(schedule.frames_in(Duration::from_secs(2)), None);
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        for (total, connections) in [(0, 3), (1, 3), (10, 3), (9, 3), (5, 1)] {
            let sum: u64 = (0..connections).map(|connection| share(total, connection, connections)).sum();
            assert_eq!(sum, total);
        }
        assert_eq!(share(10, 0, 3), 4);
    }

    #[test]
    fn rates_take_thousands_and_millions() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("200k".parse(), Ok(Rate::PerSecond(200_000.0)));
        assert_eq!("1.5M".parse(), Ok(Rate::PerSecond(1_500_000.0)));
        assert_eq!(Rate::PerSecond(1_500_000.0).to_string(), "1500000");
        for text in ["", "0", "-1", "fast", "1kk", "NaN", "inf"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
