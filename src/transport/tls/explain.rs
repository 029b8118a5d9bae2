//! What went wrong with TLS, in words for an operator.

use std::io;

use rustls::AlertDescription;
use rustls::CertificateError;
use rustls::Error;

/// Words for an error of rustls. What a peer may choose is escaped and cut.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::InvalidCertificate(fault) => of_certificate(fault),
        Error::NoCertificatesPresented => {
            "the peer has sent no certificate, and `client_ca` asks for one: give the peer a certificate and its key".to_owned()
        }
        Error::InvalidMessage(_) => format!("the peer does not speak TLS as it should ({})", shown(error)),
        Error::PeerIncompatible(why) => {
            format!("the peer and tapster have no version of TLS or no cipher in common ({why:?}); compare `min_version`")
        }
        Error::PeerMisbehaved(why) => format!("the peer broke a rule of TLS ({why:?})"),
        Error::DecryptError => "what the peer sent was damaged or forged on its way".to_owned(),
        error => shown(error),
    }
}

/// Words for an error of a connection that speaks TLS. `None`: TLS has no part in it.
pub fn explain_io(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<Error>().map(explain)
}

/// The peer refuses us, and says why in a word.
fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "it asks for a certificate: set tls.cert and tls.key"
        }
        AlertDescription::UnknownCA => "it does not trust the authority that has signed our certificate",
        AlertDescription::CertificateExpired => "our certificate has expired: renew it",
        AlertDescription::CertificateRevoked => "our certificate was revoked",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => "it does not take our certificate",
        AlertDescription::AccessDenied => "it does not let the name in our certificate in",
        AlertDescription::ProtocolVersion => "it does not speak a version of TLS that is allowed here",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "it has nothing in common with us, or asks for a certificate"
        }
        AlertDescription::DecryptError => {
            "it could not verify our signature: does our key belong to our certificate?"
        }
        AlertDescription::UnrecognisedName => "it has no certificate for this name",
        _ => "it says no more",
    };
    format!("the peer ended the connection with the TLS alert {alert:?}: {why}")
}

fn of_certificate(fault: &CertificateError) -> String {
    let why = match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired: renew it".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet: compare the clocks of both hosts".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "is signed by no authority that is trusted here: compare it with `ca` of the output, or `client_ca` of the input".to_owned()
        }
        CertificateError::NotValidForName => "has another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<_> = presented.iter().take(NAMES_SHOWN).map(|name| escaped(name)).collect();
            let presented = if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") };
            format!("is not for {}, but for {presented}: set tls.server_name, or renew the certificate", expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not meant for this side of a connection (extended key usage): servers need serverAuth, clients clientAuth".to_owned()
        }
        CertificateError::BadSignature => "has a signature that is wrong".to_owned(),
        fault => format!("cannot be accepted ({})", escaped(&format!("{fault:?}"))),
    };
    format!("the certificate of the peer {why}")
}

fn shown(error: &Error) -> String {
    escaped(&error.to_string())
}

fn escaped(text: &str) -> String {
    text.escape_default().take(TEXT_MAX).collect()
}

/// Characters of a text that a peer may have had a part in.
const TEXT_MAX: usize = 160;
/// Names of one certificate.
const NAMES_SHOWN: usize = 3;
