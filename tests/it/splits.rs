//! S: the same bytes in whatever pieces.

use std::thread;
use std::time::Duration;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

on_both_backends! {
    fn s01_a_session_may_be_split_at_any_place(backend) {
        let z = wire::session_z();
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writers: Vec<Peer> = (1..z.len()).map(|_| Peer::connect(&relay.address())).collect();
            for (writer, at) in writers.iter_mut().zip(1..) {
                writer.send(&z[..at]);
            }
            // The pause is the case: the two parts must not come as one.
            thread::sleep(millis(20));
            for (writer, at) in writers.iter_mut().zip(1..) {
                writer.send(&z[at..]);
            }
            for writer in &mut writers {
                writer.expect(&[wire::accept(&[D]), wire::finish()].concat());
                writer.expect_close();
            }
            let (ledger, collected) = relay.drain_into(reader);
            assert_eq!(collected.payloads(), vec![b"abc"; z.len() - 1]);
            assert_eq!(ended(&ledger.inputs[0], "finished"), z.len() as u64 - 1);
        }
    }

    fn s02_a_session_may_come_byte_by_byte(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            for pause in [Duration::ZERO, millis(1)] {
                let mut writer = Peer::connect(&relay.address());
                for byte in wire::session_z() {
                    writer.send(&[byte]);
                    thread::sleep(pause);
                }
                writer.expect(&[wire::accept(&[D]), wire::finish()].concat());
                writer.expect_close();
            }
            let (_, collected) = relay.drain_into(reader);
            assert_eq!(collected.payloads(), [b"abc", b"abc"]);
        }
    }

    fn s03_a_frame_of_1_mib_may_come_in_small_pieces(backend) {
        let payload: Vec<u8> = (0..1 << 20).map(|at| (at % 251) as u8).collect();
        let frame = wire::data(&payload);
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writer = relay.writer();
            let (first, rest) = frame.split_at(16);
            let (middle, last) = rest.split_at(rest.len() - 16);
            first.chunks(1).chain(middle.chunks(1460)).chain(last.chunks(1)).for_each(|piece| writer.send(piece));
            writer.finish();
            let (_, collected) = relay.drain_into(reader);
            assert!(collected.payloads() == [payload.as_slice()]);
        }
    }

    /// The relay's buffers have sizes that only it knows: words are put across every power of two from 4 KiB
    /// to 2 MiB, counted from the first byte of the connection, from READY's end and from START's end.
    fn s04_words_may_straddle_the_end_of_any_buffer(backend) {
        let unknown = wire::control(6, &[], b"");
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut expected = Vec::new();
            for base in [0, 42, 84] {
                for early in 1..=3 {
                    let writer_number = expected.len() as u32;
                    let mut stream = Vec::new();
                    let mut sequence = 0;
                    for buffer in (12..=21).map(|bits| 1 << bits) {
                        // Fill so that the next length word begins `early` bytes before the end of a buffer…
                        let fill = |stream: &mut Vec<u8>, sequence: &mut u64, until: usize| {
                            while until - stream.len() > 40_000 {
                                stream.extend(numbered::frames_of_len(writer_number, *sequence..*sequence + 1, 30_000));
                                *sequence += 1;
                            }
                            let len = until - stream.len() - 4;
                            stream.extend(numbered::frames_of_len(writer_number, *sequence..*sequence + 1, len));
                            *sequence += 1;
                        };
                        fill(&mut stream, &mut sequence, buffer - base - early);
                        // …then an escape, then the length word of a control frame.
                        fill(&mut stream, &mut sequence, buffer + buffer / 4 - base - early);
                        stream.extend(&unknown);
                        fill(&mut stream, &mut sequence, buffer + buffer / 2 - base - early - 4);
                        stream.extend(&unknown);
                    }
                    let mut writer = relay.writer();
                    writer.send(&stream);
                    writer.finish();
                    expected.push((writer_number, 0..sequence));
                }
            }
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &expected);
            assert_eq!(ledger.inputs[0].control_frames_ignored, 9 * 10 * 2);
        }
    }

    /// Frames whose length is prime to every buffer, so that words fall on every offset of it.
    fn s04_a_long_stream_of_odd_lengths_is_delivered_whole(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::start(transport, folder.path());
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut expected = Vec::new();
            for (writer_number, len) in [(0, 29), (1, 1021 - 4), (2, 4093 - 4), (3, 65_537 - 4), (4, 262_147 - 4)] {
                let count = (4 << 20) / (len + 4) as u64 / 4;
                let mut writer = relay.writer();
                writer.send(&numbered::frames_of_len(writer_number, 0..count, len));
                writer.finish();
                expected.push((writer_number, 0..count));
            }
            let (_, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &expected);
        }
    }

    /// One output for each place at which ACCEPT or FINISH may be split.
    fn s05_accept_and_finish_may_be_split_at_any_place(backend) {
        let (accept, finish) = (wire::accept(&[D]), wire::finish());
        let folder = folder();
        let mut builder = relay(backend);
        let mut listeners = Vec::new();
        for index in 0..accept.len() - 1 {
            let listener = PeerListener::bind(Transport::BOTH[index % 2], folder.path());
            builder = builder.output(to_peer(&listener));
            listeners.push(listener);
        }
        let relay = builder.start();
        let mut peers: Vec<Peer> = listeners.iter().map(PeerListener::accept).collect();
        for (peer, at) in peers.iter_mut().zip(1..) {
            peer.expect(&wire::ready(&[D]));
            peer.send(&accept[..at]);
        }
        // These pauses are the case too.
        thread::sleep(millis(20));
        for (peer, at) in peers.iter_mut().zip(1..) {
            peer.send(&accept[at..]);
            peer.expect(&wire::start(&[D]));
        }
        let mut writer = relay.writer();
        writer.send(&wire::data(b"abc"));
        writer.finish();
        for peer in &mut peers {
            peer.expect_data(b"abc");
        }
        let drain = thread::spawn(move || relay.drain());
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.expect(&wire::stop());
            peer.send(&finish[..1 + index % 11]);
        }
        thread::sleep(millis(20));
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.send(&finish[1 + index % 11..]);
            peer.expect_close();
        }
        let ledger = drain.join().expect("the relay drains");
        assert!(ledger.outputs.iter().all(|output| output.sessions_finished == 1), "{ledger:?}");
    }

    fn s06_the_last_frame_stop_and_a_half_close_may_come_at_once(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            for _ in 0..25 {
                let mut writer = relay.writer();
                writer.send(&[wire::data(b"abc"), wire::stop()].concat());
                writer.shutdown_write();
                writer.expect(&wire::finish());
                writer.expect_close();

                let mut writer = Peer::connect(&relay.address());
                writer.send(&wire::session_z());
                writer.shutdown_write();
                writer.expect(&[wire::accept(&[D]), wire::finish()].concat());
                writer.expect_close();
            }
            let (ledger, collected) = relay.drain_into(reader);
            assert_eq!(collected.payloads(), [b"abc"; 50]);
            assert_eq!(ended(&ledger.inputs[0], "finished"), 50);
        }
    }

    fn s07_interleaved_connections_never_mix_their_bytes(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writers: Vec<(Peer, Vec<u8>, usize)> = (0..16)
                .map(|number| (relay.writer(), numbered::frames(number, 0..60), 0))
                .collect();
            // Each stops within a frame, at offsets of its own; the last rounds send the rest.
            for round in 1..=20 {
                for (number, (writer, stream, sent)) in writers.iter_mut().enumerate() {
                    let until = if round == 20 { stream.len() } else { stream.len() * round / 20 - number % 7 };
                    writer.send(&stream[*sent..until]);
                    *sent = until;
                }
            }
            writers.into_iter().for_each(|(writer, ..)| {
                writer.finish();
            });
            let (_, collected) = relay.drain_into(reader);
            let expected: Vec<_> = (0..16).map(|number| (number, 0..60)).collect();
            numbered::assert_complete(collected.payloads(), &expected);
        }
    }

    fn s07_length_words_and_payloads_may_come_apart(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut writer = relay.writer();
        let stream = numbered::frames(0, 0..200);
        for payload in wire::payloads(&stream) {
            writer.send(&wire::word(payload.len() as u32));
            writer.send(payload);
        }
        writer.finish();
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..200)]);
    }
}
