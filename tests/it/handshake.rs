//! H: the handshake, the relay being the reader.

use std::time::Duration;

use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

/// What the relay does with what a writer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It answers STOP with FINISH and closes.
    Finishes,
    /// It closes, having sent nothing more.
    Closes,
}

/// Sends `ready` to a relay of the type dnstap, expects `answer`, sends `rest`, and expects the end.
#[track_caller]
fn session(backend: Backend, steps: &[(Vec<u8>, Vec<u8>)], then: Then, delivered: &[&[u8]]) {
    for transport in Transport::BOTH {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
        let mut writer = Peer::connect(&relay.address());
        for (sent, answer) in steps {
            writer.send(sent);
            writer.expect(answer);
        }
        if then == Then::Finishes {
            writer.expect(&wire::finish());
        }
        writer.expect_close();
        relay.wait_until_idle();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), delivered);
        assert_eq!(ledger.inputs[0].frames, delivered.len() as u64);
    }
}

/// One exchange: what is sent, and what must come back before anything else is sent.
fn step(sent: &[Vec<u8>], answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (sent.concat(), answer.to_vec())
}

on_both_backends! {
    fn h01_a_session_is_answered_byte_exactly_and_delivered(backend) {
        let accept = wire::accept(&[D]);
        assert_eq!(accept.len(), 42);
        session(
            backend,
            &[
                step(&[wire::ready(&[D])], &accept),
                step(&[wire::start(&[D]), wire::data(b"abc"), wire::stop()], b""),
            ],
            Then::Finishes,
            &[b"abc"],
        );
    }

    fn h02_ready_without_types_is_answered_with_the_type_of_the_relay(backend) {
        session(
            backend,
            &[
                step(&[wire::ready(&[])], &wire::accept(&[D])),
                step(&[wire::start(&[D]), wire::data(b"abc"), wire::stop()], b""),
            ],
            Then::Finishes,
            &[b"abc"],
        );
    }

    fn h03_h04_of_several_types_exactly_one_is_accepted(backend) {
        for types in [&[O, D][..], &[D, O], &[D, D]] {
            session(
                backend,
                &[
                    step(&[wire::ready(types)], &wire::accept(&[D])),
                    step(&[wire::start(&[D]), wire::data(b"abc"), wire::stop()], b""),
                ],
                Then::Finishes,
                &[b"abc"],
            );
        }
    }

    fn h05_h12_ready_with_no_type_of_ours_is_closed_on_without_an_answer(backend) {
        let nul = [D, b"\0"].concat();
        for offered in [O, b"Protobuf:dnstap.Dnstap", &D[..D.len() - 1], &nul, b"", b"\xff\xfe\0\n"] {
            session(backend, &[step(&[wire::ready(&[offered])], b"")], Then::Closes, &[]);
        }
    }

    fn h06_start_of_another_type_than_accepted_is_closed_on(backend) {
        session(
            backend,
            &[
                step(&[wire::ready(&[D])], &wire::accept(&[D])),
                step(&[wire::start(&[O]), wire::data(b"a")], b""),
            ],
            Then::Closes,
            &[],
        );
    }

    fn h07_start_without_a_type_is_taken(backend) {
        session(
            backend,
            &[
                step(&[wire::ready(&[D])], &wire::accept(&[D])),
                step(&[wire::start(&[]), wire::data(b"a"), wire::stop()], b""),
            ],
            Then::Finishes,
            &[b"a"],
        );
    }

    fn h08_start_with_two_types_is_closed_on(backend) {
        session(
            backend,
            &[
                step(&[wire::ready(&[D])], &wire::accept(&[D])),
                step(&[wire::start(&[D, D]), wire::data(b"a")], b""),
            ],
            Then::Closes,
            &[],
        );
    }

    fn h09_a_first_frame_that_opens_no_session_is_closed_on(backend) {
        for first in [wire::stop(), wire::accept(&[D]), wire::finish(), wire::start(&[O])] {
            session(backend, &[step(&[first], b"")], Then::Closes, &[]);
        }
    }

    fn h09_a_writer_that_begins_with_start_is_taken_as_unidirectional_and_told_nothing(backend) {
        for types in [&[D][..], &[]] {
            session(
                backend,
                &[step(&[wire::start(types), wire::data(b"a"), wire::stop()], b"")],
                Then::Closes,
                &[b"a"],
            );
        }
    }

    fn h09_a_writer_that_begins_with_start_is_closed_on_where_that_is_not_configured(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().bidirectional_only()).output(to(&reader)).start();
        let mut writer = Peer::connect(&relay.address());
        writer.send(&[wire::start(&[D]), wire::data(b"a")].concat());
        writer.expect_close();
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.frames(), 0);
    }

    fn h10_ready_is_answered_twice_but_not_three_times(backend) {
        let again = step(&[wire::ready(&[D])], &wire::accept(&[D]));
        session(
            backend,
            &[
                again.clone(),
                again.clone(),
                step(&[wire::start(&[D]), wire::data(b"a"), wire::stop()], b""),
            ],
            Then::Finishes,
            &[b"a"],
        );
        session(backend, &[again.clone(), again, step(&[wire::ready(&[D])], b"")], Then::Closes, &[]);
    }

    fn h11_a_writer_need_not_wait_for_accept(backend) {
        session(
            backend,
            &[
                step(&[wire::ready(&[D]), wire::start(&[D]), wire::data(b"a")], &wire::accept(&[D])),
                step(&[wire::stop()], b""),
            ],
            Then::Finishes,
            &[b"a"],
        );
    }

    fn h13_data_before_the_handshake_or_before_start_is_closed_on(backend) {
        session(backend, &[step(&[wire::data(b"x"), wire::ready(&[D])], b"")], Then::Closes, &[]);
        session(
            backend,
            &[step(&[wire::ready(&[D])], &wire::accept(&[D])), step(&[wire::data(b"x")], b"")],
            Then::Closes,
            &[],
        );
    }

    fn of_the_types_of_the_relay_the_first_that_is_offered_is_accepted(backend) {
        let (a, b) = (&b"test:a"[..], &b"test:b"[..]);
        let (reader_a, reader_b) = (reader_of(a), reader_of(b));
        let relay = relay(backend)
            .input(tcp().content_types(&[b, a]))
            .output(to(&reader_a))
            .output(to(&reader_b))
            .start();
        for (offered, accepted) in [(&[a, b][..], b), (&[b, a], b), (&[a], a), (&[], b), (&[O, a], a)] {
            let mut writer = Peer::connect(&relay.address());
            writer.send(&wire::ready(offered));
            writer.expect(&wire::accept(&[accepted]));
            writer.send(&[wire::start(&[accepted]), wire::data(accepted)].concat());
            writer.finish();
        }
        let ledger = relay.drain();
        let (a_got, b_got) = (reader_a.close(), reader_b.close());
        assert_eq!(a_got.payloads(), [a, a]);
        assert_eq!(b_got.payloads(), [b, b, b]);
        assert_eq!(ledger.inputs[0].frames_unrouted, 0);
    }

    fn an_input_of_any_type_accepts_the_first_offered_or_none(backend) {
        let reader = reader_of(O);
        let relay = relay(backend).input(tcp().any_content_type()).output(to(&reader)).start();
        for (offered, accepted, started) in [
            (&[O, D][..], &[O][..], &[O][..]),
            (&[O], &[O], &[O]),
            // A type of 256 bytes that are no text; no output takes it.
            (&[&[0xff; 256]], &[&[0xff; 256]], &[&[0xff; 256]]),
            (&[], &[], &[O]),
            (&[], &[], &[]),
        ] {
            let mut writer = Peer::connect(&relay.address());
            writer.send(&wire::ready(offered));
            writer.expect(&wire::accept(accepted));
            writer.send(&[wire::start(started), wire::data(b"one")].concat());
            writer.finish();
        }
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"one", b"one", b"one"]);
        assert_eq!(ledger.inputs[0].frames, 5);
        assert_eq!(ledger.inputs[0].frames_unrouted, 2);
    }

    fn accept_comes_at_once_and_nothing_with_it(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut writer = Peer::connect(&relay.address());
        writer.expect_silence(A_WHILE);
        writer.send(&wire::ready(&[D]));
        writer.expect(&wire::accept(&[D]));
        writer.expect_silence(A_WHILE);
        writer.send(&wire::start(&[D]));
        writer.expect_silence(A_WHILE);
        assert!(writer.finish() < Duration::from_secs(1));
        relay.drain_into(reader);
    }
}

fn reader_of(content_type: &[u8]) -> CollectingReader {
    CollectingReader::of_type(content_type, Transport::Tcp, std::path::Path::new("unused"))
}
