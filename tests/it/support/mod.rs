//! What the scenarios are made of.

#[macro_use]
pub(crate) mod backend;
pub(crate) mod authority;
pub(crate) mod collector;
pub(crate) mod control;
pub(crate) mod disk;
pub(crate) mod dns;
pub(crate) mod files;
pub(crate) mod flow;
pub(crate) mod haproxy;
pub(crate) mod hosts;
pub(crate) mod http;
pub(crate) mod manager;
pub(crate) mod numbered;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod stream;
pub(crate) mod tls_stream;
pub(crate) mod tmpfs;
pub(crate) mod wait;
pub(crate) mod wire;
