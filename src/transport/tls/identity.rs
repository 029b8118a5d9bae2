//! Reads certificates, keys and authorities.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use crate::transport::tls::fault::TlsFault;
use crate::transport::tls::fault::TlsFaults;
use crate::transport::tls::provider::provider;
use crate::transport::tls::settings::Identity;

/// A certificate with its key, which belong together.
///
/// # Errors
/// Both files are looked at, and every fault is told.
pub(super) fn certified_key(identity: &Identity) -> Result<CertifiedKey, TlsFaults> {
    let (chain, key) = match (certificates("cert", &identity.cert), private_key(&identity.key)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err(TlsFaults(chain.err().into_iter().chain(key.err()).collect())),
    };
    let (cert, path) = (identity.cert.display(), identity.key.display());
    let words = |error| match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("{path} is not the key of the certificate in {cert}: the two files must belong together")
        }
        error => format!("{path} has no key that tapster can use: {error}"),
    };
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| TlsFault::new("key", words(error)).into())
}

/// The authorities in a file, one at least.
pub(super) fn authorities(key: &'static str, path: &Path) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(key, path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            let number = index + 1;
            TlsFault::new(key, format!("certificate {number} of {} is of no use: {error}", path.display()))
        })?;
    }
    Ok(roots)
}

/// The authorities that the system trusts, one at least.
pub(super) fn system_authorities() -> Result<RootCertStore, TlsFault> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        let message = format!(
            "the system trusts no authority{why}: name a file with the one that signs the certificate of the reader, or install \
             the package ca-certificates"
        );
        return Err(TlsFault::new("ca", message));
    }
    Ok(roots)
}

/// The certificates in a file, one at least.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let shown = path.display();
    let text = read(path).map_err(|error| TlsFault::new(key, format!("{shown} cannot be read: {error}")))?;
    let broken = |why: String| TlsFault::new(key, format!("{shown} {why}"));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, pem::Error>>()
        .map_err(|error| broken(format!("is no PEM file: {error}")))?;
    if chain.is_empty() {
        return Err(broken("has no certificate in it: a PEM file has lines `BEGIN CERTIFICATE`".to_owned()));
    }
    if let Some((index, error)) =
        chain.iter().enumerate().find_map(|(index, der)| Some((index, EndEntityCert::try_from(der).err()?)))
    {
        return Err(broken(format!("is damaged: certificate {} cannot be read: {error:?}", index + 1)));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    let (key, shown) = ("key", path.display());
    let unreadable =
        |error: io::Error| TlsFault::new(key, format!("{shown} cannot be read: {error}{}", help(&error)));
    let mode = path.metadata().map_err(unreadable)?.permissions().mode();
    if mode & OTHERS != 0 {
        let mode = mode & 0o777;
        let message = format!(
            "{shown} may be read by everyone (mode {mode:04o}): take that away with chmod o= {shown}"
        );
        return Err(TlsFault::new(key, message));
    }
    let text = read(path).map_err(unreadable)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound if is_encrypted(&text) => {
                "has a key that needs a passphrase, which nobody could type: store it without one".to_owned()
            }
            pem::Error::NoItemsFound => {
                "has no private key in it: a PEM file has a line `BEGIN PRIVATE KEY`".to_owned()
            }
            error => format!("is no PEM file: {error}"),
        };
        TlsFault::new(key, format!("{shown} {why}"))
    })
}

fn help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give the file to the user of tapster, or to its group with mode 0640"
        }
        _ => "",
    }
}

fn is_encrypted(text: &[u8]) -> bool {
    text.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED)
}

/// A file that is no longer than these files are.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // To open a FIFO would wait for whoever writes to it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(FILE_LEN_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 4 MiB"));
    }
    Ok(text)
}

/// All roots of Mozilla have a quarter of a megabyte.
const FILE_LEN_MAX: u64 = 4 << 20;
/// Reading, writing and executing by everyone.
const OTHERS: u32 = 0o007;
const ENCRYPTED: &[u8] = b"BEGIN ENCRYPTED PRIVATE KEY";
