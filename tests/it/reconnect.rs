//! Outputs that die and return: no frame is cut and continued, none is sent twice.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::dropped;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire::Frame;

on_both_backends! {
    fn what_comes_during_an_absence_is_delivered_after_it(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener)).start();
            let mut writer = relay.writer();
            let mut reader = listener.accept_session();
            for absence in 0..5 {
                let (present, absent) = (absence * 200, absence * 200 + 100);
                writer.send(&numbered::frames(0, present..absent));
                expect_frames(&mut reader, present..absent);
                reader.reset();
                // The relay has seen it and comes back, but is not welcomed yet.
                reader = listener.accept();
                writer.send(&numbered::frames(0, absent..absent + 100));
                relay.wait_for_frames(absent + 100);
                reader.open_as_reader();
                expect_frames(&mut reader, absent..absent + 100);
            }
            writer.finish();
            let drain = thread::spawn(move || relay.drain());
            reader.expect_stop();
            let ledger = drain.join().expect("the relay drains");
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_sent, output.connections, output.sessions_finished), (1000, 6, 1));
            assert_eq!(dropped(output), 0);
        }
    }

    /// The reader stops anywhere in a frame, dies, and what the next connection brings begins with a frame.
    fn a_connection_that_dies_within_a_frame_is_followed_by_one_that_begins_with_it(backend) {
        const LEN: usize = 10_000;
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener)).start();
            let frames = 3000;
            let mut writer = relay.writer();
            let writing = thread::spawn(move || {
                writer.send(&numbered::frames_of_len(0, 0..frames, LEN));
                writer.finish();
            });
            let (mut next, mut lost) = (0, 0);
            for life in 0..6 {
                let mut reader = listener.accept();
                reader.set_receive_buffer(16 << 10);
                // Between connections nothing is written: what is counted now is what was wholly written.
                let first = relay.output(0).frames_sent;
                reader.open_as_reader();
                assert!(first >= next, "frame {next} would come twice");
                lost += first - next;
                next = first + 10;
                expect_frames(&mut reader, first..next);
                // Some bytes of one more frame.
                let _ = reader.read_some(1 + life * 999);
                reader.reset();
            }
            let mut reader = listener.accept();
            let first = relay.output(0).frames_sent;
            reader.open_as_reader();
            assert!(first >= next, "frame {next} would come twice");
            lost += first - next;
            expect_frames(&mut reader, first..frames);
            writing.join().expect("the writer ends well");
            let drain = thread::spawn(move || relay.drain());
            reader.expect_stop();
            let ledger = drain.join().expect("the relay drains");
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_sent, dropped(output)), (frames, 0), "{output:?}");
            assert_eq!(output.connections, 7);
            // What died in buffers is known in bytes, except what the reader's kernel had taken over TCP.
            if transport == Transport::Unix {
                assert!(output.bytes_unconfirmed >= lost * (LEN as u64 + 4), "{lost} frames lost: {output:?}");
            }
        }
    }

    fn the_death_of_an_idle_reader_is_noticed_within_a_second(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener)).start();
            for polite in [true, false] {
                let reader = listener.accept_session();
                match polite {
                    true => drop(reader),
                    false => reader.reset(),
                }
                // With the pause before the next attempt.
                listener.accept_within(Duration::from_millis(1300));
            }
            relay.drain();
        }
    }

    fn an_output_that_is_not_there_at_the_start_gets_all_when_it_comes(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let mut reader = CollectingReader::start(transport, folder.path());
            reader.die();
            let relay = relay(backend).output(to(&reader)).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..1000));
            writer.finish();
            eventually("they wait", || relay.output(0).frames_queued == 1000);
            reader.revive();
            reader.wait_for_frames(1000);
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..1000)]);
            assert_eq!(ledger.outputs[0].bytes_unconfirmed, 0);
        }
    }

    fn a_writer_that_returns_is_served_as_a_new_one(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        for life in 0..20 {
            let mut writer = relay.writer();
            writer.send(&numbered::frames(life, 0..50));
            relay.wait_for_frames(u64::from(life + 1) * 50);
            writer.reset();
        }
        relay.wait_until_idle();
        let (ledger, collected) = relay.drain_into(reader);
        let expected: Vec<_> = (0..20).map(|life| (life, 0..50)).collect();
        numbered::assert_complete(collected.payloads(), &expected);
        assert_eq!(ledger.inputs[0].connections, 20);
    }

    /// D7: a reader that takes the handshake and closes, again and again, is not hammered.
    fn a_reader_that_always_closes_is_not_hammered(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend)
            .output(to_peer(&listener).reconnect(Duration::from_millis(100), Duration::from_secs(30)))
            .start();
        let began = std::time::Instant::now();
        let mut connections = 0;
        while began.elapsed() < Duration::from_secs(2) {
            if let Some(mut reader) = listener.poll_accept() {
                reader.open_as_reader();
                reader.reset();
                connections += 1;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!((2..=40).contains(&connections), "{connections} connections in 2 s");
        drop(listener);
        relay.drain();
    }
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
