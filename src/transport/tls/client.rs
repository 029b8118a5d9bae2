//! What connections shake hands with.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;

use crate::transport::Address;
use crate::transport::tls::expiry::CertificateEnd;
use crate::transport::tls::fault::TlsFaults;
use crate::transport::tls::identity::authorities;
use crate::transport::tls::identity::certified_key;
use crate::transport::tls::identity::system_authorities;
use crate::transport::tls::provider::HAS_SUITES;
use crate::transport::tls::provider::provider;
use crate::transport::tls::provider::versions;
use crate::transport::tls::settings::ClientTls;

/// Everything that a connection needs for TLS, read and matched.
#[derive(Clone, Debug)]
pub struct ClientConnector {
    config: Arc<ClientConfig>,
    end: Option<CertificateEnd>,
    server_name: Option<String>,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn load(&self) -> Result<ClientConnector, TlsFaults> {
        let authorities = match &self.ca {
            Some(path) => authorities("ca", path),
            None => system_authorities(),
        };
        let certified = self.identity.as_ref().map(certified_key).transpose();
        let (certified, authorities) = match (certified, authorities) {
            (Ok(certified), Ok(authorities)) => (certified, authorities),
            (certified, authorities) => {
                let faults = certified.err().map(|faults| faults.0).unwrap_or_default();
                return Err(TlsFaults(faults.into_iter().chain(authorities.err()).collect()));
            }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(self.min_version))
            .expect(HAS_SUITES)
            .with_root_certificates(authorities);
        let mut end = None;
        let mut config = match (certified, &self.identity) {
            (Some(certified), Some(identity)) => {
                end = CertificateEnd::of(&identity.cert, &certified.cert);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            _ => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(ClientConnector { config: Arc::new(config), end, server_name: self.server_name.clone() })
    }
}

impl ClientConnector {
    /// For rustls.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// When the certificate ends.
    pub fn end(&self) -> Option<&CertificateEnd> {
        self.end.as_ref()
    }

    /// The name that the certificate of the reader at this address must have. `None` where the host of the address cannot stand in
    /// a certificate, and no `server_name` is given.
    pub fn server_name(&self, address: &Address) -> Option<ServerName<'static>> {
        let host = address.host_port().map(|(host, _)| host.split('%').next().unwrap_or(host));
        let name = self.server_name.as_deref().or(host)?;
        ServerName::try_from(name.trim_end_matches('.').to_owned()).ok()
    }
}
