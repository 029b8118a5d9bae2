//! Who somebody is: the names in a certificate, and those that an operator allows.
//!
//! Names are those of the subject alternative name (DNS and URI). The common name of a subject is not one.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::DnsName;
use webpki::EndEntityCert;

/// A name that is allowed, or all names with one more label in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This DNS name, in lower case.
    Dns(String),
    /// One label, whatever it is, and this behind it, in lower case: `*.resolvers.example`.
    Below(String),
    /// This URI, byte for byte: `spiffe://example/ns1`.
    Uri(String),
}

impl NamePattern {
    fn is(&self, name: &CertificateName<'_>) -> bool {
        match (self, name) {
            (Self::Dns(ours), CertificateName::Dns(theirs)) => theirs.eq_ignore_ascii_case(ours),
            (Self::Below(ours), CertificateName::Dns(theirs)) => theirs
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(ours)),
            (Self::Uri(ours), CertificateName::Uri(theirs)) => theirs == ours,
            _ => false,
        }
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once(':')
            && !scheme.is_empty()
            && !rest.is_empty()
        {
            return Ok(Self::Uri(text.to_owned()));
        }
        let (name, pattern): (_, fn(String) -> Self) = match text.strip_prefix("*.") {
            Some(rest) => (rest, Self::Below),
            None => (text, Self::Dns),
        };
        let is_name = DnsName::try_from(name).is_ok() && !name.ends_with('.');
        is_name.then(|| pattern(name.to_ascii_lowercase())).ok_or_else(|| {
            format!(
                "`{text}` is no name: write it as in \"ns1.example\", \"*.example\" (one label in place of the star) or \
                 \"spiffe://example/ns1\""
            )
        })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// A name as it stands in a certificate.
enum CertificateName<'a> {
    Dns(&'a str),
    Uri(&'a str),
}

impl CertificateName<'_> {
    /// What is not printable is escaped: authorities are trusted, and yet sign what others have written.
    fn shown(&self) -> String {
        let (Self::Dns(name) | Self::Uri(name)) = self;
        name.escape_default().take(NAME_LEN_MAX).collect()
    }
}

/// The name in a certificate that is allowed, for the log: the first one where every name is, which may be none.
///
/// # Errors
/// Those that it has, where none of them is allowed.
pub(crate) fn names_of(
    certificate: &CertificateDer<'_>,
    allow: &[NamePattern],
) -> Result<Option<String>, Vec<String>> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else {
        return if allow.is_empty() { Ok(None) } else { Err(Vec::new()) };
    };
    let dns = certificate.valid_dns_names().map(CertificateName::Dns);
    let names: Vec<_> = dns.chain(certificate.valid_uri_names().map(CertificateName::Uri)).collect();
    if allow.is_empty() {
        return Ok(names.first().map(CertificateName::shown));
    }
    let allowed = names.iter().find(|name| allow.iter().any(|pattern| pattern.is(name)));
    match allowed {
        Some(name) => Ok(Some(name.shown())),
        None => Err(names.iter().take(NAMES_SHOWN).map(CertificateName::shown).collect()),
    }
}

/// Characters of a name in the log.
const NAME_LEN_MAX: usize = 80;
/// Names of one certificate in the log.
const NAMES_SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use rcgen::SanType;

    use super::*;

    fn certificate(dns: &[&str], uris: &[&str]) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names = dns.chain(uris).collect();
        params.distinguished_name.push(rcgen::DnType::CommonName, "cn.example");
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn patterns(texts: &[&str]) -> Vec<NamePattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_name_is_exact_or_has_one_label_in_place_of_the_star() {
        let allowed = |pattern: &str, dns: &[&str], uris: &[&str]| {
            names_of(&certificate(dns, uris), &patterns(&[pattern])).is_ok()
        };
        for (pattern, name, expected) in [
            ("ns1.example", "ns1.example", true),
            ("ns1.example", "NS1.Example", true),
            ("NS1.example", "ns1.example", true),
            ("ns1.example", "ns1.example.org", false),
            ("ns1.example", "a.ns1.example", false),
            ("*.example", "ns1.example", true),
            ("*.example", "NS1.EXAMPLE", true),
            ("*.example", "example", false),
            ("*.example", "a.ns1.example", false),
            ("*.example", "ns1.example.org", false),
            ("*.a.example", "ns1.b.example", false),
        ] {
            assert_eq!(allowed(pattern, &[name], &[]), expected, "{pattern} {name}");
        }
        for (uri, expected) in [
            ("spiffe://example/ns1", true),
            ("spiffe://example/NS1", false),
            ("spiffe://example/ns1/", false),
        ] {
            assert_eq!(allowed("spiffe://example/ns1", &[], &[uri]), expected, "{uri}");
        }
        assert!(!allowed("cn.example", &[], &[]), "a common name is no name");
    }

    #[test]
    fn the_name_that_matched_is_told_and_otherwise_those_that_are_there() {
        let both = certificate(&["a.example", "b.example"], &["spiffe://x/y"]);
        assert_eq!(names_of(&both, &patterns(&["spiffe://x/y"])), Ok(Some("spiffe://x/y".to_owned())));
        assert_eq!(names_of(&both, &patterns(&["x.example", "b.example"])), Ok(Some("b.example".to_owned())));
        assert_eq!(names_of(&both, &[]), Ok(Some("a.example".to_owned())));
        let names = names_of(&both, &patterns(&["c.example"])).unwrap_err();
        assert_eq!(names, ["a.example", "b.example", "spiffe://x/y"]);
        assert_eq!(names_of(&certificate(&[], &[]), &[]), Ok(None));
    }

    #[test]
    fn patterns_are_printed_as_they_are_read() {
        for text in ["ns1.example", "*.example", "spiffe://example/ns1"] {
            assert_eq!(text.parse::<NamePattern>().unwrap().to_string(), text);
        }
        for text in ["", "*", "*.", "a.*.example", "**.example", "a b", ".example", "a.example."] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
    }
}
