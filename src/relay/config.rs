//! What a relay is made of.

use std::time::Duration;

use crate::input::InputConfig;
use crate::output::OutputConfig;
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
    /// How many descriptors the service manager keeps from one process to the next: listeners, and connections; 0: none.
    pub descriptor_store: usize,
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
            descriptor_store: 0,
            inputs: vec![InputConfig::default()],
            outputs: vec![OutputConfig::default()],
        }
    }
}
