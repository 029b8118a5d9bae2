//! The relay: inputs, outputs and workers put together, started and drained.

use std::io;
use std::time::Duration;

use crate::input::InputConfig;
use crate::observability::Ledger;
use crate::output::OutputConfig;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::BackendChoice;

/// Everything that a relay needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Worker threads; 0: one per core that the process may use.
    pub workers: usize,
    /// What the workers run on.
    pub backend: BackendChoice,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// At least one.
    pub inputs: Vec<InputConfig>,
    /// At least one; every output gets every frame of its content type.
    pub outputs: Vec<OutputConfig>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            backend: BackendChoice::Auto,
            drain_timeout: Duration::from_secs(10),
            inputs: vec![InputConfig::default()],
            outputs: vec![OutputConfig::default()],
        }
    }
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
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
    /// `backend = "uring"`, and it is not to be had.
    #[error("backend `uring` cannot be used here: {0}; `tapster doctor` tells how to allow it")]
    Backend(String),
    /// A thread could not be started.
    #[error("a worker could not be started: {0}")]
    Worker(io::Error),
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {}

impl Relay {
    /// Binds every input, starts the workers, and returns once everything listens.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left bound.
    pub fn start(_config: RelayConfig) -> Result<Self, StartError> {
        unimplemented!()
    }

    /// What the workers run on.
    pub fn backend(&self) -> Backend {
        unimplemented!()
    }

    /// Name of the input and the address bound (port 0 replaced by the kernel's choice), in order of
    /// configuration.
    pub fn listeners(&self) -> &[(String, Address)] {
        unimplemented!()
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> Ledger {
        unimplemented!()
    }

    /// Stops accepting, takes what has arrived, answers FINISH, flushes, ends every output with STOP, and
    /// returns the final ledger; at most `drain_timeout`.
    pub fn drain(self) -> Ledger {
        unimplemented!()
    }
}
