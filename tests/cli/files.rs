//! `inspect` on files as people have them: put together, compressed, cut, recoded, still being written.

use std::fs;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Seek;
use std::io::Write;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use rustix::process::Pid;
use serde_json::Value;
use tapster::protocol::ContentType;
use tapster::protocol::FileWriter;
use tapster::protocol::FrameBatch;
use tempfile::TempDir;

use super::assert_exit;
use super::hello_file;
use super::skips::Cause;
use super::skips::skip;
use super::stdout;
use super::tapster;
use super::written;

/// A file of dnstap: each frame a CLIENT_QUERY seen so many seconds after the epoch, or these bytes.
pub(super) fn dnstap_file(seconds: &[u8]) -> Vec<u8> {
    let frames = seconds.iter().map(|seconds| [0x72, 4, 0x08, 5, 0x40, *seconds]);
    file_of(Some(ContentType::DNSTAP), frames)
}

pub(super) fn file_of(
    content_type: Option<ContentType>,
    frames: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Vec<u8> {
    let writer = FileWriter::new(content_type);
    let batch = FrameBatch::from_payloads(frames, Instant::now()).unwrap();
    [writer.header(), batch.into_bytes(), writer.trailer()].concat()
}

fn report(path: &str) -> Value {
    serde_json::from_slice(&tapster(&["inspect", "--json", path]).stdout).unwrap()
}

/// Has a program of the system compress `bytes`; `None` where there is no such program.
fn compressed(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    let output = Command::new(program).arg("-c").stdin(file).output();
    let missing = |_: &_| skip(Cause::Missing, &format!("{program} is not installed"));
    Some(output.inspect_err(missing).ok()?.stdout)
}

#[test]
fn streams_put_together_are_inspected_one_after_the_other() {
    let folder = TempDir::new().unwrap();
    let both = [hello_file(), dnstap_file(&[1, 2])].concat();
    let path = written(&folder, "both.fstrm", &both);
    let report = report(&path);
    assert_eq!((report["frames"].as_u64(), report["streams"].as_u64()), (Some(12), Some(2)), "{report}");
    assert_eq!(report["status"], "clean");
    let output = tapster(&["inspect", &path]);
    assert_exit(&output, 0);
    for part in ["content type test:hello", "stream 2, content type protobuf:dnstap.Dnstap", "2 streams"] {
        assert!(stdout(&output).contains(part), "{part:?} in {}", stdout(&output));
    }
}

#[test]
fn what_a_file_is_and_what_damaged_it_is_told() {
    let folder = TempDir::new().unwrap();
    let hello = hello_file();
    let (header, frames) = hello.split_at(30);
    let crlf: Vec<u8> =
        hello.iter().flat_map(|byte| if *byte == b'\n' { vec![b'\r', b'\n'] } else { vec![*byte] }).collect();
    let binary = file_of(None, [[0x80, 0xc3, 0xff, 0xfe].repeat(20), [0x91, 0xe4, 0xa0].repeat(20)]);
    let recoded = String::from_utf8_lossy(&binary).into_owned().into_bytes();
    let latin1: String = binary.iter().map(|byte| char::from(*byte)).collect();
    let ready = [&b"\0\0\0\0\0\0\0\x0c\0\0\0\x04\0\0\0\x01\0\0\0\0"[..], &hello].concat();
    let accept = b"\0\0\0\0\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0\x05";
    let mut disk_full = file_of(None, [[7; 5000]]);
    disk_full.truncate(4096);
    for (bytes, status, parts) in [
        ([&hello[..], b"junk"].concat(), "damaged", &["garbage behind STOP", "4 bytes from byte 242 on"][..]),
        ([&hello[..], &[0; 100]].concat(), "damaged", &["garbage behind STOP", "zeros", "byte 242"]),
        (hello[..241].to_vec(), "truncated", &["at byte 230, 11 bytes"]),
        (hello[..230].to_vec(), "truncated", &["ends without STOP, at byte 230, behind frame 10"]),
        (
            hello[..99].to_vec(),
            "truncated",
            &["ends within a frame", "at byte 90, frame 4", "9 bytes", "killed"],
        ),
        (disk_full, "truncated", &["at byte 12, frame 1", "likely cause: the disk was full"]),
        (hello[..29].to_vec(), "truncated", &["before START is complete"]),
        (Vec::new(), "truncated", &["is empty"]),
        (
            [&hello[..50], &[0xff; 8]].concat(),
            "damaged",
            &["at byte 50, frame 2", "likely cause: bytes were lost"],
        ),
        ([&hello[..90], &[0; 500]].concat(), "damaged", &["at byte 90, frame 4", "power", "zeros"]),
        ([&hello[..90], &hello[..]].concat(), "damaged", &["at byte 90, frame 4", "appended"]),
        (crlf, "damaged", &["likely cause: text mode", "CR LF"]),
        (recoded, "damaged", &["likely cause: text mode", "recoded"]),
        (latin1.into_bytes(), "damaged", &["likely cause: text mode", "recoded"]),
        (frames.to_vec(), "damaged", &["has no header"]),
        (dnstap_file(&[1])[42..].to_vec(), "damaged", &["has no header"]),
        (ready, "damaged", &["begins with READY", "one direction of a socket", "tail -c +21"]),
        (accept.to_vec(), "damaged", &["begins with ACCEPT", "one direction of a socket"]),
        (b"not a Frame Streams file".to_vec(), "damaged", &["is text"]),
        (b"\xd4\xc3\xb2\xa1\x02\0\x04\0".to_vec(), "damaged", &["packet capture"]),
        (b"tapspool\0\0\0\x01".to_vec(), "damaged", &["segment of a spool"]),
        (b"BZh91AY&SY".to_vec(), "damaged", &["compressed with bzip2"]),
        (b"\xfd7zXZ\0\0\x04".to_vec(), "damaged", &["compressed with xz", "xz -dc"]),
        (
            [header, b"\0\0\0\0\0\0\0\x04\0\0\0\x04"].concat(),
            "damaged",
            &["at byte 30, frame 1", "got READY"],
        ),
    ] {
        let path = written(&folder, "file.fstrm", &bytes);
        let report = report(&path);
        assert_eq!(report["status"], status, "{report}");
        let detail = report["detail"].as_str().unwrap();
        for part in parts {
            assert!(detail.contains(part), "{part:?} in {detail:?}");
        }
        let text = tapster(&["inspect", &path]);
        assert_exit(&text, 1);
        assert!(stdout(&text).contains(parts[0]), "{}", stdout(&text));
    }
}

#[test]
fn a_file_that_may_still_be_written_is_told_as_such() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "hello.fstrm", &hello_file()[..230]);
    let told = || report(&path)["detail"].as_str().unwrap().contains("may still be writing it");
    assert!(told());
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
    assert!(!told());
}

#[test]
fn gzip_and_zstd_are_unpacked_and_their_damage_is_told() {
    let folder = TempDir::new().unwrap();
    // Long enough for several blocks, and not quite regular.
    let frames = (0..60_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_string());
    let file = file_of(Some("test:hello".parse().unwrap()), frames);
    for program in ["gzip", "zstd"] {
        let Some(packed) = compressed(program, &file) else { continue };
        // A file of several parts, as `cat a.gz b.gz` makes it.
        let parts = [packed.clone(), packed.clone()].concat();
        for (bytes, frames) in [(&packed, 60_000), (&parts, 120_000)] {
            let report = report(&written(&folder, "packed", bytes));
            assert_eq!((report["status"].as_str(), report["frames"].as_u64()), (Some("clean"), Some(frames)));
        }
        let cut = &packed[..packed.len() * 3 / 4];
        let report = report(&written(&folder, "cut", cut));
        assert_eq!(report["status"], "truncated", "{report}");
        assert!(report["frames"].as_u64().unwrap() > 20_000, "{report}");
        assert!(
            report["detail"].as_str().unwrap().contains(&format!("ends within the {program} data")),
            "{report}"
        );
        let mut changed = packed.clone();
        let middle = changed.len() / 2;
        changed[middle..middle + 4].iter_mut().for_each(|byte| *byte ^= 0x55);
        let path = written(&folder, "changed", &changed);
        let output = tapster(&["inspect", "--json", &path]);
        assert_exit(&output, 1);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_ne!(report["status"], "clean", "{report}");
    }
    for program in ["xz", "bzip2"] {
        let Some(packed) = compressed(program, &hello_file()) else { continue };
        let output = tapster(&["inspect", &written(&folder, "packed", &packed)]);
        assert_exit(&output, 1);
        assert!(stdout(&output).contains(&format!("compressed with {program}")), "{}", stdout(&output));
    }
}

#[test]
fn the_summary_holds_lengths_times_and_types() {
    let folder = TempDir::new().unwrap();
    let mut frames: Vec<Vec<u8>> = [7, 3, 5].map(|seconds| vec![0x72, 4, 0x08, 5, 0x40, seconds]).to_vec();
    frames.push(vec![0x72, 4, 0x08, 6, 0x60, 9]);
    frames.push(vec![0x72, 2, 0x08, 99]);
    frames.push(b"no dnstap, and long".to_vec());
    let path = written(&folder, "mixed.fstrm", &file_of(Some(ContentType::DNSTAP), frames));
    let report = report(&path);
    assert_eq!(report["longest"], 19, "{report}");
    assert_eq!(report["not_dnstap"], 1);
    assert_eq!(
        (&report["first"], &report["last"]),
        (&"1970-01-01T00:00:03Z".into(), &"1970-01-01T00:00:09Z".into())
    );
    let types = serde_json::json!({"CLIENT_QUERY": 3, "CLIENT_RESPONSE": 1, "other types": 1});
    assert_eq!(report["types"], types);
    let text = stdout(&tapster(&["inspect", &path]));
    let last = text.lines().last().unwrap();
    for part in [
        "clean, 6 frames",
        "longest payload 19 bytes",
        "1970-01-01T00:00:03.000000Z to 1970-01-01T00:00:09.000000Z",
        "CLIENT_QUERY 3, CLIENT_RESPONSE 1, other types 1",
        "1 frame not dnstap",
    ] {
        assert!(last.contains(part), "{part:?} in {last}");
    }
}

#[test]
fn json_with_payloads_is_an_object_per_frame_and_then_that_of_the_file() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "queries.fstrm", &dnstap_file(&(1..=40).collect::<Vec<_>>()));
    let output = tapster(&["inspect", "--json", "--payload", &path]);
    assert_exit(&output, 0);
    let objects: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(objects.len(), 41);
    assert_eq!((&objects[2]["frame"], &objects[2]["bytes"]), (&3.into(), &6.into()), "{}", objects[2]);
    assert_eq!(objects[2]["payload"], "720408054003");
    assert_eq!(objects[2]["type"], "CLIENT_QUERY");
    assert_eq!(objects[2]["time"], "1970-01-01T00:00:03.000000Z");
    assert_eq!((&objects[40]["frames"], &objects[40]["status"]), (&40.into(), &"clean".into()));
    let limited = tapster(&["inspect", "--json", "--payload", "--limit", "2", &path]);
    assert_eq!(stdout(&limited).lines().count(), 3);
}

/// The text of every payload used to be kept until the end of the file.
#[test]
fn json_with_payloads_takes_constant_memory() {
    let frame = vec![7; 64 << 10];
    let batch =
        FrameBatch::from_payloads(std::iter::repeat_n(&frame, 16), Instant::now()).unwrap().into_bytes();
    let writer = FileWriter::new(None);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tapster"))
        .args(["inspect", "--json", "--payload", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let counting = std::thread::spawn(move || {
        let (mut lines, mut line) = (0, Vec::new());
        while out.read_until(b'\n', &mut line).unwrap() > 0 {
            lines += 1;
            line.clear();
        }
        lines
    });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&writer.header()).unwrap();
    for _ in 0..40 {
        stdin.write_all(&batch).unwrap();
    }
    let status =
        fs::read_to_string(format!("/proc/{}/status", Pid::from_child(&child).as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    stdin.write_all(&writer.trailer()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(counting.join().unwrap(), 641);
    // 80 MiB of text went through it.
    assert!(peak < 40 << 10, "{peak} KiB");
}

#[test]
fn what_comes_through_a_pipe_is_printed_as_it_comes() {
    for args in [&["inspect", "-"][..], &["inspect", "--json", "--payload", "-"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tapster"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let hello = hello_file();
        stdin.write_all(&hello[..50]).unwrap();
        // The pipe is open, and its first frame is here.
        let frame = lines.find(|line| line.contains("frame")).unwrap();
        assert!(frame.contains("frame 1") || frame.contains("\"frame\":1"), "{frame}");
        stdin.write_all(&hello[50..70]).unwrap();
        let frame = lines.next().unwrap();
        assert!(frame.contains("frame 2") || frame.contains("\"frame\":2"), "{frame}");
        stdin.write_all(&hello[70..]).unwrap();
        drop(stdin);
        assert!(lines.last().unwrap().contains("clean"));
        assert!(child.wait().unwrap().success());
    }
}
