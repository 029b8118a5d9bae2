//! What listeners shake hands with.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;

use crate::transport::tls::expiry::CertificateEnd;
use crate::transport::tls::fault::TlsFault;
use crate::transport::tls::fault::TlsFaults;
use crate::transport::tls::identity::authorities;
use crate::transport::tls::identity::certified_key;
use crate::transport::tls::provider::HAS_SUITES;
use crate::transport::tls::provider::provider;
use crate::transport::tls::provider::versions;
use crate::transport::tls::settings::ServerTls;

/// Everything that a listener needs for TLS, read and matched.
#[derive(Clone, Debug)]
pub struct ServerAcceptor {
    config: Arc<ServerConfig>,
    end: Option<CertificateEnd>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn load(&self) -> Result<ServerAcceptor, TlsFaults> {
        let authorities = self.client_ca.as_ref().map(|path| authorities("client_ca", path)).transpose();
        let (certified, authorities) = match (certified_key(&self.identity), authorities) {
            (Ok(certified), Ok(authorities)) => (certified, authorities),
            (certified, authorities) => {
                let faults = certified.err().map(|faults| faults.0).unwrap_or_default();
                return Err(TlsFaults(faults.into_iter().chain(authorities.err()).collect()));
            }
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(self.min_version))
            .expect(HAS_SUITES);
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider())
                    .build()
                    .map_err(|error| TlsFault::new("client_ca", error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let end = CertificateEnd::of(&self.identity.cert, &certified.cert);
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerAcceptor { config: Arc::new(config), end })
    }
}

impl ServerAcceptor {
    /// For rustls.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// When the certificate ends.
    pub fn end(&self) -> Option<&CertificateEnd> {
        self.end.as_ref()
    }
}
