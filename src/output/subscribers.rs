//! Settings of an output that listens, and whose readers connect to it.

use std::time::Duration;

use crate::admission::Access;
use crate::output::config_error::ConfigError;
use crate::transport::Address;
use crate::transport::SocketFileConfig;

/// Readers that connect: each gets the stream from the moment on in which its own begins, with a queue of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribersConfig {
    /// Addresses, at least one, `tcp` or `unix`.
    pub listen: Vec<Address>,
    /// Subscribers at the same time; more are closed at once.
    pub subscribers_max: usize,
    /// With READY, ACCEPT and FINISH. Otherwise a stream begins with START at once.
    pub bidirectional: bool,
    /// From accept to START.
    pub handshake_timeout: Duration,
    /// From STOP to FINISH.
    pub finish_timeout: Duration,
    /// A subscriber that has something to take, and takes nothing for so long, is closed.
    pub stall_timeout: Duration,
    /// Who may connect.
    pub access: Access,
    /// Owner and permission bits of unix sockets.
    pub socket_file: SocketFileConfig,
}

impl SubscribersConfig {
    /// Room that waits for each subscriber where nothing else is configured, bytes.
    pub const QUEUE: usize = 8 << 20;

    /// An output that listens there: 100 subscribers, which answer.
    pub fn new(listen: Vec<Address>) -> Self {
        Self {
            listen,
            subscribers_max: 100,
            bidirectional: true,
            handshake_timeout: Duration::from_secs(5),
            finish_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(60),
            access: Access::default(),
            socket_file: SocketFileConfig::default(),
        }
    }

    pub(super) fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        if self.listen.is_empty() {
            faults.push(ConfigError::ListenNowhere);
        }
        if let Some(address) = self.listen.iter().find(|address| address.is_tls()) {
            faults.push(ConfigError::TlsOfSubscribers(address.clone()));
        }
        let twice = |(index, address): &(usize, &Address)| {
            !address.has_any_port() && self.listen.iter().take(*index).any(|seen| seen == *address)
        };
        if let Some((_, address)) = self.listen.iter().enumerate().find(twice) {
            faults.push(ConfigError::ListenTwice(address.clone()));
        }
        faults
    }
}
