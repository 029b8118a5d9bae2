//! `replay` of several files, into a file, at the pace of a recording, to a reader that does not answer.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::protocol::ContentType;
use tempfile::TempDir;

use super::AfterStop;
use super::assert_exit;
use super::files::dnstap_file;
use super::files::file_of;
use super::hello_file;
use super::reader;
use super::stderr;
use super::tapster;
use super::written;

fn to(folder: &TempDir) -> String {
    format!("unix:{}/reader.sock", folder.path().display())
}

#[test]
fn every_stream_of_a_file_is_sent() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "both.fstrm", &[hello_file(), hello_file()].concat());
    let reader = reader(&folder.path().join("reader.sock"), AfterStop::Finish);
    let output = tapster(&["replay", &path, "--to", &to(&folder)]);
    assert_exit(&output, 0);
    assert_eq!(reader.join().unwrap().len(), 20);
    assert!(stderr(&output).contains("20 frames sent"), "{}", stderr(&output));
}

#[test]
fn garbage_behind_stop_is_told() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &[&hello_file()[..], b"junk"].concat());
    let reader = reader(&folder.path().join("reader.sock"), AfterStop::Finish);
    let output = tapster(&["replay", &path, "--to", &to(&folder)]);
    assert_exit(&output, 1);
    assert_eq!(reader.join().unwrap().len(), 10);
    assert!(stderr(&output).contains("garbage behind STOP"), "{}", stderr(&output));
}

#[test]
fn a_file_that_is_missing_does_not_keep_the_others_from_being_sent() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let reader = reader(&folder.path().join("reader.sock"), AfterStop::Finish);
    let output = tapster(&["replay", "/nonexistent.fstrm", &path, "--to", &to(&folder)]);
    assert_exit(&output, 1);
    assert_eq!(reader.join().unwrap().len(), 10);
    for part in ["/nonexistent.fstrm: 0 frames sent", "hello.fstrm: 10 frames sent"] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }
}

#[test]
fn files_are_joined_cut_by_time_and_mended_into_one() {
    let folder = TempDir::new().unwrap();
    let first = written(&folder, "a.fstrm", &dnstap_file(&[1, 2, 3]));
    let mut cut = dnstap_file(&[4, 5, 6]);
    cut.truncate(cut.len() - 14);
    let second = written(&folder, "b.fstrm", &cut);
    let joined = folder.path().join("c.fstrm");
    let to = format!("file:{}", joined.display());
    let replay = |more: &[&str]| tapster(&[&["replay", &first, &second, "--to", &to][..], more].concat());
    // The second file ends within its last frame.
    assert_exit(&replay(&[]), 1);
    assert_eq!(fs::read(&joined).unwrap(), dnstap_file(&[1, 2, 3, 4, 5]));
    // No file is overwritten.
    let output = replay(&[]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("File exists"), "{}", stderr(&output));
    fs::remove_file(&joined).unwrap();
    replay(&["--from", "1970-01-01T00:00:02Z", "--until", "1970-01-01T00:00:05Z"]);
    assert_eq!(fs::read(&joined).unwrap(), dnstap_file(&[2, 3, 4]));
    // Through a pipe, and clean files alone.
    let output = tapster(&["replay", &first, "--to", "file:-"]);
    assert_exit(&output, 0);
    assert_eq!(output.stdout, dnstap_file(&[1, 2, 3]));
}

#[test]
fn a_file_has_one_type_and_what_has_another_is_left_out_and_told() {
    let folder = TempDir::new().unwrap();
    let paths = [
        written(&folder, "a.fstrm", &dnstap_file(&[1])),
        written(&folder, "b.fstrm", &hello_file()),
        written(&folder, "c.fstrm", &dnstap_file(&[2])),
    ];
    let args = ["replay", &paths[0], &paths[1], &paths[2], "--to", "file:-"];
    let output = tapster(&args);
    assert_exit(&output, 1);
    assert_eq!(output.stdout, dnstap_file(&[1, 2]));
    assert!(stderr(&output).contains("its content type is test:hello"), "{}", stderr(&output));
}

#[test]
fn the_content_type_of_the_address_is_what_is_sent() {
    let folder = TempDir::new().unwrap();
    let frames = || [1, 2].map(|seconds| [0x72, 4, 0x08, 5, 0x40, seconds]);
    let untyped = written(&folder, "untyped.fstrm", &file_of(None, frames()));
    let other = written(&folder, "other.fstrm", &file_of(Some("test:a".parse().unwrap()), frames()));
    let clean = |args: &[&str]| {
        let output = tapster(&[&["replay"][..], args].concat());
        assert_exit(&output, 0);
        output.stdout
    };
    assert_eq!(clean(&[&untyped, "--to", "file:-"]), file_of(None, frames()));
    let named = "file:-?content_type=protobuf:dnstap.Dnstap";
    assert_eq!(clean(&[&untyped, "--to", named]), dnstap_file(&[1, 2]));
    assert_eq!(clean(&[&untyped, &other, "--to", named]), dnstap_file(&[1, 2, 1, 2]));
    // Their times are those of dnstap, then.
    assert_eq!(clean(&[&untyped, "--to", named, "--from", "1970-01-01T00:00:02Z"]), dnstap_file(&[2]));
    let named = "file:-?content_type=test:b";
    assert_eq!(clean(&[&untyped, "--to", named]), file_of(Some("test:b".parse().unwrap()), frames()));
}

#[test]
fn the_content_type_of_the_address_goes_to_a_reader() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "untyped.fstrm", &file_of(None, ["a"]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("tcp://{}?mode=unidirectional&content_type=test:b", listener.local_addr().unwrap());
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_exit(&tapster(&["replay", &path, "--to", &to]), 0);
    assert_eq!(reading.join().unwrap(), file_of(Some("test:b".parse().unwrap()), ["a"]));
}

#[test]
fn a_long_pause_of_a_recording_is_cut_and_told() {
    let folder = TempDir::new().unwrap();
    let path = written(
        &folder,
        "hours.fstrm",
        &file_of(
            Some(ContentType::DNSTAP),
            [
                &[0x72, 4, 0x08, 5, 0x40, 1][..],
                // 14 hours later.
                &[0x72, 6, 0x08, 5, 0x40, 0xd0, 0x8a, 0x03],
            ],
        ),
    );
    let start = Instant::now();
    let output = tapster(&["replay", &path, "--to", "file:-", "--speed", "1", "--pause-max", "1s"]);
    assert_exit(&output, 0);
    assert!(start.elapsed() >= Duration::from_secs(1));
    for part in ["waiting 1.0 s for the next frame", "--pause-max"] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }
    assert_exit(&tapster(&["replay", &path, "--to", "file:-", "--speed", "1", "--pause-max", "soon"]), 64);
}

#[test]
fn a_reader_that_never_sends_finish_is_waited_for_with_a_word() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file());
    let reader = reader(&folder.path().join("reader.sock"), AfterStop::Silence);
    let to = format!("{}?finish_timeout=2s", to(&folder));
    let output = tapster(&["replay", &path, "--to", &to]);
    assert_exit(&output, 1);
    assert_eq!(reader.join().unwrap().len(), 10);
    for part in ["waiting for FINISH, at most 2s (finish_timeout)", "no FINISH 2 s after STOP"] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }
}
