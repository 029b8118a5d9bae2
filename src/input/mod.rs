//! Ways in: connections that run Frame Streams readers, accepted by listeners or opened to producers that listen.

mod admission;
pub(crate) mod connection;
mod dial_schedule;
pub(crate) mod dialled;
pub(crate) mod dialling;
mod encryption;
pub(crate) mod handing;
pub(crate) mod handshake_limit;
pub(crate) mod listener;

use std::time::Duration;
use std::time::Instant;

pub use ipnet::IpNet;

pub use crate::admission::Access;
pub use crate::delivery::config::Reconnect;
use crate::protocol::ContentType;
pub use crate::protocol::ContentTypes;
pub use crate::protocol::Oversize;
use crate::protocol::ReaderConfig;
use crate::transport::Address;
pub use crate::transport::SocketFileConfig;
use crate::transport::tls::ServerTls;

/// One input: where it listens and dials, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputConfig {
    /// Name in the ledger and in the log, unique among inputs.
    pub name: String,
    /// Addresses that writers connect to, `tcp`, `tls` or `unix`. At least one, unless there is a `dial`.
    pub listen: Vec<Address>,
    /// Addresses of producers that listen, `tcp` or `unix`: tapster connects to them as their reader, to every address of a
    /// name.
    pub dial: Vec<Address>,
    /// Pauses between attempts to connect. A name is looked up before each attempt, and at least every `max`.
    pub reconnect: Reconnect,
    /// Content types taken.
    pub content_types: ContentTypes,
    /// Whether writers that begin with START are taken too.
    pub unidirectional: bool,
    /// Longest data frame taken, payload bytes.
    pub frame_len_max: u32,
    /// What happens on a longer one.
    pub oversize: Oversize,
    /// For the whole handshake, from accept to START. Where tapster connects: for the lookup, for the connection, and for the
    /// handshake.
    pub handshake_timeout: Duration,
    /// Accepted connections at the same time; more are closed at once.
    pub connections_max: usize,
    /// An accepted connection that is older, by up to a tenth more or less, is closed when its writer says nothing; `None`: never.
    pub max_connection_age: Option<Duration>,
    /// Who may connect.
    pub access: Access,
    /// For its `tls` addresses: what they show, and whom they let in.
    pub tls: Option<ServerTls>,
    /// TLS handshakes at the same time, on each worker; then connections wait in the backlog.
    pub tls_handshakes_max: usize,
    /// Owner and permission bits of unix sockets.
    pub socket_file: SocketFileConfig,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            name: "input".to_owned(),
            listen: vec![Address::Tcp { host: "127.0.0.1".to_owned(), port: 6000 }],
            dial: Vec::new(),
            reconnect: Reconnect::default(),
            content_types: ContentTypes::Only(vec![ContentType::DNSTAP]),
            unidirectional: true,
            frame_len_max: 1 << 20,
            oversize: Oversize::Close,
            handshake_timeout: Duration::from_secs(10),
            connections_max: 10_000,
            max_connection_age: None,
            access: Access::default(),
            tls: None,
            tls_handshakes_max: 64,
            socket_file: SocketFileConfig::default(),
        }
    }
}

impl InputConfig {
    /// How its reader sessions are.
    pub fn reader_config(&self) -> ReaderConfig {
        ReaderConfig {
            content_types: self.content_types.clone(),
            bidirectional: true,
            unidirectional: self.unidirectional,
            frame_len_max: self.frame_len_max,
            oversize: self.oversize,
            handshake_timeout: self.handshake_timeout,
        }
    }

    /// When a connection whose stream begins now is as old as it may become. Not the same for all that begin now: writers that
    /// came together do not come again together.
    pub(crate) fn retirement(&self, now: Instant) -> Option<Instant> {
        let seconds = self.max_connection_age?.as_secs_f64() * (0.9 + 0.2 * fastrand::f64());
        now.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_begin_together_do_not_end_together() {
        let (config, now) = (InputConfig::default(), Instant::now());
        assert_eq!(config.retirement(now), None);
        let config = InputConfig { max_connection_age: Some(Duration::from_secs(1000)), ..config };
        let ages = [0; 1000].map(|_| (config.retirement(now).unwrap() - now).as_secs());
        assert!(ages.iter().all(|age| (900..=1100).contains(age)), "{ages:?}");
        let in_this_tenth = |tenth: u64| ages.iter().any(|age| (age - 900) / 20 == tenth);
        assert!((0..10).all(in_this_tenth), "{ages:?}");
        let longest = InputConfig { max_connection_age: Some(Duration::MAX), ..config };
        assert_eq!(longest.retirement(now), None);
    }
}
