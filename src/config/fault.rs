//! What is wrong with a configuration: every fault, each with its place, its key and a sentence that helps.

use std::borrow::Cow;
use std::fmt;

use crate::observability::printable;

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
        // A place, a key and what a message quotes are whatever somebody wrote.
        write!(f, "{}: ", printable(&*shortened(&self.place)))?;
        if !self.key.is_empty() {
            write!(f, "{}: ", printable(&*shortened(&self.key)))?;
        }
        write!(f, "{}", printable(&*shortened(&self.message)))
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
        for fault in self.0.iter().take(FAULTS_SHOWN) {
            write!(f, "\n  {fault}")?;
        }
        match self.0.len().saturating_sub(FAULTS_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more, not shown: mend these first"),
        }
    }
}

impl std::error::Error for Faults {}

/// The beginning and the end of a text of more than [`TEXT_SHOWN`] bytes.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_SHOWN {
        return Cow::Borrowed(text);
    }
    let (begin, end) = (TEXT_SHOWN / 2, text.len() - TEXT_SHOWN / 2);
    let boundary = |at: &usize| text.is_char_boundary(*at);
    let begin = (0..=begin).rev().find(boundary).unwrap_or(0);
    let end = (end..=text.len()).find(boundary).unwrap_or(text.len());
    Cow::Owned(format!("{} … {}", &text[..begin], &text[end..]))
}

/// Nobody reads more of them, and the next run tells the rest.
pub(super) const FAULTS_SHOWN: usize = 100;
/// More than any sentence of ours has, bytes.
const TEXT_SHOWN: usize = 2000;
