//! A frame that a collector does not take, however often it gets it, is left out; a collector that ends every connection
//! whatever it gets costs none. The rule is in `delivery`, with tests in virtual time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use tapster::output::Checkpoint;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::process::tapster;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;

/// A collector whose limit is lower than ours: it closes at each frame that is longer. Returns the frames that it took.
fn strict_collector(listener: PeerListener, len_max: usize) -> (JoinHandle<Vec<u64>>, Arc<AtomicBool>) {
    let ended = Arc::<AtomicBool>::default();
    let seen = ended.clone();
    let thread = thread::spawn(move || {
        let mut taken = Vec::new();
        while !seen.load(Ordering::Relaxed) {
            let Some(mut peer) = listener.poll_accept() else {
                thread::sleep(millis(2));
                continue;
            };
            peer.set_receive_buffer(16 << 10);
            if peer.try_open_as_reader() {
                take(&mut peer, len_max, &mut taken);
            }
            peer.reset();
        }
        taken
    });
    (thread, ended)
}

/// Reads the length of a frame before its bytes, and no more than that of one that is too long.
fn take(peer: &mut Peer, len_max: usize, taken: &mut Vec<u64>) {
    while let Some(word) = read_exactly(peer, 4) {
        let len = u32::from_be_bytes(word.try_into().expect("4 bytes")) as usize;
        if len == 0 {
            if read_exactly(peer, 8).is_some() {
                let _ = peer.try_send(&wire::finish());
                let _ = peer.read_some(1);
            }
            return;
        }
        if len > len_max {
            return;
        }
        let Some(payload) = read_exactly(peer, len) else { return };
        taken.push(Number::of(&payload).sequence);
    }
}

fn read_exactly(peer: &mut Peer, len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let some = peer.read_some(len - bytes.len()).ok().filter(|some| !some.is_empty())?;
        bytes.extend(some);
    }
    Some(bytes)
}

/// Frames 0 to 19 of which these have so many bytes, and the others few.
fn frames_with(long: &[u64], len: usize) -> Vec<u8> {
    let frame = |sequence| {
        numbered::frames_of_len(0, sequence..sequence + 1, if long.contains(&sequence) { len } else { 100 })
    };
    (0..20).flat_map(frame).collect()
}

on_both_backends! {
    /// One that is larger than what sockets hold, when written is delivered; a small one, first or among others, when it is
    /// kept until the collector has read it, or until FINISH.
    fn a_frame_at_which_the_collector_closes_is_left_out_and_the_others_arrive(backend) {
        let cases = [("written", 5, 6 << 20), ("received", 0, 300), ("received", 7, 300), ("finish", 7, 300)];
        for (ack, long, len) in cases {
            let folder = folder();
            let listener = PeerListener::bind(Transport::Unix, folder.path());
            let output = to_peer(&listener).frame_len_max(8 << 20).queue(64 << 20);
            let output = match ack {
                "received" => output.ack_received(),
                "finish" => output.checkpoint(Checkpoint::Every(millis(100))),
                _ => output,
            };
            let input = crate::support::relay::tcp().frame_len_max(8 << 20);
            let relay = relay(backend).input(input).output(output.reconnect(millis(5), millis(20))).start();
            let mut writer = relay.writer();
            writer.send(&frames_with(&[long], len));
            writer.finish();
            let (collector, ended) = strict_collector(listener, 200);
            let what = format!("the frame is left out, ack {ack}, {long}");
            eventually(&what, || dropped_for(&relay.output(0), "refused") == 1);
            relay.wait_until_written();
            let output = relay.drain().outputs.remove(0);
            ended.store(true, Ordering::Relaxed);
            let mut taken = collector.join().expect("the collector ends well");
            taken.sort_unstable();
            taken.dedup();
            assert_eq!(taken, (0..20).filter(|sequence| *sequence != long).collect::<Vec<_>>(), "{ack}");
            assert_eq!((output.frames_sent, dropped(&output)), (19, 1), "{ack}: {output:?}");
            assert!(output.bytes_unconfirmed <= output.bytes_sent, "{ack}: {output:?}");
        }
    }

    fn what_is_left_out_is_told_with_its_length(backend) {
        let folder = folder();
        let listener = PeerListener::bind(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let keys = "ack=received&reconnect.min=5ms&reconnect.max=20ms";
        let mut program = tapster(backend).listen(&address).to(&listener.address(), keys).start();
        let mut writer = Peer::writer(&address);
        writer.send(&frames_with(&[3], 321));
        let (collector, ended) = strict_collector(listener, 200);
        program.process.wait_for_output("payload_len=321");
        writer.finish();
        program.terminate();
        ended.store(true, Ordering::Relaxed);
        collector.join().expect("the collector ends well");
        let output = program.process.output();
        let line = output.lines().find(|line| line.contains("payload_len=321")).expect("just seen");
        assert!(line.contains("WARN") && line.contains("output="), "{line}");
    }

    /// Restarted again and again, it dies after each handshake: that is not for what it gets.
    fn a_collector_that_dies_at_once_costs_no_frame(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let mut reader = CollectingReader::start(transport, folder.path());
            let address = reader.address();
            reader.die();
            let listener = PeerListener::on(&address);
            let output = to(&reader).ack_received().reconnect(millis(5), millis(20));
            let relay = relay(backend).output(output).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..100));
            for _ in 0..25 {
                let mut peer = listener.accept();
                if peer.try_open_as_reader() {
                    peer.reset();
                }
            }
            drop(listener);
            assert_eq!(dropped(&relay.output(0)), 0);
            reader.revive();
            relay.wait_until_written();
            writer.finish();
            let output = relay.drain().outputs.remove(0);
            assert_eq!((output.frames_sent, dropped(&output)), (100, 0), "{transport:?}: {output:?}");
            if transport == Transport::Unix {
                numbered::assert_complete(reader.close().payloads(), &[(0, 0..100)]);
            }
        }
    }

    /// However connections break, and within whatever frame.
    fn never_are_more_bytes_unconfirmed_than_were_sent(backend) {
        for transport in Transport::BOTH {
            for (len, frames) in [(1 << 20, 12), (300, 20_000), (3 << 20, 1)] {
                let folder = folder();
                let listener = PeerListener::bind(transport, folder.path());
                let input = crate::support::relay::tcp().frame_len_max(8 << 20);
                let output = to_peer(&listener).frame_len_max(8 << 20).reconnect(millis(5), millis(20));
                let relay = relay(backend).input(input).output(output.queue(64 << 20)).start();
                let mut writer = relay.writer();
                writer.send(&numbered::frames_of_len(0, 0..frames, len));
                for life in 0..4 {
                    let mut reader = listener.accept_session();
                    reader.set_receive_buffer(16 << 10);
                    let _ = reader.read_some(life * 1000 + 1);
                    thread::sleep(millis(30));
                    reader.reset();
                    eventually("the break is seen", || listener_has_news(&relay, life as u64 + 1));
                    let output = relay.output(0);
                    assert!(output.bytes_unconfirmed <= output.bytes_sent, "{transport:?}, {len}: {output:?}");
                    if output.frames_queued == 0 {
                        break;
                    }
                }
                writer.finish();
                let reader = thread::spawn(move || listener.accept_unless_silent_for(millis(500)).map(Peer::serve));
                let output = relay.drain().outputs.remove(0);
                reader.join().expect("the reader ends well");
                assert!(output.bytes_unconfirmed <= output.bytes_sent, "{transport:?}, {len}: {output:?}");
            }
        }
    }
}

/// Whether so many connections were there, and the last of them has been seen to end.
fn listener_has_news(relay: &crate::support::relay::TestRelay, connections: u64) -> bool {
    thread::sleep(millis(20));
    relay.output(0).connections >= connections
}
