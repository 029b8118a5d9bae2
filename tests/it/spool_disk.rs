//! Spools on disks that hang, go away and come back while the relay runs.

use std::path::Path;

use tapster::observability::SpoolLedger;

use crate::support::collector::CollectingReader;
use crate::support::disk::Disk;
use crate::support::numbered;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
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

fn spool(relay: &TestRelay) -> SpoolLedger {
    relay.output(0).spool.expect("a spool")
}

on_both_backends! {
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

    /// The relay ends while the disk hangs: the collector has everything, and is told with STOP.
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
}
