//! The real binary: exit codes and messages.

use std::fs;
use std::process::Command;
use std::process::Output;

use tempfile::TempDir;

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
            "tls://siem.example:6000?when_full=spill",
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
            "?when_full=spill: to: TLS is not built in yet",
            "?when_full=spill: when_full: `spill` comes with a later version",
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
