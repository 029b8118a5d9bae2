//! `send` against `sink`, directly and through `floor`.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::Process;
use crate::support::loadgen;
use crate::support::result;

fn sink(args: &[&str]) -> Process {
    Process::start(&[&["sink", "--json"], args].concat())
}

fn send(to: &str, args: &[&str]) -> (bool, Value) {
    let args = [&["send", "--json", "--finish-timeout", "10s", "--to", to], args].concat();
    result(&loadgen(&args).output().unwrap())
}

fn unix(folder: &TempDir, name: &str) -> String {
    format!("unix:{}", folder.path().join(name).display())
}

#[test]
fn every_frame_arrives_over_tcp_and_unix_in_both_modes() {
    let folder = TempDir::new().unwrap();
    for listen in ["tcp://127.0.0.1:0", "tcp://[::1]:0", &unix(&folder, "sink.sock")] {
        for mode in ["bidirectional", "unidirectional"] {
            let mut sink = sink(&["--listen", listen, "--expect", "10001"]);
            let (sent, report) =
                send(&sink.address(), &["--frames", "10001", "--connections", "7", "--mode", mode]);
            assert!(sent, "{report}");
            assert_eq!(report["frames"], 10_001);
            assert_eq!(report["finish"]["frames"], if mode == "bidirectional" { 7 } else { 0 });
            let (right, report) = sink.finish();
            assert!(right, "{report}");
            assert_eq!(report["frames"], 10_001);
            assert_eq!(report["consumers"][0]["streams"].as_array().unwrap().len(), 7);
            assert_eq!(report["consumers"][0]["sessions_finished"], 7);
        }
    }
}

#[test]
fn opaque_frames_single_frame_writes_and_a_rate_work_together() {
    let mut sink = sink(&["--listen", "tcp://127.0.0.1:0", "--streams", "3"]);
    let args = ["--payload", "opaque", "--write-size", "1B", "--rate", "20k", "--connections", "3"];
    let (sent, report) =
        send(&sink.address(), &[&args[..], &["--duration", "200ms", "--sizes", "64"]].concat());
    assert!(sent, "{report}");
    assert_eq!((&report["frames"], &report["bytes"]), (&Value::from(4000), &Value::from(4000 * 68)));
    assert!(report["seconds"].as_f64().unwrap() >= 0.19, "{report}");
    let (right, report) = sink.finish();
    assert!(right, "{report}");
    assert_eq!(report["latency"]["frames"], 4000);
}

#[test]
fn a_thousand_connections_need_one_thread() {
    let folder = TempDir::new().unwrap();
    let mut sink = sink(&["--listen", &unix(&folder, "sink.sock"), "--expect", "3000"]);
    let (sent, report) = send(&sink.address(), &["--connections", "1000", "--frames", "3000"]);
    assert!(sent, "{report}");
    let (right, report) = sink.finish();
    assert!(right, "{report}");
    assert_eq!(report["consumers"][0]["connections"], 1000);
}

#[test]
fn floor_copies_to_every_output_and_passes_the_handshake() {
    let folder = TempDir::new().unwrap();
    let mut sink = sink(&[
        "--listen",
        &unix(&folder, "a.sock"),
        "--listen",
        "tcp://127.0.0.1:0",
        "--listen",
        "tcp://127.0.0.1:0",
        "--expect",
        "30000",
    ]);
    let outputs = [sink.address(), sink.address(), sink.address()];
    let [a, b, c] = &outputs;
    let mut floor =
        Process::start(&["floor", "--listen", "tcp://127.0.0.1:0", "--to", a, "--to", b, "--to", c]);
    let (sent, report) = send(&floor.address(), &["--connections", "4", "--frames", "10000"]);
    assert!(sent, "{report}");
    let (right, report) = sink.finish();
    assert!(right, "{report}");
    for consumer in report["consumers"].as_array().unwrap() {
        assert_eq!(consumer["frames"], 10_000);
        assert_eq!(consumer["streams"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn a_slow_consumer_a_stall_and_an_idle_end_lose_nothing() {
    let mut sink = sink(&[
        "--listen",
        "tcp://127.0.0.1:0",
        "--read-rate",
        "4MiB",
        "--stall-after",
        "100",
        "--stall-for",
        "150ms",
        "--idle-exit",
        "300ms",
    ]);
    let (sent, report) = send(&sink.address(), &["--frames", "10000"]);
    assert!(sent, "{report}");
    let (right, report) = sink.finish();
    assert!(right, "{report}");
    assert!(report["consumers"][0]["seconds"].as_f64().unwrap() >= 0.15, "{report}");
}

#[test]
fn a_consumer_that_dies_resets_its_writers_and_listens_again() {
    let folder = TempDir::new().unwrap();
    let args = ["--listen", &unix(&folder, "a.sock"), "--die-after", "1000", "--revive-after", "50ms"];
    let mut sink = sink(&[&args[..], &["--streams", "1"]].concat());
    let address = sink.address();
    let (sent, report) = send(&address, &["--frames", "1000000"]);
    assert!(!sent && report["problems"][0].as_str().unwrap().contains("connection 0"), "{report}");
    let (sent, report) = send(&address, &["--frames", "1000"]);
    assert!(sent, "{report}");
    let (right, report) = sink.finish();
    assert!(!right, "the first connection never sent its last frame: {report}");
    let consumer = &report["consumers"][0];
    assert_eq!(consumer["connections"], 2);
    assert_eq!(consumer["unfinished"], 1);
    assert_eq!(consumer["sessions_unclean"], 1);
}

/// The bytes of a unidirectional stream of `frames` frames, as `send` writes them.
fn recorded(frames: usize) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("tcp://{}", listener.local_addr().unwrap());
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let (sent, report) = send(&to, &["--frames", &frames.to_string(), "--mode", "unidirectional"]);
    assert!(sent, "{report}");
    reader.join().unwrap()
}

/// Offsets of the data frames in a unidirectional stream, and of its STOP.
fn offsets(stream: &[u8]) -> Vec<usize> {
    let word = |at: usize| u32::from_be_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
    let mut offsets = vec![8 + word(4)];
    while word(offsets[offsets.len() - 1]) > 0 {
        let at = offsets[offsets.len() - 1];
        offsets.push(at + 4 + word(at));
    }
    offsets
}

fn verdict(stream: &[u8]) -> (bool, Value) {
    let mut sink = sink(&["--listen", "tcp://127.0.0.1:0", "--idle-exit", "100ms", "--time-limit", "5s"]);
    let address = sink.address();
    let mut connection = TcpStream::connect(address.strip_prefix("tcp://").unwrap()).unwrap();
    connection.write_all(stream).unwrap();
    drop(connection);
    let (right, report) = sink.finish();
    (right, report["consumers"][0].clone())
}

#[test]
fn a_sink_fails_on_missing_repeated_reordered_and_altered_frames() {
    let stream = recorded(50);
    let at = offsets(&stream);
    assert_eq!(at.len(), 51);
    let (right, report) = verdict(&stream);
    assert!(right, "{report}");

    let missing = [&stream[..at[20]], &stream[at[23]..]].concat();
    let (right, report) = verdict(&missing);
    assert!(!right && report["missing"] == 3, "{report}");

    let repeated = [&stream[..at[21]], &stream[at[20]..]].concat();
    let (right, report) = verdict(&repeated);
    assert!(!right && report["duplicate"] == 1, "{report}");

    let [before, first, second, after] =
        [&stream[..at[20]], &stream[at[20]..at[21]], &stream[at[21]..at[22]], &stream[at[22]..]];
    let (right, report) = verdict(&[before, second, first, after].concat());
    assert!(!right && report["reordered"] == 1, "{report}");

    let mut altered = stream.clone();
    altered[at[21] - 1] ^= 0x20;
    let (right, report) = verdict(&altered);
    assert!(!right && report["corrupted"] == 1 && report["missing"] == 1, "{report}");

    let (right, report) = verdict(&stream[..at[30]]);
    assert!(!right && report["unfinished"] == 1, "the end is missing: {report}");

    let endless = [&stream[..at[30]], &[0xff; 100]].concat();
    let (right, report) = verdict(&endless);
    assert!(!right && report["protocol_errors"][0].as_str().unwrap().contains("exceeds"), "{report}");

    let (right, report) = verdict(&stream[..at[50] - 1]);
    assert!(!right && report["sessions_truncated"] == 1, "{report}");
}

#[test]
fn frames_of_others_are_unmarked_and_not_wrong() {
    let start = [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2];
    let stop = [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3];
    let stream = [&start[..], b"\x00\x00\x00\x05hello", b"\x00\x00\x00\x02\x78\x01", &stop].concat();
    let (right, report) = verdict(&stream);
    assert!(right && report["unmarked"] == 2 && report["frames"] == 2, "{report}");
}

#[test]
fn fewer_frames_than_expected_are_an_error() {
    let mut sink = sink(&["--listen", "tcp://127.0.0.1:0", "--expect", "11", "--time-limit", "500ms"]);
    let (sent, _) = send(&sink.address(), &["--frames", "10"]);
    assert!(sent);
    let (right, report) = sink.finish();
    assert!(
        !right && report["problems"][0].as_str().unwrap().contains("11 frames were expected"),
        "{report}"
    );
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not_stolen() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.sock");
    let listen = unix(&folder, "a.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::exists(&path).unwrap());
    let mut first = sink(&["--listen", &listen, "--time-limit", "10s"]);
    first.address();
    assert!(UnixStream::connect(&path).is_ok());
    let second = loadgen(&["sink", "--listen", &listen]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("cannot listen on unix:"));
    assert!(UnixStream::connect(&path).is_ok());
}
