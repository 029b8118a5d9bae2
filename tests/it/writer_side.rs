//! W: the relay as writer, against readers that answer anything.

use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tapster::observability::Ledger;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::Frame;
use crate::support::wire::O;

/// A relay to one reader that is played by hand.
fn relay_to(backend: Backend, listener: &PeerListener) -> TestRelay {
    relay(backend)
        .output(to_peer(listener).handshake_timeout(millis(500)).finish_timeout(millis(500)))
        .start()
}

/// Drains beside the test.
fn drain(relay: TestRelay) -> JoinHandle<Ledger> {
    thread::spawn(move || relay.drain())
}

on_both_backends! {
    fn w01_w02_w03_accept_of_our_type_or_of_any_is_answered_with_start(backend) {
        let folder = folder();
        for accepted in [&[D][..], &[], &[O, D], &[D, O]] {
            for transport in Transport::BOTH {
                let listener = PeerListener::bind(transport, folder.path());
                let relay = relay_to(backend, &listener);
                let mut reader = listener.accept();
                reader.expect(&wire::ready(&[D]));
                reader.expect_silence(millis(50));
                reader.send(&wire::accept(accepted));
                reader.expect(&wire::start(&[D]));
                let mut writer = relay.writer();
                writer.send(&wire::data(b"abc"));
                writer.finish();
                reader.expect_data(b"abc");
                let drain = drain(relay);
                reader.expect_stop();
                let ledger = drain.join().expect("the relay drains");
                assert_eq!(ledger.outputs[0].sessions_finished, 1);
            }
        }
    }

    fn w04_w06_any_other_answer_to_ready_ends_the_connection_before_any_data(backend) {
        let answers = [
            wire::accept(&[O]),
            wire::accept(&[&D[..D.len() - 1]]),
            wire::finish(),
            wire::data(b"abcd"),
            wire::control(wire::ACCEPT, &[D, &wire::pad(256), &wire::pad(207)], b""),
            wire::control(6, &[], b""),
            wire::start(&[D]),
            wire::stop(),
            wire::word(u32::MAX).to_vec(),
            [wire::word(0), wire::word(u32::MAX)].concat(),
            wire::control(wire::ACCEPT, &[D], b"\0"),
        ];
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay_to(backend, &listener);
            let mut writer = relay.writer();
            writer.send(&wire::data(b"abc"));
            writer.finish();
            for answer in &answers {
                let mut reader = listener.accept();
                reader.expect(&wire::ready(&[D]));
                reader.send(answer);
                reader.expect_close();
            }
            // And the end of the stream instead of an answer.
            let mut reader = listener.accept();
            reader.expect(&wire::ready(&[D]));
            reader.shutdown_write();
            reader.expect_close();
            drop(reader);
            // What waited is still there.
            let mut reader = listener.accept_session();
            reader.expect_data(b"abc");
            let drain = drain(relay);
            reader.expect_stop();
            let ledger = drain.join().expect("the relay drains");
            assert_eq!(ledger.outputs[0].frames_sent, 1);
            assert_eq!(ledger.outputs[0].connections, 1, "sessions that reached START");
        }
    }

    fn w04_the_pause_between_attempts_doubles(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend).output(to_peer(&listener).reconnect(millis(50), millis(400))).start();
        let mut moments = Vec::new();
        for _ in 0..7 {
            let mut reader = listener.accept();
            moments.push(Instant::now());
            reader.expect(&wire::ready(&[D]));
            reader.send(&wire::accept(&[O]));
            reader.expect_close();
        }
        let pauses: Vec<Duration> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // With any jitter: the last pauses are several times the first, and near the maximum at most.
        assert!(pauses[4] + pauses[5] > 2 * (pauses[0] + pauses[1]), "{pauses:?}");
        assert!(pauses[5] < Duration::from_secs(2), "{pauses:?}");
        relay.drain();
    }

    fn w05_an_output_of_its_own_type_offers_that_type_alone(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend).output(to_peer(&listener).content_type(O)).start();
        let mut reader = listener.accept();
        reader.expect(&wire::ready(&[O]));
        reader.send(&wire::accept(&[O]));
        reader.expect(&wire::start(&[O]));
        let drain = drain(relay);
        reader.expect_stop();
        drain.join().expect("the relay drains");
    }

    fn w07_a_reader_that_never_answers_is_left_at_the_deadline_and_what_waits_is_kept(backend) {
        let listener = PeerListener::tcp();
        let relay = relay_to(backend, &listener);
        let mut silent = listener.accept();
        silent.expect(&wire::ready(&[D]));
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        silent.expect_silence(millis(250));
        silent.expect_close_within(Duration::from_secs(2));
        let mut reader = listener.accept_session();
        for payload in wire::payloads(&numbered::frames(0, 0..1000)) {
            let Frame::Data(got) = reader.read_frame() else { panic!("a control frame") };
            assert_eq!(got.len(), payload.len());
        }
        let drain = drain(relay);
        reader.expect_stop();
        let ledger = drain.join().expect("the relay drains");
        assert_eq!(ledger.outputs[0].frames_sent, 1000);
        assert_eq!(dropped(&ledger.outputs[0]), 0);
    }

    fn w07_the_deadline_is_for_the_whole_answer_and_not_for_each_byte(backend) {
        let listener = PeerListener::tcp();
        let relay = relay_to(backend, &listener);
        let mut reader = listener.accept();
        reader.expect(&wire::ready(&[D]));
        let answer = wire::accept(&[D]);
        let taken = answer.iter().take_while(|byte| {
            thread::sleep(millis(50));
            reader.try_send(&[**byte]).is_ok()
        });
        assert!(taken.count() < answer.len(), "the whole of ACCEPT was taken");
        listener.accept_session();
        drop(listener);
        relay.drain();
    }

    fn w08_stop_is_sent_after_the_last_frame_and_finish_is_counted(backend) {
        let listener = PeerListener::tcp();
        let relay = relay_to(backend, &listener);
        let mut reader = listener.accept_session();
        let mut writer = relay.writer();
        writer.send(&[wire::data(b"a"), wire::data(b"b")].concat());
        writer.finish();
        let drain = drain(relay);
        reader.expect(&[wire::data(b"a"), wire::data(b"b"), wire::stop()].concat());
        // Nothing more, and no half close, before FINISH.
        reader.expect_silence(A_WHILE / 2);
        reader.send(&wire::finish());
        reader.expect_close();
        let ledger = drain.join().expect("the relay drains");
        assert_eq!(ledger.outputs[0].sessions_finished, 1);
        assert_eq!(ledger.outputs[0].bytes_unconfirmed, 0);
    }

    fn w09_without_a_proper_finish_a_session_is_not_confirmed(backend) {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum End { Silence, Eof, Reset, FinishWithType, Accept, Data, Half }
        for end in [
            End::Silence, End::Eof, End::Reset, End::FinishWithType, End::Accept, End::Data, End::Half,
        ] {
            let listener = PeerListener::tcp();
            let relay = relay_to(backend, &listener);
            let mut reader = listener.accept_session();
            let mut writer = relay.writer();
            writer.send(&wire::data(b"a"));
            writer.finish();
            let began = Instant::now();
            let drain = drain(relay);
            reader.expect(&[wire::data(b"a"), wire::stop()].concat());
            match end {
                End::Silence => (),
                End::Eof => reader.shutdown_write(),
                End::FinishWithType => reader.send(&wire::control(wire::FINISH, &[D], b"")),
                End::Accept => reader.send(&wire::accept(&[D])),
                End::Data => reader.send(&wire::data(b"x")),
                End::Half => reader.send(&wire::finish()[..11]),
                End::Reset => (),
            }
            let mut reader = Some(reader);
            if end == End::Reset {
                reader.take().expect("just put").reset();
            }
            let ledger = drain.join().expect("the relay drains");
            let took = began.elapsed();
            assert_eq!(ledger.outputs[0].sessions_finished, 0, "{end:?}");
            assert_eq!(ledger.outputs[0].frames_sent, 1, "{end:?}");
            if end == End::Silence {
                assert!(took > millis(400), "{end:?} was not waited for: {took:?}");
            }
            assert!(took < Duration::from_secs(3), "{end:?} took {took:?}");
        }
    }

    /// W10: DNS-collector closes with SO_LINGER 0 right after FINISH. A thousand times.
    fn w10_finish_counts_even_where_a_reset_follows_at_once(backend) {
        for _ in 0..20 {
            let listeners: Vec<PeerListener> = (0..50).map(|_| PeerListener::tcp()).collect();
            let relay = listeners.iter().fold(relay(backend), |relay, listener| relay.output(to_peer(listener)));
            let relay = relay.start();
            let mut readers: Vec<Peer> = listeners.iter().map(PeerListener::accept_session).collect();
            let mut writer = relay.writer();
            writer.send(&wire::data(b"a"));
            writer.finish();
            let drain = drain(relay);
            for mut reader in readers.drain(..) {
                reader.expect(&[wire::data(b"a"), wire::stop()].concat());
                reader.send(&wire::finish());
                reader.reset();
            }
            let ledger = drain.join().expect("the relay drains");
            let finished: u64 = ledger.outputs.iter().map(|output| output.sessions_finished).sum();
            assert_eq!(finished, 50);
        }
    }

    /// W11: nothing may come from a reader in the data phase; a pending read sees it although nothing is sent.
    fn w11_anything_from_a_reader_in_the_data_phase_is_noticed_within_a_second(backend) {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Unsolicited { Finish, Accept, Eof, Reset, Data, Garbage, LongControl }
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay_to(backend, &listener);
            let mut reader = listener.accept_session();
            for unsolicited in [
                Unsolicited::Finish,
                Unsolicited::Accept,
                Unsolicited::Eof,
                Unsolicited::Reset,
                Unsolicited::Data,
                Unsolicited::Garbage,
                Unsolicited::LongControl,
            ] {
                let mut writer = relay.writer();
                writer.send(&wire::data(b"before"));
                writer.finish();
                reader.expect_data(b"before");
                match unsolicited {
                    Unsolicited::Finish => reader.send(&wire::finish()),
                    Unsolicited::Accept => reader.send(&wire::accept(&[D])),
                    Unsolicited::Data => reader.send(&wire::data(b"x")),
                    Unsolicited::Garbage => reader.send(&[0xff; 64]),
                    Unsolicited::LongControl => reader.send(&wire::control(6, &[], &[0; 600])),
                    Unsolicited::Eof => reader.shutdown_write(),
                    Unsolicited::Reset => (),
                }
                let began = Instant::now();
                if unsolicited == Unsolicited::Reset {
                    reader.reset();
                } else {
                    reader.expect_close();
                    drop(reader);
                }
                // Nothing is sent meanwhile: the relay comes back by itself.
                reader = listener.accept_session();
                assert!(began.elapsed() < Duration::from_secs(2), "{unsolicited:?}: {:?}", began.elapsed());
            }
            let drain = drain(relay);
            reader.expect_stop();
            let ledger = drain.join().expect("the relay drains");
            let output = &ledger.outputs[0];
            assert_eq!((output.sessions_finished, output.connections), (1, 8), "an early FINISH confirms nothing");
            assert_eq!(output.frames_sent, 7);
        }
    }

    fn w12_a_reader_that_takes_100_bytes_at_a_time_gets_every_byte(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay_to(backend, &listener);
            let mut reader = listener.accept();
            reader.set_receive_buffer(4096);
            reader.open_as_reader();
            let stream = numbered::frames_of_len(7, 0..10_000, 28);
            let mut writer = relay.writer();
            writer.send(&stream);
            writer.finish();
            let mut got = Vec::new();
            while got.len() < stream.len() {
                let bytes = reader.read_some(100).expect("an open connection");
                assert!(!bytes.is_empty(), "closed after {} bytes", got.len());
                got.extend(bytes);
                if got.len() % 20_000 < 100 {
                    thread::sleep(millis(5));
                }
            }
            assert!(got == stream, "another stream than was sent");
            let drain = drain(relay);
            reader.expect_stop();
            let ledger = drain.join().expect("the relay drains");
            assert_eq!(ledger.outputs[0].frames_sent, 10_000);
        }
    }

    fn a_unidirectional_output_sends_start_at_once_and_closes_after_stop(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener).unidirectional()).start();
            let mut reader = listener.accept();
            reader.expect(&wire::start(&[D]));
            let mut writer = relay.writer();
            writer.send(&wire::data(b"abc"));
            writer.finish();
            reader.expect_data(b"abc");
            let drain = drain(relay);
            reader.expect(&wire::stop());
            reader.expect_close();
            let ledger = drain.join().expect("the relay drains");
            assert_eq!(ledger.outputs[0].frames_sent, 1);
        }
    }

    /// What the reader does to its own direction is no business of a writer that listens to nothing.
    fn a_unidirectional_output_writes_on_to_a_reader_that_half_closes(backend) {
        for transport in Transport::BOTH {
            for ack_received in [false, true] {
                let folder = folder();
                let listener = PeerListener::bind(transport, folder.path());
                let output = to_peer(&listener).unidirectional();
                let relay = relay(backend).output(if ack_received { output.ack_received() } else { output }).start();
                let mut reader = listener.accept();
                reader.shutdown_write();
                reader.expect(&wire::start(&[D]));
                let mut writer = relay.writer();
                for round in 0..20_u64 {
                    let payload = vec![b'x'; 1 + 3000 * round as usize];
                    writer.send(&wire::data(&payload));
                    reader.expect_data(&payload);
                    eventually("counted", || relay.output(0).frames_sent == round + 1);
                }
                writer.finish();
                let drain = drain(relay);
                reader.expect(&wire::stop());
                reader.expect_close();
                let output = drain.join().expect("the relay drains").outputs.remove(0);
                assert_eq!((output.frames_sent, output.connections, output.sessions_finished), (20, 1, 1));
            }
        }
    }

    /// A reader that closes altogether looks the same on TCP, until it is written to: no frame is lost with it.
    fn a_unidirectional_reader_that_closes_costs_no_frame(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            // One worker sees the close before the frame that was sent after it.
            let relay = relay(backend).workers(1).output(to_peer(&listener).unidirectional()).start();
            let mut writer = relay.writer();
            for round in 0..5_u64 {
                let payload = vec![b'a' + round as u8; 2000];
                writer.send(&wire::data(&payload));
                let mut reader = listener.accept();
                reader.expect(&wire::start(&[D]));
                reader.expect_data(&payload);
                eventually("counted", || relay.output(0).frames_sent == round + 1);
            }
            let ledger = relay.ledger();
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_sent, output.bytes_unconfirmed), (5, 0), "{output:?}");
            assert!(output.connections >= 5, "{output:?}");
        }
    }

    fn an_output_with_a_connection_per_worker_keeps_the_order_of_each_writer(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader).one_connection_per_worker()).start();
        reader.wait_for_sessions(2);
        let mut writers: Vec<Peer> = (0..8).map(|_| relay.writer()).collect();
        for round in 0..10 {
            for (number, writer) in writers.iter_mut().enumerate() {
                writer.send(&numbered::frames(number as u32, round * 100..round * 100 + 100));
            }
        }
        writers.into_iter().for_each(|writer| {
            writer.finish();
        });
        let ledger = relay.drain();
        let collected = reader.close();
        assert_eq!(collected.sessions.len(), 2);
        assert_eq!(ledger.outputs[0].frames_sent, 8000);
        assert_eq!(ledger.outputs[0].sessions_finished, 2);
        let expected: Vec<_> = (0..8).map(|number| (number, 0..1000)).collect();
        numbered::assert_complete(collected.payloads(), &expected);
    }

    fn an_address_that_does_not_resolve_is_tried_again_and_the_other_output_goes_on(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend)
            .drain_timeout(millis(300))
            .output(to(&reader))
            .output(crate::support::relay::to_address(crate::support::stream::tcp_address("name.invalid", 6000)))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..100));
        writer.finish();
        reader.wait_for_frames(100);
        eventually("the other holds them", || relay.output(1).frames_queued == 100);
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(crate::support::relay::dropped_for(&ledger.outputs[1], "shutdown"), 100);
    }
}
