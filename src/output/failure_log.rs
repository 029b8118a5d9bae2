//! Tells of files that cannot be written: each kind of failure at once, and then once a minute.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use tracing::error;

use crate::output::file_config::FileConfig;
use crate::output::stream_file::FileFailure;

/// The failures of one output that were told.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    // By kind: when it was told.
    told: HashMap<String, Instant>,
}

impl FailureLog {
    /// Tells a failure, unless one of its kind was told within the last minute.
    pub(crate) fn tell(&mut self, output: &str, to: &FileConfig, failure: &FileFailure, now: Instant) {
        if self.is_due(failure.kind(), now) {
            let next =
                if failure.is_full_file() { "tapster goes on in a new file" } else { "tapster tries again" };
            error!(output, %to, "{failure}; {next}");
        }
    }

    fn is_due(&mut self, kind: String, now: Instant) -> bool {
        self.told.retain(|_, told| now.saturating_duration_since(*told) < TELL_EVERY);
        let due = !self.told.contains_key(&kind);
        if due {
            self.told.insert(kind, now);
        }
        due
    }
}

/// How often the log has a line about a failure that lasts.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_at_once_and_once_a_minute() {
        let (mut log, now) = (FailureLog::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut due = |kind: &str, seconds| log.is_due(kind.to_owned(), at(seconds));
        assert!(due("write", 0) && due("create", 0));
        assert!(!due("write", 1) && !due("create", 59));
        assert!(due("write", 60) && !due("write", 119) && due("create", 200));
    }
}
