//! Several writers, several outputs: every frame exactly once, in order, byte-equal, at every output.

use std::thread;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

/// Writes a whole session from a thread of its own, in pieces that end anywhere.
fn write_in_pieces(mut writer: Peer, encoded: &[u8], piece: usize) {
    encoded.chunks(piece).for_each(|piece| writer.send(piece));
    writer.finish();
}

on_both_backends! {
    fn every_frame_of_every_writer_comes_once_and_in_order_to_every_output(backend) {
        let folder = folder();
        let readers: Vec<CollectingReader> =
            [Transport::Tcp, Transport::Unix, Transport::Tcp6, Transport::Unix]
                .map(|transport| CollectingReader::start(transport, folder.path()))
                .into();
        let addresses = [Transport::Tcp, Transport::Tcp6, Transport::Unix]
            .map(|transport| transport.fresh_address(folder.path()));
        let relay = readers
            .iter()
            .fold(relay(backend), |relay, reader| relay.output(to(reader)))
            .input(listening_on(addresses.into()))
            .start();
        assert_eq!(relay.listeners().len(), 3);
        thread::scope(|scope| {
            for number in 0..6 {
                let address = &relay.listeners()[number as usize % 3].1;
                scope.spawn(move || {
                    let encoded = numbered::frames(number, 0..5000);
                    // From pieces smaller than a frame to 64 KiB.
                    write_in_pieces(Peer::writer(address), &encoded, [331, 64 << 10, 4096][number as usize / 2]);
                });
            }
        });
        let ledger = relay.drain();
        let expected: Vec<_> = (0..6).map(|number| (number, 0..5000)).collect();
        assert_eq!(ledger.inputs[0].frames, 30_000);
        assert_eq!(ledger.inputs[0].connections, 6);
        for (reader, output) in readers.into_iter().zip(&ledger.outputs) {
            let collected = reader.close();
            assert_sent(output, &collected);
            assert_eq!(dropped(output), 0);
            assert_eq!(collected.sessions.len(), 1);
            numbered::assert_complete(collected.payloads(), &expected);
        }
    }

    fn one_worker_does_the_same(backend) {
        let readers = [CollectingReader::tcp(), CollectingReader::tcp()];
        let relay = relay(backend).workers(1).output(to(&readers[0])).output(to(&readers[1])).start();
        thread::scope(|scope| {
            for number in 0..4 {
                let address = relay.address();
                scope.spawn(move || {
                    write_in_pieces(Peer::writer(&address), &numbered::frames(number, 0..5000), 8192);
                });
            }
        });
        let ledger = relay.drain();
        let expected: Vec<_> = (0..4).map(|number| (number, 0..5000)).collect();
        for (reader, output) in readers.into_iter().zip(&ledger.outputs) {
            let collected = reader.close();
            assert_sent(output, &collected);
            numbered::assert_complete(collected.payloads(), &expected);
        }
    }

    fn streams_of_different_types_never_share_an_output(backend) {
        let unused = std::path::Path::new("unused");
        let dnstap = CollectingReader::tcp();
        let other = CollectingReader::of_type(O, Transport::Tcp, unused);
        let relay = relay(backend)
            .input(tcp().content_types(&[D, O]))
            .output(to(&dnstap))
            .output(to(&other))
            .start();
        thread::scope(|scope| {
            for (number, content_type) in [(0, D), (1, O), (2, D), (3, O)] {
                let address = relay.address();
                scope.spawn(move || {
                    let mut writer = Peer::connect(&address);
                    writer.open_as_writer(content_type);
                    write_in_pieces(writer, &numbered::frames(number, 0..2000), 1000);
                });
            }
        });
        let ledger = relay.drain();
        let (dnstap, other) = (dnstap.close(), other.close());
        numbered::assert_complete(dnstap.payloads(), &[(0, 0..2000), (2, 0..2000)]);
        numbered::assert_complete(other.payloads(), &[(1, 0..2000), (3, 0..2000)]);
        assert_eq!(ledger.inputs[0].frames, 8000);
        assert_eq!(ledger.inputs[0].frames_unrouted, 0);
        assert_eq!(ledger.outputs[0].frames_received, 4000);
        assert_eq!(ledger.outputs[1].frames_received, 4000);
    }

    fn an_input_of_any_type_feeds_each_output_with_its_own_and_counts_the_rest(backend) {
        let reader = CollectingReader::of_type(O, Transport::Tcp, std::path::Path::new("unused"));
        let relay = relay(backend).input(tcp().any_content_type()).output(to(&reader)).start();
        for (number, content_type) in [(0, D), (1, O), (2, b"test:third")] {
            let mut writer = Peer::connect(&relay.address());
            writer.open_as_writer(content_type);
            write_in_pieces(writer, &numbered::frames(number, 0..100), 1000);
        }
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(1, 0..100)]);
        assert_eq!(ledger.inputs[0].frames, 300);
        assert_eq!(ledger.inputs[0].frames_unrouted, 200);
    }

    fn two_inputs_are_counted_apart(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend)
            .input(tcp())
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader))
            .start();
        assert_eq!(relay.listeners()[0].0, "input0");
        assert_eq!(relay.listeners()[1].0, "input1");
        write_in_pieces(Peer::writer(&relay.listeners()[0].1), &numbered::frames(0, 0..100), 1000);
        write_in_pieces(Peer::writer(&relay.listeners()[1].1), &numbered::frames(1, 0..200), 1000);
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..100), (1, 0..200)]);
        let counted: Vec<_> = ledger.inputs.iter().map(|input| (input.frames, input.bytes)).collect();
        let sent = |number, count| (count, numbered::frames(number, 0..count).len() as u64);
        assert_eq!(counted, [sent(0, 100), sent(1, 200)]);
    }

    /// A writer that begins with START and one that begins with READY beside each other on one output.
    fn unidirectional_and_bidirectional_writers_share_an_output(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(Transport::Unix, folder.path())).output(to(&reader)).start();
        let mut one_way = Peer::connect(&relay.address());
        one_way.send(&wire::start(&[D]));
        let mut two_way = relay.writer();
        for round in 0..50 {
            one_way.send(&numbered::frames(0, round * 10..round * 10 + 10));
            two_way.send(&numbered::frames(1, round * 10..round * 10 + 10));
        }
        one_way.send(&wire::stop());
        one_way.expect_close();
        two_way.finish();
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..500), (1, 0..500)]);
    }
}
