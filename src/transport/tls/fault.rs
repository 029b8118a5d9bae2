//! What is wrong with the files of TLS.

use std::fmt;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFault {
    /// The key of `tls` that names the file.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Everything that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFaults(pub Vec<TlsFault>);

impl TlsFault {
    pub(super) fn new(key: &'static str, message: String) -> Self {
        Self { key, message }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tls.{}: {}", self.key, self.message)
    }
}

impl fmt::Display for TlsFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&faults.join("; "))
    }
}

impl From<TlsFault> for TlsFaults {
    fn from(fault: TlsFault) -> Self {
        Self(vec![fault])
    }
}
