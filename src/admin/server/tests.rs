//! A server whose limits are small, before peers of every kind.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::admin::Answer;
use crate::admin::Phase;
use crate::admin::Refusal;
use crate::admin::Reloaded;
use crate::admin::Wish;

/// No test waits for it.
const LONG: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits { header_time: LONG, body_time: LONG, write_time: LONG, ..Limits::default() }
}

struct Served {
    server: Server,
    desk: Arc<Desk>,
    path: PathBuf,
    _folder: TempDir,
}

/// A server at a unix socket. What is asked for is refused with a fault.
fn serve_with(limits: Limits) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let no = || Err(Refusal::Faults(vec!["t.toml:3: queue: no".to_owned()]));
    let desk = Arc::new(Desk::new(move |wish| match wish {
        Wish::Reload(answer) => answer.give(no()),
        Wish::Upgrade { binary, answer } => answer.give(Ok(u64::from(binary.is_some()))),
    }));
    desk.enter(Phase::Running);
    let mut server = Server::with_limits(Arc::clone(&desk), limits);
    let listen = Some(vec![Address::Unix(path.clone())]);
    let config = AdminConfig { listen, ..AdminConfig::default() };
    let opened = Opened::open(&config, &[], Vec::new()).unwrap();
    server.adopt(config, opened).unwrap();
    Served { server, desk, path, _folder: folder }
}

impl Served {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends bytes on a connection of their own, and returns everything that comes back.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has heard enough may have closed.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let len = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {len}\r\n{headers}\r\n{body}"
        );
        parse(&self.exchange(request.as_bytes()))
    }
}

fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is a close, too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn parse(answer: &str) -> (u16, Value) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_default())
}

const GET: &str = "GET /api/v1/config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";

/// Whether the server closes within a moment: far less than any other limit.
fn closes_soon(stream: &mut UnixStream) -> (bool, String) {
    let began = Instant::now();
    let answer = rest(stream);
    (began.elapsed() < LONG / 2, answer)
}

#[test]
fn headers_that_come_slowly_end_the_connection_and_so_does_silence_after_an_answer() {
    let served = serve_with(Limits { header_time: Duration::from_millis(100), ..limits() });
    for begin in ["", "GET /livez HTTP/1.1\r\nHost: local"] {
        let mut slow = served.connect();
        slow.write_all(begin.as_bytes()).unwrap();
        assert!(closes_soon(&mut slow).0, "{begin:?}");
    }
    let mut idle = served.connect();
    idle.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (closed, answer) = closes_soon(&mut idle);
    assert!(closed && answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_and_one_that_is_too_long_is_refused() {
    let served = serve_with(Limits { body_time: Duration::from_millis(100), ..limits() });
    let head = "POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let answer = served.exchange(format!("{head}Content-Length: 10\r\n\r\n{{").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(served.post("/api/v1/reload", "", &" ".repeat(64 << 10)).0, 422);
    let (status, body) = served.post("/api/v1/reload", "", &" ".repeat((64 << 10) + 1));
    assert_eq!((status, &body["error"]["code"]), (413, &"body".into()));
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    let answer = served
        .exchange(format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3)).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn headers_have_8_kib_and_no_more() {
    let served = serve_with(limits());
    let with = |len: usize| served.exchange(format!("{GET}X: {}\r\n\r\n", "x".repeat(len)).as_bytes());
    served.desk.show_config(serde_json::json!({ "workers": 2 }));
    assert!(with(7900).starts_with("HTTP/1.1 503"), "this process shows no relay");
    let answer = with(8200);
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = with(100_000);
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
}

#[test]
fn beyond_the_last_place_a_connection_is_closed_at_once_and_a_place_is_free_again() {
    let served = serve_with(limits());
    let mut held: Vec<_> = (0..32).map(|_| served.connect()).collect();
    // Each has its place when it has an answer.
    for stream in &mut held {
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
    }
    let (closed, answer) = closes_soon(&mut served.connect());
    assert!(closed && answer.is_empty(), "{answer}");
    held.pop().unwrap().shutdown(Shutdown::Both).unwrap();
    let began = Instant::now();
    while !served.exchange(format!("{GET}\r\n").as_bytes()).starts_with("HTTP/1.1") {
        assert!(began.elapsed() < LONG, "no place gets free");
    }
}

#[test]
fn a_peer_that_takes_no_answer_is_closed() {
    let served = serve_with(Limits { write_time: Duration::from_millis(100), ..limits() });
    let mut stream = served.connect();
    let request = "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
    stream.set_write_timeout(Some(LONG)).unwrap();
    // Requests without end, until the server has given up: then a write fails.
    let began = Instant::now();
    while stream.write_all(request.as_bytes()).is_ok() {
        assert!(began.elapsed() < LONG, "the server goes on");
    }
    assert!(began.elapsed() < LONG / 2);
}

#[test]
fn what_is_asked_for_is_answered_and_errors_have_one_form() {
    let served = serve_with(limits());
    let (status, body) = served.post("/api/v1/reload", "", "{}");
    assert_eq!((status, &body["error"]["faults"][0]), (422, &"t.toml:3: queue: no".into()));
    for key in ["code", "message", "help"] {
        assert!(body["error"][key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {body}");
    }
    assert_eq!(served.post("/api/v1/upgrade", "", "").1["generation"], 0);
    assert_eq!(served.post("/api/v1/upgrade", "", "{\"binary\":\"/x\"}").1["generation"], 1);
    assert_eq!(served.post("/api/v1/upgrade", "", "{\"binry\":\"/x\"}").0, 400);
    assert_eq!(served.post("/api/v1/upgrade", "Origin: http://evil.example\r\n", "").0, 403);
    assert_eq!(served.post("/livez", "", "").0, 405);
    let answer = served.exchange(format!("{}\r\n", GET.replace("localhost", "evil.example")).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("cache-control: no-store"), "{answer}");
    served.desk.enter(Phase::Draining);
    let (status, body) = served.post("/api/v1/reload", "", "");
    assert_eq!((status, &body["error"]["code"]), (409, &"draining".into()));
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let served = serve_with(limits());
    for garbage in [
        &b"\0\0\0\0\x16\x03\x01"[..],
        b"\x16\x03\x01\0\xa5",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = served.connect();
        stream.write_all(garbage).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(closes_soon(&mut stream).0, "{garbage:?}");
    }
    assert!(served.exchange(format!("{GET}\r\n").as_bytes()).starts_with("HTTP/1.1 503"));
}

#[test]
fn a_pause_lets_connections_wait_and_a_removed_socket_file_comes_back() {
    let served = serve_with(limits());
    served.server.pause();
    let mut waits = served.connect();
    waits.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
    served.server.resume().unwrap();
    assert!(rest(&mut waits).starts_with("HTTP/1.1 503"));
    fs::remove_file(&served.path).unwrap();
    let began = Instant::now();
    while UnixStream::connect(&served.path).is_err() {
        assert!(began.elapsed() < LONG, "the socket file does not come back");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(served.exchange(format!("{GET}\r\n").as_bytes()).starts_with("HTTP/1.1 503"));
}

#[test]
fn the_end_waits_for_no_peer_that_is_silent_and_removes_the_socket_file() {
    let Served { server, path, _folder, .. } = serve_with(limits());
    let mut silent = UnixStream::connect(&path).unwrap();
    silent.write_all(b"GET /livez HTTP").unwrap();
    let began = Instant::now();
    server.end();
    assert!(began.elapsed() < LONG / 2 && !path.exists());
}

#[test]
fn another_configuration_keeps_what_is_the_same_and_closes_the_rest() {
    let mut served = serve_with(limits());
    let other = served.path.with_file_name("other.sock");
    let mut kept = served.connect();
    kept.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    kept.read_exact(&mut [0; 12]).unwrap();
    let of = |paths: &[&PathBuf]| {
        let listen = paths.iter().map(|path| Address::Unix((*path).clone())).collect();
        AdminConfig { listen: Some(listen), ..AdminConfig::default() }
    };
    for paths in [&[&served.path, &other][..], &[&other]] {
        let config = of(paths);
        let opened = Opened::open(&config, &served.server.present(), Vec::new()).unwrap();
        served.server.adopt(config, opened).unwrap();
    }
    assert!(!served.path.exists());
    UnixStream::connect(&other).unwrap();
    // Whoever was there before is still answered.
    kept.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
    assert!(rest(&mut kept).contains("HTTP/1.1 503"));
}

#[test]
fn an_answer_that_nobody_gives_is_one_of_a_process_that_ends() {
    let (answer, waits) = Answer::<Reloaded>::new();
    assert!(!answer.is_abandoned());
    drop(waits);
    assert!(answer.is_abandoned());
    answer.give(Ok(Reloaded::default()));
}
