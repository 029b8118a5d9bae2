//! When a certificate ends.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use webpki::EndEntityCert;
use webpki::KeyUsage;

/// When the certificates of a file end: the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateEnd {
    /// The file.
    pub path: PathBuf,
    /// The last moment at which it is valid.
    pub not_after: SystemTime,
}

impl CertificateEnd {
    /// The end of a chain.
    pub(super) fn of(path: &Path, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let not_after = chain.iter().filter_map(not_after).min()?;
        Some(Self { path: path.to_owned(), not_after: UNIX_EPOCH + Duration::from_secs(not_after) })
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// What an operator should know: that it has ended, or will soon, and that the file is to be renewed.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let path = self.path.display();
        match self.not_after.duration_since(now) {
            Err(past) => {
                let since = in_days(past.duration());
                Some(format!("the certificate in {path} ended {since} ago: peers refuse it; renew it"))
            }
            Ok(left) if left <= SOON => {
                Some(format!("the certificate in {path} ends in {}: renew it", in_days(left)))
            }
            Ok(_) => None,
        }
    }
}

/// When a certificate ends, in seconds of the Unix time. Asked for its validity at a time that is far off, webpki tells the end
/// before it looks at anything else.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let end_entity = EndEntityCert::try_from(certificate).ok()?;
    let far = UnixTime::since_unix_epoch(FAR);
    let usage = KeyUsage::server_auth();
    match end_entity.verify_for_usage(&[], &[], &[], far, usage, None, None).err()? {
        webpki::Error::CertExpired { not_after, .. } => Some(not_after.as_secs()),
        _ => None,
    }
}

fn in_days(time: Duration) -> String {
    match time.as_secs() / DAY {
        0 => format!("{} hours", time.as_secs() / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// So long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 3600;
/// The year 9999 is the last one that a certificate can name.
const FAR: Duration = Duration::from_secs(400_000_000_000);

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(not_after: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_end_of_a_certificate_is_known_and_the_first_of_a_chain_counts() {
        let (soon, late) = (certificate((2033, 5, 18)), certificate((9999, 12, 31)));
        assert_eq!(not_after(&soon), Some(1_999_987_200));
        assert!(not_after(&late).unwrap() > 253_000_000_000);
        let end = CertificateEnd::of(Path::new("a.pem"), &[late, soon]).unwrap();
        assert_eq!(end.not_after, UNIX_EPOCH + Duration::from_secs(1_999_987_200));
    }

    #[test]
    fn a_warning_comes_two_weeks_before_the_end() {
        let not_after = UNIX_EPOCH + Duration::from_secs(1000 * DAY);
        let end = CertificateEnd { path: "a.pem".into(), not_after };
        let at = |days: u64| end.warning(UNIX_EPOCH + Duration::from_secs(days * DAY));
        assert_eq!(at(985), None);
        assert_eq!(at(986).unwrap(), "the certificate in a.pem ends in 14 days: renew it");
        assert_eq!(at(1000).unwrap(), "the certificate in a.pem ends in 0 hours: renew it");
        assert_eq!(at(1001).unwrap(), "the certificate in a.pem ended 1 day ago: peers refuse it; renew it");
        assert!(!end.is_over(not_after) && end.is_over(not_after + Duration::from_secs(1)));
    }
}
