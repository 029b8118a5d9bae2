//! Ages: how long the oldest frame waits, and how long frames stayed that were delivered.

use std::time::Duration;
use std::time::Instant;

use tapster::observability::OutputLedger;
use tapster::output::Balance;
use tapster::spool::OnFull;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::tapster;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_group;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// More than a unix socket's buffers hold.
const FRAMES: u64 = 40_000;

fn age(output: &OutputLedger) -> Duration {
    Duration::from_micros(output.oldest_age_us.unwrap_or_default())
}

on_both_backends! {
    /// What waits grows older while its reader stalls, whatever comes behind it. Once it is read nothing is old, and the
    /// percentiles remember.
    fn what_a_stalled_reader_leaves_grows_old_and_is_remembered(backend) {
        for ack_received in [false, true] {
            let folder = folder();
            let stalled = CollectingReader::start(Transport::Unix, folder.path()).stalled();
            let free = CollectingReader::start(Transport::Unix, folder.path());
            let output = to(&stalled);
            let output = if ack_received { output.ack_received() } else { output };
            let relay = relay(backend)
                .input(listening(Transport::Unix, folder.path()))
                .output(output)
                .output(to(&free))
                .start();
            stalled.wait_for_sessions(1);
            assert_eq!(relay.output(0).oldest_age_us, None, "nothing has come");
            let began = Instant::now();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..FRAMES));
            relay.wait_for_frames(FRAMES);
            let all_came_by = began.elapsed();
            eventually("the oldest is 300 ms old", || age(&relay.output(0)) >= millis(300));
            writer.send(&numbered::frames(0, FRAMES..FRAMES + 100));
            relay.wait_for_frames(FRAMES + 100);
            // The first of what waits came at some time until all had come.
            let looked_at = Instant::now();
            let waiting = relay.output(0);
            assert!(age(&waiting) <= began.elapsed() * 51 / 50 + millis(10), "{waiting:?}");
            assert!(age(&waiting) + all_came_by >= looked_at - began, "{waiting:?}");
            relay.wait_until_written_to(1);
            eventually("its sibling has delivered everything", || relay.output(1).oldest_age_us.is_none());
            let sibling = relay.output(1).residence;
            assert!(sibling.batches > 0, "{sibling:?}");

            let oldest = age(&relay.output(0));
            stalled.resume();
            eventually("everything delivered", || relay.output(0).oldest_age_us.is_none());
            let residence = relay.output(0).residence;
            assert!(residence.batches > 0 && residence.batches == sibling.batches, "{residence:?}, {sibling:?}");
            // To 1 %, and 10 ms.
            let max = Duration::from_micros(residence.max_us);
            assert!(max + millis(10) + oldest / 50 >= oldest, "{residence:?}, and {oldest:?} before");
            assert!(max <= began.elapsed() * 51 / 50, "{residence:?} in {:?}", began.elapsed());
            let ordered = [residence.p50_us, residence.p90_us, residence.p99_us, residence.p99_9_us, residence.max_us];
            assert!(ordered.is_sorted(), "{residence:?}");
            writer.finish();
            relay.drain();
        }
    }

    /// Nobody has taken anything: it is old in the queue already.
    fn what_waits_for_a_reader_that_is_away_grows_old_too(backend) {
        let folder = folder();
        let relay = relay(backend)
            .drain_timeout(millis(500))
            .input(listening(Transport::Unix, folder.path()))
            .output(to_address(Transport::Unix.fresh_address(folder.path())))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        eventually("it is 100 ms old", || age(&relay.output(0)) >= millis(100));
        writer.finish();
        let output = relay.drain().outputs.remove(0);
        assert_eq!(output.oldest_age_us, None, "given up: {output:?}");
        assert_eq!(output.residence.batches, 0, "and not delivered: {output:?}");
    }

    /// One member stalls: what waits for it is the oldest of the group, until it is given to the other.
    fn the_oldest_of_a_group_is_that_of_its_members_and_its_queue(backend) {
        let folder = folder();
        let readers: Vec<_> =
            (0..2).map(|_| CollectingReader::start(Transport::Unix, folder.path()).stalled()).collect();
        let output = to_group(readers.iter().map(CollectingReader::address), Balance::RoundRobin);
        let relay = relay(backend)
            .input(listening(Transport::Unix, folder.path()))
            .output(output.ack_received().stall_timeout(Duration::from_secs(60)))
            .start();
        readers.iter().for_each(|reader| reader.wait_for_sessions(1));
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        relay.wait_for_frames(FRAMES);
        eventually("the oldest is 200 ms old", || age(&relay.output(0)) >= millis(200));
        readers[0].resume();
        eventually("the other member has delivered something", || {
            relay.output(0).members[0].residence.batches > 0
        });
        // The first of what the members have came one after the other.
        let group = relay.output(0);
        assert!(age(&group) >= millis(150), "{group:?}");
        assert!(group.members[1].oldest_age_us.is_some_and(|us| us >= 150_000), "{group:?}");
        readers[1].resume();
        eventually("everything delivered", || relay.output(0).oldest_age_us.is_none());
        let group = relay.output(0);
        let delivered: u64 = group.members.iter().map(|member| member.residence.batches).sum();
        assert_eq!(group.residence.batches, delivered, "{group:?}");
        assert!(group.residence.max_us >= 150_000, "{group:?}");
        writer.finish();
        relay.drain();
    }

    /// On disk frames grow old as in memory, in the next run too, and are remembered with all of their age.
    fn what_waits_on_disk_grows_old_over_a_restart(backend) {
        for all_on_disk in [false, true] {
            let folder = folder();
            let spool = folder.path().join("spool");
            let mut reader = CollectingReader::start(Transport::Unix, folder.path());
            let output = to(&reader).queue(256 << 10).frame_len_max(8 << 10);
            reader.die();
            let start = || {
                let output = output.clone();
                let output = if all_on_disk { output.on_disk(&spool) } else { output.spills_to(&spool) };
                let output = output.spool_config(|config| config.on_full = OnFull::Block);
                let input = listening(Transport::Unix, folder.path());
                relay(backend).input(input).output(output).start()
            };
            let first = start();
            let began = Instant::now();
            let mut writer = first.writer();
            writer.send(&numbered::frames(0, 0..FRAMES));
            first.wait_for_frames(FRAMES);
            let all_came_by = began.elapsed();
            eventually("the oldest is 100 ms old", || age(&first.output(0)) >= millis(100));
            writer.finish();
            let left = first.drain_to_disk().outputs.remove(0);
            assert!(left.frames_spooled > 0 && age(&left) >= millis(100), "{left:?}");
            assert_eq!(left.residence.batches, 0, "{left:?}");

            let second = start();
            eventually("it is as old as before", || second.output(0).oldest_age_us.is_some());
            let waits_for = began.elapsed();
            let oldest = age(&second.output(0));
            // Times on disk are those of the clock on the wall.
            assert!(oldest + all_came_by + millis(50) >= waits_for, "{oldest:?}, and {waits_for:?} went by");
            assert!(oldest <= began.elapsed() + millis(50), "{oldest:?}");
            reader.revive();
            eventually("everything delivered", || second.output(0).oldest_age_us.is_none());
            let output = second.output(0);
            let max = Duration::from_micros(output.residence.max_us);
            assert!(max + millis(10) >= oldest && max <= (began.elapsed() + millis(50)) * 51 / 50, "{output:?}");
            second.drain();
        }
    }

    fn the_summary_tells_it(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .listen(&address)
            .to(&reader.address(), "")
            .summary(folder.path().join("summary.json"))
            .start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        program.terminate();
        let output = program.summary().0["outputs"][0].clone();
        assert!(output["oldest_age_us"].is_null(), "{output}");
        let residence = |key: &str| output["residence"][key].as_u64().expect("a number");
        assert!(residence("batches") > 0, "{output}");
        assert!(residence("p50_us") <= residence("max_us") && residence("max_us") > 0, "{output}");
    }
}
