//! TLS over TCP: settings, files, names, handshakes, and streams.
//!
//! ```text
//! settings ─► identity, server, client ─► reload: one Arc, swapped when a file changes
//!             read, match, build           │
//!                          handshake ◄─────┘ on tokio's sockets
//!                              │  names: who is it?   explain: what went wrong, in words
//!                              ▼
//!                           stream: data, on epoll under both backends; records: what of it is acknowledged
//! ```
//!
//! rustls with ring does the work. There is no resumption: streams last for months, and a certificate that was taken away must
//! not come back with a ticket. There is no early data, and no encryption in the kernel.

mod channel;
mod client;
pub(crate) mod counted;
mod expiry;
pub(crate) mod explain;
mod fault;
pub(crate) mod first_bytes;
pub(crate) mod handshake;
mod identity;
mod names;
mod provider;
mod records;
mod reload;
mod server;
mod settings;
pub(super) mod stream;

pub use client::ClientConnector;
pub use expiry::CertificateEnd;
pub use explain::explain_io;
pub use fault::TlsFault;
pub use fault::TlsFaults;
pub use names::NamePattern;
pub(crate) use names::names_of;
pub(crate) use reload::Change;
pub(crate) use reload::ReloadableClient;
pub(crate) use reload::ReloadableServer;
pub use server::ServerAcceptor;
pub use settings::ClientTls;
pub use settings::Identity;
pub use settings::ServerTls;
pub use settings::TlsVersion;
