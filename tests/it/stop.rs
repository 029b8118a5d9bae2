//! X: how sessions end, well and badly, the relay being the reader.

use std::time::Duration;

use crate::support::collector::Collected;
use crate::support::collector::CollectingReader;
use crate::support::peer::Peer;
use crate::support::relay::TestRelay;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use tapster::observability::Ledger;
use tapster::transport::Backend;

/// Runs `play` against a relay over each transport.
#[track_caller]
fn over_both(backend: Backend, play: impl Fn(&TestRelay), check: impl Fn(Ledger, Collected)) {
    for transport in Transport::BOTH {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
        play(&relay);
        relay.wait_until_idle();
        let (ledger, collected) = relay.drain_into(reader);
        check(ledger, collected);
    }
}

on_both_backends! {
    fn x01_stop_without_data_is_answered(backend) {
        over_both(
            backend,
            |relay| {
                relay.writer().finish();
            },
            |ledger, collected| {
                assert_eq!(collected.frames(), 0);
                assert_eq!(ended(&ledger.inputs[0], "finished"), 1);
            },
        );
    }

    fn x02_a_writer_that_does_not_wait_for_finish_does_no_harm(backend) {
        over_both(
            backend,
            |relay| {
                for round in 0..20 {
                    let mut writer = relay.writer();
                    writer.send(&[wire::data(b"a"), wire::stop()].concat());
                    match round % 2 {
                        0 => drop(writer),
                        _ => writer.reset(),
                    }
                }
                eventually("every frame taken or its connection gone", || {
                    let input = relay.input();
                    input.connections == 20 && input.connections_open == 0
                });
                relay.writer().finish();
            },
            |ledger, collected| {
                // A RST may overtake the data, a plain close may not.
                assert!((10..=20).contains(&collected.frames()), "{} frames", collected.frames());
                assert!(ended(&ledger.inputs[0], "finished") > 10, "{ledger:?}");
            },
        );
    }

    fn x03_a_half_close_without_stop_is_an_unclean_end(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&wire::data(b"a"));
                writer.shutdown_write();
                writer.expect_close();
            },
            |ledger, collected| {
                assert_eq!(collected.payloads(), [b"a"]);
                assert_eq!(ended(&ledger.inputs[0], "unclean"), 1, "{ledger:?}");
            },
        );
    }

    fn x04_an_end_within_a_frame_is_truncated_and_nothing_of_the_frame_is_delivered(backend) {
        let cuts: Vec<Vec<u8>> = (1..7)
            .map(|len| wire::data(b"abc")[..len].to_vec())
            .chain((1..12).map(|len| wire::stop()[..len].to_vec()))
            .collect();
        over_both(
            backend,
            |relay| {
                for cut in &cuts {
                    let mut writer = relay.writer();
                    writer.send(&[&wire::data(b"a")[..], cut].concat());
                    writer.shutdown_write();
                    writer.expect_close();
                }
            },
            |ledger, collected| {
                assert_eq!(collected.payloads(), vec![b"a"; cuts.len()]);
                assert_eq!(ended(&ledger.inputs[0], "truncated"), cuts.len() as u64, "{ledger:?}");
            },
        );
    }

    fn x05_an_end_within_the_handshake_delivers_nothing(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = Peer::connect(&relay.address());
                writer.send(&wire::ready(&[D]));
                writer.shutdown_write();
                // ACCEPT may come, for READY did.
                while writer.read_some(64).is_ok_and(|bytes| !bytes.is_empty()) {}

                let mut writer = Peer::connect(&relay.address());
                writer.send(&wire::ready(&[D])[..20]);
                writer.shutdown_write();
                writer.expect_close();

                let mut writer = Peer::connect(&relay.address());
                writer.send(&wire::ready(&[D]));
                writer.expect(&wire::accept(&[D]));
                writer.shutdown_write();
                writer.expect_close();

                let writer = Peer::connect(&relay.address());
                writer.reset();
                eventually("all four came", || relay.input().connections == 4);
            },
            |ledger, collected| {
                assert_eq!(collected.frames(), 0);
                assert_eq!(ledger.inputs[0].connections, 4);
            },
        );
    }

    fn x06_a_reset_after_data_loses_only_what_was_not_read(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&wire::data(b"a"));
                relay.wait_for_frames(1);
                writer.send(&wire::data(b"abc")[..5]);
                writer.reset();
            },
            |_, collected| assert_eq!(collected.payloads(), [b"a"]),
        );
    }

    fn x07_two_stops_are_answered_with_one_finish(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&[wire::stop(), wire::stop()].concat());
                writer.expect(&wire::finish());
                writer.expect_close();
            },
            |ledger, _| {
                assert_eq!(ended(&ledger.inputs[0], "finished"), 1);
                assert_eq!(ledger.inputs[0].bytes_after_stop, 12);
            },
        );
    }

    fn x08_data_after_stop_is_not_delivered_but_counted(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&[wire::data(b"a"), wire::stop(), wire::data(b"z")].concat());
                writer.expect(&wire::finish());
                writer.expect_close();
            },
            |ledger, collected| {
                assert_eq!(collected.payloads(), [b"a"]);
                assert_eq!(ledger.inputs[0].bytes_after_stop, 5);
            },
        );
    }

    fn x09_a_used_connection_is_offered_no_second_session(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&wire::stop());
                writer.expect(&wire::finish());
                let _ = writer.try_send(&wire::ready(&[D]));
                writer.expect_close();
            },
            |ledger, _| assert_eq!(ended(&ledger.inputs[0], "finished"), 1),
        );
    }

    fn x10_an_idle_writer_is_left_alone(backend) {
        let reader = CollectingReader::tcp();
        let relay =
            relay(backend).input(tcp().handshake_timeout(millis(200))).output(to(&reader)).start();
        let mut writer = relay.writer();
        writer.expect_silence(Duration::from_millis(1500));
        writer.send(&wire::data(b"a"));
        reader.wait_for_frames(1);
        // Nor does an idle output end.
        writer.expect_silence(Duration::from_millis(500));
        writer.send(&wire::data(b"b"));
        writer.finish();
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"a", b"b"]);
        assert_eq!(collected.sessions.len(), 1);
    }

    /// U11: what comes after STOP is not taken, and does not hold the connection without end either.
    fn a_writer_that_goes_on_after_stop_is_closed_on(backend) {
        over_both(
            backend,
            |relay| {
                let mut writer = relay.writer();
                writer.send(&[wire::data(b"a"), wire::stop()].concat());
                writer.expect(&wire::finish());
                let more = wire::data(&[b'z'; 1000]).repeat(100);
                eventually("the relay closes", || writer.try_send(&more).is_err());
            },
            |_, collected| assert_eq!(collected.payloads(), [b"a"]),
        );
    }
}
