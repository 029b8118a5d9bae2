//! File outputs: whole Frame Streams files, never an older one overwritten, the others never held up.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::collector::CollectingReader;
use crate::support::files::FstrmFile;
use crate::support::files::files_in;
use crate::support::files::fstrm_file;
use crate::support::numbered;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_file;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::eventually_within;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

on_both_backends! {
    fn a_file_is_start_the_frames_and_stop_to_the_byte(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let relay = relay(backend).output(to_file(&path)).start();
        let mut writer = relay.writer();
        let frames = numbered::frames(0, 0..5000);
        writer.send(&frames);
        writer.finish();
        let ledger = relay.drain();
        assert!(fs::read(&path).expect("a file") == fstrm_file(D, &frames), "another file than expected");
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.bytes_sent), (5000, frames.len() as u64));
        assert_eq!((output.connections, output.sessions_finished), (1, 1));
    }

    /// The golden file of the conformance cases, F01: content type `test:hello`, 242 bytes.
    fn f01_a_file_of_another_type_is_written_byte_identically(backend) {
        let folder = folder();
        let path = folder.path().join("hello.fstrm");
        let relay = relay(backend)
            .input(tcp().content_types(&[b"test:hello"]))
            .output(to_file(&path).content_type(b"test:hello"))
            .start();
        let frames: Vec<u8> = (0..10).flat_map(|n| wire::data(format!("Hello, world #{n}\n").as_bytes())).collect();
        let mut writer = crate::support::peer::Peer::connect(&relay.address());
        writer.open_as_writer(b"test:hello");
        writer.send(&frames);
        writer.finish();
        relay.drain();
        let written = fs::read(&path).expect("a file");
        assert_eq!(written.len(), 242);
        assert_eq!(written, fstrm_file(b"test:hello", &frames));
    }

    fn without_frames_a_file_still_has_start_and_stop_or_is_not_there(backend) {
        let folder = folder();
        let path = folder.path().join("empty.fstrm");
        let relay = relay(backend).output(to_file(&path)).start();
        relay.drain();
        assert!(!path.exists() || fs::read(&path).expect("a file") == fstrm_file(D, b""));
    }

    fn streams_of_another_type_do_not_go_into_the_file(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let relay = relay(backend).input(tcp().any_content_type()).output(to_file(&path)).start();
        for (number, content_type) in [(0, D), (1, O)] {
            let mut writer = crate::support::peer::Peer::connect(&relay.address());
            writer.open_as_writer(content_type);
            writer.send(&numbered::frames(number, 0..10));
            writer.finish();
        }
        relay.drain();
        let file = FstrmFile::read(&path).expect("a file with START");
        assert!(file.clean);
        numbered::assert_complete(file.payloads(), &[(0, 0..10)]);
    }

    fn a_file_is_flushed_every_second(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let relay = relay(backend).output(to_file(&path)).start();
        let mut writer = relay.writer();
        for round in 1..=3 {
            writer.send(&numbered::frames(0, round * 10 - 10..round * 10));
            relay.wait_for_frames(round * 10);
            eventually_within(millis(1500), "the frames are in the file", || {
                path.exists()
                    && FstrmFile::read(&path).is_some_and(|file| file.payloads().len() as u64 == round * 10)
            });
        }
        writer.finish();
        relay.drain();
        assert!(FstrmFile::read(&path).expect("START").clean);
    }

    fn an_older_file_is_never_overwritten(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let old = fstrm_file(D, &numbered::frames(9, 0..10));
        fs::write(&path, &old).expect("a file");
        for life in 0..3 {
            let relay = relay(backend).output(to_file(&path)).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(life, 0..100));
            writer.finish();
            let ledger = relay.drain();
            assert_eq!(ledger.outputs[0].frames_sent, 100);
        }
        assert_eq!(fs::read(&path).expect("the old file"), old);
        let files: Vec<FstrmFile> = files_in(folder.path(), "")
            .iter()
            .filter(|other| **other != path)
            .map(|path| FstrmFile::read(path).expect("START"))
            .collect();
        assert!(files.iter().all(|file| file.clean));
        let expected: Vec<_> = (0..3).map(|life| (life, 0..100)).collect();
        numbered::assert_complete(files.iter().flat_map(FstrmFile::payloads), &expected);
    }

    fn names_are_strftime_patterns(backend) {
        let folder = folder();
        let relay = relay(backend).output(to_file(folder.path().join("a-%Y-%m-%d-%H%M%S-%%.fstrm"))).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        relay.drain();
        let files = files_in(folder.path(), ".fstrm");
        assert_eq!(files.len(), 1);
        let name = files[0].file_name().expect("a name").to_string_lossy().into_owned();
        let digits = name.bytes().filter(u8::is_ascii_digit).count();
        assert!(name.starts_with("a-20") && name.ends_with("-%.fstrm") && digits == 14, "{name}");
    }

    fn files_rotate_by_size_and_none_is_lost_doubled_or_cut(backend) {
        for pattern in ["part.fstrm", "part-%Y%m%dT%H%M%S.fstrm"] {
            let folder = folder();
            let relay = relay(backend)
                .output(to_file(folder.path().join(pattern)).rotate(Some(100_000), None))
                .start();
            let mut writer = relay.writer();
            for round in 0..20 {
                writer.send(&numbered::frames_of_len(0, round * 200..round * 200 + 200, 250));
                relay.wait_for_frames(round * 200 + 200);
                relay.wait_until_written();
            }
            writer.finish();
            let ledger = relay.drain();
            let mut paths = files_in(folder.path(), "");
            let mut files: Vec<FstrmFile> =
                paths.drain(..).map(|path| FstrmFile::read(&path).expect("START")).collect();
            // About a million bytes in files of a hundred thousand and at most one batch more.
            assert!((6..=11).contains(&files.len()), "{} files", files.len());
            assert_eq!(ledger.outputs[0].connections, files.len() as u64);
            assert_eq!(ledger.outputs[0].sessions_finished, files.len() as u64);
            assert!(files.iter().all(|file| file.clean && file.start == wire::start(&[D])));
            files.sort_by_key(|file| file.payloads().first().map(|first| numbered::Number::of(first).sequence));
            numbered::assert_complete(files.iter().flat_map(FstrmFile::payloads), &[(0, 0..4000)]);
        }
    }

    fn files_rotate_by_time(backend) {
        let folder = folder();
        let relay = relay(backend)
            .output(to_file(folder.path().join("t-%H%M%S.fstrm")).rotate(None, Some(millis(700))))
            .start();
        let mut writer = relay.writer();
        for sequence in 0..50 {
            writer.send(&numbered::frames(0, sequence..sequence + 1));
            thread::sleep(millis(50));
        }
        writer.finish();
        relay.drain();
        let mut files: Vec<FstrmFile> =
            files_in(folder.path(), "").iter().map(|path| FstrmFile::read(path).expect("START")).collect();
        assert!((3..=6).contains(&files.len()), "{} files in 2.5 s", files.len());
        assert!(files.iter().all(|file| file.clean));
        files.sort_by_key(|file| file.payloads().first().map(|first| numbered::Number::of(first).sequence));
        numbered::assert_complete(files.iter().flat_map(FstrmFile::payloads), &[(0, 0..50)]);
    }

    fn a_file_that_cannot_be_written_is_tried_again_and_the_others_go_on(backend) {
        let folder = folder();
        let blocked = folder.path().join("blocked");
        // A file where the folder should be: not even root can write below it.
        fs::write(&blocked, b"in the way").expect("a file");
        let reader = CollectingReader::tcp();
        let relay = relay(backend)
            .output(to(&reader))
            .output(to_file(blocked.join("out.fstrm")))
            .output(to_file(folder.path().join("fine.fstrm")))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        reader.wait_for_frames(1000);
        eventually("the fine file has all", || relay.output(2).frames_sent == 1000);
        let waiting = relay.output(1);
        assert_eq!((waiting.frames_queued, waiting.frames_sent), (1000, 0), "{waiting:?}");
        // The relay makes the folder itself, at its next attempt.
        fs::remove_file(&blocked).expect("our file");
        eventually("the file is there at last", || relay.output(1).frames_sent == 1000);
        relay.drain_into(reader);
        let file = FstrmFile::read(&blocked.join("out.fstrm")).expect("START");
        assert!(file.clean);
        numbered::assert_complete(file.payloads(), &[(0, 0..1000)]);
    }

    fn a_file_that_can_never_be_written_is_counted(backend) {
        let folder = folder();
        let blocked = folder.path().join("blocked");
        fs::write(&blocked, b"in the way").expect("a file");
        let reader = CollectingReader::tcp();
        let relay = relay(backend)
            .drain_timeout(millis(300))
            .output(to(&reader))
            .output(to_file(blocked.join("out.fstrm")))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(ledger.outputs[0].frames_sent, 1000);
        assert_eq!(dropped_for(&ledger.outputs[1], "shutdown"), 1000);
    }

    /// `/dev/full` takes nothing: every write of a file that was opened fails, as on a full disk.
    fn a_full_disk_does_not_hold_up_the_others_and_loses_nothing_uncounted(backend) {
        let folder = folder();
        let link = folder.path().join("full.fstrm");
        std::os::unix::fs::symlink("/dev/full", &link).expect("a link");
        let reader = CollectingReader::tcp();
        let relay = relay(backend)
            .drain_timeout(millis(500))
            .output(to(&reader))
            .output(to_file(&link))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        reader.wait_for_frames(1000);
        let (ledger, _) = relay.drain_into(reader);
        let full = &ledger.outputs[1];
        // Refused because the name is taken, renamed, or written in vain: each frame is in a file or counted.
        let written: usize = files_in(folder.path(), "")
            .iter()
            .filter(|path| **path != link)
            .map(|path| FstrmFile::read(path).map_or(0, |file| file.payloads().len()))
            .sum();
        assert_eq!(full.frames_sent, written as u64, "{full:?}");
        assert_eq!(full.frames_sent + dropped(full), 1000, "{full:?}");
    }

    fn a_file_and_sockets_get_the_same(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let readers = [CollectingReader::tcp(), CollectingReader::tcp()];
        let relay = relay(backend)
            .output(to(&readers[0]))
            .output(to_file(&path))
            .output(to(&readers[1]))
            .start();
        let writers: Vec<_> = (0..4)
            .map(|number| {
                let mut writer = relay.writer();
                thread::spawn(move || {
                    writer.send(&numbered::frames(number, 0..5000));
                    writer.finish();
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
        relay.drain();
        let expected: Vec<_> = (0..4).map(|number| (number, 0..5000)).collect();
        let file = FstrmFile::read(&path).expect("START");
        assert!(file.clean);
        numbered::assert_complete(file.payloads(), &expected);
        for reader in readers {
            numbered::assert_complete(reader.close().payloads(), &expected);
        }
    }

    fn a_relay_without_traffic_for_a_while_still_ends_its_file_well(backend) {
        let folder = folder();
        let path = folder.path().join("out.fstrm");
        let relay = relay(backend).output(to_file(&path)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..3));
        relay.wait_for_frames(3);
        thread::sleep(Duration::from_millis(1200));
        writer.send(&numbered::frames(0, 3..6));
        relay.wait_for_frames(6);
        relay.drain();
        let file = FstrmFile::read(&path).expect("START");
        assert!(file.clean);
        numbered::assert_complete(file.payloads(), &[(0, 0..6)]);
    }
}
