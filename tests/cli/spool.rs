//! `tapster spool`, and `replay` of spools.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SpoolError;
use tempfile::TempDir;

use crate::AfterStop;
use crate::assert_exit;
use crate::reader;
use crate::stderr;
use crate::stdout;
use crate::tapster;

/// A spool of two closed segments of three records each, two frames in each: `frame 00` to `frame 11`. A record was read
/// each second, from [`BEGIN`] on.
struct Dir {
    folder: TempDir,
    name: String,
    /// Of the output that it is replayed to.
    keys: &'static str,
}

const BEGIN: u64 = 1_700_000_000;

impl Dir {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let name = folder.path().join("spool").to_str().unwrap().to_owned();
        let dir = Self { folder, name, keys: "" };
        for segment in 0..2 {
            let mut spool = dir.open();
            for record in 3 * segment..3 * segment + 3 {
                let now = moment(BEGIN + record);
                spool.append(&[batch(2 * record, now)], now).unwrap();
            }
            spool.close(moment(BEGIN + 3 * segment + 2)).unwrap();
        }
        dir
    }

    fn open(&self) -> Spool {
        let config = SpoolConfig { min_free: 0, ..SpoolConfig::default() };
        let open = || {
            let content_type = Some(ContentType::DNSTAP);
            Spool::open(self.name.as_ref(), config.clone(), content_type, moment(BEGIN))
        };
        when_free(|| match open() {
            Err(SpoolError::InUse { .. }) => None,
            opened => Some(opened.unwrap().0),
        })
    }

    /// Acknowledges the first `records` records.
    fn acknowledge(&self, records: usize) {
        let mut spool = self.open();
        for _ in 0..records {
            let (batch, position) = spool.next(moment(BEGIN)).unwrap().unwrap();
            spool.acknowledge(position.after(batch.frames()), moment(BEGIN));
        }
        spool.close(moment(BEGIN)).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.name).join(name)
    }

    /// Flips a bit of a file.
    fn damage(&self, name: &str, at: usize) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        bytes[at] ^= 1;
        fs::write(self.file(name), bytes).unwrap();
    }

    fn run(&self, command: &str, args: &[&str]) -> Output {
        tapster(&[&["spool", command, &self.name][..], args].concat())
    }

    fn drop(&self, args: &[&str]) -> Output {
        when_free(|| {
            let output = self.run("drop", args);
            (!stderr(&output).contains(IN_USE)).then_some(output)
        })
    }

    #[track_caller]
    fn json(&self, command: &str, code: i32) -> Value {
        let output = self.run(command, &["--json"]);
        assert_exit(&output, code);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Dumps into a file, inspects it, and returns its payloads.
    #[track_caller]
    fn dump(&self, args: &[&str], code: i32) -> Vec<String> {
        let file = self.folder.path().join("dump.fstrm");
        let file = file.to_str().unwrap();
        let output = self.run("dump", &[&["--to", file][..], args].concat());
        assert_exit(&output, code);
        let inspected = tapster(&["inspect", "--json", "--payload", "--limit", "100", file]);
        assert_exit(&inspected, 0);
        fs::remove_file(file).unwrap();
        let text = stdout(&inspected);
        let mut objects: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let report = objects.pop().unwrap();
        assert_eq!(report["content_type"], "protobuf:dnstap.Dnstap");
        let payload = |frame: &Value| bytes_of(frame["payload"].as_str().unwrap());
        objects.iter().map(|frame| String::from_utf8(payload(frame)).unwrap()).collect()
    }
}

/// Waits for a lock that was just released: from fork to exec, a program that another test starts has it as well.
#[track_caller]
fn when_free<T>(attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    let in_time = std::iter::repeat_with(attempt).take_while(|_| Instant::now() < deadline);
    in_time.flatten().next().expect("the folder is free")
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn moment(seconds: u64) -> Moment {
    Moment { instant: Instant::now(), unix: seconds * 1_000_000_000 }
}

fn batch(first: u64, now: Moment) -> FrameBatch {
    FrameBatch::from_payloads((first..first + 2).map(payload), now.instant).unwrap()
}

fn payload(number: u64) -> String {
    format!("frame {number:02}")
}

fn payloads(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(payload).collect()
}

const FIRST: &str = "seg-0000000000000001.fsr";
const SECOND: &str = "seg-0000000000000002.fsr";
const IN_USE: &str = "in use by another process";
/// Bytes of a record: two frames of eight bytes, with their length words.
const RECORD: usize = 40 + 2 * 12;

#[test]
fn list_tells_what_is_in_a_spool_in_use() {
    let dir = Dir::new();
    dir.acknowledge(1);
    fs::write(dir.file("README"), "hello").unwrap();
    fs::write(dir.file("seg-00000000000000aa.fsr.bad"), [0; 10]).unwrap();
    // In use, and with a segment that is written to.
    let mut spool = dir.open();
    let now = moment(BEGIN + 9);
    spool.append(&[batch(12, now)], now).unwrap();
    symlink("/etc/passwd", dir.file("seg-0000000000000007.fsr")).unwrap();

    let listing = dir.json("list", 0);
    for (key, value) in [
        ("content_type", Value::from("protobuf:dnstap.Dnstap")),
        ("frames", 14.into()),
        ("frames_waiting", 12.into()),
        ("oldest", "2023-11-14T22:13:20Z".into()),
        ("youngest", "2023-11-14T22:13:29Z".into()),
    ] {
        assert_eq!(listing[key], value, "{key} of {listing}");
    }
    assert_eq!(listing["cursor"]["frame"], 2);
    let segments: Vec<_> = listing["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| {
            (
                segment["status"].as_str().unwrap(),
                segment["frames"].as_u64().unwrap(),
                segment["frames_waiting"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(segments, [("closed", 6, 4), ("closed", 6, 6), ("open", 2, 2)]);
    assert_eq!(listing["set_aside"][0]["bytes"], 10);
    let foreign: Vec<_> =
        listing["foreign"].as_array().unwrap().iter().map(|file| file["file"].as_str().unwrap()).collect();
    assert_eq!(foreign, ["README", "seg-0000000000000007.fsr"]);

    let output = dir.run("list", &[]);
    assert_exit(&output, 0);
    for part in [
        "12 frames waiting, 3 segments of 12816 bytes",
        "cursor: before frame 2",
        "closed, 6 frames, 4 waiting",
        "foreign: README, 5 bytes",
    ] {
        assert!(stdout(&output).contains(part), "{part:?} in {}", stdout(&output));
    }
}

#[test]
fn list_takes_whatever_a_folder_holds() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = tapster(&["spool", "list", path]);
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("0 frames waiting, 0 segments"), "{}", stdout(&output));
    fs::write(folder.path().join(FIRST), vec![0x5a; 100_000]).unwrap();
    fs::write(folder.path().join(SECOND), "").unwrap();
    fs::write(folder.path().join("cursor"), "junk").unwrap();
    fs::create_dir(folder.path().join("seg-0000000000000003.fsr")).unwrap();
    fs::write(folder.path().join("\u{1b}[31m"), "").unwrap();
    let output = tapster(&["spool", "list", "/nonexistent", path]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("/nonexistent"), "{}", stderr(&output));
    for part in [
        "cursor: damaged",
        "no sound record in it, 0 frames",
        "foreign: seg-0000000000000003.fsr",
        "\\u{1b}[31m",
    ] {
        assert!(stdout(&output).contains(part), "{part:?} in {}", stdout(&output));
    }
}

/// A damaged copy of the second segment, under the name of the first: every command finds what the relay would deliver.
#[test]
fn all_commands_find_what_a_spool_gives_and_name_what_it_leaves_out() {
    let dir = Dir::new();
    fs::copy(dir.file(SECOND), dir.file(FIRST)).unwrap();
    dir.damage(FIRST, 4096 + 50);
    let list = dir.json("list", 0);
    assert_eq!((&list["frames"], &list["frames_waiting"]), (&json!(6), &json!(6)));
    assert_eq!(list["segments"][0]["status"], "it has the name of another segment");
    let check = dir.json("check", 1);
    assert_eq!((&check["frames"], &check["frames_waiting"]), (&json!(6), &json!(6)));
    let left_out =
        json!({ "kind": "left_out", "file": FIRST, "reason": "it has the name of another segment" });
    let missing = json!({ "kind": "missing", "first": 0, "frames": 6 });
    assert_eq!(check["flaws"], json!([left_out, missing]));
    assert_eq!(dir.dump(&[], 1).len(), 6);
    let mut spool = dir.open();
    let mut frames = 0;
    while let Some((batch, _)) = spool.next(moment(BEGIN)).unwrap() {
        frames += batch.frames();
    }
    assert_eq!((frames, spool.poll_loss().map(|(_, lost)| lost)), (6, Some(6)));
}

#[test]
fn check_finds_a_sound_spool_sound() {
    let (dir, other) = (Dir::new(), Dir::new());
    dir.acknowledge(2);
    let _in_use = dir.open();
    let output = tapster(&["spool", "check", "--json", &dir.name, &other.name]);
    assert_exit(&output, 0);
    let reports: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers = reports.iter().map(|report| {
        ["frames", "frames_waiting", "bytes", "flaws_count"].map(|key| report[key].as_u64().unwrap())
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [[12, 8, 144, 0], [12, 12, 144, 0]]);
    let output = dir.run("check", &[]);
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("sound, 12 frames, 144 bytes, 8 waiting"), "{}", stdout(&output));
}

#[test]
fn check_tells_what_is_damaged_and_what_is_missing() {
    let dir = Dir::new();
    dir.damage(FIRST, 4096 + RECORD + 45);
    let report = dir.json("check", 1);
    assert_eq!(report["status"], "damaged");
    assert_eq!((report["frames"].as_u64(), report["frames_waiting"].as_u64()), (Some(10), Some(10)));
    let flaws = serde_json::json!([
        { "kind": "damaged", "file": FIRST, "offset": 4096 + RECORD, "bytes": RECORD },
        { "kind": "missing", "first": 2, "frames": 2 },
    ]);
    assert_eq!(report["flaws"], flaws);
    let output = dir.run("check", &[]);
    assert_exit(&output, 1);
    for part in [
        "64 bytes from offset 4160 on are damaged",
        "frames 2 to 3 are missing: 2 in all",
        "damaged, 10 frames",
    ] {
        assert!(stdout(&output).contains(part), "{part:?} in {}", stdout(&output));
    }
    // The relay comes to the same, and sets the file aside.
    let mut spool = dir.open();
    while let Some((batch, position)) = spool.next(moment(BEGIN)).unwrap() {
        spool.acknowledge(position.after(batch.frames()), moment(BEGIN));
    }
    assert_eq!(spool.poll_loss().map(|(_, frames)| frames), Some(2));
    spool.close(moment(BEGIN)).unwrap();
    let report = dir.json("check", 1);
    assert_eq!((report["status"].as_str(), report["flaws_count"].as_u64()), (Some("damaged"), Some(0)));
    assert_eq!(report["set_aside"], serde_json::json!([{ "file": format!("{FIRST}.bad"), "frames": 4 }]));
}

#[test]
fn check_takes_a_torn_end_for_what_it_is() {
    let dir = Dir::new();
    let mut bytes = fs::read(dir.file(SECOND)).unwrap();
    bytes.truncate(4096 + 2 * RECORD + 50);
    fs::write(dir.file(SECOND), bytes).unwrap();
    let report = dir.json("check", 0);
    assert_eq!((report["status"].as_str(), report["frames"].as_u64()), (Some("sound"), Some(10)));
    let torn =
        serde_json::json!([{ "kind": "torn", "file": SECOND, "offset": 4096 + 2 * RECORD, "bytes": 50 }]);
    assert_eq!(report["flaws"], torn);
    // Where more comes behind it, frames are missing.
    let first = fs::read(dir.file(FIRST)).unwrap();
    fs::write(dir.file(FIRST), &first[..4096 + 2 * RECORD + 50]).unwrap();
    assert_eq!(
        dir.json("check", 1)["flaws"][1],
        serde_json::json!({ "kind": "missing", "first": 4, "frames": 2 })
    );
}

#[test]
fn what_was_delivered_in_part_waits_as_the_rest() {
    let dir = Dir::new();
    let mut spool = dir.open();
    let (_, position) = spool.next(moment(BEGIN)).unwrap().unwrap();
    spool.acknowledge(position.after(1), moment(BEGIN));
    spool.close(moment(BEGIN)).unwrap();
    drop(spool);
    for command in ["list", "check"] {
        let report = dir.json(command, 0);
        let frames = (report["frames"].as_u64(), report["frames_waiting"].as_u64());
        assert_eq!(frames, (Some(12), Some(11)), "{command}");
    }
    assert_eq!(dir.dump(&[], 0), payloads(1..12));
    assert_eq!(dir.dump(&["--all"], 0), payloads(0..12));
}

#[test]
fn dump_writes_what_waits_or_everything_and_changes_nothing() {
    let dir = Dir::new();
    dir.acknowledge(1);
    let before = listing_of(&dir);
    let _in_use = dir.open();
    assert_eq!(dir.dump(&[], 0), payloads(2..12));
    assert_eq!(dir.dump(&["--all"], 0), payloads(0..12));
    assert_eq!(listing_of(&dir), before);
    // To a pipe the same bytes as to a file.
    let output = dir.run("dump", &[]);
    assert_exit(&output, 0);
    assert!(stderr(&output).contains("10 frames written to stdout"), "{}", stderr(&output));
    let file = dir.folder.path().join("dump.fstrm");
    assert_exit(&dir.run("dump", &["-t", file.to_str().unwrap()]), 0);
    assert_eq!(fs::read(&file).unwrap(), output.stdout);
    // A file that is there stays.
    fs::write(&file, "dear to somebody").unwrap();
    let output = dir.run("dump", &["--to", file.to_str().unwrap()]);
    assert_exit(&output, 1);
    assert_eq!(fs::read(&file).unwrap(), b"dear to somebody");
    let output = dir.run("dump", &["--to", "/dev/full"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("/dev/full"), "{}", stderr(&output));
}

/// Names and bytes of a folder.
fn listing_of(dir: &Dir) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(&dir.name).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn dump_takes_a_stretch_of_time() {
    let dir = Dir::new();
    let (two, four) = ("2023-11-14T22:13:22Z", "2023-11-14T22:13:24Z");
    assert_eq!(dir.dump(&["--from", two, "--until", four], 0), payloads(4..8));
    assert_eq!(dir.dump(&["--from", four], 0), payloads(8..12));
    assert_eq!(dir.dump(&["--until", two], 0), payloads(0..4));
    assert_eq!(dir.dump(&["--from", "-1h"], 0), payloads(0..0));
    for range in [&["--from", four, "--until", two][..], &["--from", "soon"], &["--until", ""]] {
        assert_exit(&dir.run("dump", range), 64);
    }
}

#[test]
fn dump_writes_everything_that_is_sound_and_tells_of_the_rest() {
    let dir = Dir::new();
    dir.damage(FIRST, 4096 + RECORD + 45);
    dir.damage(SECOND, 100);
    let output = dir.run("dump", &[]);
    assert_exit(&output, 1);
    for part in [
        "64 bytes from offset 4160 on are damaged",
        "frames 2 to 3 are missing",
        "header is damaged",
        "10 frames written",
    ] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }
    let sound = payloads((0..12).filter(|number| !(2..4).contains(number)));
    assert_eq!(dir.dump(&[], 1), sound);
    // The relay passes over them, and sets them aside.
    dir.acknowledge(5);
    assert!(dir.file(&format!("{FIRST}.bad")).exists() && dir.file(&format!("{SECOND}.bad")).exists());
    assert_eq!(dir.dump(&[], 0), payloads(0..0));
    assert_eq!(dir.dump(&["--all"], 1), sound);
}

#[test]
fn drop_removes_a_spool_and_nothing_else() {
    let dir = Dir::new();
    fs::write(dir.file("README"), "hello").unwrap();
    fs::write(dir.file("seg-00000000000000aa.fsr.bad"), [0; 10]).unwrap();
    dir.acknowledge(1);
    let before = listing_of(&dir);
    let output = dir.run("drop", &[]);
    assert_exit(&output, 64);
    for part in ["would drop 2 segments with 10 frames", "1 file that", "--yes"] {
        assert!(stderr(&output).contains(part), "{part:?} in {}", stderr(&output));
    }
    let in_use = dir.open();
    let output = dir.run("drop", &["--yes"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains(IN_USE), "{}", stderr(&output));
    assert_eq!(listing_of(&dir), before);
    drop(in_use);
    let output = dir.drop(&["--yes"]);
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("dropped 10 frames"), "{}", stdout(&output));
    let names: Vec<_> = listing_of(&dir).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["README", "cursor"]);
    assert_eq!(dir.open().frames(), 0);
}

#[test]
fn drop_keeps_segments_that_are_young_enough() {
    let dir = Dir::new();
    let before = |time| ["--yes", "--before", time];
    // The first segment has a frame of that second.
    assert_exit(&dir.drop(&before("2023-11-14T22:13:22Z")), 0);
    assert_eq!(dir.dump(&[], 0), payloads(0..12));
    let output = dir.drop(&before("2023-11-14T22:13:23Z"));
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("dropped 6 frames") && stdout(&output).contains("6 frames waiting"));
    assert_eq!(dir.dump(&[], 0), payloads(6..12));
    assert_eq!(dir.json("check", 0)["flaws_count"], 0);
}

#[test]
fn a_folder_without_a_spool_is_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("notes"), "hello").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().to_str().unwrap();
    for args in [&["check", path][..], &["dump", path], &["drop", path, "--yes"]] {
        let output = tapster(&[&["spool"], args].concat());
        assert_exit(&output, 1);
        assert!(stderr(&output).contains("there is no spool in it"), "{}", stderr(&output));
    }
    assert_eq!(folder.path().metadata().unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    for args in [
        &["spool"][..],
        &["spool", "mend", path],
        &["spool", "list"],
        &["spool", "drop", path, "--before", "x"],
    ] {
        assert_exit(&tapster(args), 64);
    }
}

impl Dir {
    /// Replays the spool to a reader; returns the payloads that it got, and what was said.
    #[track_caller]
    fn replay(&self, args: &[&str], code: i32) -> (Vec<String>, String) {
        let socket = self.folder.path().join("reader.sock");
        let reader = reader(&socket, AfterStop::Finish);
        let to = format!("unix:{}{}", socket.display(), self.keys);
        let output = tapster(&[&["replay", &self.name, "--to", &to][..], args].concat());
        assert_exit(&output, code);
        fs::remove_file(&socket).unwrap();
        let payloads = reader.join().unwrap();
        (
            payloads.iter().map(|payload| String::from_utf8(payload.to_vec()).unwrap()).collect(),
            stderr(&output),
        )
    }
}

#[test]
fn replay_sends_what_waits_in_a_spool_in_use_or_everything_and_leaves_it_there() {
    let dir = Dir::new();
    dir.acknowledge(1);
    let before = listing_of(&dir);
    let _in_use = dir.open();
    for _ in 0..2 {
        let (sent, said) = dir.replay(&[], 0);
        assert_eq!(sent, payloads(2..12));
        assert!(said.contains("10 frames sent"), "{said}");
    }
    assert_eq!(dir.replay(&["--all", "--rate", "1000"], 0).0, payloads(0..12));
    let range = ["--from", "2023-11-14T22:13:22Z", "--until", "2023-11-14T22:13:24Z"];
    assert_eq!(dir.replay(&range, 0).0, payloads(4..8));
    assert_eq!(listing_of(&dir), before);
}

#[test]
fn replay_of_a_spool_keeps_the_pace_at_which_its_frames_were_read() {
    let dir = Dir::new();
    let start = Instant::now();
    // Six records, a second apart; the frames themselves have no time.
    assert_eq!(dir.replay(&["--speed", "20"], 0).0, payloads(0..12));
    assert!(start.elapsed().as_millis() >= 250);
}

#[test]
fn replay_of_a_damaged_spool_sends_what_is_sound_and_exits_with_1() {
    let dir = Dir::new();
    dir.damage(SECOND, 4096 + 45);
    let (sent, said) = dir.replay(&[], 1);
    assert_eq!(sent, payloads((0..6).chain(8..12)));
    for part in ["64 bytes from offset 4096 on are damaged", "frames 6 to 7 are missing", "10 frames sent"] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

#[test]
fn replay_leaves_out_of_a_spool_what_is_too_long_for_the_reader() {
    let dir = Dir::new();
    let mut spool = dir.open();
    let now = moment(BEGIN + 9);
    let long = FrameBatch::from_payloads([payload(12), "x".repeat(600), payload(13)], now.instant).unwrap();
    spool.append(&[long], now).unwrap();
    let (sent, said) = Dir { keys: "?frame_len_max=512B", ..dir }.replay(&[], 1);
    assert_eq!(sent, payloads(0..14));
    assert!(said.contains("1 frame longer than frame_len_max left out"), "{said}");
}

#[test]
fn replay_of_a_folder_without_a_spool_exits_with_1() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = tapster(&["replay", path, "--to", "unix:/nonexistent/none.sock"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("there is no spool in it"), "{}", stderr(&output));
    for range in [&["--from", "2h", "--until", "3h"][..], &["--from", "soon"]] {
        let args = [&["replay", path, "--to", "unix:/nonexistent/none.sock"][..], range].concat();
        assert_exit(&tapster(&args), 64);
    }
}
