//! What comes from outside, and must not rule the terminal, the time or the end.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::mknodat;
use rustix::process::Signal;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tempfile::TempDir;

use super::Relay;
use super::assert_exit;
use super::hello_file;
use super::stderr;
use super::tapster;

/// Clears the screen, sets the title, goes back in the line, turns the direction of writing, and begins a line.
const HOSTILE: &str = "a\x1b[2J\x1b]0;b\x07\r\u{202e}\u{9b}1mc\ntapster: all is well";

fn run(args: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tapster")).args(args).output().unwrap()
}

/// Everything that was printed prints, in lines that are ours.
#[track_caller]
fn assert_printable(args: &[&OsStr], output: &Output) {
    for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let text = str::from_utf8(bytes).unwrap_or_else(|_| panic!("{args:?}: {stream}: {bytes:?}"));
        let bad = text.chars().find(|it| it.is_control() && !"\n\t".contains(*it) || *it == '\u{202e}');
        assert_eq!(bad, None, "{args:?}: {stream}: {text:?}");
        assert!(text.lines().all(|line| line != "tapster: all is well"), "{args:?}: {stream}: {text:?}");
    }
}

#[test]
fn nothing_from_outside_reaches_the_terminal_as_it_came() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (file, broken, spool) =
        (path(HOSTILE), path(&format!("{HOSTILE}.cut")), path(&format!("{HOSTILE}.spool")));
    fs::write(&file, hello_file()).unwrap();
    fs::write(&broken, &hello_file()[..100]).unwrap();
    let not_utf8 = folder.path().join(OsStr::from_bytes(b"a\xff\x1b[2J"));
    let now = Moment::now();
    let (mut opened, _) = Spool::open(
        &spool,
        SpoolConfig { min_free: 0, ..SpoolConfig::default() },
        Some(ContentType::DNSTAP),
        now,
    )
    .unwrap();
    let batch = FrameBatch::from_payloads(["hello"], Instant::now()).unwrap();
    opened.append(&[batch], now).unwrap();
    opened.close(now).unwrap();
    fs::write(spool.join(format!("{HOSTILE}.bad")), "x").unwrap();
    fs::write(spool.join(HOSTILE), "x").unwrap();
    let config = path("tapster.toml");
    let quoted = serde_json::to_string(HOSTILE).unwrap();
    fs::write(
        &config,
        format!(
            "{quoted} = 1\n[[output]]\nname = {quoted}\nto = {quoted}\nwhen_full = {quoted}\n{quoted} = 2\n\
             [[output]]\nto = \"tcp://a:1\"\nname = {quoted}\nbuffer = \"disk\"\nspool = {{ dir = {quoted} }}\n"
        ),
    )
    .unwrap();
    let hostile_config = path(&format!("{HOSTILE}.toml"));
    fs::copy(&config, &hostile_config).unwrap();
    let syntax = path("syntax.toml");
    fs::write(&syntax, format!("a = {HOSTILE}\n[{HOSTILE}]\n")).unwrap();

    let words = |text: &str| OsStr::new(text).to_owned();
    let key = words(&format!("tcp://127.0.0.1:1?{HOSTILE}=1&{HOSTILE}"));
    let unix = words(&format!("unix:{}", path(&format!("{HOSTILE}.sock")).display()));
    let missing_spool = words(&format!(
        "tcp://127.0.0.1:1?name=a%1b[2J&buffer=disk&spool.min_free=0B&spool.dir={}",
        file.display()
    ));
    let out = words(&format!("file:{}", path("out").display()));
    let (option, hostile) = (words(&format!("--{HOSTILE}")), words(HOSTILE));
    let missing = path(&format!("{HOSTILE}.none"));
    let (f, b, s, n, m) =
        (file.as_os_str(), broken.as_os_str(), spool.as_os_str(), not_utf8.as_os_str(), missing.as_os_str());
    let summary = path(&format!("{HOSTILE}/no/summary.json"));
    let w = OsStr::new;
    let commands: &[&[&OsStr]] = &[
        &[&hostile],
        &[w("run"), &option],
        &[w("run"), w("--log-level"), &hostile],
        &[w("inspect"), w("--limit"), &hostile],
        &[w("inspect"), f, b, n, m, s],
        &[w("inspect"), w("--json"), w("--payload"), f, b, n, m],
        &[w("replay"), f, b, n, m, s, w("--to"), &out],
        &[w("replay"), f, w("--to"), &unix],
        &[w("replay"), f, w("--to"), &key],
        &[w("replay"), f, w("--to"), w("file:-"), w("--from"), &hostile],
        &[w("replay"), f, w("--to"), w("tcp://127.0.0.1:1"), w("--speed"), w("1")],
        &[w("check"), w("-c"), config.as_os_str()],
        &[w("check"), w("-c"), hostile_config.as_os_str()],
        &[w("check"), w("-c"), syntax.as_os_str()],
        &[w("check"), w("-c"), m],
        &[w("check"), w("--to"), &key],
        &[w("check"), w("--to"), &missing_spool],
        &[w("check"), w("--to"), &hostile],
        &[w("check"), w("--listen"), &unix, w("--to"), &unix],
        &[w("check"), w("--workers"), &hostile],
        &[w("check"), w("--summary"), summary.as_os_str()],
        &[w("run"), w("-c"), config.as_os_str()],
        &[w("run"), w("--listen"), w("tcp://127.0.0.1:0"), w("--summary"), s],
        &[w("spool"), w("list"), s, f, m],
        &[w("spool"), w("list"), w("--json"), s, f, m],
        &[w("spool"), w("check"), s, f, m],
        &[w("spool"), w("dump"), s, w("--to"), f],
        &[w("spool"), w("dump"), m],
        &[w("spool"), w("drop"), s],
        &[w("spool"), w("drop"), s, w("--before"), &hostile],
        &[w("spool"), w("drop"), s, w("--yes")],
    ];
    for args in commands {
        assert_printable(args, &run(args));
    }
}

/// 271 KiB of unknown keys took two seconds and printed 3.2 MB.
#[test]
fn a_configuration_of_faults_is_read_in_time_and_only_its_first_faults_are_told() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tapster.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        let start = Instant::now();
        let output = tapster(&["check", "-c", path.to_str().unwrap()]);
        assert_exit(&output, 64);
        let told = stderr(&output);
        assert!(told.len() < 100_000, "{} bytes", told.len());
        // A debug build beside others; it takes half a second by itself.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        told
    };
    let keys: String = (0..60_000).map(|number| format!("key{number:07}=1\n")).collect();
    let told = check(&keys);
    assert_eq!(told.lines().count(), 102, "{told}");
    assert!(told.contains("60000 faults") && told.contains("and 59900 more"), "{told}");
    assert!(told.contains("tapster.toml:100: key0000099: "), "in the order of their lines: {told}");
    check(&"[[output]]\nto=\"tcp://a:1\"\n".repeat(20_000));
    check(&format!("[[input]]\nlisten = [{}]\n", "\"tcp://a:1\",".repeat(40_000)));
    check(&format!("{}=1\n", "k".repeat(300_000)));
    check(&"[[output]]\nto=1\n".repeat(900));
    let query = format!("tcp://a:1?{}", (0..9000).map(|number| format!("k{number}=1&")).collect::<String>());
    let output = tapster(&["check", "--to", &query]);
    assert_exit(&output, 64);
    assert!(stderr(&output).contains("more than 1000 keys") && stderr(&output).len() < 300_000);
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn a_summary_that_nobody_reads_is_told_and_does_not_hold_up_the_end() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("summary");
    fifo(&path);
    let summary = |keep: bool| {
        let to = format!("file:{}/out.fstrm", folder.path().display());
        let relay =
            Relay::start(&["-l", "tcp://127.0.0.1:0", "-t", &to, "--summary", path.to_str().unwrap()]);
        let reader = keep.then(|| fs::File::options().read(true).write(true).open(&path).unwrap());
        relay.signal(Signal::TERM);
        (relay.end(), reader)
    };
    let (output, _) = summary(false);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("nobody reads this FIFO"), "{}", stderr(&output));
    // With a reader it is written.
    let (output, _reader) = summary(true);
    assert_exit(&output, 0);
}
