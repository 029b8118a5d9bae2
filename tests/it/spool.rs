//! Outputs with a spool: what a collector cannot take waits on disk, and comes in order.

use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tapster::observability::OutputLedger;
use tapster::output::Balance;
use tapster::output::Checkpoint;
use tapster::queue::WhenFull;
use tapster::spool::Moment;
use tapster::spool::OnFull;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_group;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::tmpfs::Tmpfs;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// Frames of about 130 bytes: more than the memory of these outputs has room for.
const FRAMES: u64 = 10_000;
/// More than the kernel's buffers on both sides of a connection hold, from two writers.
const MANY: u64 = 40_000;
/// For how long a disk is full.
const FULL_FOR: Duration = Duration::from_secs(30);
const MEMORY: usize = 256 << 10;

/// An output with little memory, and frames that fit into a part of it. Writers wait for its disk.
fn small(output: OutputBuilder) -> OutputBuilder {
    output.queue(MEMORY).frame_len_max(8 << 10).spool_config(|config| config.on_full = OnFull::Block)
}

fn spool_of(folder: &Path) -> PathBuf {
    folder.join("spool")
}

/// A writer that sends these frames, and ends.
fn write(relay: &TestRelay, writer: u32, frames: Range<u64>) -> JoinHandle<()> {
    let mut peer: Peer = relay.writer();
    thread::spawn(move || {
        for first in frames.clone().step_by(100) {
            peer.send(&numbered::frames(writer, first..(first + 100).min(frames.end)));
        }
        peer.finish();
    })
}

fn spooled(relay: &TestRelay) -> u64 {
    relay.output(0).frames_spooled
}

fn die_and_return(reader: &mut CollectingReader) {
    reader.die();
    return_to_the_relay(reader);
}

/// Waits until the relay has seen that it is there again: what it had sent before is not acknowledged by the end of it.
fn return_to_the_relay(reader: &mut CollectingReader) {
    let sessions = reader.session_count();
    reader.revive();
    reader.wait_for_sessions(sessions + 1);
}

/// Both ways to use a spool.
fn both(reader: &CollectingReader, folder: &Path) -> [OutputBuilder; 2] {
    [to(reader).spills_to(&spool_of(folder)), to(reader).on_disk(&spool_of(folder))].map(small)
}

on_both_backends! {
    fn what_a_stalled_collector_does_not_take_waits_on_disk_and_comes_in_order(backend) {
        for kind in 0..2 {
            for transport in Transport::BOTH {
                let folder = folder();
                let reader = CollectingReader::start(transport, folder.path()).stalled();
                let [overflow, all] = both(&reader, folder.path());
                let relay = relay(backend).output(if kind == 0 { overflow } else { all }).start();
                let writers = [0, 1].map(|writer| write(&relay, writer, 0..MANY));
                writers.into_iter().for_each(|writer| writer.join().expect("the writer is never held up for long"));
                eventually("much is on disk", || spooled(&relay) > FRAMES);
                reader.resume();
                relay.wait_until_written();
                let (ledger, collected) = relay.drain_into(reader);
                numbered::assert_complete(collected.payloads(), &[(0, 0..MANY), (1, 0..MANY)]);
                let output = &ledger.outputs[0];
                assert_eq!((output.frames_sent, dropped(output)), (2 * MANY, 0));
                let spool = output.spool.as_ref().expect("a spool");
                assert_eq!((spool.degraded, spool.bytes_unsynced, spool.frames_recovered), (false, 0, 0));
            }
        }
    }

    /// Memory before disk: one that keeps up never has anything written there.
    fn a_spill_that_is_not_needed_leaves_the_disk_alone(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader).spills_to(&spool_of(folder.path()))).start();
        write(&relay, 0, 0..FRAMES).join().expect("the writer ends well");
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
        assert_eq!(ledger.outputs[0].spool.as_ref().expect("a spool").bytes, 0);
    }

    fn what_is_left_at_the_end_is_kept_and_the_next_run_delivers_it(backend) {
        for kind in 0..2 {
            let folder = folder();
            let mut reader = CollectingReader::tcp();
            reader.die();
            let output = |reader: &CollectingReader| {
                let [overflow, all] = both(reader, folder.path());
                if kind == 0 { overflow } else { all }
            };
            for run in 0..3 {
                let relay = relay(backend).output(output(&reader)).start();
                write(&relay, run, 0..FRAMES).join().expect("the writer is never held up for long");
                let output = relay.drain_to_disk().outputs.remove(0);
                assert_eq!((output.frames_spooled, dropped(&output)), (u64::from(run + 1) * FRAMES, 0), "{output:?}");
                let spool = output.spool.expect("a spool");
                assert_eq!((spool.frames_recovered, spool.bytes_unsynced), (u64::from(run) * FRAMES, 0));
            }
            reader.revive();
            let relay = relay(backend).output(output(&reader)).start();
            relay.wait_until_written();
            let (ledger, collected) = relay.drain_into(reader);
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_received, output.frames_sent, dropped(output)), (3 * FRAMES, 3 * FRAMES, 0));
            let sequences = numbered::sequences(collected.payloads());
            for run in 0..3 {
                let mut sequence = sequences[&run].clone();
                if kind == 0 {
                    // What was in memory went to disk last.
                    sequence.sort();
                }
                assert!(sequence.iter().copied().eq(0..FRAMES), "writer {run}");
            }
        }
    }

    /// Frames of a connection that breaks are on disk, in memory or both: each comes again, or had come.
    fn a_collector_that_dies_again_and_again_gets_everything(backend) {
        for checkpoint in [None, Some(Checkpoint::Every(millis(100)))] {
            let folder = folder();
            // A unix socket tells what its reader has read.
            let mut reader = CollectingReader::start(Transport::Unix, folder.path());
            let output = small(to(&reader).on_disk(&spool_of(folder.path()))).finish_timeout(millis(1000));
            let output = match checkpoint {
                None => output.ack_received(),
                Some(checkpoint) => output.checkpoint(checkpoint),
            };
            let relay = relay(backend).output(output.queue(1 << 20)).start();
            let mut frames = 0;
            for _ in 0..4 {
                write(&relay, 0, frames..frames + FRAMES).join().expect("the writer ends well");
                frames += FRAMES;
                eventually("frames come", || reader.frames() as u64 >= frames / 2);
                die_and_return(&mut reader);
            }
            relay.wait_until_written();
            let output = relay.drain().outputs.remove(0);
            assert_eq!((output.frames_acknowledged, dropped(&output)), (frames, 0), "{output:?}");
            let collected = reader.close();
            let mut sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
            sequence.sort();
            sequence.dedup();
            assert!(sequence.iter().copied().eq(0..frames), "{} of {frames} came", sequence.len());
        }
    }

    fn a_group_with_a_spool_loses_nothing_when_members_come_and_go(backend) {
        let folder = folder();
        // Unix sockets tell what their readers have read.
        let start = |_| CollectingReader::start(Transport::Unix, folder.path());
        let mut readers: Vec<_> = (0..3).map(start).collect();
        let members = readers.iter().map(CollectingReader::address);
        let output = small(to_group(members, Balance::RoundRobin).ack_received().on_disk(&spool_of(folder.path())));
        let relay = relay(backend).output(output.queue(1 << 20)).start();
        let mut frames = 0;
        for round in 0..6 {
            write(&relay, 0, frames..frames + FRAMES).join().expect("the writer ends well");
            frames += FRAMES;
            // All of them away, once.
            let dies: &[usize] = if round == 3 { &[0, 1, 2] } else { &[round % 3] };
            dies.iter().for_each(|index| readers[*index].die());
            write(&relay, 0, frames..frames + FRAMES).join().expect("the writer ends well");
            frames += FRAMES;
            dies.iter().for_each(|index| return_to_the_relay(&mut readers[*index]));
        }
        relay.wait_until_written();
        let output = relay.drain().outputs.remove(0);
        assert_eq!((output.frames_acknowledged, dropped(&output)), (frames, 0), "{output:?}");
        let collected: Vec<_> = readers.into_iter().map(CollectingReader::close).collect();
        let mut sequence: Vec<_> = collected.iter().flat_map(|collected| collected.payloads())
            .map(|payload| Number::of(payload).sequence).collect();
        sequence.sort();
        sequence.dedup();
        assert!(sequence.iter().copied().eq(0..frames), "{} of {frames} came", sequence.len());
    }

    /// Which connection a frame came from is known on disk too.
    fn a_sticky_group_keeps_each_writer_with_its_member_over_the_disk(backend) {
        let folder = folder();
        let readers = [(); 2].map(|()| CollectingReader::start(Transport::Unix, folder.path()).stalled());
        let members = readers.iter().map(CollectingReader::address);
        let output = small(to_group(members, Balance::Sticky).spills_to(&spool_of(folder.path())));
        // They are slow, not dead.
        let relay = relay(backend).output(output.stall_timeout(millis(60_000))).start();
        readers.iter().for_each(|reader| reader.wait_for_sessions(1));
        let writers: Vec<_> = (0..8).map(|writer| write(&relay, writer, 0..FRAMES)).collect();
        eventually("much is on disk", || spooled(&relay) > 4 * FRAMES);
        readers.iter().for_each(CollectingReader::resume);
        writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
        relay.wait_until_written();
        assert_eq!(dropped(&relay.drain().outputs[0]), 0);
        let mut whole = 0;
        for collected in readers.map(CollectingReader::close) {
            for (writer, sequence) in numbered::sequences(collected.payloads()) {
                assert!(sequence.iter().copied().eq(0..FRAMES), "writer {writer}");
                whole += 1;
            }
        }
        assert_eq!(whole, 8);
    }

    fn a_full_spool_drops_the_oldest_or_the_newest_or_nothing(backend) {
        for on_full in [OnFull::DropOldest, OnFull::DropNewest, OnFull::Block] {
            let folder = folder();
            let mut reader = CollectingReader::tcp();
            reader.die();
            let output = small(to(&reader).on_disk(&spool_of(folder.path())));
            let max = 512 << 10;
            let output = output.spool_config(|config| (config.max, config.on_full) = (max, on_full));
            let relay = relay(backend).output(output).start();
            let writing = write(&relay, 0, 0..FRAMES);
            if on_full == OnFull::Block {
                eventually("the spool is full", || relay.output(0).spool.is_some_and(|spool| spool.bytes > max * 3 / 4));
            } else {
                eventually("everything is taken", || relay.input().frames == FRAMES);
            }
            let on_disk: u64 = std::fs::read_dir(spool_of(folder.path())).expect("a folder")
                .filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum();
            assert!(on_disk <= max + (8 << 10), "{on_disk} bytes on disk");
            reader.revive();
            writing.join().expect("the writer ends well");
            relay.wait_until_written();
            let (ledger, collected) = relay.drain_into(reader);
            let output = &ledger.outputs[0];
            numbered::assert_rising(collected.payloads());
            let first = Number::of(collected.payloads()[0]).sequence;
            let last = Number::of(collected.payloads().last().expect("frames")).sequence;
            assert_eq!(output.frames_received, FRAMES);
            let full = dropped_for(output, "spool_full") + dropped_for(output, "queue_full");
            assert_eq!(dropped(output), full, "{output:?}");
            match on_full {
                OnFull::DropOldest => assert!(full > 0 && last == FRAMES - 1, "{last}: {output:?}"),
                OnFull::DropNewest => assert!(full > 0 && first == 0, "{first}: {output:?}"),
                OnFull::Block => assert_eq!((full, output.frames_sent), (0, FRAMES)),
            }
        }
    }

    fn an_output_whose_spool_is_in_use_goes_on_in_memory_until_it_is_free(backend) {
        let folder = folder();
        let path = spool_of(folder.path());
        let other = lock(&path);
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader).on_disk(&path)).start();
        eventually("it is degraded", || spool(&relay.output(0)).degraded);
        write(&relay, 0, 0..100).join().expect("the writer ends well");
        reader.wait_for_frames(100);
        drop(other);
        eventually("it is not", || !spool(&relay.output(0)).degraded);
        reader.stall();
        write(&relay, 1, 0..FRAMES).join().expect("the writer ends well");
        eventually("it is used", || spool(&relay.output(0)).bytes > 0);
        reader.resume();
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..100), (1, 0..FRAMES)]);
    }

    /// One output has a spool on a small disk that something else fills up, the other is well.
    fn a_full_disk_costs_its_own_output_alone_and_is_over_when_there_is_room(backend) {
        let folder = folder();
        let Some(disk) = Tmpfs::mount(folder.path(), 2 << 20) else { return };
        let mut absent = CollectingReader::start(Transport::Unix, folder.path());
        absent.die();
        let well = CollectingReader::start(Transport::Unix, folder.path());
        let output = small(to(&absent).on_disk(&spool_of(disk.path())));
        let output = output.spool_config(|config| config.on_full = OnFull::DropOldest);
        let relay = relay(backend).output(output).output(to(&well).when_full(WhenFull::Block)).start();
        let mut peer = relay.writer();
        let mut frames = 0;
        let mut write = |until: Instant| {
            while Instant::now() < until {
                peer.send(&numbered::frames(0, frames..frames + 50));
                frames += 50;
                thread::sleep(millis(2));
            }
            frames
        };
        // Full of its own frames, then of something else that grows until the last byte.
        write(Instant::now() + FULL_FOR / 2);
        let filler = disk.path().join("filler");
        let _ = std::fs::write(&filler, vec![0; 4 << 20]);
        let until_now = write(Instant::now() + FULL_FOR / 2);
        well.wait_for_frames(until_now as usize);
        let lost = dropped(&relay.output(0));
        assert!(lost > 0, "{:?}", relay.output(0));
        // Nobody helps but by making room.
        std::fs::remove_file(&filler).expect("the filler");
        let from_now = write(Instant::now() + millis(100));
        absent.revive();
        relay.wait_until_written();
        let frames = write(Instant::now() + millis(100));
        drop(peer);
        relay.wait_until_idle();
        let ledger = relay.drain();
        let [output, other] = &ledger.outputs[..] else { panic!("{ledger:?}") };
        assert_eq!((other.frames_sent, dropped(other)), (frames, 0));
        assert_eq!(output.frames_sent + dropped(output), frames);
        assert!(!spool(output).degraded);
        let absent = absent.close();
        numbered::assert_rising(absent.payloads());
        assert_eq!(absent.frames(), output.frames_sent);
        let last: Vec<u64> = absent.payloads().iter().map(|payload| Number::of(payload).sequence).collect();
        let after: u64 = last.iter().filter(|sequence| **sequence >= from_now).count() as u64;
        assert_eq!(after, frames - from_now, "what came once it was well again");
        numbered::assert_complete(well.close().payloads(), &[(0, 0..frames)]);
    }

    /// A disk that is full of other things holds up nothing that its collector can take.
    fn frames_that_a_full_disk_has_no_room_for_pass_it_by_while_the_collector_takes_them(backend) {
        let folder = folder();
        let Some(disk) = Tmpfs::mount(folder.path(), 1 << 20) else { return };
        let _ = std::fs::write(disk.path().join("filler"), vec![0; 2 << 20]);
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(small(to(&reader).on_disk(&spool_of(disk.path())))).start();
        write(&relay, 0, 0..FRAMES).join().expect("the writer ends well");
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
        assert_eq!(dropped(&ledger.outputs[0]), 0);
    }

    /// No segment can be created for a while: the collector gets everything from memory.
    fn an_output_whose_folder_cannot_be_written_goes_on_in_memory_until_it_can(backend) {
        let folder = folder();
        let path = spool_of(folder.path());
        let reader = CollectingReader::tcp();
        // Segments of 512 KiB, and room for more than can be removed as little as created meanwhile.
        let output = small(to(&reader).on_disk(&path)).spool_config(|config| config.max = 4 << 20);
        let relay = relay(backend).output(output).start();
        write(&relay, 0, 0..FRAMES).join().expect("the writer ends well");
        relay.wait_until_written();
        let Some(immutable) = Immutable::new(&path) else { return };
        write(&relay, 1, 0..FRAMES).join().expect("the writer ends well");
        reader.wait_for_frames(2 * FRAMES as usize);
        assert!(spool(&relay.output(0)).degraded);
        drop(immutable);
        eventually("it can be written again", || {
            write(&relay, 2, 0..1).join().expect("the writer ends well");
            !spool(&relay.output(0)).degraded
        });
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(dropped(&ledger.outputs[0]), 0);
        let mut sequences = numbered::sequences(collected.payloads());
        sequences.remove(&2);
        assert!(sequences.len() == 2 && sequences.values().all(|sequence| sequence.iter().copied().eq(0..FRAMES)));
    }

    /// Also where every append is synced, and where none is.
    fn every_way_to_sync_delivers_the_same(backend) {
        for sync in [SyncPolicy::None, SyncPolicy::Batch, SyncPolicy::Interval(millis(5))] {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let output = small(to(&reader).on_disk(&spool_of(folder.path())));
            let relay = relay(backend).output(output.spool_config(|config| config.sync = sync)).start();
            let writers = [0, 1].map(|writer| write(&relay, writer, 0..FRAMES));
            writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
            relay.wait_until_written();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES), (1, 0..FRAMES)]);
            assert_eq!(dropped(&ledger.outputs[0]), 0, "{sync:?}");
        }
    }
}

/// A folder in which nothing can be created or removed, not even by root.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    /// `None`, said on stderr, where this host has none.
    fn new(folder: &'a Path) -> Option<Self> {
        let done = Command::new("chattr").arg("+i").arg(folder).status().is_ok_and(|status| status.success());
        if !done {
            skip(Cause::Missing, "a folder cannot be made immutable here");
        }
        done.then_some(Self(folder))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(self.0).status();
    }
}

fn lock(folder: &Path) -> Spool {
    Spool::open(folder, SpoolConfig::default(), None, Moment::now()).expect("a folder to write to").0
}

fn spool(output: &OutputLedger) -> tapster::observability::SpoolLedger {
    output.spool.clone().unwrap_or_default()
}
