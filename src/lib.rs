//! tapster: a relay for Frame Streams, the transport of dnstap.

#![deny(unsafe_code)]

pub mod protocol;

#[cfg(feature = "relay")]
pub mod config;
#[cfg(feature = "relay")]
pub mod dnstap;
#[cfg(feature = "relay")]
mod drain;
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
mod route;
#[cfg(feature = "relay")]
mod session;
#[cfg(feature = "relay")]
pub mod transport;
