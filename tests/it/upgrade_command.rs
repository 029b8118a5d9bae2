//! `tapster upgrade`: a new process of the program takes over from one that runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use std::time::Instant;

use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::control::Controlled;
use crate::support::flow::Flow;
use crate::support::http::get;
use crate::support::wait::eventually;

fn output(reader: &CollectingReader, more: &str) -> String {
    format!("[[output]]\nname = \"siem\"\nto = \"{}\"\n{more}\n", reader.address())
}

/// `upgrade` answers within 15 s, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

on_both_backends! {
    fn connections_and_admin_addresses_pass_and_the_new_process_has_the_new_configuration(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader, ""));
        let flow = Flow::begin(0, &relay.input);
        for generation in 2..=3 {
            let before = relay.process();
            // Keys that a reload does not take, too.
            relay.configure(&format!("workers = {generation}"), &output(&reader, ""));
            assert_eq!(relay.command("reload", &[]).code, Some(64));
            let done = relay.command("upgrade", &[]);
            assert!(done.code == Some(0) && done.stdout.contains(&format!("number {generation}")), "{done:?}");
            let status = get(&relay.admin, "/api/v1/status").1;
            assert_eq!(status["generation"], generation, "the new process answers");
            assert_eq!(get(&relay.admin, "/api/v1/config").1["workers"], generation);
            assert_ne!(relay.process(), before);
            flow.wait_for_more(60);
            // The old process may still end its outputs.
            eventually("a reload", || relay.command("reload", &[]).code == Some(0));
        }
        let sent = flow.end();
        relay.end_chain();
        let Address::Unix(admin) = &relay.admin else { unreachable!() };
        assert!(!admin.exists());
        let summary = relay.tapster.summary();
        summary.assert_balanced();
        assert_eq!((summary.input(0, "frames"), summary.input(0, "connections")), (sent, 1));
        assert_eq!(reader.close().frames(), sent);
    }

    fn a_new_process_with_faults_ends_with_64_and_the_old_one_goes_on(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader, ""));
        let flow = Flow::begin(0, &relay.input);
        relay.configure("", &output(&reader, "when_full = \"never\""));
        let done = relay.command("upgrade", &[]);
        assert!(done.code == Some(64) && done.stderr.contains("tapster.toml:9: output[0].when_full"), "{done:?}");
        // Another process has the address that the new one needs.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("tcp://{}", taken.local_addr().unwrap());
        relay.configure(&format!("admin = [\"{}\", \"{taken}\"]", relay.admin), &output(&reader, ""));
        let done = relay.command("upgrade", &[]);
        assert!(done.code == Some(64) && done.stderr.contains(&taken), "{done:?}");
        flow.wait_for_more(60);
        assert_eq!(get(&relay.admin, "/api/v1/status").1["generation"], 1);
        relay.configure("", &output(&reader, ""));
        assert_eq!(relay.command("upgrade", &[]).code, Some(0));
        let sent = flow.end();
        relay.end_chain();
        assert_eq!(reader.close().frames(), sent);
    }

    fn a_program_that_is_none_ends_at_once_or_hangs_costs_nothing(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader, ""));
        let flow = Flow::begin(0, &relay.input);
        let script = |name: &str, text: &str| {
            let path = relay.folder().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for (binary, words) in [
            (relay.folder().join("none").to_str().unwrap().to_owned(), "cannot start"),
            (script("ends", "exit 3"), "has ended"),
            (script("hangs", "exec sleep 600"), "did not answer"),
        ] {
            let began = Instant::now();
            let done = relay.command("upgrade", &["--binary", &binary]);
            assert!(done.code == Some(1) && done.stderr.contains(words), "{binary}: {done:?}");
            assert!(began.elapsed() < LIMIT, "{binary}: {:?}", began.elapsed());
            flow.wait_for_more(60);
            assert_eq!(get(&relay.admin, "/readyz").0, 200);
        }
        // The same program by another path.
        let done = relay.command("upgrade", &["--binary", env!("CARGO_BIN_EXE_tapster")]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let sent = flow.end();
        relay.end_chain();
        assert_eq!(reader.close().frames(), sent);
    }
}
