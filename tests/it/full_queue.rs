//! What a full queue does: `drop_oldest`, `drop_newest`, `block`; each loss counted, memory bounded.

use std::thread;
use std::time::Duration;

use tapster::observability::OutputLedger;
use tapster::queue::WhenFull;
use tapster::transport::Backend;

use crate::support::collector::Collected;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

const QUEUE: usize = 4 << 20;
const LEN: usize = 200;
/// About five times what the queue and the kernel's buffers hold together.
const FRAMES: u64 = 200_000;

/// Sends [`FRAMES`] to a stalled reader, and after its return a few more.
fn overrun(backend: Backend, when_full: WhenFull) -> (OutputLedger, Collected) {
    let reader = CollectingReader::tcp().with_receive_buffer(64 << 10).stalled();
    let relay = relay(backend).output(to(&reader).when_full(when_full).queue(QUEUE)).start();
    reader.wait_for_sessions(1);
    let mut writer = relay.writer();
    writer.send(&numbered::frames_of_len(0, 0..FRAMES, LEN));
    relay.wait_for_frames(FRAMES);
    let waiting = relay.output(0);
    assert!(waiting.balances(), "{waiting:?}");
    assert!(waiting.frames_queued as usize * (LEN + 4) <= QUEUE, "more than the queue: {waiting:?}");
    assert!(waiting.frames_queued as usize * (LEN + 4) >= QUEUE / 8, "hardly a queue: {waiting:?}");
    reader.resume();
    relay.wait_until_written();
    writer.send(&numbered::frames_of_len(0, FRAMES..FRAMES + 10, LEN));
    writer.finish();
    let (mut ledger, collected) = relay.drain_into(reader);
    let output = ledger.outputs.remove(0);
    assert_eq!(output.frames_received, FRAMES + 10);
    assert!(dropped_for(&output, "queue_full") > FRAMES / 4, "{output:?}");
    assert_eq!(dropped_for(&output, "queue_full"), dropped(&output), "{output:?}");
    assert_eq!(dropped(&output) + collected.frames(), FRAMES + 10);
    numbered::assert_rising(collected.payloads());
    (output, collected)
}

/// How many frames of `sequence` are without a gap, counted from its end.
fn tail_without_gap(sequence: &[u64]) -> usize {
    1 + sequence.windows(2).rev().take_while(|pair| pair[0] + 1 == pair[1]).count()
}

on_both_backends! {
    fn drop_oldest_keeps_the_newest(backend) {
        let (_, collected) = overrun(backend, WhenFull::DropOldest);
        let sequence = &numbered::sequences(collected.payloads())[&0];
        assert_eq!(sequence.first(), Some(&0), "what the kernel's buffers took");
        let tail = tail_without_gap(sequence);
        assert_eq!(sequence.last(), Some(&(FRAMES + 9)));
        assert!(tail * (LEN + 4) > QUEUE / 8, "only {tail} of the newest frames survived");
    }

    fn drop_newest_keeps_the_oldest(backend) {
        let (output, collected) = overrun(backend, WhenFull::DropNewest);
        let sequence = &numbered::sequences(collected.payloads())[&0];
        let head = sequence.iter().zip(0..).take_while(|(got, want)| *got == want).count();
        assert!(head * (LEN + 4) > QUEUE / 8, "only {head} of the oldest frames survived");
        // Where the kernel took some more meanwhile, a few of the newest found room.
        let newest = sequence.iter().filter(|number| (FRAMES - 10_000..FRAMES).contains(number)).count();
        assert!(newest < 5000, "{newest} of the 10000 newest frames survived a full queue: {output:?}");
        assert!(tail_without_gap(sequence) >= 10, "what came after the return");
    }

    /// Over unix sockets, whose buffers are small: the writer stands still soon.
    fn block_loses_nothing_and_stops_the_writer_instead(backend) {
        for workers in [1, 2] {
            let folder = folder();
            let slow = CollectingReader::start(Transport::Unix, folder.path()).stalled();
            let healthy = CollectingReader::start(Transport::Unix, folder.path());
            let relay = relay(backend)
                .workers(workers)
                .input(listening(Transport::Unix, folder.path()))
                .output(to(&slow).when_full(WhenFull::Block).queue(QUEUE))
                .output(to(&healthy))
                .start();
            slow.wait_for_sessions(1);
            let frames = 40_000;
            let mut writers: Vec<Peer> = (0..3).map(|_| relay.writer()).collect();
            let streams: Vec<Vec<u8>> =
                (0..3).map(|number| numbered::frames_of_len(number, 0..frames, LEN)).collect();
            let mut sent = [0; 3];
            for ((writer, stream), sent) in writers.iter_mut().zip(&streams).zip(&mut sent) {
                *sent = writer.send_until_stalled(stream, millis(300));
                assert!(*sent < stream.len(), "8 MB went where 4 MiB of queue are");
            }
            let waiting = relay.output(0);
            assert_eq!(dropped(&waiting), 0);
            assert!(waiting.frames_queued as usize * (LEN + 4) <= QUEUE, "{waiting:?}");
            slow.resume();
            thread::scope(|scope| {
                for ((mut writer, stream), sent) in writers.into_iter().zip(&streams).zip(sent) {
                    scope.spawn(move || {
                        writer.send(&stream[sent..]);
                        writer.finish();
                    });
                }
            });
            let ledger = relay.drain();
            for (reader, output) in [slow, healthy].into_iter().zip(&ledger.outputs) {
                let collected = reader.close();
                assert_sent(output, &collected);
                assert_eq!(dropped(output), 0);
                numbered::assert_complete(collected.payloads(), &[(0, 0..frames), (1, 0..frames), (2, 0..frames)]);
            }
        }
    }

    fn under_block_finish_waits_for_the_data_before_stop(backend) {
        let reader = CollectingReader::tcp().stalled();
        let relay = relay(backend).output(to(&reader).when_full(WhenFull::Block).queue(1 << 20)).start();
        reader.wait_for_sessions(1);
        let writer = relay.writer();
        let mut sender = writer.try_clone();
        let sending = thread::spawn(move || {
            sender.send(&numbered::frames_of_len(0, 0..FRAMES, LEN));
            sender.send(&wire::stop());
        });
        let mut writer = writer;
        writer.expect_silence(A_WHILE);
        reader.resume();
        writer.expect(&wire::finish());
        writer.expect_close();
        sending.join().expect("all was taken");
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(dropped(&ledger.outputs[0]), 0);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
    }

    fn block_stops_only_the_writers_whose_frames_go_there(backend) {
        let folder = folder();
        let blocked = CollectingReader::start(Transport::Unix, folder.path()).stalled();
        let free = CollectingReader::of_type(O, Transport::Unix, folder.path());
        let relay = relay(backend)
            .input(listening(Transport::Unix, folder.path()).content_types(&[D, O]))
            .output(to(&blocked).when_full(WhenFull::Block).queue(2 << 20))
            .output(to(&free).when_full(WhenFull::Block).queue(2 << 20))
            .start();
        blocked.wait_for_sessions(1);
        let frames = 30_000;
        let mut stopped = relay.writer();
        let stream = numbered::frames_of_len(0, 0..frames, LEN);
        let sent = stopped.send_until_stalled(&stream, millis(500));
        assert!(sent < stream.len());
        // A writer of the stopped type is still welcomed, one of the other type is served.
        let _welcomed = relay.writer();
        let mut other = Peer::connect(&relay.address());
        other.open_as_writer(O);
        other.send(&numbered::frames_of_len(1, 0..frames, LEN));
        other.finish();
        free.wait_for_frames(frames as usize);
        blocked.resume();
        stopped.send(&stream[sent..]);
        stopped.finish();
        let ledger = relay.drain();
        numbered::assert_complete(blocked.close().payloads(), &[(0, 0..frames)]);
        numbered::assert_complete(free.close().payloads(), &[(1, 0..frames)]);
        assert_eq!(dropped(&ledger.outputs[0]) + dropped(&ledger.outputs[1]), 0);
    }

    fn a_frame_larger_than_the_queue_is_lost_and_counted_or_delivered_but_never_hangs(backend) {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample] {
            let reader = CollectingReader::tcp();
            let relay = relay(backend).output(to(&reader).when_full(when_full).queue(16 << 10)).start();
            let mut writer = relay.writer();
            writer.send(&wire::data(&vec![b'x'; 1 << 20]));
            writer.send(&wire::data(b"n"));
            writer.finish();
            eventually("both accounted for", || {
                let output = relay.output(0);
                output.frames_sent + dropped(&output) == 2
            });
            let (ledger, collected) = relay.drain_into(reader);
            let expected = match when_full {
                WhenFull::Block => 0,
                _ => 2 - collected.frames(),
            };
            assert_eq!(dropped(&ledger.outputs[0]), expected, "{when_full:?}");
        }
    }

    /// Small batches that pin large blocks must not defeat the bound, nor lose what would fit.
    fn a_trickle_fills_a_queue_as_a_torrent_does(backend) {
        let reader = CollectingReader::tcp().stalled();
        let relay = relay(backend).output(to(&reader).queue(QUEUE)).start();
        reader.wait_for_sessions(1);
        let mut writer = relay.writer();
        for sequence in 0..2000 {
            writer.send(&numbered::frames_of_len(0, sequence..sequence + 1, 100));
            if sequence % 50 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        writer.finish();
        reader.resume();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(dropped(&ledger.outputs[0]), 0, "200 kB in a queue of 4 MiB: {:?}", ledger.outputs[0]);
        numbered::assert_complete(collected.payloads(), &[(0, 0..2000)]);
    }
}
