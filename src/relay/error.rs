//! Why a relay did not start, or was not changed.

use std::io;

use crate::output::ConfigError;
use crate::relay::handover::HandoverError;
use crate::spool::SpoolError;
use crate::transport::Address;
use crate::transport::tls::TlsFaults;

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An output cannot be as it was configured.
    #[error("output `{output}`: {}: {error}", error.key())]
    Output {
        /// Name of the output.
        output: String,
        /// What is wrong.
        error: ConfigError,
    },
    /// An address cannot be listened on.
    #[error("input `{input}` cannot listen on {address}: {source}")]
    Listen {
        /// Name of the input.
        input: String,
        /// The address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be used.
    #[error("{owner}: {faults}")]
    Tls {
        /// The input or output.
        owner: String,
        /// What is wrong.
        faults: TlsFaults,
    },
    /// An address cannot be listened on for subscribers.
    #[error("output `{output}` cannot listen on {address}: {source}")]
    Subscribers {
        /// Name of the output.
        output: String,
        /// The address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// `backend = "uring"`, and this host does not allow it.
    #[error("backend `uring` cannot be used here: {0}; `tapster doctor` tells how to allow it")]
    Backend(String),
    /// Another process did not hand over.
    #[error("{0}")]
    TakeOver(HandoverError),
    /// A thread could not be started.
    #[error("a worker could not be started: {0}")]
    Worker(io::Error),
}

/// Why a running relay was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// An output cannot be as it was configured.
    #[error("output `{output}`: {}: {error}", error.key())]
    Output {
        /// Name of the output.
        output: String,
        /// What is wrong.
        error: ConfigError,
    },
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(StartError),
    /// A certificate cannot be used.
    #[error("{owner}: {faults}")]
    Tls {
        /// The input or output.
        owner: String,
        /// What is wrong.
        faults: TlsFaults,
    },
    /// The name is in use.
    #[error("`{0}` is there already")]
    NameTaken(String),
    /// Nothing has this name.
    #[error("there is no `{0}`")]
    Unknown(String),
    /// A key that a running relay cannot change.
    #[error("{key}{} cannot change while tapster runs: use `tapster upgrade`, or restart tapster", of(output.as_ref()))]
    Fixed {
        /// The key.
        key: String,
        /// Name of the output, unless the key stands at the top.
        output: Option<String>,
    },
    /// The spool of a new output cannot be had.
    #[error("output `{output}`: {error}")]
    Spool {
        /// Name of the output.
        output: String,
        /// What is wrong.
        error: SpoolError,
    },
    /// The relay has changed since the plan was begun.
    #[error("the relay has changed meanwhile: try again")]
    Outdated,
    /// A thread could not be started, or a worker does not answer.
    #[error("{0}")]
    Worker(#[from] io::Error),
}

fn of(output: Option<&String>) -> String {
    output.map(|output| format!(" of output `{output}`")).unwrap_or_default()
}

impl ChangeError {
    /// The input that keeps the change from being made.
    pub fn input(&self) -> Option<&str> {
        match self {
            Self::Listen(StartError::Listen { input, .. }) => Some(input),
            _ => None,
        }
    }

    /// The output that keeps the change from being made.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Output { output, .. } | Self::Spool { output, .. } => Some(output),
            Self::Fixed { output, .. } => output.as_deref(),
            _ => None,
        }
    }

    /// The key at the top that keeps the change from being made.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Fixed { key, output: None } => Some(key),
            _ => None,
        }
    }
}
