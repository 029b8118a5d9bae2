//! Checkpoints: the stream ends, FINISH acknowledges it, and the next one flows meanwhile.

use std::ops::Range;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::output::Checkpoint;
use tapster::queue::WhenFull;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::files::FstrmFile;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::Capture;
use crate::support::peers::dnstap_passes_on;
use crate::support::peers::free_address;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::in_quiet;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::Frame;

const SOON: Checkpoint = Checkpoint::Every(Duration::from_millis(100));

/// Two streams around a checkpoint: the first with ten frames, ended by STOP; the second with ten more.
fn around_a_checkpoint(
    backend: Backend,
    listener: &PeerListener,
    finish_timeout: Duration,
) -> (TestRelay, Peer, Peer, Peer) {
    let output = to_peer(listener).checkpoint(SOON).finish_timeout(finish_timeout);
    let relay = relay(backend).output(output).start();
    let mut writer = relay.writer();
    let mut first = listener.accept_session();
    writer.send(&numbered::frames(0, 0..10));
    expect_frames(&mut first, 0..10);
    let mut second = listener.accept_session();
    first.expect(&wire::stop());
    assert_eq!((relay.output(0).frames_acknowledged, relay.output(0).frames_unacknowledged), (0, 10));
    // The first waits for FINISH.
    writer.send(&numbered::frames(0, 10..20));
    expect_frames(&mut second, 10..20);
    (relay, writer, first, second)
}

/// Drains the relay, whose present stream has nothing more to read but STOP.
fn drain(relay: TestRelay, mut writer: Peer, last: Peer) -> tapster::observability::OutputLedger {
    writer.send(&wire::stop());
    writer.expect(&wire::finish());
    let draining = thread::spawn(move || relay.drain());
    last.expect_stop();
    draining.join().expect("the relay drains").outputs.remove(0)
}

on_both_backends! {
    fn finish_acknowledges_the_stream_while_the_next_one_flows(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let (relay, writer, mut first, mut second) = around_a_checkpoint(backend, &listener, millis(20_000));
            eventually("all is kept", || relay.output(0).frames_unacknowledged == 20);
            first.send(&wire::finish());
            first.expect_close();
            eventually("acknowledged", || relay.output(0).frames_acknowledged == 10);
            // One checkpoint at a time: the next comes now.
            let third = listener.accept_session();
            second.expect(&wire::stop());
            second.send(&wire::finish());
            let output = drain(relay, writer, third);
            assert_eq!((output.frames_sent, output.frames_acknowledged, output.frames_resent), (20, 20, 0));
            assert_eq!((output.connections, output.sessions_finished), (3, 3), "{output:?}");
        }
    }

    fn a_stream_without_finish_comes_again(backend) {
        for transport in Transport::BOTH {
            for closes in [true, false] {
                let folder = folder();
                let listener = PeerListener::bind(transport, folder.path());
                let (relay, writer, first, mut second) = around_a_checkpoint(backend, &listener, millis(300));
                if closes {
                    drop(first);
                }
                expect_frames(&mut second, 0..10);
                // Acknowledged by the checkpoint that follows.
                let third = listener.accept_session();
                second.expect(&wire::stop());
                second.send(&wire::finish());
                let output = drain(relay, writer, third);
                assert_eq!((output.frames_sent, output.frames_acknowledged, output.frames_resent), (20, 20, 10));
                assert_eq!((output.connections, output.sessions_finished), (3, 2), "{output:?}");
            }
        }
    }

    fn finish_before_stop_acknowledges_nothing(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener).checkpoint(Checkpoint::Bytes(1 << 20))).start();
            let mut writer = relay.writer();
            let mut first = listener.accept_session();
            writer.send(&numbered::frames(0, 0..10));
            expect_frames(&mut first, 0..10);
            first.send(&wire::finish());
            first.expect_close();
            let mut second = listener.accept_session();
            expect_frames(&mut second, 0..10);
            assert_eq!(relay.output(0).frames_acknowledged, 0);
            let output = drain(relay, writer, second);
            assert_eq!((output.frames_sent, output.frames_acknowledged, output.frames_resent), (10, 10, 10));
        }
    }

    fn everything_since_the_last_finish_comes_again_after_a_death(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let (relay, mut writer, mut first, second) = around_a_checkpoint(backend, &listener, millis(20_000));
            // Before the next checkpoint: the first still waits for FINISH.
            writer.send(&numbered::frames(0, 20..30));
            let mut second = second;
            expect_frames(&mut second, 20..30);
            second.reset();
            first.send(&wire::finish());
            let mut third = listener.accept_session();
            expect_frames(&mut third, 10..30);
            // The next checkpoint may come before the end.
            let output = drain_with_checkpoints(relay, writer, &listener, third);
            assert_eq!((output.frames_sent, output.frames_acknowledged, output.frames_resent), (30, 30, 20));
        }
    }

    fn in_strict_order_nothing_is_written_before_finish(backend) {
        for finishes in [true, false] {
            let listener = PeerListener::tcp();
            let output = to_peer(&listener).checkpoint(SOON).strict_order().finish_timeout(millis(500));
            let relay = relay(backend).output(output).start();
            let mut writer = relay.writer();
            let mut first = listener.accept_session();
            writer.send(&numbered::frames(0, 0..10));
            expect_frames(&mut first, 0..10);
            let mut second = listener.accept_session();
            first.expect(&wire::stop());
            writer.send(&numbered::frames(0, 10..20));
            second.expect_silence(A_WHILE);
            if finishes {
                first.send(&wire::finish());
                expect_frames(&mut second, 10..20);
            } else {
                drop(first);
                expect_frames(&mut second, 0..20);
            }
            let third = listener.accept_session();
            second.expect(&wire::stop());
            second.send(&wire::finish());
            let output = drain(relay, writer, third);
            assert_eq!((output.frames_acknowledged, output.frames_unacknowledged), (20, 0));
        }
    }

    /// Held data is a part of the queue: a checkpoint comes before it is full of it.
    fn a_checkpoint_comes_sooner_than_the_queue_is_full(backend) {
        for transport in Transport::BOTH {
            for checkpoint in [Checkpoint::Every(Duration::from_secs(3600)), Checkpoint::Bytes(256 << 10)] {
                let folder = folder();
                let reader = CollectingReader::start(transport, folder.path());
                let output = to(&reader).checkpoint(checkpoint).queue(1 << 20).when_full(WhenFull::Block);
                let relay = relay(backend).input(listening(transport, folder.path())).output(output).start();
                let mut writer = relay.writer();
                writer.send(&numbered::frames(0, 0..100_000));
                writer.finish();
                let (ledger, collected) = relay.drain_into(reader);
                // In order on each connection; the threads of two may note them in another order than they came.
                collected.sessions.iter().for_each(|session| numbered::assert_rising(wire::payloads(&session.encoded)));
                let mut sequence = numbered::sequences(collected.payloads()).remove(&0).expect("frames");
                sequence.sort_unstable();
                assert!(sequence.into_iter().eq(0..100_000), "each frame once");
                let output = &ledger.outputs[0];
                assert_eq!((output.frames_acknowledged, output.frames_resent, dropped(output)), (100_000, 0, 0));
                assert!(output.connections > 10, "{output:?}");
            }
        }
    }

    /// A reader that takes one connection only: no checkpoint, and the flow goes on.
    fn without_a_next_connection_the_stream_goes_on(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend).output(to_peer(&listener).checkpoint(SOON)).start();
        let mut writer = relay.writer();
        let mut reader = listener.accept_session();
        drop(listener);
        for round in 0..10 {
            writer.send(&numbered::frames(0, 10 * round..10 * round + 10));
            expect_frames(&mut reader, 10 * round..10 * round + 10);
            thread::sleep(millis(50));
        }
        let output = drain(relay, writer, reader);
        assert_eq!((output.connections, output.frames_acknowledged, output.frames_resent), (1, 100, 0));
    }

    /// A reader that stalls in the present stream does not keep the queue full of what it has acknowledged.
    fn finish_is_taken_while_the_present_stream_stalls(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let (relay, mut writer, mut first, mut second) = around_a_checkpoint(backend, &listener, millis(20_000));
            // More than the socket takes.
            writer.send(&numbered::frames(0, 20..80_000));
            relay.wait_for_frames(80_000);
            eventually("the second stream stalls", || {
                let before = relay.output(0).frames_sent;
                thread::sleep(millis(50));
                before > 20 && before == relay.output(0).frames_sent
            });
            assert!(relay.output(0).frames_queued > 0);
            first.send(&wire::finish());
            first.expect_close();
            eventually("acknowledged", || relay.output(0).frames_acknowledged == 10);
            expect_frames(&mut second, 20..80_000);
            // The checkpoint that was due all the time.
            let output = drain_with_checkpoints(relay, writer, &listener, second);
            assert_eq!((output.frames_acknowledged, output.frames_resent), (80_000, 0), "{output:?}");
        }
    }

    /// A reader that takes one connection at a time: much that waits for FINISH ends the stream first.
    fn where_there_is_no_second_connection_the_stream_ends_before_the_queue_is_full(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let output = to_peer(&listener).checkpoint(SOON).handshake_timeout(millis(200)).queue(1 << 20);
            let relay = relay(backend).output(output.when_full(WhenFull::Block)).start();
            let mut writer = relay.writer();
            let reading = thread::spawn(move || {
                let mut sequences = Vec::new();
                while sequences.last() != Some(&19_999) {
                    let mut reader = listener.accept();
                    if !reader.try_open_as_reader() {
                        continue;
                    }
                    while let Frame::Data(payload) = reader.read_frame() {
                        sequences.push(Number::of(&payload).sequence);
                    }
                    reader.send(&wire::finish());
                    reader.expect_close();
                }
                sequences
            });
            writer.send(&numbered::frames(0, 0..20_000));
            writer.finish();
            let output = relay.drain().outputs.remove(0);
            assert!(reading.join().expect("the reader ends well").into_iter().eq(0..20_000));
            assert_eq!((output.frames_acknowledged, output.frames_resent, dropped(&output)), (20_000, 0, 0));
            assert!(output.connections > 2, "{output:?}");
        }
    }

    /// The reader takes everything and never sends FINISH: what it has not acknowledged stays within the queue.
    fn what_waits_for_finish_is_bounded_by_the_queue(backend) {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest] {
            let listener = PeerListener::tcp();
            let output = to_peer(&listener).checkpoint(SOON).queue(QUEUE).finish_timeout(millis(200));
            let relay = relay(backend).drain_timeout(Duration::from_secs(1)).output(output.when_full(when_full)).start();
            let mut writer = relay.writer();
            let readers = thread::spawn(move || {
                let mut readers = Vec::new();
                let mut serve = |mut reader: Peer| {
                    readers.push(thread::spawn(move || {
                        reader.open_as_reader();
                        while let Ok(bytes) = reader.read_some(64 << 10) && !bytes.is_empty() {}
                    }));
                };
                serve(listener.accept());
                while let Some(reader) = listener.accept_unless_silent_for(Duration::from_secs(3)) {
                    serve(reader);
                }
                readers.into_iter().for_each(|reader| reader.join().expect("the reader ends well"));
            });
            const QUEUE: usize = 1 << 20;
            const LEN: usize = 1000;
            for round in 0..20 {
                writer.send(&numbered::frames_of_len(0, round * 500..round * 500 + 500, LEN));
                relay.wait_for_frames(round * 500 + 500);
                let output = relay.output(0);
                let held = output.frames_unacknowledged as usize * (LEN + 4);
                // One batch may go beyond, a quarter of the queue at most.
                assert!(held <= QUEUE + QUEUE / 4, "{when_full:?}: {held} bytes are held: {output:?}");
                assert_eq!(output.frames_acknowledged, 0);
            }
            writer.finish();
            let output = relay.drain().outputs.remove(0);
            assert!(dropped(&output) > 0 && output.frames_unacknowledged > 0, "{output:?}");
            readers.join().expect("the readers end well");
        }
    }

    /// With FINISH in time, and without: then everything comes again on the last connection, before its STOP.
    fn a_drain_waits_for_the_stream_that_waits_for_finish(backend) {
        for finishes in [true, false] {
            let listener = PeerListener::tcp();
            let (relay, mut writer, mut first, mut second) = around_a_checkpoint(backend, &listener, millis(1000));
            writer.send(&wire::stop());
            writer.expect(&wire::finish());
            let draining = thread::spawn(move || relay.drain());
            if finishes {
                second.expect_silence(millis(100));
                first.send(&wire::finish());
            } else {
                expect_frames(&mut second, 0..10);
            }
            second.expect_stop();
            let output = draining.join().expect("the relay drains").outputs.remove(0);
            assert_eq!((output.frames_sent, output.frames_acknowledged), (20, 20), "{output:?}");
            assert_eq!(output.frames_resent, if finishes { 0 } else { 10 });
        }
    }

    /// Connections count where they reached START, even the one that was opened for a checkpoint that never was.
    fn a_next_connection_that_comes_to_nothing_is_counted(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend).output(to_peer(&listener).checkpoint(SOON).when_full(WhenFull::Block)).start();
        let mut writer = relay.writer();
        let first = listener.accept_session();
        writer.send(&numbered::frames(0, 0..80_000));
        let mut next = listener.accept();
        relay.wait_for_frames(80_000);
        eventually("the first stream stalls", || {
            let before = relay.output(0).frames_sent;
            thread::sleep(millis(50));
            before == relay.output(0).frames_sent
        });
        assert!(relay.output(0).frames_queued > 0);
        next.open_as_reader();
        first.reset();
        next.expect_close();
        let mut third = listener.accept_session();
        expect_frames(&mut third, 0..80_000);
        let output = drain_with_checkpoints(relay, writer, &listener, third);
        let finished = output.sessions_finished;
        assert_eq!((output.frames_acknowledged, output.connections), (80_000, 2 + finished), "{output:?}");
    }
}

on_both_backends! {
    /// Real collectors, killed with -9 between two checkpoints and started again: what they had after the last FINISH comes
    /// again, and nothing before it.
    fn a_killed_collector_gets_everything_since_its_last_finish_again(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let Some(mut capture) = Capture::start(transport, folder.path()) else { return };
            let behind = CollectingReader::start(Transport::Unix, folder.path());
            let dnstap = free_address(transport, folder.path());
            let Some(mut passing) = dnstap_passes_on(&dnstap, &behind.address()) else { return };
            let outputs = [capture.address(), dnstap.clone()].map(to_address);
            let mut builder = relay(backend);
            for output in outputs {
                builder = builder.output(output.checkpoint(Checkpoint::Bytes(1 << 20)));
            }
            let relay = builder.start();
            let mut writer = relay.writer();
            // More than a checkpoint, then a part of one: no other FINISH is to come.
            writer.send(&numbered::frames(0, 0..8_000));
            eventually("a checkpoint each", || {
                relay.ledger().outputs.iter().all(|output| output.frames_acknowledged > 0)
            });
            writer.send(&numbered::frames(0, 8_000..10_000));
            relay.wait_for_frames(10_000);
            relay.wait_until_written();
            let acknowledged = [0, 1].map(|index| relay.output(index).frames_acknowledged);
            // They keep some KiB of what they have taken.
            eventually("what FINISH covers is in the file", || {
                FstrmFile::read(capture.path()).is_some_and(|file| has_all(file.payloads(), acknowledged[0]))
            });
            eventually("what FINISH covers is passed on", || {
                let sessions = behind.sessions();
                sessions.first().is_some_and(|first| has_all(wire::payloads(&first.encoded), acknowledged[1]))
            });

            capture.kill();
            passing.kill();
            let again = Capture::start_at(&capture.address(), folder.path().join("again.fstrm"));
            let mut again = again.expect("it was there before");
            let _passing = dnstap_passes_on(&dnstap, &behind.address());
            // The dnstap program keeps its last frames for seconds, unless a long one pushes them out.
            writer.send(&numbered::frames(0, 10_000..12_000));
            writer.send(&numbered::frames_of_len(0, 12_000..ALL, 8192));
            writer.finish();
            const ALL: u64 = 12_001;
            let ledger = relay.drain();
            again.terminate();
            for (output, acknowledged) in ledger.outputs.iter().zip(acknowledged) {
                assert_eq!((output.frames_acknowledged, dropped(output)), (ALL, 0), "{output:?}");
                assert_eq!(output.frames_resent, 10_000 - acknowledged, "{output:?}");
            }
            let lives = [capture.path(), again.path()].map(|path| FstrmFile::read(path).expect("START"));
            from_finish_on(&lives.each_ref().map(|file| file.payloads()), acknowledged[0]..ALL);
            behind.wait_for_frames_after(1, (ALL - acknowledged[1]) as usize);
            let sessions = behind.close().sessions;
            let lives = sessions.iter().map(|session| wire::payloads(&session.encoded)).collect::<Vec<_>>();
            from_finish_on(&lives, acknowledged[1]..ALL);
        }
    }
}

/// What a collector had in its two lives: all that FINISH covers until it was killed, and then all the rest.
///
/// Of two streams, the last frames of the first may come after the first ones of the second.
#[track_caller]
fn from_finish_on(lives: &[Vec<&[u8]>], rest: Range<u64>) {
    let [killed, last] = lives else { panic!("{} lives", lives.len()) };
    assert!(has_all(killed.clone(), rest.start), "FINISH covers what is not there");
    let mut last = numbered::sequences(last.iter().copied()).remove(&0).expect("frames");
    last.sort_unstable();
    assert!(
        last.iter().copied().eq(rest.clone()),
        "{:?} and {} frames, not {rest:?}",
        last.first(),
        last.len()
    );
}

/// Whether the first frames are there, each once.
fn has_all(payloads: Vec<&[u8]>, first: u64) -> bool {
    payloads.into_iter().filter(|payload| Number::of(payload).sequence < first).count() as u64 == first
}

on_both_backends! {
    /// 200 000 frames a second, a checkpoint every second: nothing is lost or doubled, whoever reads, and the flow does not
    /// rest: at 99 of 100 moments the last frames were written less than 20 ms ago.
    alone fn checkpoints_under_load_lose_and_double_nothing_and_do_not_stop_the_flow(backend) {
        for transport in Transport::BOTH {
            in_quiet(millis(20), || {
                let folder = folder();
                let Some(capture) = Capture::start(transport, folder.path()) else { return Ok(()) };
                let behind = CollectingReader::start(Transport::Unix, folder.path());
                let dnstap = free_address(transport, folder.path());
                let Some(_passing) = dnstap_passes_on(&dnstap, &behind.address()) else { return Ok(()) };
                let reader = CollectingReader::start(transport, folder.path());
                under_load(backend, [to(&reader), to_address(dnstap), to_address(capture.address())], || {
                    let mut capture = capture;
                    behind.wait_for_frames(UNDER_LOAD as usize);
                    capture.terminate();
                    let file = FstrmFile::read(capture.path()).expect("START");
                    each_once(file.payloads());
                    each_once(behind.close().payloads());
                    each_once(reader.close().payloads());
                })
            });
        }
    }
}

/// Frames in 2.5 s.
const UNDER_LOAD: u64 = 500_000;

#[track_caller]
fn each_once(payloads: Vec<&[u8]>) {
    let mut sequence = numbered::sequences(payloads).remove(&0).expect("frames");
    sequence.sort_unstable();
    assert!(sequence.into_iter().eq(0..UNDER_LOAD), "each frame once");
}

/// Runs the load through these outputs; `Err` if the flow of one rested.
fn under_load(backend: Backend, outputs: [OutputBuilder; 3], verify: impl FnOnce()) -> Result<(), String> {
    let beat = millis(2);
    let per_beat = 400;
    let chunks: Vec<_> =
        (0..UNDER_LOAD / per_beat).map(|n| numbered::frames(0, n * per_beat..(n + 1) * per_beat)).collect();
    let mut builder = relay(backend);
    for output in outputs {
        // A collector that a busy machine keeps from its work loses no frame by that.
        let output = output.when_full(WhenFull::Block).checkpoint(Checkpoint::Every(Duration::from_secs(1)));
        builder = builder.output(output);
    }
    let relay = builder.start();
    eventually("every output is connected", || {
        relay.ledger().outputs.iter().all(|output| output.connections > 0)
    });
    let mut writer = relay.writer();
    let began = Instant::now();
    let sending = thread::spawn(move || {
        for (n, chunk) in chunks.iter().enumerate() {
            thread::sleep((began + beat * n as u32).saturating_duration_since(Instant::now()));
            writer.send(chunk);
        }
        writer.finish();
    });
    // Of each output: frames sent, when they last grew in number, and the time beyond 20 ms that they did not.
    let mut flows = [(0, began, Duration::ZERO); 3];
    while !sending.is_finished() {
        thread::sleep(millis(1));
        let now = Instant::now();
        for (flow, output) in flows.iter_mut().zip(relay.ledger().outputs) {
            if output.frames_sent != flow.0 {
                flow.2 += (now - flow.1).saturating_sub(millis(20));
                (flow.0, flow.1) = (output.frames_sent, now);
            }
        }
    }
    let took = began.elapsed();
    sending.join().expect("all was taken");
    relay.wait_until_written();
    let ledger = relay.drain();
    for output in &ledger.outputs {
        let counts = (output.frames_acknowledged, output.frames_resent, dropped(output));
        assert_eq!(counts, (UNDER_LOAD, 0, 0), "{output:?}");
        assert!(
            output.sessions_finished >= 3 && output.sessions_finished == output.connections,
            "{output:?}"
        );
    }
    verify();
    let rested = flows.map(|flow| flow.2);
    eprintln!("{took:?}, of which the flows rested {rested:?} beyond 20 ms");
    let rested_long = rested.iter().any(|rested| *rested > took / 100);
    if rested_long { Err(format!("the flows rested {rested:?} beyond 20 ms at a time")) } else { Ok(()) }
}

/// Drains a relay whose last checkpoint may come before the end.
fn drain_with_checkpoints(
    relay: TestRelay,
    mut writer: Peer,
    listener: &PeerListener,
    present: Peer,
) -> tapster::observability::OutputLedger {
    writer.send(&wire::stop());
    let serving = thread::spawn(move || present.serve());
    let draining = thread::spawn(move || relay.drain());
    eventually("the relay drains", || {
        if let Some(reader) = listener.poll_accept() {
            reader.serve();
        }
        draining.is_finished()
    });
    serving.join().expect("the reader ends well");
    draining.join().expect("the relay drains").outputs.remove(0)
}

#[track_caller]
fn expect_frames(reader: &mut Peer, sequence: Range<u64>) {
    for sequence in sequence {
        let Frame::Data(payload) = reader.read_frame() else {
            panic!("a control frame in place of {sequence}")
        };
        assert_eq!(Number::of(&payload).sequence, sequence);
    }
}
