//! D: data frames and control frames between them, the relay being the reader.

use tapster::observability::Ledger;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::peer::Peer;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;
use crate::support::wire::D;

/// What the relay does after `sent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It takes the next frame, `z`, and answers STOP with FINISH.
    GoesOn,
    /// It closes and delivers nothing of what follows.
    Closes,
}

/// Sends `sent` and the frame `z` in one write after the handshake, and expects `delivered`.
#[track_caller]
fn after_the_handshake(backend: Backend, sent: &[u8], then: Then, delivered: &[&[u8]]) -> Ledger {
    let mut ledger = Ledger::default();
    for transport in Transport::BOTH {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
        let mut writer = Peer::writer(&relay.address());
        writer.send(&[sent, &wire::data(b"z")].concat());
        let mut delivered = delivered.to_vec();
        match then {
            Then::GoesOn => {
                delivered.push(b"z");
                writer.finish();
            }
            Then::Closes => writer.expect_close(),
        }
        let collected;
        (ledger, collected) = relay.drain_into(reader);
        assert!(collected.payloads() == delivered, "{} frames delivered", collected.frames());
        assert_eq!(ended(&ledger.inputs[0], "protocol_error"), u64::from(then == Then::Closes), "{ledger:?}");
    }
    ledger
}

on_both_backends! {
    fn d01_d02_d03_payloads_that_look_like_something_else_are_data(backend) {
        let payloads: Vec<Vec<u8>> = vec![
            b"\0".to_vec(),
            b"abc".to_vec(),
            wire::word(4).to_vec(),
            wire::word(3).to_vec(),
            wire::word(0).to_vec(),
            wire::stop(),
            wire::ready(&[D]),
            wire::finish(),
            wire::session_z(),
        ];
        let sent: Vec<u8> = payloads.iter().flat_map(|payload| wire::data(payload)).collect();
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        after_the_handshake(backend, &sent, Then::GoesOn, &payloads);
    }

    fn d04_every_size_from_1_to_1000_is_delivered_in_order_and_byte_equal(backend) {
        let pattern = |len: usize| (0..len).map(|at| (at * len % 251) as u8).collect::<Vec<u8>>();
        let payloads: Vec<Vec<u8>> = (1..=1000).map(pattern).collect();
        let sent: Vec<u8> = payloads.iter().flat_map(|payload| wire::data(payload)).collect();
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        after_the_handshake(backend, &sent, Then::GoesOn, &payloads);
    }

    fn d05_unknown_control_frames_between_data_are_ignored_and_counted(backend) {
        let noise: Vec<u8> = (0..508u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let unknown = [
            wire::control(6, &[], b""),
            wire::control(0x6162_6364, &[], b""),
            wire::control(0, &[], b""),
            wire::control(u32::MAX, &[D], b""),
            wire::control(6, &[], &noise),
        ];
        for frame in &unknown {
            let ledger = after_the_handshake(backend, frame, Then::GoesOn, &[]);
            assert_eq!(ledger.inputs[0].control_frames_ignored, 1);
        }
        let sent = [wire::data(b"a"), unknown.concat(), wire::data(b"b"), unknown.concat()].concat();
        let ledger = after_the_handshake(backend, &sent, Then::GoesOn, &[b"a", b"b"]);
        assert_eq!(ledger.inputs[0].control_frames_ignored, 10);
    }

    fn d05_unknown_control_frames_in_the_handshake_are_closed_on(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut first = Peer::connect(&relay.address());
        first.send(&wire::control(6, &[], b""));
        first.expect_close();
        let mut second = Peer::connect(&relay.address());
        second.send(&wire::ready(&[D]));
        second.expect(&wire::accept(&[D]));
        second.send(&wire::control(6, &[], b""));
        second.expect_close();
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.frames(), 0);
    }

    fn d06_known_control_frames_between_data_are_closed_on(backend) {
        for frame in [wire::ready(&[D]), wire::accept(&[D]), wire::start(&[D]), wire::finish()] {
            let sent = [wire::data(b"a"), frame].concat();
            after_the_handshake(backend, &sent, Then::Closes, &[b"a"]);
        }
    }

    fn d07_an_empty_data_frame_loses_the_frame_after_it_and_no_more(backend) {
        let sent = [wire::word(0).to_vec(), wire::data(b"abcd")].concat();
        let ledger = after_the_handshake(backend, &sent, Then::GoesOn, &[]);
        assert_eq!(ledger.inputs[0].control_frames_ignored, 1);
    }

    fn d08_control_frames_of_impossible_length_are_closed_on(backend) {
        let zero = wire::word(0).to_vec();
        let impossible = [
            [zero.clone(), wire::word(0).to_vec()].concat(),
            [zero.clone(), wire::word(3).to_vec(), b"abc".to_vec()].concat(),
            [zero.clone(), wire::data(&[b'x'; 600])].concat(),
            [zero, wire::word(u32::MAX).to_vec()].concat(),
        ];
        for sent in impossible {
            after_the_handshake(backend, &[wire::data(b"a"), sent].concat(), Then::Closes, &[b"a"]);
        }
    }

    fn c08_c09_damaged_fields_of_a_control_frame_are_closed_on(backend) {
        let damaged = [
            wire::control(wire::STOP, &[D], b""),
            wire::control(wire::STOP, &[], b"\0"),
            wire::control(wire::STOP, &[], &[0, 0, 0, 1]),
            wire::control(wire::STOP, &[], &[0, 0, 0, 2, 0, 0, 0, 0]),
        ];
        for frame in damaged {
            after_the_handshake(backend, &frame, Then::Closes, &[]);
        }
    }
}
