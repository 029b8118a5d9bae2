//! Groups: every frame to one member, and to another if that one dies or stalls.

use std::collections::BTreeSet;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tapster::observability::MemberState;
use tapster::observability::OutputLedger;
use tapster::output::Balance;
use tapster::output::Checkpoint;
use tapster::queue::WhenFull;

use crate::support::collector::Collected;
use crate::support::collector::CollectingReader;
use crate::support::files::FstrmFile;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::Capture;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to_group;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::eventually_within;
use crate::support::wait::in_quiet;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::Frame;

fn readers(count: usize, transport: Transport, folder: &std::path::Path) -> Vec<CollectingReader> {
    (0..count).map(|_| CollectingReader::start(transport, folder)).collect()
}

fn group(readers: &[CollectingReader], balance: Balance) -> OutputBuilder {
    to_group(readers.iter().map(CollectingReader::address), balance)
}

/// Writers that send in small pieces, `frames` each.
fn write(relay: &TestRelay, writers: u32, frames: u64) -> Vec<JoinHandle<()>> {
    let write = |writer| {
        let mut peer = relay.writer();
        thread::spawn(move || {
            for first in (0..frames).step_by(20) {
                peer.send(&numbered::frames(writer, first..(first + 20).min(frames)));
            }
            peer.finish();
        })
    };
    (0..writers).map(write).collect()
}

/// One writer, at a pace at which members have room.
fn write_while_all_have_room(relay: &TestRelay, frames: u64) {
    let mut writer = relay.writer();
    for first in (0..frames).step_by(40) {
        writer.send(&numbered::frames(0, first..first + 40));
        relay.wait_for_frames(first + 40);
    }
    writer.finish();
}

fn end(
    relay: TestRelay,
    writers: Vec<JoinHandle<()>>,
    readers: Vec<CollectingReader>,
) -> (OutputLedger, Vec<Collected>) {
    writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
    let output = relay.drain().outputs.remove(0);
    let members = &output.members;
    let sum =
        |field: fn(&tapster::observability::MemberLedger) -> u64| members.iter().map(field).sum::<u64>();
    assert_eq!(sum(|member| member.frames_sent), output.frames_sent, "{output:?}");
    assert_eq!(sum(|member| member.frames_resent), output.frames_resent, "{output:?}");
    assert_eq!(sum(|member| member.frames_acknowledged), output.frames_acknowledged, "{output:?}");
    (output, readers.into_iter().map(CollectingReader::close).collect())
}

/// Fails unless all frames of all writers are somewhere, and, where they may not come twice, once.
fn assert_all_there(collected: &[Collected], writers: u32, frames: u64, twice: bool) {
    let mut seen = BTreeSet::new();
    for payload in collected.iter().flat_map(Collected::payloads) {
        let number = Number::of(payload);
        let new = seen.insert((number.writer, number.sequence));
        assert!(new || twice, "frame {} of writer {} came twice", number.sequence, number.writer);
    }
    let expected = (0..writers).flat_map(|writer| (0..frames).map(move |sequence| (writer, sequence)));
    let missing: Vec<_> = expected.filter(|number| !seen.contains(number)).take(5).collect();
    assert!(missing.is_empty(), "missing: {missing:?} and more");
}

/// Fails unless the frames of each writer rise within each session.
fn assert_order(collected: &[Collected]) {
    for session in collected.iter().flat_map(|collected| &collected.sessions) {
        numbered::assert_rising(wire::payloads(&session.encoded));
    }
}

on_both_backends! {
    fn equals_get_equal_shares_and_each_frame_goes_to_one(backend) {
        for balance in [Balance::RoundRobin, Balance::LeastBacklog] {
            for transport in Transport::BOTH {
                let folder = folder();
                let readers = readers(4, transport, folder.path());
                let relay = relay(backend).output(group(&readers, balance).when_full(WhenFull::Block)).start();
                readers.iter().for_each(|reader| reader.wait_for_sessions(1));
                write_while_all_have_room(&relay, 20_000);
                let (output, collected) = end(relay, Vec::new(), readers);
                assert_all_there(&collected, 1, 20_000, false);
                assert_eq!((output.frames_sent, dropped(&output)), (20_000, 0));
                for (collected, member) in collected.iter().zip(&output.members) {
                    assert_eq!(member.frames_sent, collected.frames());
                    assert_eq!(member.state, MemberState::Finished);
                    assert!((4_500..=5_500).contains(&member.frames_sent), "{balance:?}: {output:?}");
                }
            }
        }
    }

    fn shares_follow_the_weights(backend) {
        let folder = folder();
        let readers = readers(2, Transport::Unix, folder.path());
        let output = group(&readers, Balance::RoundRobin).weights(&[3, 1]).when_full(WhenFull::Block);
        let relay = relay(backend).output(output).start();
        readers.iter().for_each(|reader| reader.wait_for_sessions(1));
        write_while_all_have_room(&relay, 20_000);
        let (output, collected) = end(relay, Vec::new(), readers);
        assert_all_there(&collected, 1, 20_000, false);
        assert!((14_500..=15_500).contains(&output.members[0].frames_sent), "{output:?}");
    }

    /// One dies, one stalls and goes on later, the first returns: nothing is lost.
    fn nothing_is_lost_when_members_die_stall_and_return(backend) {
        for balance in [Balance::RoundRobin, Balance::LeastBacklog, Balance::Sticky, Balance::Failover] {
            let folder = folder();
            let mut readers = readers(4, Transport::Unix, folder.path());
            let output = group(&readers, balance).ack_received().when_full(WhenFull::Block).slow_start(millis(500));
            let relay = relay(backend).output(output.stall_timeout(millis(300))).start();
            readers.iter().for_each(|reader| reader.wait_for_sessions(1));
            let writers = write(&relay, 4, 30_000);
            relay.wait_for_frames(20_000);
            readers[0].die();
            relay.wait_for_frames(40_000);
            readers[1].stall();
            relay.wait_for_frames(60_000);
            readers[0].revive();
            relay.wait_for_frames(80_000);
            readers[1].resume();
            let (output, collected) = end(relay, writers, readers);
            assert_all_there(&collected, 4, 30_000, true);
            assert_eq!((output.frames_acknowledged, dropped(&output)), (120_000, 0), "{output:?}");
            if matches!(balance, Balance::Sticky | Balance::Failover) {
                assert_order(&collected);
            }
        }
    }

    /// What a killed member had not acknowledged goes to the other: in order, before what is newer.
    fn what_a_dead_member_had_goes_to_another_in_order(backend) {
        for balance in [Balance::Failover, Balance::Sticky] {
            let folder = folder();
            let listeners = [(), ()].map(|()| PeerListener::bind(Transport::Unix, folder.path()));
            let output = to_group(listeners.iter().map(PeerListener::address), balance).ack_received();
            let relay = relay(backend).output(output.stall_timeout(Duration::from_secs(60))).start();
            let mut peers: Vec<Peer> = listeners.iter().map(PeerListener::accept_session).collect();
            eventually("both are up", || up(&relay) == 2);
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..1000));
            // Fewer than the socket holds: all are written, half are read.
            eventually("all are sent", || relay.output(0).frames_sent == 1000);
            let home = usize::from(relay.output(0).members[1].frames_sent > 0);
            expect_frames(&mut peers[home], 0, 100);
            let died = Instant::now();
            peers.remove(home).reset();
            writer.send(&numbered::frames(0, 1000..1100));
            writer.finish();
            let mut other = peers.remove(0);
            let first = next_number(&mut other);
            let took = died.elapsed();
            assert!(first <= 100, "{first}");
            assert!(took < Duration::from_secs(1), "{took:?}");
            expect_frames(&mut other, first + 1, 1100);
            let drain = thread::spawn(move || relay.drain());
            other.expect_stop();
            let mut output = drain.join().expect("the relay drains").outputs.remove(0);
            let dead = output.members.remove(home);
            // Also newer ones, if they came before its death was seen.
            let given_back = dead.frames_given_back + dead.frames_acknowledged;
            assert!((1000..=1100).contains(&given_back), "{output:?}");
            assert_eq!((output.frames_sent, output.frames_acknowledged), (1100, 1100));
        }
    }

    /// With `written` what was not wholly written goes to the other, whole.
    fn what_a_stalled_member_had_not_taken_goes_to_another(backend) {
        in_quiet(Duration::from_secs(1), || {
            let folder = folder();
            let listeners = [(), ()].map(|()| PeerListener::bind(Transport::Unix, folder.path()));
            let output = to_group(listeners.iter().map(PeerListener::address), Balance::Failover);
            let relay = relay(backend).output(output.when_full(WhenFull::Block)).start();
            let mut stalled = listeners[0].accept_session();
            let mut other = listeners[1].accept_session();
            eventually("both are up", || up(&relay) == 2);
            let frames = 20_000;
            let mut writer = relay.writer();
            let writing = thread::spawn(move || {
                writer.send(&numbered::frames(0, 0..frames));
                writer.finish();
            });
            let mut written = 0;
            let mut since = Instant::now();
            let first = thread::spawn(move || (next_number(&mut other), Instant::now(), other));
            eventually("the other gets something", || {
                let now = relay.output(0).members[0].frames_sent;
                if now != written {
                    (written, since) = (now, Instant::now());
                }
                first.is_finished()
            });
            let (number, at, mut other) = first.join().expect("a frame");
            let stalled_member = relay.output(0).members.swap_remove(0);
            assert_eq!(stalled_member.state, MemberState::Stalled);
            // None is lost, none is doubled. What was written last was counted when the write was broken off, after the last look
            // perhaps.
            assert_eq!(number, stalled_member.frames_sent);
            expect_frames(&mut other, number + 1, frames);
            expect_frames(&mut stalled, 0, number);
            writing.join().expect("the writer ends well");
            let drain = thread::spawn(move || relay.drain());
            other.expect_stop();
            drop(listeners);
            let output = drain.join().expect("the relay drains").outputs.remove(0);
            assert_eq!((output.frames_sent, dropped(&output)), (frames, 0), "{output:?}");
            let took = at - since;
            if took < Duration::from_secs(1) { Ok(()) } else { Err(format!("the other waited for {took:?}")) }
        });
    }

    /// A member that returns gets little at first, and its full share in the end.
    fn a_member_that_returns_is_taken_back_gently(backend) {
        let folder = folder();
        let mut readers = readers(2, Transport::Unix, folder.path());
        let output = group(&readers, Balance::RoundRobin).slow_start(Duration::from_secs(2));
        let relay = relay(backend).output(output).start();
        readers.iter().for_each(|reader| reader.wait_for_sessions(1));
        let mut writer = relay.writer();
        let mut sequence = 0;
        let mut send = |duration: Duration| {
            let (began, before) = (Instant::now(), relay.output(0));
            while began.elapsed() < duration {
                writer.send(&numbered::frames(0, sequence..sequence + 20));
                sequence += 20;
                thread::sleep(millis(1));
            }
            let after = relay.output(0);
            let sent = |index: usize| after.members[index].frames_sent - before.members[index].frames_sent;
            sent(0) as f64 / (sent(0) + sent(1)) as f64
        };
        readers[0].die();
        eventually("its death is seen", || up(&relay) == 1);
        assert_eq!(send(millis(100)), 0.0);
        readers[0].revive();
        eventually("its return is seen", || up(&relay) == 2);
        let first = send(millis(300));
        assert!(0.0 < first && first < 0.25, "{first}");
        send(Duration::from_secs(2));
        let last = send(millis(500));
        assert!((0.45..0.55).contains(&last), "{last}");
        let (output, _) = end(relay, Vec::new(), readers);
        assert_eq!(dropped(&output), 0);
    }

    fn without_any_member_the_queue_does_what_its_policy_says(backend) {
        let folder = folder();
        let mut readers = readers(2, Transport::Unix, folder.path());
        readers.iter_mut().for_each(CollectingReader::die);
        let relay = relay(backend).output(group(&readers, Balance::RoundRobin).queue(2 << 20)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..50_000));
        writer.finish();
        let queued = relay.output(0).frames_queued;
        assert!(dropped_for(&relay.output(0), "queue_full") > 0);
        readers.iter_mut().for_each(CollectingReader::revive);
        let (output, collected) = end(relay, Vec::new(), readers);
        assert_eq!((output.frames_sent, dropped(&output)), (queued, 50_000 - queued));
        assert!(collected.iter().flat_map(Collected::payloads).any(|payload| Number::of(payload).sequence == 49_999));
    }

    /// A group with other members at the next start, and drains with a member that never was there.
    fn members_come_and_go_with_the_configuration(backend) {
        let folder = folder();
        let readers = readers(3, Transport::Tcp, folder.path());
        let address = |index: usize| readers[index].address();
        for (round, members) in [vec![0, 1], vec![0, 1, 2], vec![1, 2]].into_iter().enumerate() {
            let nobody = Transport::Unix.fresh_address(folder.path());
            let addresses = members.iter().map(|index| address(*index)).chain([nobody]);
            let relay = relay(backend).output(to_group(addresses, Balance::RoundRobin)).start();
            eventually("all are up", || up(&relay) == members.len());
            let mut writer = relay.writer();
            for first in 0..100 {
                writer.send(&numbered::frames(round as u32, first..first + 1));
                relay.wait_for_frames(first + 1);
            }
            writer.finish();
            let took = Instant::now();
            let output = relay.drain().outputs.remove(0);
            assert!(took.elapsed() < Duration::from_secs(2), "{:?}", took.elapsed());
            assert_eq!((output.frames_sent, dropped(&output)), (100, 0));
            assert!(output.members[..members.len()].iter().all(|member| member.frames_sent > 0), "{output:?}");
        }
    }

    /// Everything since the last FINISH goes to the other.
    fn what_no_checkpoint_has_covered_goes_to_another(backend) {
        let folder = folder();
        let mut readers = readers(2, Transport::Tcp, folder.path());
        let checkpoint = Checkpoint::Every(millis(200));
        let output = group(&readers, Balance::RoundRobin).checkpoint(checkpoint).when_full(WhenFull::Block);
        let relay = relay(backend).output(output).start();
        readers.iter().for_each(|reader| reader.wait_for_sessions(1));
        let writers = write(&relay, 2, 30_000);
        relay.wait_for_frames(20_000);
        readers[0].die();
        eventually_within(Duration::from_secs(1), "it goes on", || relay.output(0).members[0].frames_given_back > 0);
        readers[0].revive();
        let (output, collected) = end(relay, writers, readers);
        assert_all_there(&collected, 2, 30_000, true);
        assert_eq!((output.frames_acknowledged, output.frames_unacknowledged), (60_000, 0));
    }
}

on_both_backends! {
    /// A few frames in its socket, which is far from full, and a stream that waits for FINISH: both go to the other.
    fn what_a_stalled_member_had_in_both_streams_around_a_checkpoint_goes_to_another(backend) {
        in_quiet(Duration::from_secs(1), || {
            let folder = folder();
            let listeners = [(), ()].map(|()| PeerListener::bind(Transport::Unix, folder.path()));
            let output = to_group(listeners.iter().map(PeerListener::address), Balance::Failover);
            let output = output.checkpoint(Checkpoint::Every(millis(100))).finish_timeout(Duration::from_secs(60));
            let relay = relay(backend).output(output).start();
            let mut first = listeners[0].accept_session();
            let mut other = listeners[1].accept_session();
            eventually("both are up", || up(&relay) == 2);
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..10));
            expect_frames(&mut first, 0, 10);
            let second = listeners[0].accept_session();
            first.expect(&wire::stop());
            let stalled = Instant::now();
            writer.send(&numbered::frames(0, 10..20));
            let got: BTreeSet<u64> = (0..20).map(|_| next_number(&mut other)).collect();
            let took = stalled.elapsed();
            assert!(got.into_iter().eq(0..20), "each frame once");
            drop((writer, listeners, first, second));
            let drain = thread::spawn(move || relay.drain());
            other.expect_stop();
            let output = drain.join().expect("the relay drains").outputs.remove(0);
            assert_eq!((output.frames_acknowledged, output.frames_resent), (20, 20), "{output:?}");
            if took < Duration::from_secs(1) { Ok(()) } else { Err(format!("the other waited for {took:?}")) }
        });
    }

    /// Two real collectors and two of ours. One is killed with -9 and returns, one is stopped and goes on: with checkpoints
    /// nothing is lost, and what they had not got is elsewhere within a second.
    fn nothing_is_lost_when_real_members_are_killed_stopped_and_return(backend) {
        in_quiet(Duration::from_secs(1), || {
            let folder = folder();
            let Some(mut killed) = Capture::start(Transport::Tcp, folder.path()) else { return Ok(()) };
            let Some(mut stopped) = Capture::start(Transport::Unix, folder.path()) else { return Ok(()) };
            let readers = Transport::BOTH.map(|transport| CollectingReader::start(transport, folder.path()));
            let [c, d] = readers.each_ref().map(CollectingReader::address);
            let members = [killed.address(), stopped.address(), c, d];
            let output = to_group(members, Balance::RoundRobin).checkpoint(Checkpoint::Bytes(256 << 10));
            let relay = relay(backend).output(output).start();
            eventually("all are up", || up(&relay) == 4);
            let writing = write_at_40_000_a_second(&relay, FRAMES);
            const FRAMES: u64 = 120_000;

            relay.wait_for_frames(20_000);
            let even = frames_sent(&relay);
            kill_with_file_complete(&mut killed, &relay, 0);
            relay.wait_for_frames(50_000);
            let again = Capture::start_at(&killed.address(), folder.path().join("again.fstrm"));
            let mut again = again.expect("it was there before");
            relay.wait_for_frames(60_000);
            stopped.stop();
            eventually("that is seen", || relay.output(0).members[1].state == MemberState::Stalled);
            let before = [killed.path(), stopped.path()].map(|path| FstrmFile::read(path).expect("START"));
            stopped.go_on();
            writing.join().expect("all was taken");
            let output = relay.drain().outputs.remove(0);
            assert_eq!((output.frames_acknowledged, dropped(&output)), (FRAMES, 0), "{output:?}");
            again.terminate();
            stopped.terminate();

            let collected = readers.map(CollectingReader::close);
            let files = [killed.path(), again.path(), stopped.path()];
            let files = files.map(|path| FstrmFile::read(path).expect("START"));
            let payloads = files.iter().flat_map(FstrmFile::payloads);
            let payloads = payloads.chain(collected.iter().flat_map(Collected::payloads));
            let got: BTreeSet<u64> = payloads.map(|payload| Number::of(payload).sequence).collect();
            assert!(got.into_iter().eq(0..FRAMES), "frames are missing");

            let had: BTreeSet<u64> =
                before.iter().flat_map(FstrmFile::payloads).map(|payload| Number::of(payload).sequence).collect();
            let late = latest(&collected, &had);
            let sent = frames_sent_by(&output);
            eprintln!("{even:?} at first, {sent:?} in all, failover within {late:?}");
            if !are_even(&even) || !are_even(&sent[2..]) {
                return Err(format!("shares are {even:?} at first, {sent:?} in all"));
            }
            if late < Duration::from_secs(1) { Ok(()) } else { Err(format!("frames were away for {late:?}")) }
        });
    }
}

fn write_at_40_000_a_second(relay: &TestRelay, frames: u64) -> JoinHandle<()> {
    let mut writer = relay.writer();
    thread::spawn(move || {
        let (began, beat, per_beat) = (Instant::now(), millis(2), 80);
        for n in 0..frames / per_beat {
            thread::sleep((began + beat * n as u32).saturating_duration_since(Instant::now()));
            writer.send(&numbered::frames(0, n * per_beat..(n + 1) * per_beat));
        }
        writer.finish();
    })
}

fn frames_sent(relay: &TestRelay) -> Vec<u64> {
    frames_sent_by(&relay.output(0))
}

fn frames_sent_by(output: &OutputLedger) -> Vec<u64> {
    output.members.iter().map(|member| member.frames_sent).collect()
}

/// Whether they lie within a tenth.
fn are_even(counts: &[u64]) -> bool {
    let (min, max) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
    max - min <= max / 10
}

/// Kills it with -9 when its file has all that FINISH covers: the last KiB of what it has taken are in its memory.
fn kill_with_file_complete(capture: &mut Capture, relay: &TestRelay, member: usize) {
    let ledger = || relay.output(0).members.remove(member);
    let mut seen = ledger();
    eventually("its file is complete", || {
        let file = FstrmFile::read(capture.path());
        if file.is_none_or(|file| (file.payloads().len() as u64) < seen.frames_sent) {
            return false;
        }
        capture.stop();
        // For a FINISH that is on its way.
        thread::sleep(millis(50));
        let (now, acknowledged) = (ledger(), seen.frames_acknowledged);
        let complete = now.frames_acknowledged == acknowledged;
        seen = now;
        if !complete {
            capture.go_on();
        }
        complete
    });
    capture.kill();
}

/// How long frames took at most that others did not have before.
fn latest(collected: &[Collected], had: &BTreeSet<u64>) -> Duration {
    let mut latest = Duration::ZERO;
    for session in collected.iter().flat_map(|collected| &collected.sessions) {
        let mut payloads = wire::payloads(&session.encoded).into_iter();
        let mut taken = 0;
        for (frames, arrived_at) in &session.arrivals {
            let numbers = payloads.by_ref().take(frames - taken).map(Number::of);
            let new = numbers.filter(|number| !had.contains(&number.sequence));
            latest = new.map(|number| number.latency(*arrived_at)).fold(latest, Duration::max);
            taken = *frames;
        }
    }
    latest
}

fn up(relay: &TestRelay) -> usize {
    relay.output(0).members.iter().filter(|member| member.state == MemberState::Up).count()
}

fn next_number(reader: &mut Peer) -> u64 {
    match reader.read_frame() {
        Frame::Data(payload) => Number::of(&payload).sequence,
        Frame::Control(_) => panic!("a control frame"),
    }
}

#[track_caller]
fn expect_frames(reader: &mut Peer, from: u64, to: u64) {
    for sequence in from..to {
        assert_eq!(next_number(reader), sequence);
    }
}
