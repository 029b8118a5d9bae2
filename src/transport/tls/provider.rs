//! The cryptography, and the versions of TLS.

use std::sync::Arc;
use std::sync::LazyLock;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::version::TLS12;
use rustls::version::TLS13;

use crate::transport::tls::settings::TlsVersion;

/// One for the process, and not the default of the process: a library must not choose that.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The versions that are spoken.
pub(super) fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match min {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

/// Why a configuration of rustls can always be built.
pub(super) const HAS_SUITES: &str = "ring has cipher suites for both versions";
