//! Which readers of an output, or files, are away: since when, and why.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// The readers of one lane that are away, by their address. A file that cannot be written is away too.
#[derive(Debug, Default)]
pub(crate) struct Absences(Mutex<BTreeMap<String, Absence>>);

/// One that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absence {
    /// When the first attempt failed.
    pub(crate) since: Instant,
    /// Why the last attempt failed.
    pub(crate) reason: String,
}

impl Absences {
    /// An attempt to reach the reader at this address has failed.
    pub(crate) fn failed(&self, to: &str, reason: &str, now: Instant) {
        let mut absences = self.0.lock().expect(UNPOISONED);
        match absences.get_mut(to) {
            Some(absence) if absence.reason == reason => {}
            Some(absence) => reason.clone_into(&mut absence.reason),
            None => {
                absences.insert(to.to_owned(), Absence { since: now, reason: reason.to_owned() });
            }
        }
    }

    /// The reader at this address is there.
    pub(crate) fn is_there(&self, to: &str) {
        self.0.lock().expect(UNPOISONED).remove(to);
    }

    /// All that are away now, by address.
    pub(crate) fn now(&self) -> BTreeMap<String, Absence> {
        self.0.lock().expect(UNPOISONED).clone()
    }
}

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_absence_lasts_from_the_first_failure_on_and_has_the_last_reason() {
        let (absences, now) = (Absences::default(), Instant::now());
        absences.failed("a", "refused", now);
        absences.failed("a", "timed out", now + Duration::from_secs(1));
        absences.failed("b", "refused", now);
        absences.is_there("b");
        let absence = Absence { since: now, reason: "timed out".to_owned() };
        assert_eq!(absences.now(), BTreeMap::from([("a".to_owned(), absence)]));
    }
}
