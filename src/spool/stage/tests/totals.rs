//! How often what happened in a storm: one in which nothing of a kind happens proves nothing about it.

use std::collections::BTreeMap;

/// How often what happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals(pub(super) BTreeMap<String, u64>);

/// What must happen in many storms.
pub(super) const KINDS: usize = 19;

impl Totals {
    pub(super) fn count(&mut self, kind: &str, count: u64) {
        if count > 0 {
            *self.0.entry(kind.to_owned()).or_default() += count;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(kind, count)| self.count(kind, *count));
    }
}
