//! Where the parts of a configuration were written: for faults that only a running relay can find.

use std::collections::BTreeMap;

use crate::config::section::Origin;
use crate::config::section::Section;

/// File and line of keys at the top, and of inputs and outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    keys: BTreeMap<&'static str, String>,
    inputs: BTreeMap<String, String>,
    outputs: BTreeMap<String, String>,
}

impl Places {
    /// Where a key at the top was written, as in `tapster.toml:14`; `None` where it was not.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// Where the input of this name begins.
    pub fn input(&self, name: &str) -> Option<&str> {
        self.inputs.get(name).map(String::as_str)
    }

    /// Where the output of this name begins.
    pub fn output(&self, name: &str) -> Option<&str> {
        self.outputs.get(name).map(String::as_str)
    }

    /// Notes the keys of one document.
    pub(super) fn note_keys(&mut self, top: &Section<'_>) {
        for key in ["workers", "backend", "admin"] {
            if top.has(key) {
                self.keys.insert(key, top.origin_of(key).place());
            }
        }
    }

    pub(super) fn note_input(&mut self, name: &str, origin: &Origin) {
        self.inputs.insert(name.to_owned(), origin.place());
    }

    pub(super) fn note_output(&mut self, name: &str, origin: &Origin) {
        self.outputs.insert(name.to_owned(), origin.place());
    }
}
