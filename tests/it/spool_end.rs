//! The end of outputs with a spool: what is left is stored, once, and in time, whatever a reader or a disk does.

use std::fs;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use tapster::output::Balance;
use tapster::spool::OnFull;
use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::disk::Disk;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::Tapster;
use crate::support::process::TapsterCommand;
use crate::support::process::tapster;
use crate::support::relay::OutputBuilder;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_group;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::PATIENCE;
use crate::support::wait::eventually;
use crate::support::wait::eventually_within;
use crate::support::wait::millis;

/// Frames of about 130 bytes: more than a socket and the memory of these outputs have room for.
const FRAMES: u64 = 20_000;

/// Both ways to use a spool in `folder`, with little memory. Writers wait for the disk.
fn both(output: &OutputBuilder, folder: &Path) -> [OutputBuilder; 2] {
    let spool = folder.join("spool");
    [output.clone().spills_to(&spool), output.clone().on_disk(&spool)]
        .map(|output| output.queue(256 << 10).frame_len_max(8 << 10))
        .map(|output| output.spool_config(|config| config.on_full = OnFull::Block))
}

on_both_backends! {
    /// A batch that is written in part does not come again as a whole.
    fn no_frame_comes_twice_over_an_orderly_restart(backend) {
        for kind in 0..2 {
            let folder = folder();
            let reader = CollectingReader::start(Transport::Unix, folder.path()).stalled();
            let start = || {
                let output = both(&to(&reader), folder.path())[kind].clone();
                relay(backend).output(output).drain_timeout(millis(1000)).start()
            };
            let relay = start();
            reader.wait_for_sessions(1);
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..FRAMES));
            writer.finish();
            let first = relay.drain_to_disk().outputs.remove(0);
            assert_eq!(dropped(&first), 0, "{first:?}");
            assert!(first.frames_sent > 0 && first.frames_spooled > 0, "{first:?}");
            reader.resume();
            let relay = start();
            relay.wait_until_written();
            let second = relay.drain().outputs.remove(0);
            let recovered = second.spool.as_ref().expect("a spool").frames_recovered;
            assert_eq!((recovered, second.frames_sent), (first.frames_spooled, first.frames_spooled));
            let mut sequence = numbered::sequences(reader.close().payloads()).remove(&0).expect("frames");
            if kind == 0 {
                // What was in memory alone went to disk last.
                sequence.sort();
            }
            assert!(sequence.iter().copied().eq(0..FRAMES), "each once, and in order");
        }
    }

    fn frames_that_have_become_too_long_are_left_out_and_those_behind_them_arrive(backend) {
        let folder = folder();
        let mut reader = CollectingReader::tcp();
        reader.die();
        let output = both(&to(&reader), folder.path())[1].clone();
        let first = relay(backend).output(output.clone()).start();
        let mut writer = first.writer();
        // At the front, in the middle and at the end of what is read at once; and many one behind the other.
        let is_long = |number: u64| number.is_multiple_of(10) || number.is_multiple_of(7) || (500..600).contains(&number);
        for number in 0..1000 {
            writer.send(&numbered::frames_of_len(0, number..number + 1, if is_long(number) { 4000 } else { 200 }));
        }
        writer.finish();
        let spooled = first.drain_to_disk().outputs.remove(0).frames_spooled;
        assert_eq!(spooled, 1000);
        reader.revive();
        let second = relay(backend).output(output.frame_len_max(1000)).start();
        second.wait_until_written();
        let (ledger, collected) = second.drain_into(reader);
        let output = &ledger.outputs[0];
        let long = (0..1000).filter(|number| is_long(*number)).count() as u64;
        assert_eq!((dropped_for(output, "frame_too_long"), dropped(output)), (long, long), "{output:?}");
        let sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
        assert!(sequence.iter().copied().eq((0..1000).filter(|number| !is_long(*number))), "{sequence:?}");
    }

    /// Its reader is there, and does not read: the lane ends early enough for the spool to store what it leaves.
    fn a_lane_with_a_spool_ends_before_the_drain_does(backend) {
        for kind in 0..2 {
            for group in [false, true] {
                let folder = folder();
                let readers = [(); 2].map(|()| CollectingReader::start(Transport::Unix, folder.path()).stalled());
                let members = readers.iter().map(CollectingReader::address);
                let output = match group {
                    true => to_group(members, Balance::Failover).stall_timeout(Duration::from_secs(3600)),
                    false => to(&readers[0]),
                };
                let output = both(&output.ack_received(), folder.path())[kind].clone();
                let relay = relay(backend).output(output).drain_timeout(millis(2000)).start();
                readers[0].wait_for_sessions(1);
                let mut writer = relay.writer();
                writer.send(&numbered::frames(0, 0..FRAMES));
                writer.finish();
                let began = Instant::now();
                let output = relay.drain_to_disk().outputs.remove(0);
                let took = began.elapsed();
                assert!(took > millis(1500) && took < millis(1980), "{took:?}");
                assert_eq!(dropped(&output), 0, "{output:?}");
                assert_eq!(output.frames_sent + output.frames_spooled, FRAMES, "{output:?}");
            }
        }
    }

    fn a_drain_never_waits_longer_than_it_may_for_a_reader_that_does_not_read(backend) {
        for (queue, group) in [("256KiB", false), ("512KiB", true)] {
            let folder = folder();
            let readers = [(); 2].map(|()| CollectingReader::start(Transport::Unix, folder.path()).stalled());
            let mut keys = format!(
                "queue={queue}&frame_len_max=64KiB&ack=received&buffer=disk&spool.min_free=0B&spool.dir={}",
                folder.path().join("spool").display()
            );
            if group {
                keys += &format!("&balance=failover&stall_timeout=1h&to={}", readers[1].address());
            }
            let (mut program, input) = start(backend, folder.path(), &[(&readers[0].address(), &keys)], None);
            readers[0].wait_for_sessions(1);
            let mut writer = Peer::writer(&input);
            writer.send(&numbered::frames_of_len(0, 0..4000, 1000));
            writer.finish();
            let took = end_in_time(&mut program);
            assert!(took < millis(4000), "{took:?}");
            program.process.wait_for_success(millis(4000));
            let summary = program.summary();
            summary.assert_balanced();
            assert_eq!((summary.output(0, "frames_received"), summary.dropped(0, "shutdown")), (4000, 0));
        }
    }

    /// A spool and a file on a disk that does not answer, and another output that is well.
    fn a_disk_that_hangs_does_not_hold_up_the_end(backend) {
        let folder = folder();
        let Some(disk) = Disk::mount(folder.path()) else { return };
        let well = CollectingReader::start(Transport::Unix, folder.path());
        let mut absent = CollectingReader::start(Transport::Unix, folder.path());
        absent.die();
        let spool = disk.path().join("spool");
        let keys = format!(
            "queue=4MiB&frame_len_max=64KiB&buffer=disk&spool.min_free=0B&spool.dir={}",
            spool.display()
        );
        let outputs = [(&well.address(), ""), (&absent.address(), &keys)];
        let (mut program, input) =
            start(backend, folder.path(), &outputs, Some(&disk.path().join("out.fstrm")));
        let mut writer = Peer::writer(&input);
        let first = numbered::frames(0, 0..1000);
        writer.send(&first);
        eventually("the spool has all of them", || {
            let files = fs::read_dir(&spool).into_iter().flatten().filter_map(|file| file.ok()?.metadata().ok());
            files.map(|file| file.len()).sum::<u64>() > first.len() as u64
        });
        let Some(frozen) = disk.freeze() else { return };
        writer.send(&numbered::frames(0, 1000..FRAMES));
        well.wait_for_frames(FRAMES as usize);
        writer.finish();
        let took = end_in_time(&mut program);
        assert!(took < millis(4000), "{took:?}");
        let summary = program.summary();
        // The kernel keeps what is left of a process until its last thread has come back from the disk.
        let pid = program.process.id();
        eventually_within(millis(1000), "nothing of it runs any more", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
        });
        drop(frozen);
        program.process.wait_for_success(millis(5000));
        summary.assert_balanced();
        assert_eq!(summary.output(0, "frames_sent"), FRAMES);
        for (output, word) in [(1, "spool"), (2, "file")] {
            assert_eq!(summary.output(output, "frames_queued"), 0);
            assert!(summary.dropped(output, "shutdown") > 0, "{:?}", summary.0);
            let log = program.process.output();
            let line = log.lines().find(|line| line.contains("have not ended by the deadline") && line.contains(word));
            assert!(line.is_some(), "{log}");
        }
        // What was on disk before is not lost.
        let spooled = summary.output(1, "frames_spooled");
        assert!(spooled >= 1000, "{:?}", summary.0);
        let (mut program, _) = start(backend, folder.path(), &outputs, None);
        program.terminate();
        assert!(program.summary().output(1, "frames_received") >= spooled);
    }
}

/// The program with these outputs, and one into a file, whose drain takes 3 s at most; and where it listens.
fn start(
    backend: Backend,
    folder: &Path,
    outputs: &[(&Address, &str)],
    file: Option<&Path>,
) -> (Tapster, Address) {
    let input = Transport::Unix.fresh_address(folder);
    let config = folder.join("tapster.toml");
    fs::write(&config, "drain_timeout = \"3s\"\n").expect("a file");
    let command = tapster(backend).arg("-c").arg(&config).listen(&input).summary(folder.join("summary.json"));
    let command = outputs.iter().fold(command, |command, (address, keys)| command.to(address, keys));
    let command = file.into_iter().fold(command, TapsterCommand::file);
    (command.start(), input)
}

/// SIGTERM. Returns how long it takes until the whole ledger is written.
fn end_in_time(program: &mut Tapster) -> Duration {
    program.process.signal(Signal::TERM);
    eventually_within(PATIENCE, "the ledger is written", || program.try_summary().is_some())
}
