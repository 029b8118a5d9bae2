//! Why a relay did not start, or was not changed.

use std::io;

use crate::output::ConfigError;
use crate::relay::handover::HandoverError;
use crate::spool::SpoolError;
use crate::transport::Address;

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
    /// The name is in use.
    #[error("`{0}` is there already")]
    NameTaken(String),
    /// Nothing has this name.
    #[error("there is no `{0}`")]
    Unknown(String),
    /// A key that a running relay cannot change.
    #[error("{key} cannot change while tapster runs: use `tapster upgrade`, or restart tapster")]
    Fixed {
        /// The key, and of which output.
        key: String,
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
