//! `ack = "received"`: what a dead reader had not got comes again.

use std::thread;
use std::time::Duration;

use tapster::observability::OutputLedger;
use tapster::queue::WhenFull;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire::Frame;

const LEN: usize = 200;
/// 8 MB: what the kernel's buffers hold, and a good part of the queue.
const FRAMES: u64 = 40_000;
const RECEIVE_BUFFER: usize = 4 << 20;

on_both_backends! {
    /// A reader that takes some frames, stops reading and is reset with 4 MB and more under way: whatever its kernel had not
    /// acknowledged comes again, and, with a margin as large as its buffer, what it had not read.
    fn nothing_is_lost_that_a_reset_reader_had_not_acknowledged(backend) {
        for margin in [0, 10 << 20] {
            let listener = PeerListener::tcp();
            let output = to_peer(&listener).ack_received().replay_margin(margin).queue(64 << 20);
            let relay = relay(backend).output(output.when_full(WhenFull::Block)).start();
            let mut writer = relay.writer();
            let mut reader = listener.accept();
            // Of which the kernel makes twice as much.
            reader.set_receive_buffer(RECEIVE_BUFFER);
            reader.open_as_reader();
            writer.send(&numbered::frames_of_len(0, 0..2 * FRAMES, LEN));
            writer.finish();
            let read = 1000;
            expect_frames(&mut reader, 0, read);
            until_nothing_moves(&relay);
            let written = relay.output(0).bytes_sent - read * (LEN as u64 + 4);
            if receive_buffer_max() >= RECEIVE_BUFFER {
                assert!(written >= 4_000_000, "only {written} bytes are under way");
            } else {
                eprintln!("net.core.rmem_max is small here: only {written} bytes are under way");
            }
            let acknowledged = relay.output(0).frames_acknowledged;
            let in_its_kernel = read + reader.unread_bytes() / (LEN as u64 + 4);
            reader.reset();

            let mut reader = listener.accept_session();
            let first = next_number(&mut reader);
            if margin == 0 {
                // What its kernel had taken and it had not read is lost: nobody can know of it.
                assert!(first <= in_its_kernel, "frames {in_its_kernel}..{first} are lost");
                assert!(first >= acknowledged, "frames {first}..{acknowledged} come again in vain");
            } else {
                assert!(first <= read, "frames {read}..{first} are lost");
            }
            expect_frames(&mut reader, first + 1, 2 * FRAMES);
            let drain = thread::spawn(move || relay.drain());
            reader.expect_stop();
            let output = drain.join().expect("the relay drains").outputs.remove(0);
            let all = 2 * FRAMES;
            assert_eq!((output.frames_sent, output.frames_acknowledged, dropped(&output)), (all, all, 0));
            assert!(output.frames_resent > 0, "{output:?}");
            assert_eq!(output.bytes_unconfirmed, 0);
        }
    }

    fn nothing_is_lost_that_a_killed_reader_of_a_unix_socket_had_not_read(backend) {
        let folder = folder();
        let listener = PeerListener::bind(Transport::Unix, folder.path());
        let output = to_peer(&listener).ack_received().queue(16 << 20).when_full(WhenFull::Block);
        let relay = relay(backend).output(output).start();
        let mut writer = relay.writer();
        let sending = thread::spawn(move || {
            writer.send(&numbered::frames_of_len(0, 0..FRAMES, LEN));
            writer.finish();
        });
        let (mut next, mut read) = (0, 0);
        for life in 1..=5 {
            let mut reader = listener.accept_session();
            let first = next_number(&mut reader);
            assert!(first <= next, "frames {next}..{first} are lost");
            read = first + life * 1000;
            expect_frames(&mut reader, first + 1, read);
            next = read;
            // Within a frame, with the buffers full behind it.
            let _ = reader.read_some(life as usize * 31);
            reader.reset();
        }
        let mut reader = listener.accept_session();
        let first = next_number(&mut reader);
        assert!(first <= read, "frames {read}..{first} are lost");
        expect_frames(&mut reader, first + 1, FRAMES);
        sending.join().expect("all was taken");
        let drain = thread::spawn(move || relay.drain());
        reader.expect_stop();
        let output = drain.join().expect("the relay drains").outputs.remove(0);
        assert_eq!((output.frames_sent, output.frames_acknowledged, dropped(&output)), (FRAMES, FRAMES, 0));
        assert!(output.frames_resent > 0, "{output:?}");
    }

    /// What is held counts as full: a reader that reads lets go of it, one that does not stops the writer.
    fn a_small_queue_under_block_flows_and_holds_no_more_than_it_may(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::start(transport, folder.path());
            let output = to(&reader).ack_received().queue(256 << 10).when_full(WhenFull::Block);
            let relay = relay(backend).input(listening(transport, folder.path())).output(output).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames_of_len(0, 0..5 * FRAMES, LEN));
            writer.finish();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..5 * FRAMES)]);
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_acknowledged, output.frames_resent), (5 * FRAMES, 0), "{output:?}");
        }
    }

    /// Everything is acknowledged soon after it was read, without more data and without FINISH.
    fn what_was_read_is_acknowledged_while_the_stream_rests(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::start(transport, folder.path());
            let relay = relay(backend).output(to(&reader).ack_received()).start();
            let mut writer = relay.writer();
            for sequence in 0..20 {
                writer.send(&numbered::frames(0, sequence..sequence + 1));
                eventually("acknowledged", || relay.output(0).frames_acknowledged == sequence + 1);
            }
            assert_eq!(relay.output(0).frames_unacknowledged, 0);
            writer.finish();
            relay.drain_into(reader);
        }
    }

    /// Without FINISH the end of the stream waits until all of it has arrived.
    fn a_unidirectional_stream_is_acknowledged_to_its_end(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let relay = relay(backend).output(to_peer(&listener).unidirectional().ack_received()).start();
            let mut writer = relay.writer();
            let mut reader = listener.accept();
            reader.expect(&crate::support::wire::start(&[crate::support::wire::D]));
            writer.send(&numbered::frames(0, 0..1000));
            writer.finish();
            let drain = thread::spawn(move || relay.drain());
            expect_frames(&mut reader, 0, 1000);
            reader.expect(&crate::support::wire::stop());
            // Closed at once: it has read everything.
            drop(reader);
            let output = drain.join().expect("the relay drains").outputs.remove(0);
            assert_eq!((output.frames_acknowledged, output.frames_unacknowledged), (1000, 0), "{transport:?}");
        }
    }

    /// The reader has it all and never says so: under `block` tapster sends it once more, and then says how it ended.
    fn what_nobody_acknowledged_by_the_end_of_a_drain_is_told(backend) {
        for when_full in [WhenFull::Block, WhenFull::DropOldest] {
            let folder = folder();
            let listener = PeerListener::bind(Transport::Unix, folder.path());
            let output = to_peer(&listener).ack_received().when_full(when_full).finish_timeout(millis(200));
            let relay = relay(backend).output(output).start();
            let mut writer = relay.writer();
            let reader = listener.accept_session();
            writer.send(&numbered::frames(0, 0..10));
            writer.finish();
            relay.wait_until_written();
            let drain = thread::spawn(move || relay.drain());
            let mut connections = vec![reader];
            let mut last = None;
            eventually("the drain ends", || {
                if let Some(mut reader) = listener.poll_accept() {
                    reader.open_as_reader();
                    connections.push(reader);
                }
                if drain.is_finished() {
                    last = Some(());
                }
                last.is_some()
            });
            let output: OutputLedger = drain.join().expect("the relay drains").outputs.remove(0);
            let again = u64::from(when_full == WhenFull::Block);
            assert_eq!((output.frames_sent, output.frames_unacknowledged), (10, 10), "{output:?}");
            assert_eq!((output.connections, output.frames_resent), (1 + again, 10 * again), "{output:?}");
        }
    }
}

/// The largest that this machine allows.
fn receive_buffer_max() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

fn next_number(reader: &mut Peer) -> u64 {
    match reader.read_frame() {
        Frame::Data(payload) => Number::of(&payload).sequence,
        Frame::Control(_) => panic!("a control frame"),
    }
}

#[track_caller]
fn expect_frames(reader: &mut Peer, from: u64, to: u64) {
    for sequence in from..to {
        assert_eq!(next_number(reader), sequence);
    }
}

/// Waits until the relay can write no more.
fn until_nothing_moves(relay: &crate::support::relay::TestRelay) {
    let look = || OutputLedger { oldest_age_us: None, ..relay.output(0) };
    let mut before = look();
    eventually("the buffers are full", || {
        thread::sleep(Duration::from_millis(100));
        let now = look();
        let still = now == before;
        before = now;
        still
    });
}
