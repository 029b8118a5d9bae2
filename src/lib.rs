//! tapster: a relay for Frame Streams, the transport of dnstap.

pub mod protocol;

#[cfg(feature = "relay")]
pub mod config;
#[cfg(feature = "relay")]
pub mod dnstap;
#[cfg(feature = "relay")]
pub mod input;
#[cfg(feature = "relay")]
pub mod observability;
#[cfg(feature = "relay")]
pub mod output;
#[cfg(feature = "relay")]
pub mod queue;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "relay")]
pub mod transport;
