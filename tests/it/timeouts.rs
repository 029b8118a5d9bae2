//! T: silence, from either side.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::dropped_for;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

/// The handshake deadline of these relays.
const DEADLINE: Duration = Duration::from_millis(400);

on_both_backends! {
    fn t01_a_handshake_that_stops_is_closed_on_at_the_deadline(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend)
                .input(listening(transport, folder.path()).handshake_timeout(DEADLINE))
                .output(to(&reader))
                .start();
            let began = Instant::now();
            let silent = Peer::connect(&relay.address());
            let mut ready = Peer::connect(&relay.address());
            ready.send(&wire::ready(&[D]));
            ready.expect(&wire::accept(&[D]));
            let mut partial = Peer::connect(&relay.address());
            partial.send(&wire::ready(&[D])[..20]);
            let mut partial_start = Peer::connect(&relay.address());
            partial_start.send(&[&wire::ready(&[D])[..], &wire::start(&[D])[..41]].concat());
            partial_start.expect(&wire::accept(&[D]));
            let mut peers = [silent, ready, partial, partial_start];
            for peer in &mut peers {
                peer.expect_silence(DEADLINE / 10);
            }
            for peer in &mut peers {
                peer.expect_close_within(Duration::from_secs(2));
            }
            assert!(began.elapsed() > DEADLINE * 3 / 4, "closed too early: {:?}", began.elapsed());
            let (ledger, _) = relay.drain_into(reader);
            assert_eq!(ended(&ledger.inputs[0], "handshake_timeout"), 4, "{ledger:?}");
        }
    }

    fn t02_the_deadline_is_for_the_whole_handshake_and_not_for_each_byte(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().handshake_timeout(DEADLINE)).output(to(&reader)).start();
        let mut writer = Peer::connect(&relay.address());
        let began = Instant::now();
        let bytes = [wire::ready(&[D]), wire::start(&[D])].concat();
        let taken = bytes.iter().take_while(|byte| {
            thread::sleep(millis(50));
            writer.try_send(&[**byte]).is_ok()
        });
        assert!(taken.count() < 42, "the whole of READY was taken");
        assert!(began.elapsed() > DEADLINE / 2, "closed too early: {:?}", began.elapsed());
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(ended(&ledger.inputs[0], "handshake_timeout"), 1, "{ledger:?}");
    }

    fn t03_silent_connections_do_not_keep_a_writer_waiting(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let silent: Vec<Peer> = (0..64).map(|_| Peer::connect(&relay.address())).collect();
            let began = Instant::now();
            let mut writer = relay.writer();
            writer.send(&wire::data(b"abc"));
            writer.finish();
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            drop(silent);
            let (_, collected) = relay.drain_into(reader);
            assert_eq!(collected.payloads(), [b"abc"]);
        }
    }

    fn t04_a_writer_that_stops_within_a_frame_does_not_keep_another_waiting(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut hanging = relay.writer();
        hanging.send(&wire::word(100));
        let began = Instant::now();
        let mut writer = relay.writer();
        writer.send(&wire::data(b"abc"));
        writer.finish();
        reader.wait_for_frames(1);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        hanging.expect_silence(millis(500));
        hanging.send(&[b'y'; 100]);
        hanging.finish();
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [&b"abc"[..], &[b'y'; 100]]);
    }
}

on_both_backends! {
    /// T05: BIND freezes until FINISH comes.
    alone fn t05_finish_comes_within_100_ms_whatever_the_outputs_do(backend) {
        let stalled = CollectingReader::tcp().stalled();
        // Listens, and nobody ever accepts.
        let mute = PeerListener::tcp();
        // Nobody listens at all.
        let gone = PeerListener::tcp().address();
        let relay = relay(backend)
            .drain_timeout(millis(500))
            .output(to(&stalled).queue(1 << 20))
            .output(to_peer(&mute).queue(1 << 20))
            .output(crate::support::relay::to_address(gone).queue(1 << 20))
            .start();
        stalled.wait_for_sessions(1);
        let frames = numbered::frames(0, 0..20_000);
        let mut took = Vec::new();
        for _ in 0..10 {
            let mut writer = relay.writer();
            writer.send(&frames);
            // The time of STOP, not of the megabytes before it.
            relay.wait_for_frames(20_000 * (took.len() as u64 + 1));
            took.push(writer.finish());
        }
        took.sort();
        assert!(took[8] < millis(100), "{took:?}");
        stalled.resume();
        let ledger = relay.drain();
        for output in &ledger.outputs {
            assert_eq!(output.frames_received, 200_000);
            assert!(dropped_for(output, "queue_full") > 100_000, "{output:?}");
        }
        assert_eq!(stalled.close().frames(), ledger.outputs[0].frames_sent);
    }
}
