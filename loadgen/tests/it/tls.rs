//! `send` and `sink` over TLS, directly.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::CertificateParams;
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::support::Process;
use crate::support::loadgen;
use crate::support::result;

#[test]
fn every_frame_arrives_over_tls_in_both_modes_and_nothing_without_trust() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(file("cert.pem"), certificate.pem()).unwrap();
    fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(file("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!("tls.cert={}&tls.key={}", file("cert.pem"), file("key.pem"));
    let listen = format!("tls://127.0.0.1:0?{keys}&tls.client_ca={}", file("cert.pem"));
    for mode in ["bidirectional", "unidirectional"] {
        for write_size in ["64KiB", "1B"] {
            let frames = if write_size == "1B" { "1000" } else { "100000" };
            let mut sink = Process::start(&["sink", "--json", "--listen", &listen, "--expect", frames]);
            let to = format!("{}?{keys}&tls.ca={}", sink.address(), file("cert.pem"));
            let args =
                ["send", "--json", "--to", &to, "--frames", frames, "--connections", "3", "--mode", mode];
            let output = loadgen(&[&args[..], &["--write-size", write_size]].concat()).output().unwrap();
            let (sent, report) = result(&output);
            assert!(sent, "{report}");
            let (right, report) = sink.finish();
            assert!(right, "{report}");
            assert_eq!(report["consumers"][0]["sessions_finished"], 3);
        }
    }
    let mut sink = Process::start(&["sink", "--json", "--listen", &listen, "--expect", "1"]);
    let to = format!("{}?tls.ca={}", sink.address(), file("cert.pem"));
    let output = loadgen(&["send", "--json", "--to", &to, "--frames", "1"]).output().unwrap();
    assert!(!output.status.success(), "without a certificate");
}
