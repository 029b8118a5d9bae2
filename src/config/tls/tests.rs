use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::CertificateParams;
use rcgen::KeyPair;
use rcgen::date_time_ymd;
use tempfile::TempDir;

use crate::config::Resolved;
use crate::config::resolve_toml;
use crate::config::to_toml;

/// A folder with `NAME.pem` and `NAME.key` of a certificate that signs itself, until this date.
fn folder(names: &[(&str, i32)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, until) in names {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = date_time_ymd(*until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        write(folder.path(), &format!("{name}.pem"), &certificate.pem(), 0o644);
        write(folder.path(), &format!("{name}.key"), &key.serialize_pem(), 0o640);
    }
    folder
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A document in which `@` stands for the folder.
fn resolve(folder: &TempDir, document: &str) -> Result<Resolved, Vec<(String, String)>> {
    let document = document.replace('@', &folder.path().display().to_string());
    resolve_toml(&document)
        .map_err(|faults| faults.0.into_iter().map(|fault| (fault.key, fault.message)).collect())
}

#[track_caller]
fn assert_faults(folder: &TempDir, document: &str, expected: &[(&str, &str)]) {
    let faults = resolve(folder, document).expect_err(document);
    let keys: Vec<_> = faults.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, expected.iter().map(|(key, _)| *key).collect::<Vec<_>>(), "{faults:?}");
    for ((_, message), (_, words)) in faults.iter().zip(expected) {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn every_key_is_taken_and_printed_so_that_it_can_be_fed_back() {
    let folder = folder(&[("a", 2100)]);
    let document = "[[input]]\nlisten = [\"tls://127.0.0.1:1\", \"unix:/a\"]\ntls_handshakes_max = 7\n\
        tls = { cert = \"@/a.pem\", key = \"@/a.key\", client_ca = \"@/a.pem\", \
        allow_names = [\"*.example\", \"spiffe://x/y\"], min_version = \"1.3\" }\n\
        [[output]]\nto = [\"tls://h:1\", \"tcp://h:2\"]\n\
        tls = { ca = \"@/a.pem\", cert = \"@/a.pem\", key = \"@/a.key\", server_name = \"x.example\" }\n";
    let resolved = resolve(&folder, document).unwrap();
    let printed = to_toml(&resolved.config);
    assert_eq!(resolve_toml(&printed).unwrap().config, resolved.config, "{printed}");
    for words in
        ["allow_names = [\"*.example\", \"spiffe://x/y\"], min_version = \"1.3\" }", "tls_handshakes_max = 7"]
    {
        assert!(printed.contains(words), "{printed}");
    }
    assert!(resolved.warnings.is_empty() && resolved.expired.is_empty());
}

#[test]
fn a_listener_without_a_certificate_and_keys_without_a_listener_are_faults() {
    let folder = folder(&[("a", 2100)]);
    assert_faults(
        &folder,
        "[[input]]\nlisten = \"tls://127.0.0.1:1\"",
        &[("input[0].tls", "needs a certificate")],
    );
    let tls = "tls = { cert = \"@/a.pem\", key = \"@/a.key\" }";
    let document = format!("[[input]]\nlisten = \"tcp://127.0.0.1:1\"\n{tls}");
    assert_faults(&folder, &document, &[("input[0].tls", "listens on none")]);
    let document = "[[output]]\nto = \"tcp://h:1\"\ntls = { ca = \"@/a.pem\" }";
    assert_faults(&folder, document, &[("output[0].tls", "writes to none")]);
    let document = "[[output]]\nto = \"file:a\"\ntls = { ca = \"@/a.pem\" }";
    assert_faults(&folder, document, &[("output[0].tls", "nobody answers in a file")]);
    let document = "[[input]]\nlisten = \"tls://127.0.0.1:1\"\n\
        tls = { cert = \"@/a.pem\", allow_names = [\"a.*\", \"b\"], ca = \"x\", min_version = \"1.1\" }";
    assert_faults(
        &folder,
        document,
        &[
            ("input[0].tls.ca", "client_ca"),
            ("input[0].tls.key", "is missing"),
            ("input[0].tls.allow_names[0]", "is no name"),
            ("input[0].tls.allow_names", "needs `client_ca`"),
            ("input[0].tls.min_version", "There are 1.2 and 1.3"),
        ],
    );
    let document = "[[output]]\nto = \"tls://h:1\"\ntls = { cert = \"@/a.pem\", ca = \"@/a.pem\", client_ca = \"x\", server_name = \"a b\" }";
    assert_faults(
        &folder,
        document,
        &[
            ("output[0].tls.client_ca", "stand in `ca`"),
            ("output[0].tls.key", "is missing beside `cert`"),
            ("output[0].tls.server_name", "no name"),
        ],
    );
}

#[test]
fn files_are_read_and_each_fault_names_its_key() {
    let folder = folder(&[("a", 2100), ("b", 2100)]);
    write(folder.path(), "open.key", &fs::read_to_string(folder.path().join("a.key")).unwrap(), 0o644);
    write(folder.path(), "text", "nothing of use\n", 0o600);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    write(folder.path(), "secret.key", encrypted, 0o600);
    let input = |cert: &str, key: &str, ca: &str| {
        let files = format!("cert = \"@/{cert}\", key = \"@/{key}\", client_ca = \"@/{ca}\"");
        format!("[[input]]\nlisten = \"tls://127.0.0.1:1\"\ntls = {{ {files} }}")
    };
    let key = |name: &str| format!("input[0].tls.{name}");
    for (cert, file, ca, name, words) in [
        ("a.pem", "b.key", "a.pem", "key", "is not the key of the certificate"),
        ("a.pem", "open.key", "a.pem", "key", "chmod o="),
        ("a.pem", "secret.key", "a.pem", "key", "needs a passphrase"),
        ("a.pem", "text", "a.pem", "key", "no private key"),
        ("text", "a.key", "a.pem", "cert", "no certificate"),
        ("a.pem", "a.key", "text", "client_ca", "no certificate"),
        ("none", "a.key", "a.pem", "cert", "cannot be read"),
    ] {
        assert_faults(&folder, &input(cert, file, ca), &[(&key(name), words)]);
    }
    let all = [key("cert"), key("key"), key("client_ca")];
    let all: Vec<_> = all.iter().map(|key| (key.as_str(), "cannot be read")).collect();
    assert_faults(&folder, &input("x", "y", "z"), &all);
    let document =
        "[[output]]\nto = \"tls://h:1\"\ntls = { ca = \"@/text\", cert = \"@/a.pem\", key = \"@/b.key\" }";
    assert_faults(
        &folder,
        document,
        &[("output[0].tls.key", "is not the key"), ("output[0].tls.ca", "no certificate")],
    );
}

#[test]
fn a_certificate_that_has_expired_is_told_apart_from_one_that_will() {
    let folder = folder(&[("old", 2020), ("new", 2100)]);
    let document = |name: &str| {
        format!(
            "[[input]]\nlisten = \"tls://127.0.0.1:1\"\ntls = {{ cert = \"@/{name}.pem\", key = \"@/{name}.key\" }}"
        )
    };
    let resolved = resolve(&folder, &document("old")).unwrap();
    assert_eq!(resolved.expired[0].key, "input[0].tls.cert");
    assert!(resolved.expired[0].message.contains("ended"), "{:?}", resolved.expired);
    assert!(resolve(&folder, &document("new")).unwrap().expired.is_empty());
}
