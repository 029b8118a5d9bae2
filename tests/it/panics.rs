//! A bug that panics costs the task that had it, and no more: what it had is counted, the log has a line at ERROR, and it begins
//! again. Debug builds have faults for that, see `tapster::faults`.

use std::path::Path;
use std::time::Duration;

use tapster::faults;
use tapster::observability::OutputLedger;
use tapster::output::Balance;
use tapster::queue::WhenFull;
use tapster::relay::Relay;
use tapster::relay::StartError;
use tapster::spool::OnFull;
use tapster::transport::Address;
use tapster::transport::Backend;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::backend::word;
use crate::support::collector::CollectingReader;
use crate::support::files::FstrmFile;
use crate::support::files::files_in;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::relay::OutputBuilder;
use crate::support::relay::RelayBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::ended;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_file;
use crate::support::relay::to_group;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// No drain with readers that read takes longer, however many tasks have failed before.
const DRAIN: Duration = Duration::from_secs(3);

fn has_faults() -> bool {
    if !faults::ENABLED {
        skip(Cause::Missing, "a release build has no faults");
    }
    faults::ENABLED
}

/// A relay whose inputs and outputs no other test has.
fn own(backend: Backend, test: &str) -> (RelayBuilder, String) {
    let prefix = format!("{test} {} ", word(backend));
    (relay(backend).named(&prefix).drain_timeout(DRAIN), prefix)
}

/// The program with these faults, from one address to one reader. Its summary goes into the folder.
fn with_faults(
    backend: Backend,
    faults: &str,
    address: &Address,
    reader: &CollectingReader,
    folder: &Path,
) -> Tapster {
    tapster(backend)
        .env("TAPSTER_FAULTS", faults)
        .listen(address)
        .to(&reader.address(), "")
        .summary(folder.join("summary.json"))
        .start()
}

/// Writes three runs of frames of one writer, and lets the task of the first output fail with some of the second run.
fn write_around_a_panic(relay: &TestRelay, place: &str, output: &str, read: impl Fn(u64)) {
    let mut writer = relay.writer();
    writer.send(&numbered::frames(0, 0..100));
    relay.wait_for_frames(100);
    read(100);
    faults::arm(place, output, 0);
    writer.send(&numbered::frames(0, 100..200));
    eventually("the task panics", || relay.output(0).panics == 1);
    writer.send(&numbered::frames(0, 200..300));
    relay.wait_for_frames(300);
    writer.finish();
    relay.wait_until_written();
}

/// Fails unless the frames that are missing are those that the task had, and are counted as such.
fn assert_only_the_second_run_suffered(output: &OutputLedger, mut got: Vec<u64>) {
    got.sort_unstable();
    got.dedup();
    let lost: Vec<u64> = (0..300).filter(|sequence| got.binary_search(sequence).is_err()).collect();
    assert!(lost.iter().all(|sequence| (100..200).contains(sequence)), "{lost:?}");
    assert!(!lost.is_empty());
    assert_eq!((dropped_for(output, "internal"), dropped(output)), (lost.len() as u64, lost.len() as u64));
    assert_eq!((output.frames_received, output.panics), (300, 1), "{output:?}");
}

fn sequence_of(payloads: Vec<&[u8]>) -> Vec<u64> {
    numbered::sequences(payloads).remove(&0).unwrap_or_default()
}

fn spooled(output: OutputBuilder, folder: &Path, all: bool) -> OutputBuilder {
    let output =
        if all { output.on_disk(&folder.join("spool")) } else { output.spills_to(&folder.join("spool")) };
    output.queue(256 << 10).frame_len_max(8 << 10).spool_config(|config| config.on_full = OnFull::Block)
}

on_both_backends! {
    fn a_connection_that_panics_ends_alone_and_holds_up_no_drain(backend) {
        if !has_faults() {
            return;
        }
        let reader = CollectingReader::tcp();
        let (relay, prefix) = own(backend, "connection");
        let relay = relay.output(to(&reader)).start();
        let (mut good, mut bad) = (relay.writer(), relay.writer());
        good.send(&numbered::frames(0, 0..100));
        bad.send(&numbered::frames(1, 0..100));
        relay.wait_for_frames(200);
        faults::arm("connection", &format!("{prefix}input0"), 0);
        bad.send(&numbered::frames(1, 100..101));
        bad.expect_close();
        good.send(&numbered::frames(0, 100..200));
        good.finish();
        let mut later = relay.writer();
        later.send(&numbered::frames(2, 0..100));
        relay.wait_for_frames(400);
        eventually("the connection has ended", || ended(&relay.input(), "internal") == 1);
        let (ledger, collected) = relay.drain_into(reader);
        let input = &ledger.inputs[0];
        assert_eq!((ended(input, "internal"), input.panics, input.connections), (1, 1, 3), "{input:?}");
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].panics), (400, 0));
        numbered::assert_complete(collected.payloads(), &[(0, 0..200), (1, 0..100), (2, 0..100)]);
    }

    fn a_lane_that_panics_begins_again_and_what_it_had_is_counted(backend) {
        if !has_faults() {
            return;
        }
        for acked in [false, true] {
            let reader = CollectingReader::tcp();
            let (relay, prefix) = own(backend, &format!("lane {acked}"));
            let output = if acked { to(&reader).ack_received() } else { to(&reader) };
            let relay = relay.output(output).start();
            write_around_a_panic(&relay, "lane", &format!("{prefix}output0"), |frames| {
                reader.wait_for_frames(frames as usize);
            });
            let ledger = relay.drain();
            let collected = reader.close();
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_sent, output.connections), (collected.frames(), 2));
            assert_only_the_second_run_suffered(output, sequence_of(collected.payloads()));
            numbered::assert_rising(collected.payloads());
        }
    }

    fn a_lane_of_a_group_that_panics_begins_again(backend) {
        if !has_faults() {
            return;
        }
        let readers = [CollectingReader::tcp(), CollectingReader::tcp()];
        let (relay, prefix) = own(backend, "group");
        let members = readers.iter().map(CollectingReader::address);
        let relay = relay.output(to_group(members, Balance::RoundRobin).ack_received()).start();
        write_around_a_panic(&relay, "lane", &format!("{prefix}output0"), |_| {
            eventually("acknowledged", || relay.output(0).frames_acknowledged == 100);
        });
        let ledger = relay.drain();
        let collected = readers.map(CollectingReader::close);
        let output = &ledger.outputs[0];
        let got = collected.iter().flat_map(|collected| sequence_of(collected.payloads())).collect();
        assert_only_the_second_run_suffered(output, got);
        let members = &output.members;
        assert_eq!(members.iter().map(|member| member.frames_unacknowledged).sum::<u64>(), 0, "{members:?}");
        assert_eq!(members.iter().map(|member| member.frames_sent).sum::<u64>(), output.frames_sent);
    }

    fn a_file_lane_that_panics_begins_another_file_and_leaves_a_good_one(backend) {
        if !has_faults() {
            return;
        }
        let folder = folder();
        let (relay, prefix) = own(backend, "file");
        let relay = relay.output(to_file(folder.path().join("out.fstrm"))).start();
        write_around_a_panic(&relay, "lane", &format!("{prefix}output0"), |frames| {
            eventually("written", || relay.output(0).frames_sent == frames);
        });
        let output = relay.drain().outputs.remove(0);
        let mut got = Vec::new();
        let paths = files_in(folder.path(), "");
        assert_eq!(paths.len(), 2, "{paths:?}");
        for path in paths {
            let file = FstrmFile::read(&path).expect("a whole file");
            assert!(file.clean, "{path:?} does not end with STOP");
            got.extend(sequence_of(file.payloads()));
        }
        assert_only_the_second_run_suffered(&output, got);
    }

    /// The spool has what the lane had: it comes again, and nothing is lost or counted twice.
    fn a_lane_with_a_spool_that_panics_loses_nothing_that_is_on_disk(backend) {
        if !has_faults() {
            return;
        }
        for acked in [false, true] {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let (relay, prefix) = own(backend, &format!("lane with spool {acked}"));
            let output = spooled(to(&reader), folder.path(), true);
            let relay = relay.output(if acked { output.ack_received() } else { output }).start();
            let name = format!("{prefix}output0");
            let mut writer = relay.writer();
            for round in 0..5 {
                faults::arm("lane", &name, 2);
                for part in 0..10 {
                    let first = round * 1000 + part * 100;
                    writer.send(&numbered::frames(0, first..first + 100));
                    relay.wait_for_frames(first + 100);
                }
                eventually("the lane panics", || relay.output(0).panics == round + 1);
            }
            writer.finish();
            relay.wait_until_written();
            let output = relay.drain().outputs.remove(0);
            let collected = reader.close();
            let mut got = sequence_of(collected.payloads());
            got.sort_unstable();
            got.dedup();
            assert_eq!(got, (0..5000).collect::<Vec<_>>());
            // Frames that were delivered when the spool did not know it yet count as found once more.
            let received = 5000 + output.spool.as_ref().expect("a spool").frames_recovered;
            assert_eq!((output.frames_received, dropped(&output)), (received, 0), "{output:?}");
            assert_eq!(output.frames_sent, received);
            assert_eq!(output.panics, 5);
        }
    }

    /// Without its stage nobody would empty the front queue.
    fn a_spool_stage_that_panics_opens_the_spool_again_and_frames_go_on(backend) {
        if !has_faults() {
            return;
        }
        for all in [false, true] {
            let folder = folder();
            let reader = CollectingReader::start(Transport::Unix, folder.path()).stalled();
            let (relay, prefix) = own(backend, &format!("stage {all}"));
            let relay = relay.output(spooled(to(&reader), folder.path(), all)).start();
            let mut writer = relay.writer();
            for round in 0..3 {
                if round == 1 {
                    faults::arm("spool stage", &format!("{prefix}output0"), 0);
                }
                let first = round * 10_000;
                writer.send(&numbered::frames(0, first..first + 10_000));
                relay.wait_for_frames(first + 10_000);
                eventually("the stage panics", || relay.output(0).panics == round.min(1));
            }
            reader.resume();
            writer.finish();
            relay.wait_until_written();
            let output = relay.drain().outputs.remove(0);
            let mut got = sequence_of(reader.close().payloads());
            got.sort_unstable();
            got.dedup();
            let internal = dropped_for(&output, "internal");
            assert_eq!((got.len() as u64 + internal, dropped(&output)), (30_000, internal), "{output:?}");
            assert!((20_000..30_000).all(|sequence| got.binary_search(&sequence).is_ok()), "the last come all");
            // Frames that were delivered, while the disk did not know it yet, count as found once more.
            let spool = output.spool.as_ref().expect("a spool");
            assert_eq!(output.frames_received, 30_000 + spool.frames_recovered, "{output:?}");
            assert!(!spool.degraded);
        }
    }

    fn a_worker_that_panics_at_its_start_is_told_and_nothing_is_left_bound(backend) {
        if !has_faults() {
            return;
        }
        for healthy_before in 0..2 {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let addresses = [Transport::Tcp, Transport::Unix].map(|transport| {
                let listener = crate::support::stream::Listener::bind(&transport.fresh_address(folder.path()));
                listener.expect("a free address").address()
            });
            if let Address::Unix(path) = &addresses[1] {
                let _ = std::fs::remove_file(path);
            }
            let (relay, prefix) = own(backend, &format!("worker {healthy_before}"));
            let config = relay.input(listening_on(addresses.to_vec())).output(to(&reader)).config();
            faults::arm("worker start", &format!("{prefix}input0"), healthy_before);
            let began = std::time::Instant::now();
            let error = Relay::start(config.clone()).expect_err("a worker is missing");
            assert!(matches!(error, StartError::Worker(_)), "{error}");
            assert!(began.elapsed() < DRAIN, "{:?}", began.elapsed());
            for address in &addresses {
                assert!(Stream::connect(address).is_err(), "{address}");
            }
            // The same configuration starts when nothing is wrong.
            let relay = Relay::start(config).expect("nothing is left bound");
            let mut writers: Vec<_> = (0..20).map(|_| Peer::writer(&addresses[0])).collect();
            for (number, writer) in writers.iter_mut().enumerate() {
                writer.send(&numbered::frames(number as u32, 0..10));
            }
            reader.wait_for_frames(200);
            for writer in writers {
                writer.finish();
            }
            assert!(relay.drain().outputs[0].balances());
        }
    }

    /// Rust's own line about the panic, and ours: no panic of another task, or of a destructor, follows.
    fn a_panic_is_told_once_at_error(backend) {
        if !has_faults() {
            return;
        }
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let faults = format!("connection={address}=0,lane={}=0", reader.address());
        let mut program = with_faults(backend, &faults, &address, &reader, folder.path());
        let mut bad = Peer::writer(&address);
        bad.send(&numbered::frames(0, 0..10));
        bad.expect_close();
        let mut good = Peer::writer(&address);
        good.send(&numbered::frames(1, 0..10));
        program.process.wait_for_output("frames are lost");
        good.send(&numbered::frames(1, 10..20));
        good.finish();
        reader.wait_for_frames(10);
        program.terminate();
        let output = program.process.output();
        assert_eq!(output.matches("panicked at").count(), 2, "{output}");
        let told: Vec<&str> = output.lines().filter(|line| line.contains("ended with a panic")).collect();
        assert_eq!(told.len(), 2, "{output}");
        assert!(told[0].contains("ERROR") && told[0].contains("connection of"), "{output}");
        assert!(told[1].contains("ERROR") && told[1].contains("lane of"), "{output}");
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!((summary.input(0, "panics"), summary.output(0, "panics")), (1, 1));
        assert!((1..=10).contains(&summary.dropped(0, "internal")));
        assert_eq!(summary.dropped(0, "internal") + summary.output(0, "frames_sent"), 20);
    }

    /// Every check of the ledger in these tests is one that can fail: a frame that is counted twice, or forgotten, is seen.
    fn a_ledger_that_is_wrong_is_seen(backend) {
        if !has_faults() {
            return;
        }
        for fault in ["count twice", "forget a batch"] {
            for when_full in [WhenFull::Block, WhenFull::DropOldest, WhenFull::Sample] {
                let reader = CollectingReader::tcp();
                let (relay, prefix) = own(backend, &format!("{fault} {when_full:?}"));
                let relay = relay.output(to(&reader).when_full(when_full)).start();
                let mut writer = relay.writer();
                faults::arm(fault, &format!("{prefix}output0"), 0);
                writer.send(&numbered::frames(0, 0..100));
                relay.wait_for_frames(100);
                writer.finish();
                std::thread::sleep(millis(50));
                let drained = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| relay.drain()));
                assert!(drained.is_err(), "{fault}: nobody saw it");
                let collected = reader.close();
                assert_eq!(collected.frames() < 100, fault == "forget a batch");
            }
        }
    }

    fn a_summary_that_is_wrong_is_seen(backend) {
        if !has_faults() {
            return;
        }
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let faults = format!("count twice={}=0", reader.address());
        let mut program = with_faults(backend, &faults, &address, &reader, folder.path());
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        program.terminate();
        let summary = program.summary();
        assert!(std::panic::catch_unwind(|| summary.assert_balanced()).is_err(), "nobody saw it");
    }
}
