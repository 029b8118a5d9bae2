//! When the log has a line about a file that cannot be written: for each kind of failure at once, and then once a minute.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

/// The failures of one output that are in the log.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    // By kind: when the log had a line.
    told: HashMap<String, Instant>,
}

impl FailureLog {
    /// Whether a failure of this kind is due for the log: none was in the last minute.
    pub(crate) fn is_due(&mut self, kind: String, now: Instant) -> bool {
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
