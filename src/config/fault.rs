//! What is wrong with a configuration: every fault, each with its place, its key and a sentence that helps.

use std::fmt;

/// One thing that is wrong, or that is allowed and yet unlikely to be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `tapster.toml:14`, or the option of the command line.
    pub place: String,
    /// Path of the key, as in `output[1].when_full`, with the name of the input or output where it has one;
    /// empty where the fault belongs to no key.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration, in the order in which it was written. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 fault in the configuration, nothing was started:")?,
            count => write!(f, "{count} faults in the configuration, nothing was started:")?,
        }
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
