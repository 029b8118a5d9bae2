//! L: lengths at, above and far above the limits, the relay being the reader.

use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::pad;

const MIB: usize = 1 << 20;

/// Sends frames of these lengths and then `n`; all must be delivered, byte-equal.
#[track_caller]
fn delivers(backend: Backend, lens: &[usize]) {
    for transport in Transport::BOTH {
        let folder = folder();
        let reader = CollectingReader::start(transport, folder.path());
        let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
        let mut writer = relay.writer();
        let mut payloads: Vec<Vec<u8>> =
            lens.iter().map(|len| (0..*len).map(|at| (at % 253) as u8).collect()).collect();
        payloads.push(b"n".to_vec());
        for payload in &payloads {
            writer.send(&wire::data(payload));
        }
        writer.finish();
        let (_, collected) = relay.drain_into(reader);
        assert!(collected.payloads() == payloads, "{:?}", collected.payloads().iter().map(|p| p.len()));
    }
}

/// Announces a frame of `len` and sends some of its bytes; the relay must close at once and deliver nothing.
#[track_caller]
fn closes_on(backend: Backend, len: u32, some: usize) {
    for transport in Transport::BOTH {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
        let mut writer = relay.writer();
        writer.send(&[wire::data(b"a"), wire::word(len).to_vec()].concat());
        // It may be closed already.
        let _ = writer.try_send(&vec![b'x'; some]);
        let _ = writer.try_send(&wire::data(b"n"));
        writer.expect_close();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"a"]);
        assert_eq!(ledger.inputs[0].frames, 1);
        assert_eq!(ledger.inputs[0].frames_oversize, 1);
    }
}

on_both_backends! {
    fn l01_l03_l08_frames_up_to_the_limit_are_delivered(backend) {
        delivers(backend, &[MIB]);
        delivers(backend, &[262_140, 262_141, 65_835, 131_600, MIB - 1, MIB, MIB, 1]);
    }

    fn l02_a_frame_over_the_limit_is_closed_on(backend) {
        closes_on(backend, MIB as u32 + 1, MIB + 1);
    }

    fn l02_a_frame_over_the_limit_is_skipped_where_that_is_configured(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().skip_oversize()).output(to(&reader)).start();
        let mut writer = relay.writer();
        writer.send(&wire::data(&vec![b'x'; MIB + 1]));
        writer.send(&wire::data(b"n"));
        writer.send(&wire::data(&vec![b'x'; 5 * MIB]));
        writer.send(&[wire::data(&vec![0; MIB + 1]), wire::data(&vec![0; MIB + 1])].concat());
        writer.send(&wire::data(b"m"));
        writer.finish();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"n", b"m"]);
        assert_eq!(ledger.inputs[0].frames, 2);
        assert_eq!(ledger.inputs[0].frames_oversize, 4);
    }

    fn a_frame_that_is_being_skipped_when_its_writer_dies_is_counted_once(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().skip_oversize()).output(to(&reader)).start();
        let mut writer = relay.writer();
        writer.send(&[wire::data(b"a"), wire::word(1 << 30).to_vec(), vec![b'x'; 100_000]].concat());
        drop(writer);
        relay.wait_until_idle();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"a"]);
        assert_eq!(ledger.inputs[0].frames_oversize, 1);
    }

    fn l04_l05_l06_lengths_that_no_frame_has_are_closed_on_at_once(backend) {
        for len in [u32::MAX, u32::MAX - 1, u32::MAX - 2, u32::MAX - 3] {
            closes_on(backend, len, 16);
        }
        closes_on(backend, 1 << 31, MIB);
    }

    fn l07_ready_may_have_up_to_512_bytes_of_payload(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        for (len, payload) in [(197, 503), (198, 504), (206, 512)] {
            let ready = wire::ready(&[D, &pad(256), &pad(len)]);
            assert_eq!(ready.len(), 8 + payload);
            let mut writer = Peer::connect(&relay.address());
            writer.send(&ready);
            writer.expect(&wire::accept(&[D]));
            writer.send(&wire::start(&[D]));
            writer.finish();
        }
        // A control frame of 513 bytes, and a content type of 257.
        for ready in [wire::ready(&[D, &pad(256), &pad(207)]), wire::ready(&[D, &pad(257)])] {
            let mut writer = Peer::connect(&relay.address());
            writer.send(&ready);
            writer.expect_close();
        }
        relay.drain_into(reader);
    }

    fn l09_frames_over_the_limit_of_an_output_are_dropped_and_counted_for_that_output_alone(backend) {
        for limit in [65_536, 98_304, 102_400, 262_140] {
            let (reader, unlimited) = (CollectingReader::tcp(), CollectingReader::tcp());
            let relay = relay(backend)
                .output(to(&reader).frame_len_max(limit))
                .output(to(&unlimited))
                .start();
            let mut writer = relay.writer();
            let lens = [100, limit, 100, limit + 1, limit, limit + 1, limit + 1, 1];
            for len in lens {
                writer.send(&wire::data(&vec![b'x'; len as usize]));
            }
            writer.finish();
            let (ledger, collected) = relay.drain_into(reader);
            let expected: Vec<u32> = lens.into_iter().filter(|len| *len <= limit).collect();
            assert_eq!(lens_of(&collected.payloads()), expected);
            assert_eq!(collected.sessions.len(), 1, "the session goes on");
            assert_eq!(dropped_for(&ledger.outputs[0], "frame_too_long"), 3);
            assert_eq!(lens_of(&unlimited.close().payloads()), lens);
            assert_eq!(dropped(&ledger.outputs[1]), 0);
        }
    }

    fn an_input_with_a_smaller_limit_keeps_it(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().frame_len_max(66_560)).output(to(&reader)).start();
        let mut writer = relay.writer();
        writer.send(&wire::data(&vec![b'x'; 66_560]));
        writer.send(&wire::word(66_561));
        writer.expect_close();
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(lens_of(&collected.payloads()), [66_560]);
    }

    fn connections_over_the_maximum_are_closed_at_once_and_others_are_served_when_one_leaves(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().connections_max(3)).output(to(&reader)).start();
        let mut writers: Vec<Peer> = (0..3).map(|_| relay.writer()).collect();
        for _ in 0..5 {
            Peer::connect(&relay.address()).expect_close();
        }
        writers.pop().expect("three").finish();
        crate::support::wait::eventually("room for another", || relay.input().connections_open == 2);
        writers.push(relay.writer());
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.send(&numbered::frames(number as u32, 0..10));
        }
        for writer in &mut writers {
            writer.expect_silence(A_WHILE / 10);
        }
        for writer in writers {
            writer.finish();
        }
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..10), (1, 0..10), (2, 0..10)]);
    }
}

fn lens_of(payloads: &[&[u8]]) -> Vec<u32> {
    payloads.iter().map(|payload| payload.len() as u32).collect()
}
