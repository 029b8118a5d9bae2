//! What `tapster spool dump` writes is a file for the programs of others, whatever has happened to the spool.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;

use crate::support::collector::CollectingReader;
use crate::support::files::FstrmFile;
use crate::support::files::files_in;
use crate::support::numbered;
use crate::support::peers::dnstap_sends;
use crate::support::peers::find;
use crate::support::process::Process;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::beside_others;

/// A spool with 20 batches of 1000 frames in several segments.
fn spool(path: &Path) {
    let config = SpoolConfig { max: 4 << 20, min_free: 0, ..SpoolConfig::default() };
    let opened = Spool::open(path, config, Some(ContentType::DNSTAP), Moment::now());
    let (mut spool, _) = opened.expect("an empty folder");
    for batch in 0..20 {
        let frames = Bytes::from(numbered::frames(0, 1000 * batch..1000 * batch + 1000));
        let batch = FrameBatch::parse(frames, 1 << 20, Instant::now()).expect("whole frames");
        let appended = spool.append(&[batch], Moment::now()).expect("a disk");
        assert_eq!(appended.positions.len(), 1);
    }
    spool.close(Moment::now()).expect("a disk");
    assert!(files_in(path, ".fsr").len() > 3);
}

/// Dumps it into a file. Returns the file and the exit status.
fn dump(spool: &Path, to: PathBuf) -> (PathBuf, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tapster"));
    command.args(["spool", "dump"]).arg(spool).arg("--to").arg(&to);
    let status = Process::spawn(&mut command).wait_within(Duration::from_secs(20));
    (to, status.code())
}

#[test]
fn fstrm_dump_copies_a_dumped_spool() {
    let _turn = beside_others();
    let Some(program) = find("fstrm_dump") else { return };
    let folder = folder();
    let path = folder.path().join("spool");
    spool(&path);
    let (file, status) = dump(&path, folder.path().join("dump.fstrm"));
    assert_eq!(status, Some(0));
    let copy = folder.path().join("copy.fstrm");
    Process::spawn(Command::new(program).arg(&file).arg(&copy)).wait_for_success(Duration::from_secs(20));
    let copied = FstrmFile::read(&copy).expect("a file");
    assert!(copied.clean);
    numbered::assert_complete(copied.payloads(), &[(0, 0..20_000)]);
    assert!(fs::read(&copy).unwrap() == fs::read(&file).unwrap());
}

#[test]
fn dnstap_sends_a_dumped_spool_and_of_a_damaged_one_what_is_sound() {
    let _turn = beside_others();
    let folder = folder();
    let path = folder.path().join("spool");
    spool(&path);
    for (name, damaged) in [("sound", false), ("damaged", true)] {
        if damaged {
            // The first record of the second segment.
            let segment = &files_in(&path, ".fsr")[1];
            let mut bytes = fs::read(segment).unwrap();
            bytes[5000] ^= 1;
            fs::write(segment, bytes).unwrap();
        }
        let (file, status) = dump(&path, folder.path().join(name));
        assert_eq!(status, Some(i32::from(damaged)));
        let frames = if damaged { 19_000 } else { 20_000 };
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let Some(mut sender) = dnstap_sends(&file, &reader.address()) else { return };
        reader.wait_for_frames(frames);
        sender.wait_for_success(Duration::from_secs(20));
        let collected = reader.close();
        numbered::assert_rising(collected.payloads());
        assert_eq!(collected.frames(), frames as u64);
    }
}
