//! The table `tls` of an `[[input]]` and of an `[[output]]`. Files that it names are read: what they lack is a fault of the
//! configuration.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::value;
use crate::input::InputConfig;
use crate::output::StreamsConfig;
use crate::transport::Address;
use crate::transport::tls::CertificateEnd;
use crate::transport::tls::ClientTls;
use crate::transport::tls::Identity;
use crate::transport::tls::NamePattern;
use crate::transport::tls::ServerTls;
use crate::transport::tls::TlsFaults;

/// The keys of an input, which listens on these addresses already.
pub(super) fn take_server_tls(section: &mut Section<'_>, input: &mut InputConfig) {
    section.set("tls_handshakes_max", value::integer(1..=HANDSHAKES_MAX), &mut input.tls_handshakes_max);
    let is_needed = input.listen.iter().any(Address::is_tls);
    if let Some(mut keys) = section.table("tls", SERVER_EXAMPLE) {
        refuse(&mut keys, &["ca"], "is for outputs: the authorities of writers stand in `client_ca`");
        refuse(&mut keys, &["server_name"], "is for outputs: the names of writers stand in `allow_names`");
        let identity = take_identity(&mut keys);
        for key in ["cert", "key"] {
            if !keys.has(key) {
                keys.fault(key, format!("is missing: write {SERVER_EXAMPLE}"));
            }
        }
        let client_ca = keys.take("client_ca", path);
        let allow_names = keys.take_list("allow_names", name_pattern).unwrap_or_default();
        if keys.has("allow_names") && !keys.has("client_ca") {
            let message = "needs `client_ca`: without it nobody asks writers for a certificate";
            keys.fault("allow_names", message.to_owned());
        }
        let min_version = keys.take("min_version", value::word).unwrap_or_default();
        let is_whole = client_ca.is_some() || !keys.has("client_ca");
        input.tls = identity.map(|identity| ServerTls { identity, client_ca, allow_names, min_version });
        if let Some(tls) = input.tls.as_ref().filter(|_| is_needed && is_whole) {
            judge(&mut keys, tls.load().map(|loaded| loaded.end().cloned()));
        }
        keys.finish();
    } else if is_needed && !section.has("tls") {
        let message =
            format!("is missing: a tls:// address needs a certificate; write tls = {SERVER_EXAMPLE}");
        section.fault("tls", message);
    }
    if !is_needed && !input.listen.is_empty() {
        refuse_unneeded(section, &["tls", "tls_handshakes_max"], "this input listens on none");
    }
}

/// The keys of an output to these addresses.
pub(super) fn take_client_tls(
    section: &mut Section<'_>,
    streams: &mut StreamsConfig,
    addresses: &[&Address],
) {
    let is_needed = addresses.iter().any(|address| address.is_tls());
    let Some(mut keys) = section.table("tls", CLIENT_EXAMPLE) else {
        if is_needed && !section.has("tls") {
            for fault in streams.tls.load().err().map(|faults| faults.0).unwrap_or_default() {
                section.fault("tls", fault.message);
            }
        }
        return;
    };
    refuse(&mut keys, &["client_ca"], "is for inputs: the authorities of readers stand in `ca`");
    refuse(&mut keys, &["allow_names"], "is for inputs: the name of the reader stands in `server_name`");
    let (ca, identity) = (keys.take("ca", path), take_identity(&mut keys));
    for (key, other) in [("cert", "key"), ("key", "cert")] {
        if keys.has(other) && !keys.has(key) {
            keys.fault(key, format!("is missing beside `{other}`: a certificate and its key go together"));
        }
    }
    let server_name = keys.take("server_name", server_name);
    let min_version = keys.take("min_version", value::word).unwrap_or_default();
    let is_whole =
        (ca.is_some() || !keys.has("ca")) && (identity.is_some() || !keys.has("cert") && !keys.has("key"));
    streams.tls = ClientTls { ca, identity, server_name, min_version };
    if is_needed && is_whole {
        judge(&mut keys, streams.tls.load().map(|loaded| loaded.end().cloned()));
    }
    keys.finish();
    if !is_needed && !addresses.is_empty() {
        refuse_unneeded(section, &["tls"], "this output writes to none");
    }
}

fn take_identity(keys: &mut Section<'_>) -> Option<Identity> {
    let (cert, key) = (keys.take("cert", path), keys.take("key", path));
    Some(Identity { cert: cert?, key: key? })
}

/// Notes what is wrong with the files, or will be soon.
fn judge(keys: &mut Section<'_>, loaded: Result<Option<CertificateEnd>, TlsFaults>) {
    match loaded {
        Err(TlsFaults(faults)) => faults.into_iter().for_each(|fault| keys.fault(fault.key, fault.message)),
        Ok(None) => {}
        Ok(Some(end)) => {
            let now = SystemTime::now();
            let Some(words) = end.warning(now) else { return };
            if end.is_over(now) { keys.expired("cert", words) } else { keys.warn("cert", words) }
        }
    }
}

fn refuse(keys: &mut Section<'_>, refused: &[&'static str], why: &str) {
    for key in refused {
        keys.take(key, |_| Ok(()));
        if keys.has(key) {
            keys.fault(key, why.to_owned());
        }
    }
}

/// Keys that mean nothing would be obeyed in vain.
fn refuse_unneeded(section: &mut Section<'_>, keys: &[&str], why: &str) {
    for key in keys.iter().filter(|key| section.has(key)).collect::<Vec<_>>() {
        section.fault(key, format!("is for tls:// addresses, and {why}"));
    }
}

fn path(value: &Value) -> Result<PathBuf, String> {
    value::text(value).map(PathBuf::from)
}

fn name_pattern(value: &Value) -> Result<NamePattern, String> {
    value::text(value)?.parse()
}

fn server_name(value: &Value) -> Result<String, String> {
    let name = value::text(value)?;
    match rustls::pki_types::ServerName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => {
            Err(format!("`{name}` is no name that a certificate can have: write a host name or an address"))
        }
    }
}

const SERVER_EXAMPLE: &str = "{ cert = \"/etc/tapster/cert.pem\", key = \"/etc/tapster/key.pem\" }";
const CLIENT_EXAMPLE: &str = "{ ca = \"/etc/tapster/ca.pem\" }";
/// More would not be done within any handshake timeout.
const HANDSHAKES_MAX: usize = 100_000;

#[cfg(test)]
mod tests;
