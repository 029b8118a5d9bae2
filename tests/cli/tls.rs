//! `tapster check` of TLS: certificates that expire, and readers that are to be reached.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rcgen::CertificateParams;
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::assert_exit;
use crate::stderr;
use crate::tapster;

/// `NAME.pem` and `NAME.key`, valid until so many days from now, and the keys that name them.
fn certificate(folder: &Path, name: &str, days: i64) -> String {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    // The crate of its type is not ours to name.
    let step = params.not_after - params.not_before;
    let now = std::time::SystemTime::now().into();
    params.not_before = now;
    params.not_after = params.not_before + (step / step.whole_days() as i32) * days as i32;
    params.not_before -= step / 100;
    let certificate = params.self_signed(&key).unwrap();
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    fs::write(file("pem"), certificate.pem()).unwrap();
    fs::write(file("key"), key.serialize_pem()).unwrap();
    fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).unwrap();
    format!("tls.cert={}&tls.key={}", file("pem").display(), file("key").display())
}

#[test]
fn an_expired_certificate_is_an_error_of_the_check_and_one_that_ends_soon_a_warning() {
    let folder = TempDir::new().unwrap();
    let check = |name: &str, days| {
        let keys = certificate(folder.path(), name, days);
        tapster(&["check", "--listen", &format!("tls://127.0.0.1:0?name=in&{keys}")])
    };
    let expired = check("old", -3);
    assert_exit(&expired, 64);
    assert!(stderr(&expired).contains("tls.cert (input `in`): the certificate in "), "{}", stderr(&expired));
    assert!(stderr(&expired).contains("old.pem ended 3 days ago: peers refuse it; renew it"));
    let soon = check("soon", 8);
    assert_exit(&soon, 0);
    assert!(stderr(&soon).contains("soon.pem ends in 7 days: renew it"), "{}", stderr(&soon));
    let late = check("late", 30);
    assert_exit(&late, 0);
    assert!(!stderr(&late).contains("warning: "), "{}", stderr(&late));
}

/// A relay that ends with its test.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_over_tls_is_reached_by_the_check_or_it_says_why_not() {
    let folder = TempDir::new().unwrap();
    let keys = certificate(folder.path(), "a", 100);
    let ca = folder.path().join("a.pem").display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tls://127.0.0.1:{port}");
    let relay = Command::new(env!("CARGO_BIN_EXE_tapster"))
        .args(["run", "--workers", "1", "--listen", &format!("{address}?{keys}&tls.client_ca={ca}")])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .spawn();
    let _relay = Relay(relay.unwrap());
    let check = |keys: &str| {
        tapster(&["check", "--connect", "--to", &format!("{address}?name=out&tls.ca={ca}{keys}")])
    };
    let began = Instant::now();
    let found = loop {
        let found = check(&format!("&{keys}"));
        if found.status.success() || began.elapsed() > Duration::from_secs(30) {
            break found;
        }
    };
    assert_exit(&found, 0);
    assert!(stderr(&found).contains("takes content type protobuf:dnstap.Dnstap"), "{}", stderr(&found));
    let refused = check("");
    assert_exit(&refused, 1);
    assert!(
        stderr(&refused).contains("it asks for a certificate: set tls.cert and tls.key"),
        "{}",
        stderr(&refused)
    );
    let other = check(&format!("&{keys}&tls.server_name=b.example"));
    assert_exit(&other, 1);
    assert!(stderr(&other).contains("is not for b.example"), "{}", stderr(&other));
}
