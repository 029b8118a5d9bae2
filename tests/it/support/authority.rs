//! Authorities and certificates, good and bad.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rcgen::date_time_ymd;
use tapster::transport::tls::ClientTls;
use tapster::transport::tls::Identity;
use tapster::transport::tls::ServerTls;
use tapster::transport::tls::TlsVersion;

use super::stream::folder;

/// An authority and a folder with the files of all that it has signed.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Server,
    Client,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = folder();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// The certificate of the authority.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1, or these names: DNS, or URI where they have a colon.
    pub(crate) fn sign(&self, usage: Usage, names: &[&str]) -> Identity {
        self.sign_until(usage, names, 2100)
    }

    pub(crate) fn sign_until(&self, usage: Usage, names: &[&str], year: i32) -> Identity {
        let identity = self.identity(&format!("{usage:?}-{}", fastrand::u64(..)));
        self.sign_as(&identity, usage, names, year);
        identity
    }

    /// Writes a certificate and its key to these files.
    pub(crate) fn sign_as(&self, identity: &Identity, usage: Usage, names: &[&str], year: i32) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        write(&identity.key, &key.serialize_pem(), 0o600);
        write(&identity.cert, &certificate.pem(), 0o644);
    }

    /// Files of this name, which need not be there.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let file = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        Identity { cert: file("pem"), key: file("key") }
    }

    /// A listener at 127.0.0.1 that asks for certificates of this authority.
    pub(crate) fn server(&self) -> ServerTls {
        ServerTls {
            identity: self.sign(Usage::Server, &["127.0.0.1"]),
            client_ca: Some(self.file()),
            allow_names: Vec::new(),
            min_version: TlsVersion::V1_2,
        }
    }

    /// A connection that trusts this authority, and shows a certificate of it for this name.
    pub(crate) fn client(&self, name: &str) -> ClientTls {
        ClientTls { identity: Some(self.sign(Usage::Client, &[name])), ..self.stranger() }
    }

    /// A connection that trusts this authority, and shows no certificate.
    pub(crate) fn stranger(&self) -> ClientTls {
        ClientTls { ca: Some(self.file()), ..ClientTls::default() }
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    // As tools do that renew certificates: a new file takes the place of the old one.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(new, path).unwrap();
}
