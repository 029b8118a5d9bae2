//! Output files that people remove, rename and cut, and folders that are gone: what comes afterwards is in a file that can be
//! read, and nothing counts as sent that is in none.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use tapster::output::Keep;

use crate::support::files::FstrmFile;
use crate::support::files::files_in;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::relay;
use crate::support::relay::to_file;
use crate::support::stream::folder;
use crate::support::tmpfs::Tmpfs;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// A relay that writes `path`, its writer, and how far its frames have come.
struct Writing {
    relay: TestRelay,
    writer: Peer,
    sent: u64,
}

impl Writing {
    fn new(relay: TestRelay) -> Self {
        let writer = relay.writer();
        Self { relay, writer, sent: 0 }
    }

    /// Sends frames, and waits until tapster has seen them in the file.
    #[track_caller]
    fn send(&mut self, frames: u64) {
        self.writer.send(&numbered::frames(0, self.sent..self.sent + frames));
        self.sent += frames;
        eventually("written, and seen in the file", || self.relay.output(0).frames_acknowledged == self.sent);
    }

    /// Ends the writer and the relay. Every frame counts as sent.
    #[track_caller]
    fn end(self) {
        self.writer.finish();
        let ledger = self.relay.drain();
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.frames_unacknowledged), (self.sent, 0), "{output:?}");
    }
}

/// The payloads of these files. Every file is whole.
#[track_caller]
fn payloads_of(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    let files = paths.iter().map(|path| (path, FstrmFile::read(path).expect("START")));
    let payloads = files.flat_map(|(path, file)| {
        assert!(file.clean, "{} has no STOP", path.display());
        file.payloads().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
    });
    payloads.collect()
}

/// Fails unless these files have the frames of writer 0 with these numbers, each once.
#[track_caller]
fn assert_frames(paths: &[PathBuf], frames: std::ops::Range<u64>) {
    let payloads = payloads_of(paths);
    numbered::assert_complete(payloads.iter().map(Vec::as_slice), &[(0, frames)]);
}

#[track_caller]
fn wait_for_file(path: &Path) {
    eventually(&format!("{} is there", path.display()), || path.exists());
}

on_both_backends! {
    fn a_file_that_was_removed_is_followed_by_a_new_one(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        writing.send(100);
        fs::remove_file(&path).expect("our file");
        // Without any frame.
        wait_for_file(&path);
        writing.send(50);
        writing.end();
        assert_frames(&[path], 100..150);
    }

    /// Frames come all the time, and the last look was before the removal of the file: what was written after the look comes again.
    fn nothing_that_was_written_after_the_removal_is_lost(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        let mut removed = 0;
        let mut readable = std::collections::BTreeSet::new();
        for round in 0..200 {
            writing.writer.send(&numbered::frames(0, round * 20..round * 20 + 20));
            writing.sent += 20;
            writing.relay.wait_for_frames(round * 20 + 20);
            if round % 40 == 20 {
                wait_for_file(&path);
                // What was in the file at its end counts as read.
                let mut kept = File::open(&path).expect("our file");
                fs::remove_file(&path).expect("our file");
                let mut before = Vec::new();
                kept.read_to_end(&mut before).expect("what was written");
                fs::write(folder.path().join(format!("kept-{removed}")), before).expect("a copy");
                removed += 1;
            }
        }
        writing.end();
        for path in files_in(folder.path(), "") {
            let file = FstrmFile::read(&path).expect("START");
            readable.extend(file.payloads().into_iter().map(|payload| numbered::Number::of(payload).sequence));
        }
        assert_eq!(removed, 5);
        let missing: Vec<u64> = (0..4000).filter(|sequence| !readable.contains(sequence)).collect();
        assert_eq!(missing, [0; 0]);
    }

    fn a_folder_that_was_removed_is_made_again(backend) {
        let folder = folder();
        let logs = folder.path().join("logs");
        let path = logs.join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        writing.send(100);
        fs::remove_dir_all(&logs).expect("our folder");
        wait_for_file(&path);
        writing.send(10);
        // Renamed as a whole, and made again by somebody else.
        let old = folder.path().join("old");
        fs::rename(&logs, &old).expect("our folder");
        fs::create_dir(&logs).expect("a folder");
        wait_for_file(&path);
        writing.send(10);
        writing.end();
        assert_frames(&[old.join("out.fstrm")], 100..110);
        assert_frames(&[path], 110..120);
    }

    /// What was written since the last look is written again, where it can be read.
    fn a_folder_that_something_is_mounted_over_is_written_anew(backend) {
        let folder = folder();
        let logs = folder.path().join("logs");
        let path = logs.join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        writing.send(100);
        let Some(disk) = Tmpfs::mount_over(logs, 1 << 20) else { return };
        // Most of the time these go into the file that nobody sees, before that is noticed.
        writing.send(10);
        wait_for_file(&path);
        writing.send(10);
        writing.end();
        assert_frames(std::slice::from_ref(&path), 100..120);
        drop(disk);
        let hidden = payloads_of(&[path]);
        let sequences = numbered::sequences(hidden.iter().map(Vec::as_slice)).remove(&0).expect("frames");
        assert!(sequences.len() <= 110 && sequences.iter().copied().eq(0..sequences.len() as u64), "{sequences:?}");
        assert!(sequences.len() >= 100, "{sequences:?}");
    }

    /// logrotate with `nocreate`, and nobody tells us.
    fn a_file_that_was_renamed_is_ended_and_a_new_one_begins(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        for (number, name) in ["out.fstrm.1", "out.fstrm.2"].iter().enumerate() {
            writing.send(100);
            fs::rename(&path, folder.path().join(name)).expect("our file");
            wait_for_file(&path);
            assert_eq!(writing.relay.output(0).sessions_finished, number as u64 + 1);
        }
        writing.send(100);
        writing.end();
        let paths = ["out.fstrm.1", "out.fstrm.2", "out.fstrm"].map(|name| folder.path().join(name));
        for (path, first) in paths.iter().zip([0, 100, 200]) {
            assert_frames(std::slice::from_ref(path), first..first + 100);
        }
        assert_eq!(files_in(folder.path(), "").len(), 3);
    }

    /// logrotate with `create` makes an empty file of its own mode and owner, and expects it to be written.
    fn an_empty_file_that_logrotate_has_made_is_written(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        writing.send(100);
        let empty = folder.path().join("empty");
        File::create(&empty).expect("a file");
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o604)).expect("our file");
        let inode = fs::metadata(&empty).expect("our file").ino();
        fs::rename(&path, folder.path().join("out.fstrm.1")).expect("our file");
        fs::rename(&empty, &path).expect("our file");
        writing.relay.reopen_files();
        eventually("a new stream", || writing.relay.output(0).connections == 2);
        writing.send(100);
        writing.end();
        let found = fs::metadata(&path).expect("a file");
        assert_eq!((found.ino(), found.mode() & 0o777), (inode, 0o604));
        assert_frames(&[folder.path().join("out.fstrm.1")], 0..100);
        assert_frames(&[path], 100..200);
        assert_eq!(files_in(folder.path(), "").len(), 2);
    }

    /// A file of another process that is renamed onto ours is not written.
    fn a_file_that_takes_our_place_is_left_alone(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        writing.send(100);
        let other = folder.path().join("other");
        fs::write(&other, b"of somebody else").expect("a file");
        fs::rename(&other, &path).expect("our file");
        let next = folder.path().join("out.fstrm.1");
        wait_for_file(&next);
        writing.send(50);
        writing.end();
        assert_eq!(fs::read(&path).expect("a file"), b"of somebody else");
        assert_frames(&[next], 100..150);
    }

    /// logrotate with `copytruncate`: the file goes on under its name, as a whole Frame Streams file.
    fn a_file_that_was_cut_begins_anew(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let mut writing = Writing::new(relay(backend).output(to_file(&path)).start());
        for number in 0..3 {
            writing.send(100);
            let streams = writing.relay.output(0).connections;
            fs::copy(&path, folder.path().join(format!("copy-{number}"))).expect("our file");
            OpenOptions::new().write(true).open(&path).expect("our file").set_len(0).expect("our file");
            if number == 1 {
                // With frames before it is noticed.
                writing.writer.send(&numbered::frames(0, writing.sent..writing.sent + 100));
                writing.sent += 100;
            }
            eventually("a new stream", || writing.relay.output(0).connections == streams + 1);
        }
        writing.send(7);
        let inode = fs::metadata(&path).expect("our file").ino();
        writing.end();
        assert_eq!(fs::metadata(&path).expect("our file").ino(), inode);
        let last = FstrmFile::read(&path).expect("START");
        assert!(last.clean);
        numbered::assert_complete(last.payloads(), &[(0, 400..407)]);
        let mut copied = Vec::new();
        for number in 0..3 {
            let copy = FstrmFile::read(&folder.path().join(format!("copy-{number}"))).expect("START");
            copied.extend(copy.payloads().into_iter().map(|payload| numbered::Number::of(payload).sequence));
        }
        assert_eq!(copied, (0..400).collect::<Vec<u64>>());
        assert_eq!(files_in(folder.path(), "").len(), 4);
    }

    fn a_reopen_ends_every_file_and_begins_a_new_one(backend) {
        let folder = folder();
        let first = to_file(folder.path().join("a-%Y.fstrm"));
        let second = to_file(folder.path().join("b-%Y.fstrm"));
        let mut writing = Writing::new(relay(backend).output(first).output(second).start());
        for round in 0..3 {
            writing.send(100);
            eventually("written", || writing.relay.output(1).frames_acknowledged == writing.sent);
            writing.relay.reopen_files();
            eventually("new files", || {
                (0..2).all(|output| writing.relay.output(output).connections == round + 2)
            });
        }
        // Files without frames stay.
        writing.relay.reopen_files();
        writing.send(10);
        writing.end();
        for prefix in ["a-", "b-"] {
            let paths: Vec<_> = files_in(folder.path(), "")
                .into_iter()
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
                .collect();
            assert_eq!(paths.len(), 4);
            assert_frames(&paths, 0..310);
        }
    }

    fn a_file_has_its_final_name_only_when_it_is_complete(backend) {
        let folder = folder();
        let (path, partial) = (folder.path().join("out.fstrm"), folder.path().join("out.fstrm.part"));
        fs::write(folder.path().join("out.fstrm.1"), b"in the way").expect("a file");
        let mut writing = Writing::new(relay(backend).output(to_file(&path).partial_suffix(".part")).start());
        writing.send(100);
        assert!(partial.exists() && !path.exists());
        writing.relay.reopen_files();
        wait_for_file(&path);
        assert_frames(std::slice::from_ref(&path), 0..100);
        writing.send(100);
        // Somebody takes the name while the file is written.
        let next = folder.path().join("out.fstrm.2");
        assert!(folder.path().join("out.fstrm.2.part").exists());
        fs::write(&next, b"in the way too").expect("a file");
        writing.end();
        assert_frames(&[folder.path().join("out.fstrm.2.1")], 100..200);
        assert_eq!(fs::read(next).expect("a file"), b"in the way too");
        assert!(files_in(folder.path(), ".part").is_empty());
    }

    fn files_have_the_mode_that_was_asked_for(backend) {
        for mode in [None, Some(0o600), Some(0o666)] {
            let folder = folder();
            let path = folder.path().join("out.fstrm");
            let output = to_file(&path);
            let output = match mode {
                Some(mode) => output.mode(mode),
                None => output,
            };
            let mut writing = Writing::new(relay(backend).output(output).start());
            writing.send(1);
            writing.end();
            assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o7777, mode.unwrap_or(0o640));
        }
    }

    fn the_oldest_files_are_removed(backend) {
        let folder = folder();
        let old = |name: &str, hours: u64| {
            let file = File::create(folder.path().join(name)).expect("a file");
            file.set_len(1).expect("our file");
            let modified = SystemTime::now() - Duration::from_secs(3600 * hours);
            file.set_modified(modified).expect("our file");
        };
        old("2024.fstrm", 4);
        old("2024.fstrm.1", 3);
        old("2025.fstrm", 2);
        old("notes.txt", 9);
        let output = to_file(folder.path().join("%Y.fstrm")).keep(Keep::Files(2));
        let mut writing = Writing::new(relay(backend).output(output).start());
        writing.send(1);
        let names = || {
            let paths = files_in(folder.path(), "");
            let name = |path: PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
            paths.into_iter().map(name).collect::<Vec<_>>()
        };
        eventually("the old files go", || names().len() == 3);
        assert_eq!(names()[0], "2025.fstrm");
        writing.relay.reopen_files();
        writing.send(1);
        eventually("the next old file goes", || !names().contains(&"2025.fstrm".to_owned()));
        assert_eq!(names().len(), 3);
        assert_eq!(names()[2], "notes.txt");
        writing.end();
    }

    /// A disk that has room for a part of a frame ends every file within it. That is no frame that a reader refuses.
    fn a_frame_that_finds_no_room_is_written_as_soon_as_there_is_room(backend) {
        let folder = folder();
        let Some(disk) = Tmpfs::mount(folder.path(), 16 * 4096) else { return };
        let filler = disk.path().join("filler");
        fs::write(&filler, [7; 15 * 4096]).expect("room for it");
        let path = disk.path().join("out.fstrm");
        let relay = relay(backend).output(to_file(&path).reconnect(millis(1), millis(5))).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames_of_len(0, 0..8, 6000));
        eventually("the full disk was tried again and again", || relay.output(0).connections > 12);
        assert_eq!(dropped(&relay.output(0)), 0);
        fs::remove_file(&filler).expect("our file");
        writer.finish();
        eventually("everything is written", || relay.output(0).frames_acknowledged == 8);
        relay.drain();
        assert_frames(&files_in(disk.path(), ""), 0..8);
    }
}
