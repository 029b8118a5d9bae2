//! A real folder with things in it that are not ours.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;

use tapster::faults;
use tapster::protocol::ContentType;
use tapster::spool::Folder;
use tapster::spool::Found;
use tapster::spool::Moment;
use tapster::spool::OnFull;
use tapster::spool::RecoveryReport;
use tapster::spool::SegmentItems;
use tapster::spool::Spool;
use tapster::spool::SpoolError;
use tapster::spool::SyncPolicy;
use tapster::spool::inspect;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::batch;
use crate::support::numbers;
use crate::support::small;

struct Dir {
    _tempdir: tempfile::TempDir,
    path: PathBuf,
}

impl Dir {
    /// A spool of three segments, with frames 0..2, 2..4 and 4..6.
    fn new() -> Self {
        let tempdir = tempfile::tempdir().expect("a folder");
        let dir = Self { path: tempdir.path().join("spool"), _tempdir: tempdir };
        for first in [0, 2, 4] {
            let now = Moment::now();
            let (mut spool, _) = dir.open().expect("a sound folder");
            spool.append(&[batch(first, 2, 50, now)], now).expect("there is room");
            spool.close(now).expect("there is room");
        }
        dir
    }

    fn open(&self) -> Result<(Spool, RecoveryReport), SpoolError> {
        self.open_for(&ContentType::DNSTAP)
    }

    fn open_for(&self, content_type: &ContentType) -> Result<(Spool, RecoveryReport), SpoolError> {
        let config = small(SyncPolicy::Batch, OnFull::Block);
        Spool::open(&self.path, config, Some(content_type.clone()), Moment::now())
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("seg-{number:016x}.fsr"))
    }

    /// All files, by name.
    fn files(&self) -> BTreeMap<OsString, Vec<u8>> {
        let files = fs::read_dir(&self.path).expect("a folder").map(|file| file.expect("a file"));
        files.map(|file| (file.file_name(), fs::read(file.path()).expect("a file"))).collect()
    }

    /// Opens it, reads it all; the numbers, the frames reported as damaged, and the report.
    fn read(&self) -> (Vec<u64>, u64, RecoveryReport) {
        let (mut spool, report) = self.open().expect("whatever is in the folder");
        let mut read = Vec::new();
        let mut lost = 0;
        while let Some((batch, _)) = spool.next(Moment::now()).expect("nothing fails") {
            read.extend(numbers(&batch));
        }
        while let Some((reason, frames)) = spool.poll_loss() {
            assert_eq!(reason.as_str(), "spool_damaged");
            lost += frames;
        }
        (read, lost, report)
    }
}

fn reasons(report: &RecoveryReport) -> Vec<&'static str> {
    report.set_aside.iter().map(|aside| aside.reason).collect()
}

#[test]
fn a_spool_survives_whatever_is_put_into_its_folder() {
    let dir = Dir::new();
    let put = |name: &str| dir.path.join(name);
    fs::write(put("README"), "hello").unwrap();
    fs::write(put("seg-12.fsr"), "hello").unwrap();
    fs::create_dir(put("lost+found")).unwrap();
    fs::create_dir(dir.segment(7)).unwrap();
    symlink("/etc/passwd", dir.segment(8)).unwrap();
    fs::write(dir.segment(9), vec![0x5a; 100_000]).unwrap();
    fs::write(dir.segment(10), "").unwrap();
    fs::write(dir.segment(1 << 62), vec![0; 5000]).unwrap();
    fs::remove_file(put("cursor")).unwrap();
    symlink("/etc/passwd", put("cursor")).unwrap();

    let (read, lost, report) = dir.read();
    assert_eq!((read, lost), ((0..6).collect(), 0));
    assert_eq!(report.foreign, 3);
    assert_eq!(report.set_aside.len(), 5, "{report:?}");
    assert!(Path::new("/etc/passwd").exists() && put("README").exists());

    // And the next start finds nothing to complain about.
    let (read, _, report) = dir.read();
    assert_eq!((read.len(), report.set_aside), (6, Vec::new()));
}

#[test]
fn what_was_set_aside_goes_in_time_and_other_files_stay() {
    let dir = Dir::new();
    let aside =
        ["cursor.bad", "cursor.1.bad", "seg-0000000000000009.fsr.bad", "seg-0000000000000009.fsr.2.bad"];
    let foreign = ["notes.bad", "cursors.bad", "seg-9.fsr.bad", ".bad"];
    for name in aside.iter().chain(&foreign) {
        fs::write(dir.path.join(name), "hello").unwrap();
    }
    let inspected = inspect(&Folder::open_to_inspect(&dir.path).unwrap()).unwrap();
    assert_eq!((inspected.bad.len(), inspected.foreign.len()), (aside.len(), foreign.len()));
    let (mut spool, report) = dir.open().unwrap();
    assert_eq!((report.bad_files, report.foreign), (aside.len(), foreign.len()));
    spool.drop_before(u64::MAX, Moment::now()).unwrap();
    assert!(aside.iter().all(|name| !dir.path.join(name).exists()));
    assert!(foreign.iter().all(|name| dir.path.join(name).exists()));
}

#[test]
fn a_missing_segment_is_a_counted_gap() {
    let dir = Dir::new();
    fs::remove_file(dir.segment(2)).unwrap();
    let (read, lost, _) = dir.read();
    assert_eq!((read, lost), (vec![0, 1, 4, 5], 2));
}

#[test]
fn a_renamed_segment_gets_its_name_back_and_a_copy_is_set_aside() {
    let dir = Dir::new();
    fs::rename(dir.segment(2), dir.segment(77)).unwrap();
    fs::copy(dir.segment(1), dir.segment(78)).unwrap();
    let (read, lost, report) = dir.read();
    assert_eq!((read, lost), ((0..6).collect(), 0));
    assert_eq!(reasons(&report), ["it has the name of another segment"]);
    assert!(dir.segment(2).exists());
}

/// NFS, 9p and FUSE refuse some of these calls.
#[test]
fn a_spool_works_on_a_file_system_that_refuses_what_others_can() {
    if !faults::ENABLED {
        return skip(Cause::Missing, "this build has no faults");
    }
    for call in ["rename without replacing", "fallocate", "flock", "fsync of a folder"] {
        let tempdir = tempfile::tempdir().unwrap();
        let dir = Dir { path: tempdir.path().join("spool"), _tempdir: tempdir };
        (0..1000).for_each(|_| faults::arm(call, dir.path.to_str().unwrap(), 0));
        for first in [0, 2, 4] {
            let now = Moment::now();
            let (mut spool, report) = dir.open().unwrap();
            let remarks = report.remarks.join("; ");
            assert_eq!(remarks.contains("has no locks"), call == "flock", "{call}: {remarks}");
            spool.append(&[batch(first, 2, 50, now)], now).unwrap();
            spool.close(now).unwrap();
        }
        // Names are given back, and nothing that has a name is replaced.
        fs::rename(dir.segment(2), dir.segment(77)).unwrap();
        fs::copy(dir.segment(1), dir.segment(78)).unwrap();
        let taken = dir.path.join("seg-000000000000004e.fsr.bad");
        fs::write(&taken, "taken").unwrap();
        let (read, lost, report) = dir.read();
        assert_eq!((read, lost), ((0..6).collect(), 0), "{call}");
        assert_eq!(reasons(&report), ["it has the name of another segment"], "{call}");
        assert_eq!(fs::read(&taken).unwrap(), b"taken", "{call}");
        assert!(dir.path.join("seg-000000000000004e.fsr.1.bad").exists(), "{call}");
    }
}

#[test]
fn segments_of_another_spool_are_set_aside_and_frames_of_another_content_type_left_as_they_are() {
    let (dir, other) = (Dir::new(), Dir::new());
    fs::copy(other.segment(2), dir.segment(5)).unwrap();
    fs::copy(other.segment(3), dir.segment(6)).unwrap();
    // Named after their headers they would be 2 and 3, which are taken.
    let (read, lost, report) = dir.read();
    assert_eq!((read, lost), ((0..6).collect(), 0));
    assert_eq!(report.set_aside.len(), 2);

    let content_type = ContentType::try_from(bytes::Bytes::from_static(b"another")).unwrap();
    let before = dir.files();
    let error = dir.open_for(&content_type).unwrap_err();
    assert!(matches!(error, SpoolError::OtherContentType { .. }), "{error}");
    assert_eq!(dir.files(), before);
    assert_eq!(dir.read().0, (0..6).collect::<Vec<_>>(), "the output with their type gets them");
}

/// A rollback: the newer program finds all of it afterwards.
#[test]
fn a_spool_of_another_version_is_refused_and_left_as_it_is() {
    for (file, at, byte) in [("seg-0000000000000002.fsr", 8, 2), ("cursor", 4096 + 7, b'2')] {
        let dir = Dir::new();
        fs::write(dir.path.join("seg-0000000000000009.fsr"), vec![0x5a; 100_000]).unwrap();
        let path = dir.path.join(file);
        let sound = fs::read(&path).unwrap();
        let mut other = sound.clone();
        // The same in a layout that nobody here knows: no checksum is where it was.
        for (index, to) in other.iter_mut().enumerate() {
            *to ^= if index > at + 90 || file == "cursor" && index > at { 0xa5 } else { 0 };
        }
        other[at] = byte;
        fs::write(&path, &other).unwrap();
        let before = dir.files();
        let error = dir.open().unwrap_err();
        assert!(matches!(error, SpoolError::OtherVersion { version: 2, .. }), "{error}");
        assert_eq!(dir.files(), before);
        fs::write(&path, sound).unwrap();
        assert_eq!(dir.read().0, (0..6).collect::<Vec<_>>(), "{file}");
    }
}

#[test]
fn a_segment_that_cannot_be_opened_by_anybody_else_is_inspected_in_use() {
    let dir = Dir::new();
    let (_spool, _) = dir.open().unwrap();
    let folder = Folder::open_to_inspect(&dir.path).unwrap();
    let inspected = inspect(&folder).unwrap();
    let header = inspected.newest_header().unwrap();
    assert_eq!((header.segment, &header.content_type), (3, &Some(ContentType::DNSTAP)));
    assert_eq!(inspected.cursor.unwrap().position.frame_seq(), 0);
    let ends: Vec<_> = inspected.segments.iter().map(|segment| segment.frame_seq_end).collect();
    assert_eq!(ends, [Some(2), Some(4), Some(6)]);
    for segment in &inspected.segments {
        let items = SegmentItems::open(&folder, &segment.file.name).unwrap();
        let frames: Vec<_> = items
            .map(|item| match item.expect("a readable file") {
                Found::Record(header, _) => header.frames,
                Found::Damage { len } => panic!("{len} bytes of damage"),
            })
            .collect();
        assert_eq!(frames, [2, 0], "a record and the footer");
    }
}

#[test]
fn a_folder_that_cannot_be_had_is_a_clear_error() {
    let dir = Dir::new();
    let file = dir.path.join("cursor");
    let config = small(SyncPolicy::Batch, OnFull::Block);
    let error = Spool::open(&file, config.clone(), None, Moment::now()).unwrap_err();
    assert!(error.to_string().starts_with("cannot open the folder "), "{error}");
    let missing = dir.path.join("a/b");
    let error = Spool::open(&missing, config, None, Moment::now()).unwrap_err();
    assert!(error.to_string().starts_with("cannot create the folder "), "{error}");
}

#[test]
fn the_mode_of_a_folder_that_is_there_stays_and_is_remarked() {
    for (mode, remarks) in [(0o700, 0), (0o770, 0), (0o755, 1), (0o1777, 1)] {
        let dir = Dir::new();
        fs::set_permissions(&dir.path, Permissions::from_mode(mode)).unwrap();
        let (spool, report) = dir.open().expect("the folder is ours");
        assert_eq!(report.remarks.len(), remarks, "{mode:o}: {:?}", report.remarks);
        assert_eq!(fs::metadata(&dir.path).unwrap().permissions().mode() & 0o7777, mode);
        drop(spool);
        let probed = Folder::probe(&dir.path).expect("the folder is ours");
        assert_eq!(probed.remarks, report.remarks, "a look says the same");
    }
    let dir = Dir::new();
    assert_eq!(
        fs::metadata(&dir.path).unwrap().permissions().mode() & 0o7777,
        0o700,
        "one that tapster creates"
    );
}

#[test]
fn a_folder_behind_a_link_of_ours_is_the_same_folder() {
    let dir = Dir::new();
    let link = dir.path.with_file_name("link");
    symlink(&dir.path, &link).unwrap();
    assert_eq!(Folder::place_of(&dir.path), Folder::place_of(&link));
    assert_eq!(Folder::place_of(&dir.path), Folder::place_of(&dir.path.join("../spool")));
    let new = |name: &str| Folder::place_of(&dir.path.with_file_name(name));
    assert!(new("a").is_some() && new("a") != new("b"));
    let config = small(SyncPolicy::Batch, OnFull::Block);
    let opened = Spool::open(&link, config.clone(), Some(ContentType::DNSTAP), Moment::now());
    let (_spool, report) = opened.expect("a link of ours");
    assert_eq!(report.frames, 6);
    let again = Spool::open(&dir.path, config, Some(ContentType::DNSTAP), Moment::now());
    assert!(matches!(again, Err(SpoolError::InUse { .. })));
}

#[test]
fn a_folder_of_another_user_is_refused_unless_its_group_is_ours() {
    if !rustix::process::geteuid().is_root() {
        return skip(Cause::Missing, "giving a folder to another user needs root");
    }
    let dir = Dir::new();
    let give = |user, group, mode| {
        chown(&dir.path, Some(user), Some(group)).unwrap();
        fs::set_permissions(&dir.path, Permissions::from_mode(mode)).unwrap();
    };
    let ours = rustix::process::getegid().as_raw();
    give(65_533, ours, 0o700);
    let error = dir.open().unwrap_err();
    assert!(matches!(error, SpoolError::OtherOwner { user: 65_533, .. }), "{error}");
    assert_eq!(Folder::probe(&dir.path).unwrap_err().to_string(), error.to_string());
    give(65_533, 65_534, 0o770);
    assert!(matches!(dir.open(), Err(SpoolError::OtherOwner { .. })));
    give(65_533, ours, 0o2770);
    assert_eq!(dir.open().expect("given to our group").1.remarks.len(), 1);
}
