//! What an operator says about TLS. Nothing here has been read yet.

use std::path::Path;
use std::path::PathBuf;

use crate::transport::tls::names::NamePattern;

/// How the `tls://` listeners of an input identify themselves, and whom they let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// What the input shows to writers.
    pub identity: Identity,
    /// Certificates (PEM) of the authorities that sign those of writers; `None`: writers need no certificate.
    pub client_ca: Option<PathBuf>,
    /// Names that a writer may have in its certificate, one of them at least; empty: whoever `client_ca` has signed.
    pub allow_names: Vec<NamePattern>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// How the `tls://` connections of an output tell their reader, and how they identify themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Certificates (PEM) of the authorities that sign those of readers; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// What the output shows to readers that ask for a certificate.
    pub identity: Option<Identity>,
    /// The name that the certificate of the reader must have; `None`: the host of the address.
    pub server_name: Option<String>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate (PEM), and those between it and its authority behind it.
    pub cert: PathBuf,
    /// The private key (PEM). Only its owner, and a group, may be allowed to read it.
    pub key: PathBuf,
}

/// A version of TLS. tapster has none that is older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    #[default]
    V1_2,
    /// 1.3
    V1_3,
}

impl ServerTls {
    /// Every file that it names.
    pub(super) fn files(&self) -> Vec<&Path> {
        let identity = [&self.identity.cert, &self.identity.key];
        identity.into_iter().chain(&self.client_ca).map(PathBuf::as_path).collect()
    }
}

impl ClientTls {
    /// Every file that it names.
    pub(super) fn files(&self) -> Vec<&Path> {
        let identity = self.identity.iter().flat_map(|identity| [&identity.cert, &identity.key]);
        identity.chain(&self.ca).map(PathBuf::as_path).collect()
    }
}
