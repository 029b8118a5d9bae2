//! `tapster check --connect`, with a relay as the reader, and producers that listen.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::assert_exit;
use crate::stderr;
use crate::tapster;

/// A relay that ends with its test.
struct Relay(Child);

impl Relay {
    fn start(listen: &str, folder: &Path, socket: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_tapster"))
            .args(["run", "--workers", "1", "--listen", listen, "--summary", "summary.json"])
            .current_dir(folder)
            .stderr(Stdio::null())
            .spawn();
        let relay = Self(child.unwrap());
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "the relay does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn readers_that_are_there_get_a_session_without_frames_and_others_are_named() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("in.sock");
    let there = format!("unix:{}", socket.display());
    let mut relay = Relay::start(&there, folder.path(), &socket);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("tcp://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let to = |keys: &str| format!("{there}?{keys}");
    let found =
        tapster(&["check", "--connect", "--to", &to("name=a"), "--to", &to("name=b&mode=unidirectional")]);
    assert_exit(&found, 0);
    let words = stderr(&found);
    assert!(
        words.contains("output `a`") && words.contains("takes content type protobuf:dnstap.Dnstap"),
        "{words}"
    );
    assert!(words.contains("FINISH after") && words.contains("output `b`"), "{words}");
    let lost = tapster(&[
        "check",
        "--connect",
        "--to",
        &to("name=a"),
        "--to",
        &format!("{away}?name=away"),
        "--to",
        &to("name=typed&content_type=x"),
    ]);
    assert_exit(&lost, 1);
    let words = stderr(&lost);
    for part in ["output `away`: ", "no connection to", "output `typed`: ", "output `a`: "] {
        assert!(words.contains(part), "{part}: {words}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&relay.0), rustix::process::Signal::TERM)
        .unwrap();
    assert!(relay.0.wait().unwrap().success());
    let summary = std::fs::read_to_string(folder.path().join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let input = &summary["inputs"][0];
    assert_eq!((&input["frames"], &input["sessions_ended"]["finished"]), (&0.into(), &3.into()), "{input}");
}

/// A producer that listens: it sends this to whoever connects, and hands out what it gets in answer.
fn producer(sends: &'static [u8]) -> (String, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(sends).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    (address, std::thread::spawn(serve))
}

#[test]
fn producers_that_are_dialled_are_heard_and_nothing_is_answered() {
    const READY: &[u8] = b"\0\0\0\0\0\0\0\x22\0\0\0\x04\0\0\0\x01\0\0\0\x16protobuf:dnstap.Dnstap";
    const START: &[u8] = b"\0\0\0\0\0\0\0\x22\0\0\0\x02\0\0\0\x01\0\0\0\x16protobuf:dnstap.Dnstap";
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("tapster.toml");
    let check = |dial: &[&str]| {
        let text = format!("[[input]]\nname = \"in\"\ndial = {dial:?}\nhandshake_timeout = \"5s\"\n");
        std::fs::write(&config, text).unwrap();
        tapster(&["check", "--connect", "-c", config.to_str().unwrap()])
    };
    let (ready, start) = (producer(READY), producer(START));
    let found = check(&[&ready.0, &start.0]);
    assert_exit(&found, 0);
    let words = stderr(&found);
    for part in [
        "offers content type protobuf:dnstap.Dnstap (READY",
        "sends content type protobuf:dnstap.Dnstap (START",
    ] {
        assert!(words.contains(part) && words.contains("input `in`"), "{part}: {words}");
    }
    assert!(ready.1.join().unwrap().is_empty() && start.1.join().unwrap().is_empty());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("tcp://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let http = producer(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let lost = check(&[&away, &http.0]);
    assert_exit(&lost, 1);
    let words = stderr(&lost);
    assert!(words.contains(&format!("{away}: ")) && words.contains("no connection"), "{words}");
    assert!(words.contains(&format!("{}: ", http.0)), "{words}");
    http.1.join().unwrap();
}
