//! What the relay is compared with, by name.

use clap::ValueEnum;

/// The name of the relay that variants are compared with.
pub(crate) const RELAY: &str = "relay";

/// What the relay is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// loadgen floor: the raw copy
    Floor,
    /// Nothing: the generator writes to the first sink; others add their latency to this one
    Direct,
    /// The dnstap command
    Dnstap,
    /// HAProxy in TCP mode; one output
    Haproxy,
    /// socat; one connection, one output
    Socat,
}

impl Peer {
    /// Its name in tables, results and file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Direct => "direct",
            Self::Dnstap => "dnstap",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
        }
    }
}
