//! Spools on disks that hang, go away and come back while the relay runs.

use std::fs;
use std::path::Path;

use tapster::faults;
use tapster::observability::SpoolLedger;
use tapster::spool::OnFull;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::backend::word;
use crate::support::collector::CollectingReader;
use crate::support::disk::Disk;
use crate::support::numbered;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// Frames of about 130 bytes.
const FRAMES: u64 = 10_000;

fn on_disk(reader: &CollectingReader, folder: &Path) -> OutputBuilder {
    to(reader).on_disk(&folder.join("spool")).queue(8 << 20).frame_len_max(64 << 10)
}

/// Memory has room for a part of the frames. The writer waits for the disk, however slow that is.
fn small_queue(reader: &CollectingReader, folder: &Path) -> OutputBuilder {
    let output = on_disk(reader, folder).queue(256 << 10).frame_len_max(8 << 10);
    output.spool_config(|config| config.on_full = OnFull::Block)
}

fn spool(relay: &TestRelay) -> SpoolLedger {
    relay.output(0).spool.expect("a spool")
}

on_both_backends! {
    /// On a busy disk a spool opens late. What came before had room in memory alone.
    fn the_first_frames_find_the_spool_open(backend) {
        if !faults::ENABLED {
            return skip(Cause::Missing, "a release build has no faults");
        }
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let prefix = format!("opens late {} ", word(backend));
        faults::arm("spool opens late", &format!("{prefix}output0"), 0);
        let _relay = relay(backend).named(&prefix).output(on_disk(&reader, folder.path())).start();
        assert!(folder.path().join("spool").is_dir(), "it is open when the relay has started");
    }

    /// Its collector is well: the output goes on in memory, in order, and uses the disk again once that answers.
    fn a_disk_that_hangs_does_not_stop_its_own_output(backend) {
        let folder = folder();
        let Some(disk) = Disk::mount(folder.path()) else { return };
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        let relay = relay(backend).output(on_disk(&reader, disk.path())).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        reader.wait_for_frames(FRAMES as usize);
        assert!(!spool(&relay).degraded);
        let Some(frozen) = disk.freeze() else { return };
        for first in (FRAMES..3 * FRAMES).step_by(100) {
            writer.send(&numbered::frames(0, first..first + 100));
        }
        reader.wait_for_frames(3 * FRAMES as usize);
        assert!(spool(&relay).degraded);
        drop(frozen);
        eventually("the disk is used again", || !spool(&relay).degraded);
        writer.send(&numbered::frames(0, 3 * FRAMES..4 * FRAMES));
        reader.wait_for_frames(4 * FRAMES as usize);
        reader.die();
        writer.send(&numbered::frames(0, 4 * FRAMES..5 * FRAMES));
        writer.finish();
        eventually("everything is taken", || relay.input().frames == 5 * FRAMES);
        reader.revive();
        relay.wait_until_written();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(dropped(&ledger.outputs[0]), 0, "{:?}", ledger.outputs[0]);
        let mut sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
        // What the collector had and lost when it died is not what this is about.
        sequence.dedup();
        assert!(sequence.is_sorted(), "in order");
        assert!(sequence.iter().copied().filter(|number| *number < 4 * FRAMES).eq(0..4 * FRAMES), "each once");
    }

    /// The relay ends while the disk hangs: the collector has everything, and gets STOP.
    fn an_output_whose_disk_hangs_ends_in_order(backend) {
        let folder = folder();
        let Some(disk) = Disk::mount(folder.path()) else { return };
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let relay = relay(backend).output(on_disk(&reader, disk.path())).drain_timeout(millis(6000)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        reader.wait_for_frames(FRAMES as usize);
        let Some(frozen) = disk.freeze() else { return };
        writer.send(&numbered::frames(0, FRAMES..2 * FRAMES));
        writer.finish();
        let output = relay.drain_to_disk().outputs.remove(0);
        drop(frozen);
        assert_eq!((output.frames_sent, output.sessions_finished), (2 * FRAMES, 1), "{output:?}");
    }

    /// What was in it is lost, counted and told; the next folder at that path is used.
    fn a_folder_that_is_removed_is_noticed_and_the_next_one_is_used(backend) {
        let folder = folder();
        let path = folder.path().join("spool");
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        reader.die();
        let output = small_queue(&reader, folder.path());
        let relay = relay(backend).output(output.clone()).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        eventually("much is on disk", || relay.output(0).frames_spooled > FRAMES / 2);
        fs::remove_dir_all(&path).expect("a folder");
        eventually("the loss is counted", || dropped_for(&relay.output(0), "spool_damaged") > 0);
        // Its parent is there: tapster creates the folder again.
        eventually("the new folder is used", || !spool(&relay).degraded && path.join("cursor").exists());
        writer.send(&numbered::frames(0, FRAMES..2 * FRAMES));
        writer.finish();
        eventually("everything is taken", || relay.input().frames == 2 * FRAMES);
        let first = relay.drain_to_disk().outputs.remove(0);
        // What was rescued takes room in memory, and the queue may drop others for it.
        assert_eq!(first.frames_spooled + dropped(&first), 2 * FRAMES, "{first:?}");
        assert_eq!(dropped(&first), dropped_for(&first, "spool_damaged") + dropped_for(&first, "queue_full"));
        reader.revive();
        let relay = self::relay(backend).output(output).start();
        relay.wait_until_written();
        let (_, collected) = relay.drain_into(reader);
        let mut sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
        assert_eq!(sequence.len() as u64, first.frames_spooled, "the next run finds what the ledger names");
        // What was in memory alone went to disk last.
        sequence.sort();
        assert!(sequence.ends_with(&(2 * FRAMES - 1000..2 * FRAMES).collect::<Vec<_>>()), "each once");
    }

    /// Nothing is lost: it is the same folder when it is back.
    fn a_folder_that_is_away_for_a_while_is_used_again(backend) {
        let folder = folder();
        let (path, away) = (folder.path().join("spool"), folder.path().join("away"));
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        reader.die();
        let relay = relay(backend).output(on_disk(&reader, folder.path())).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        eventually("everything is taken", || relay.input().frames == FRAMES);
        fs::rename(&path, &away).expect("a folder");
        eventually("it is degraded", || spool(&relay).degraded);
        writer.send(&numbered::frames(0, FRAMES..FRAMES + 1000));
        eventually("everything is taken", || relay.input().frames == FRAMES + 1000);
        assert!(!path.exists());
        fs::rename(&away, &path).expect("a folder");
        eventually("it is not", || !spool(&relay).degraded);
        reader.revive();
        writer.finish();
        relay.wait_until_written();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(dropped(&ledger.outputs[0]), 0, "{:?}", ledger.outputs[0]);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES + 1000)]);
    }

    /// Frames are written to another file, and the ledger names those that went with the old ones.
    fn segments_that_are_removed_are_noticed(backend) {
        let folder = folder();
        let path = folder.path().join("spool");
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        reader.die();
        let output = small_queue(&reader, folder.path());
        let relay = relay(backend).output(output.clone()).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        eventually("much is on disk", || relay.output(0).frames_spooled > FRAMES / 2);
        for file in fs::read_dir(&path).expect("a folder") {
            fs::remove_file(file.expect("a file").path()).expect("a file");
        }
        eventually("the loss is counted", || dropped_for(&relay.output(0), "spool_damaged") > 0);
        writer.send(&numbered::frames(0, FRAMES..2 * FRAMES));
        writer.finish();
        eventually("everything is taken", || relay.input().frames == 2 * FRAMES);
        let first = relay.drain_to_disk().outputs.remove(0);
        assert_eq!(first.frames_spooled + dropped(&first), 2 * FRAMES, "{first:?}");
        reader.revive();
        let relay = self::relay(backend).output(output).start();
        relay.wait_until_written();
        let (_, collected) = relay.drain_into(reader);
        let mut sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
        assert_eq!(sequence.len() as u64, first.frames_spooled, "the next run finds what the ledger names");
        // What was in memory alone went to disk last.
        sequence.sort();
        assert!(sequence.ends_with(&(2 * FRAMES - 1000..2 * FRAMES).collect::<Vec<_>>()), "each once");
    }

    /// Also where the spool cannot be used at all.
    fn frames_that_wait_in_memory_are_dropped_at_max_age_too(backend) {
        let folder = folder();
        fs::write(folder.path().join("spool"), "no folder").expect("a file");
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        reader.die();
        let output = on_disk(&reader, folder.path()).spool_config(|config| config.max_age = millis(3000));
        let relay = relay(backend).output(output).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        eventually("everything is taken", || relay.input().frames == FRAMES);
        eventually("all of them are old", || {
            let output = relay.output(0);
            dropped_for(&output, "spool_age") == FRAMES || output.oldest_age_us > Some(4_000_000)
        });
        reader.revive();
        // What comes now is sent while it is young.
        reader.wait_for_sessions(1);
        writer.send(&numbered::frames(1, 0..100));
        writer.finish();
        relay.wait_until_written();
        let (ledger, collected) = relay.drain_into(reader);
        let sequences = numbered::sequences(collected.payloads());
        assert_eq!(sequences[&1].len(), 100);
        assert!(!sequences.contains_key(&0), "what the lane had taken is old too");
        assert_eq!(dropped_for(&ledger.outputs[0], "spool_age"), FRAMES);
    }
}
