//! P: programs that speak TLS by other libraries than ours: `openssl s_client`, `unbound`.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use tapster::transport::Address;

use crate::support::authority::Authority;
use crate::support::authority::Usage;
use crate::support::collector::CollectingReader;
use crate::support::dns::Queries;
use crate::support::dns::Unbound;
use crate::support::peers::all_there;
use crate::support::peers::find;
use crate::support::relay::ended;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::tls::tls;

/// `openssl s_client`, which sends a session that delivers `abc`. It ends when the relay closes.
fn s_client(program: &Path, folder: &Path, to: &Address, options: &[&str]) -> Output {
    let session = folder.join("session");
    fs::write(&session, wire::session_z()).expect("a file");
    let (host, port) = to.host_port().expect("a port");
    let child: Child = Command::new(program)
        .args(["s_client", "-quiet", "-connect", &format!("{host}:{port}")])
        .args(["-ign_eof", "-verify_return_error"])
        .args(options)
        .stdin(File::open(session).expect("the file"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is there");
    child.wait_with_output().expect("it ends")
}

on_both_backends! {
    fn openssl_brings_its_frames_with_a_certificate_and_no_old_version_is_spoken(backend) {
        let Some(openssl) = find("openssl") else { return };
        let (authority, folder) = (Authority::new(), folder());
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tls().tls(authority.server())).output(to(&reader)).start();
        let client = authority.sign(Usage::Client, &["w.example"]);
        let path = |path: &Path| path.display().to_string();
        let (ca, cert, key) = (path(&authority.file()), path(&client.cert), path(&client.key));
        let known = ["-CAfile", &ca, "-cert", &cert, "-key", &key];
        for (number, version) in (1..).zip(["-tls1_3", "-tls1_2"]) {
            let output = s_client(&openssl, folder.path(), &relay.address(), &[&known[..], &[version]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{version}: {said}");
            let answers = [wire::accept(&[wire::D]), wire::finish()].concat();
            assert_eq!(output.stdout, answers, "{version}: {said}");
            eventually("the session is counted", || ended(&relay.input(), "finished") == number);
        }
        // It offers that version only with every cipher, however weak.
        let old = [&known[..], &["-tls1_1", "-cipher", "ALL@SECLEVEL=0"]].concat();
        let output = s_client(&openssl, folder.path(), &relay.address(), &old);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("alert handshake failure") || said.contains("alert protocol version"), "{said}");
        // Without a certificate.
        let output = s_client(&openssl, folder.path(), &relay.address(), &["-CAfile", &ca, "-tls1_3"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("certificate required"), "{said}");
        eventually("both are counted", || ended(&relay.input(), "tls") == 2);
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"abc", b"abc"]);
    }

    fn unbound_with_a_certificate_brings_every_message(backend) {
        if !all_there(&["unbound", "dnsperf"]) {
            return;
        }
        let (authority, folder) = (Authority::new(), folder());
        let reader = CollectingReader::tcp();
        let mut server = authority.server();
        server.identity = authority.sign(Usage::Server, &["tap.example"]);
        server.allow_names = vec!["*.resolvers.example".parse().expect("a name")];
        let relay = relay(backend).input(tls().tls(server)).output(to(&reader)).start();
        let client = authority.sign(Usage::Client, &["ns1.resolvers.example"]);
        let keys = [
            ("server-name", "tap.example".to_owned()),
            ("cert-bundle", authority.file().display().to_string()),
            ("client-cert-file", client.cert.display().to_string()),
            ("client-key-file", client.key.display().to_string()),
        ];
        let keys: String = keys.iter().map(|(key, value)| format!("  dnstap-tls-{key}: \"{value}\"\n")).collect();
        let mut unbound =
            Unbound::start_with(folder.path(), &relay.address(), true, &keys).expect("it is there");
        let answered = Queries::start(folder.path(), unbound.port(), 500, 2).expect("it is there").wait();
        assert!(answered > 0);
        relay.wait_for_frames(2 * answered);
        unbound.stop();
        relay.wait_until_idle();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.frames(), 2 * answered, "a query and a response each: {:?}", ledger.inputs[0]);
    }
}
