//! The real binary: exit codes and messages.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tapster::protocol::ContentType;
use tapster::protocol::ContentTypes;
use tapster::protocol::FileWriter;
use tapster::protocol::FrameBatch;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderEvent;
use tapster::protocol::ReaderSession;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tempfile::TempDir;

#[path = "cli/connect.rs"]
mod connect;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/hostile.rs"]
mod hostile;
#[path = "cli/replay.rs"]
mod replay;
#[path = "common/skips.rs"]
mod skips;
#[path = "cli/spool.rs"]
mod spool;
#[path = "cli/tls.rs"]
mod tls;

fn tapster(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tapster")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

#[test]
fn help_and_version_are_no_faults() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["help", "check"]] {
        let output = tapster(args);
        assert_exit(&output, 0);
        assert!(output.stderr.is_empty(), "{args:?}");
    }
    assert!(stdout(&tapster(&["--help"])).contains("Examples:"));
}

#[test]
fn bad_usage_exits_with_64() {
    for args in [
        &[][..],
        &["fly"],
        &["run", "--fast"],
        &["run", "--log-format", "xml"],
        &["check", "--log-level", "loud"],
    ] {
        let output = tapster(args);
        assert_exit(&output, 64);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn every_fault_is_named_in_one_go_and_nothing_is_bound() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("dnstap.sock");
    let config = folder.path().join("tapster.toml");
    let text = format!(
        "workers = \"many\"\n\
         [[input]]\nlisten = [\"unix:{}\"]\n\
         [[output]]\nname = \"one\"\nto = \"tcp://a:1\"\n\
         [[output]]\nname = \"two\"\nto = \"tcp://a:2\"\nwhen_ful = \"block\"\nqueue = \"1 byte\"\n",
        socket.display()
    );
    fs::write(&config, text).unwrap();
    for command in ["run", "check"] {
        let output = tapster(&[
            command,
            "-c",
            config.to_str().unwrap(),
            "--backend",
            "kqueue",
            "--to",
            "tls://siem.example:6000?tls.ca=/nonexistent/ca.pem&when_full=spill",
            "--summary",
            "/nonexistent/summary.json",
        ]);
        assert_exit(&output, 64);
        let stderr = stderr(&output);
        for part in [
            "7 faults",
            "tapster.toml:1: workers: ",
            "tapster.toml:10: output[1].when_ful (output `two`): is not a key; did you mean `when_full`?",
            "tapster.toml:11: output[1].queue (output `two`): `byte` in `1 byte` is not a unit",
            "command line: backend: `kqueue` is unknown",
            "&when_full=spill: tls.ca: /nonexistent/ca.pem cannot be read",
            "&when_full=spill: when_full: needs a folder: write spool = {",
            "command line: --summary: ",
        ] {
            assert!(stderr.contains(part), "{part:?} in {stderr}");
        }
        assert!(!socket.exists());
    }
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_named() {
    let output = tapster(&["run", "--config", "/nonexistent/tapster.toml"]);
    assert_exit(&output, 64);
    assert!(stderr(&output).contains("/nonexistent/tapster.toml"));
}

#[test]
fn check_says_why_a_spool_could_not_be_used_and_creates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let check = |dir: &str, more: &str| {
        let to = format!("tcp://collector.example:6000?buffer=disk&spool.dir={dir}{more}");
        tapster(&["check", "--to", &to])
    };
    let plenty = "&spool.min_free=0B";
    assert_exit(&check(&path("new"), plenty), 0);
    assert!(!folder.path().join("new").exists());

    fs::write(path("file"), "").expect("a file");
    let (_spool, _) =
        Spool::open(path("used").as_ref(), SpoolConfig::default(), None, Moment::now()).expect("a spool");
    // Most likely it is the relay of this configuration: `check && systemctl restart` has to work.
    let used = check(&path("used"), plenty);
    assert_exit(&used, 0);
    assert!(
        stderr(&used).contains("note: output") && stderr(&used).contains("uses the spool"),
        "{}",
        stderr(&used)
    );
    for (dir, more, says) in [
        (path("file"), plenty, "cannot open the folder"),
        (path("no/such"), plenty, "cannot open the parent of the folder"),
        (path("new"), "&spool.min_free=1000000000GiB", "`min_free` leaves all of"),
    ] {
        let output = check(&dir, more);
        assert_exit(&output, 1);
        let stderr = stderr(&output);
        assert!(
            stderr.contains("output `tcp://collector.example:6000`: spool: ") && stderr.contains(says),
            "{stderr}"
        );
    }
}

#[test]
fn check_finds_two_spools_in_one_folder_whatever_the_paths_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::create_dir(path("there")).expect("a folder");
    fs::create_dir(path("other")).expect("a folder");
    std::os::unix::fs::symlink(path("there"), path("link")).expect("a link");
    for (one, other, shared) in [
        ("there", "other/../there", true),
        ("there", "link", true),
        ("new", "other/../new", true),
        ("new", "there/new", false),
        ("there", "other", false),
    ] {
        let to = |number: u16, dir: &str| {
            let dir = path(dir);
            format!("tcp://127.0.0.1:{number}?buffer=disk&spool.min_free=0B&spool.dir={dir}")
        };
        let output = tapster(&["check", "--to", &to(1, one), "--to", &to(2, other)]);
        assert_exit(&output, i32::from(shared));
        assert_eq!(stderr(&output).contains("give each a folder of its own"), shared, "{one} and {other}");
    }
    assert!(!folder.path().join("new").exists());
}

#[test]
fn what_check_prints_can_be_fed_back() {
    let folder = TempDir::new().unwrap();
    let first = tapster(&[
        "check",
        "--listen",
        "unix:/run/tapster/dnstap.sock?socket_mode=0660",
        "--to",
        "tcp://10.0.0.5:6000?when_full=block&queue=256MiB&reconnect.min=1s",
        "--to",
        "file:%Y%m%d.fstrm?rotate.every=1h",
        "--workers",
        "2",
    ]);
    assert_exit(&first, 0);
    for line in ["workers = 2", "when_full = \"block\"", "queue = \"256MiB\"", "finish_timeout = \"5s\""] {
        assert!(stdout(&first).lines().any(|printed| printed == line), "{line} in {}", stdout(&first));
    }
    let config = folder.path().join("tapster.toml");
    fs::write(&config, &first.stdout).unwrap();
    let second = tapster(&["check", "-c", config.to_str().unwrap()]);
    assert_exit(&second, 0);
    assert_eq!(stdout(&first), stdout(&second));
}

#[test]
fn what_is_odd_is_warned_of_beside_the_configuration() {
    let output = tapster(&["check", "--listen", "tcp://127.0.0.1:0?handshake_timeout=1s"]);
    assert_exit(&output, 0);
    assert!(stderr(&output).contains("handshake_timeout"), "{}", stderr(&output));
    assert!(stdout(&output).contains("handshake_timeout = \"1s\""));
}

#[test]
fn the_readme_shows_a_configuration_that_is_right_and_explains_every_key() {
    let readme = include_str!("../README.md");
    let example = readme.split("```toml\n").find(|block| block.contains("[[input]]")).unwrap();
    let example = example.split("```").next().unwrap();
    let folder = TempDir::new().unwrap();
    let config = written(&folder, "tapster.toml", example.as_bytes());
    let output = tapster(&["check", "-c", &config]);
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "");
    for key in stdout(&output).lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
        assert!(readme.contains(&format!("| `{key}` | ")), "{key}");
    }
}

/// Ten frames `Hello, world #N` of type `test:hello`: the file of the reference's own tests, 242 bytes.
fn hello_file() -> Vec<u8> {
    let writer = FileWriter::new(Some("test:hello".parse().unwrap()));
    let payloads = (0..10).map(|number| format!("Hello, world #{number}\n"));
    let batch = FrameBatch::from_payloads(payloads, Instant::now()).unwrap();
    [writer.header(), batch.into_bytes(), writer.trailer()].concat()
}

fn written(folder: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn inspect_tells_clean_truncated_and_damaged_apart() {
    let folder = TempDir::new().unwrap();
    let hello = hello_file();
    assert_eq!(hello.len(), 242);
    for (bytes, frames, status, code) in [
        (hello.clone(), 10, "clean", 0),
        ([&hello[..], b"junk"].concat(), 10, "damaged", 1),
        ([&hello[..], b"\n"].concat(), 10, "damaged", 1),
        ([&hello[..], &hello[..]].concat(), 20, "clean", 0),
        (hello[..241].to_vec(), 10, "truncated", 1),
        (hello[..49].to_vec(), 0, "truncated", 1),
        (hello[..29].to_vec(), 0, "truncated", 1),
        (Vec::new(), 0, "truncated", 1),
        ([&hello[..50], &[0xff; 8]].concat(), 1, "damaged", 1),
        (b"not a Frame Streams file".to_vec(), 0, "damaged", 1),
    ] {
        let path = written(&folder, "file.fstrm", &bytes);
        let output = tapster(&["inspect", "--json", &path]);
        assert_exit(&output, code);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (report["frames"].as_u64(), report["status"].as_str()),
            (Some(frames), Some(status)),
            "{report}"
        );
        assert_eq!(report["bytes"].as_u64(), Some(20 * frames));
        assert_eq!(report["file"].as_str(), Some(path.as_str()));
        let text = tapster(&["inspect", &path]);
        assert_exit(&text, code);
        assert!(stdout(&text).contains(status), "{}", stdout(&text));
    }
}

#[test]
fn inspect_prints_frames_and_payloads_up_to_a_limit() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let output = stdout(&tapster(&["inspect", "--limit", "2", "--payload", &path]));
    for part in [
        "content type test:hello",
        "frame 2: 16 bytes",
        "Hello, world #1.",
        "and 8 frames more",
        "clean, 10 frames",
    ] {
        assert!(output.contains(part), "{part:?} in {output}");
    }
    assert!(!output.contains("frame 3:"));
}

#[test]
fn inspect_names_a_file_that_cannot_be_read_and_goes_on() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let output = tapster(&["inspect", "/nonexistent.fstrm", &path]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("/nonexistent.fstrm"));
    assert!(stdout(&output).contains("clean"));
}

#[test]
fn doctor_speaks_of_everything_it_looks_at() {
    let output = tapster(&["doctor"]);
    assert_exit(&output, 0);
    for subject in ["io_uring", "wmem_max", "rmem_max", "descriptors", "locked memory", "processors"] {
        assert!(stdout(&output).contains(subject), "{subject}");
    }
}

/// What a reader does after STOP.
#[derive(Clone, Copy, PartialEq)]
enum AfterStop {
    Finish,
    Close,
    /// Reads on until the writer goes.
    Silence,
}

/// Serves one session and returns the payloads.
fn reader(path: &Path, after_stop: AfterStop) -> JoinHandle<Vec<Bytes>> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let config = ReaderConfig { content_types: ContentTypes::Any, ..ReaderConfig::default() };
        let mut session = ReaderSession::new(config, Instant::now());
        let mut incoming = BytesMut::new();
        let mut payloads = Vec::new();
        loop {
            let mut bytes = [0; 1000];
            let len = stream.read(&mut bytes).unwrap();
            assert!(len > 0, "the writer left without STOP");
            incoming.extend_from_slice(&bytes[..len]);
            session.handle_bytes(Instant::now(), &mut incoming).unwrap();
            let mut finished = false;
            while let Some(event) = session.poll_event() {
                match event {
                    ReaderEvent::Data(batch) => payloads.extend(batch.payloads()),
                    ReaderEvent::Finished => finished = true,
                    ReaderEvent::Started { .. } => {}
                }
            }
            if finished && after_stop == AfterStop::Close {
                return payloads;
            }
            if finished && after_stop == AfterStop::Silence {
                let _ = stream.read_to_end(&mut Vec::new());
                return payloads;
            }
            while let Some(bytes) = session.poll_transmit() {
                stream.write_all(&bytes).unwrap();
            }
            if finished {
                return payloads;
            }
        }
    })
}

#[test]
fn replay_sends_every_frame_and_waits_for_finish() {
    for pace in [&[][..], &["--rate", "1000"]] {
        let folder = TempDir::new().unwrap();
        let path = written(&folder, "hello.fstrm", &hello_file());
        let socket = folder.path().join("reader.sock");
        let reader = reader(&socket, AfterStop::Finish);
        let to = format!("unix:{}", socket.display());
        let output = tapster(&[&["replay", &path, "--to", &to][..], pace].concat());
        assert_exit(&output, 0);
        let payloads = reader.join().unwrap();
        assert_eq!(payloads.len(), 10);
        assert_eq!(payloads.last().unwrap(), "Hello, world #9\n");
        assert!(stderr(&output).contains("10 frames sent"), "{}", stderr(&output));
    }
}

#[test]
fn replay_of_a_truncated_file_sends_its_whole_frames_and_exits_with_1() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file()[..100]);
    let socket = folder.path().join("reader.sock");
    let reader = reader(&socket, AfterStop::Finish);
    let output = tapster(&["replay", &path, "--to", &format!("unix:{}", socket.display())]);
    assert_exit(&output, 1);
    assert_eq!(reader.join().unwrap().len(), 3);
    assert!(stderr(&output).contains("ends within a frame"), "{}", stderr(&output));
}

#[test]
fn replay_without_finish_exits_with_1() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let socket = folder.path().join("reader.sock");
    let reader = reader(&socket, AfterStop::Close);
    let output = tapster(&["replay", &path, "--to", &format!("unix:{}", socket.display())]);
    assert_exit(&output, 1);
    reader.join().unwrap();
    assert!(stderr(&output).contains("without FINISH"), "{}", stderr(&output));
}

#[test]
fn replay_keeps_the_pace_of_a_recording() {
    let folder = TempDir::new().unwrap();
    // Two CLIENT_QUERY messages, seen 2 and 3 s after the epoch.
    let batch =
        FrameBatch::from_payloads([2, 3].map(|time| [0x72, 4, 0x08, 5, 0x40, time]), Instant::now()).unwrap();
    let writer = FileWriter::new(Some(ContentType::DNSTAP));
    let path =
        written(&folder, "two.fstrm", &[writer.header(), batch.into_bytes(), writer.trailer()].concat());
    let socket = folder.path().join("reader.sock");
    let reader = reader(&socket, AfterStop::Finish);
    let start = Instant::now();
    let output = tapster(&["replay", &path, "--to", &format!("unix:{}", socket.display()), "--speed", "5"]);
    assert_exit(&output, 0);
    assert!(start.elapsed().as_millis() >= 200);
    assert_eq!(reader.join().unwrap().len(), 2);
}

#[test]
fn replay_takes_the_frames_of_a_stretch_of_time() {
    let folder = TempDir::new().unwrap();
    // CLIENT_QUERY messages, seen 2 to 5 s after the epoch.
    let frames = [2, 3, 4, 5].map(|time| [0x72, 4, 0x08, 5, 0x40, time]);
    let batch = FrameBatch::from_payloads(frames, Instant::now()).unwrap();
    let writer = FileWriter::new(Some(ContentType::DNSTAP));
    let path =
        written(&folder, "four.fstrm", &[writer.header(), batch.into_bytes(), writer.trailer()].concat());
    let socket = folder.path().join("reader.sock");
    let to = format!("unix:{}", socket.display());
    let range = ["--from", "1970-01-01T00:00:03Z", "--until", "1970-01-01T00:00:05Z"];
    let reader = reader(&socket, AfterStop::Finish);
    assert_exit(&tapster(&[&["replay", &path, "--to", &to][..], &range].concat()), 0);
    assert_eq!(
        reader.join().unwrap(),
        [Bytes::copy_from_slice(&frames[1]), Bytes::copy_from_slice(&frames[2])]
    );
    // Other types have no times.
    let path = written(&folder, "hello.fstrm", &hello_file());
    let output = tapster(&[&["replay", &path, "--to", &to][..], &range].concat());
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("the content type of this file is test:hello"), "{}", stderr(&output));
}

#[test]
fn replay_without_a_reader_exits_with_1_and_with_a_wrong_address_with_64() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let output = tapster(&["replay", &path, "--to", &format!("unix:{}/none.sock", folder.path().display())]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("none.sock"), "{}", stderr(&output));
    for to in ["file:copy.fstrm?rotate.size=1GiB", "tcp://siem.example", "unix:/a?que=1MiB"] {
        assert_exit(&tapster(&["replay", &path, "--to", to]), 64);
    }
}

/// `tapster run` once it relays, and what it logged before.
struct Relay {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    lines: String,
}

impl Relay {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tapster"))
            .arg("run")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut relay = Self { child, log, lines: String::new() };
        relay.wait_for("relaying");
        relay
    }

    /// Reads the log until a line says so.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        loop {
            let before = self.lines.len();
            let len = self.log.read_line(&mut self.lines).unwrap();
            assert!(len > 0, "the log ended without {text:?}:\n{}", self.lines);
            if self.lines[before..].contains(text) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Exit status, stdout and the whole log.
    fn end(mut self) -> Output {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        let mut output = self.child.wait_with_output().unwrap();
        output.stderr = (self.lines + &rest).into_bytes();
        output
    }
}

#[test]
fn run_drains_on_a_signal_and_writes_the_ledger() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = TempDir::new().unwrap();
        let path = written(&folder, "hello.fstrm", &hello_file());
        let socket = format!("unix:{}/in.sock", folder.path().display());
        let file = format!("file:{}/out.fstrm?content_type=test:hello&name=archive", folder.path().display());
        let listen = format!("{socket}?content_types=test:hello&name=resolvers");
        let relay = Relay::start(&["-l", &listen, "-t", &file, "--summary", "-", "--workers", "1"]);
        assert_exit(&tapster(&["replay", &path, "--to", &socket]), 0);
        relay.signal(signal);
        let output = relay.end();
        assert_exit(&output, 0);
        for part in
            [&*format!("address={socket}"), "listening", "writing", "draining", "taken in", "frames_sent=10"]
        {
            assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
        }
        let ledger: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(ledger["inputs"][0]["frames"], 10, "{ledger}");
        assert_eq!(ledger["outputs"][0]["name"], "archive");
        assert_eq!(ledger["outputs"][0]["frames_sent"], 10);
        assert!(!folder.path().join("in.sock").exists());
        let copy = fs::read(folder.path().join("out.fstrm")).unwrap();
        assert_eq!(copy, hello_file());
    }
}

#[test]
fn a_second_signal_a_second_later_ends_at_once() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let socket = format!("unix:{}/in.sock", folder.path().display());
    // A reader that never answers, and an output that must not drop: the drain has to wait.
    let silent = folder.path().join("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let to =
        format!("unix:{}?content_type=test:hello&when_full=block&handshake_timeout=1h", silent.display());
    let listen = format!("{socket}?content_types=test:hello");
    let mut relay = Relay::start(&["-l", &listen, "-t", &to, "--drain-timeout", "1h"]);
    assert_exit(&tapster(&["replay", &path, "--to", &socket]), 0);
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    // Within a second it would be the same signal once more.
    thread::sleep(Duration::from_millis(1100));
    relay.signal(Signal::TERM);
    let output = relay.end();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("ending at once"), "{}", stderr(&output));
}

#[test]
fn the_log_can_be_an_object_per_line() {
    let relay = Relay::start(&[
        "-l",
        "tcp://127.0.0.1:0",
        "-t",
        "unix:/nonexistent/none.sock",
        "--log-format",
        "json",
    ]);
    relay.signal(Signal::TERM);
    let output = relay.end();
    assert_exit(&output, 0);
    let lines = stderr(&output);
    let objects = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let listening = objects.filter(|object| object["message"] == "listening").collect::<Vec<_>>();
    let address = listening[0]["address"].as_str().unwrap();
    assert!(address.starts_with("tcp://127.0.0.1:") && !address.ends_with(":0"), "{address}");
}

#[test]
fn an_address_in_use_exits_with_1_and_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let output = tapster(&["run", "-l", &address, "-t", "unix:/nonexistent/none.sock"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
}
