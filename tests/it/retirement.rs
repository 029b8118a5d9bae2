//! Connections that are as old as they may become end when their writer says nothing, and not before.

use std::time::Duration;

use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::TestRelay;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;

const AGE: Duration = Duration::from_secs(1);
/// A tenth more, until the next look, and until a quiet moment. A busy machine may be late.
const LATE: Duration = Duration::from_secs(6);

fn start(
    backend: Backend,
    transport: Transport,
    reader: &CollectingReader,
    folder: &std::path::Path,
) -> TestRelay {
    relay(backend).input(listening(transport, folder).max_connection_age(AGE)).output(to(reader)).start()
}

/// Waits for the end of the direction to the writer, and closes in answer, as a writer that looks does.
#[track_caller]
fn expect_end(mut peer: Peer) {
    peer.expect_close_within(LATE);
}

on_both_backends! {
    fn an_old_connection_of_a_quiet_writer_is_closed_and_its_frames_are_there(backend) {
        for transport in Transport::BOTH {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let relay = start(backend, transport, &reader, folder.path());
            let mut writers: Vec<Peer> = (0..5).map(|_| relay.writer()).collect();
            for (number, writer) in writers.iter_mut().enumerate() {
                writer.send(&numbered::frames(number as u32, 0..10));
            }
            writers.into_iter().for_each(expect_end);
            relay.wait_until_idle();
            // A writer connects again.
            relay.writer().finish();
            let (ledger, collected) = relay.drain_into(reader);
            let all: Vec<_> = (0..5).map(|writer| (writer, 0..10)).collect();
            numbered::assert_complete(collected.payloads(), &all);
            assert_eq!((ended(&ledger.inputs[0], "max_age"), ended(&ledger.inputs[0], "finished")), (5, 1));
        }
    }

    fn frames_that_were_on_their_way_when_the_writer_heard_of_it_are_taken(backend) {
        for transport in Transport::BOTH {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let relay = start(backend, transport, &reader, folder.path());
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..10));
            writer.expect_close_within(LATE);
            writer.send(&numbered::frames(0, 10..1000));
            drop(writer);
            relay.wait_until_idle();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..1000)]);
            assert_eq!(ended(&ledger.inputs[0], "max_age"), 1, "{:?}", ledger.inputs);
        }
    }

    fn a_writer_that_does_not_look_finds_its_connection_closed(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let relay = start(backend, Transport::Unix, &reader, folder.path());
        let mut writer = relay.writer();
        relay.wait_until_idle();
        eventually("no more frames are taken", || writer.try_send(&wire::data(b"a")).is_err());
        assert_eq!(ended(&relay.input(), "max_age"), 1);
        relay.drain_into(reader);
    }

    fn no_frame_is_cut(backend) {
        for transport in Transport::BOTH {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let relay = start(backend, transport, &reader, folder.path());
            let frames = numbered::frames(0, 0..2);
            let mut writer = relay.writer();
            writer.send(&frames[..frames.len() - 1]);
            writer.expect_silence(3 * AGE);
            writer.send(&frames[frames.len() - 1..]);
            expect_end(writer);
            relay.wait_until_idle();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..2)]);
            assert_eq!(ended(&ledger.inputs[0], "max_age"), 1);
        }
    }

    fn a_drain_of_old_connections_takes_what_has_arrived(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let relay = start(backend, Transport::Tcp, &reader, folder.path());
        let mut writer = relay.writer();
        let frames = numbered::frames(0, 0..10);
        writer.send(&frames[..frames.len() - 1]);
        std::thread::sleep(3 * AGE);
        writer.send(&frames[frames.len() - 1..]);
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..10)]);
        assert_eq!(ledger.inputs[0].connections, 1);
    }
}
