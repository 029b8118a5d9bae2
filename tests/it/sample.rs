//! `when_full = "sample"`: an output that is too slow gets an evenly thinned stream.

use std::ops::Range;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::queue::WhenFull;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;

const QUEUE: usize = 1 << 20;
/// Payload bytes of a frame.
const LEN: usize = 200;
const FRAME: usize = LEN + 4;
/// What is read at once for such a queue, in frames.
const BATCH: u64 = (QUEUE / 64 / FRAME) as u64;
/// What a writer sends at once, in frames.
const STEP: u64 = 4 * BATCH;

/// Writers that send in turn, and a reader that is given its pace by what they send: no clock is in it.
struct Scene {
    relay: TestRelay,
    writers: Vec<Peer>,
    // Frames sent by each writer.
    sent: u64,
    reader: Peer,
    read: Vec<u8>,
    // Bytes that the reader could have read, had they been there.
    behind: usize,
}

impl Scene {
    fn begin(backend: Backend, transport: Transport, folder: &std::path::Path, ack_received: bool) -> Self {
        let listener = PeerListener::bind(transport, folder);
        let output = to_peer(&listener).when_full(WhenFull::Sample).queue(QUEUE);
        let output = if ack_received { output.ack_received() } else { output };
        let relay = relay(backend).input(listening(Transport::Unix, folder)).output(output).start();
        let reader = listener.accept_session();
        reader.set_receive_buffer(32 << 10);
        let writers = (0..3).map(|_| relay.writer()).collect();
        Self { relay, writers, sent: 0, reader, read: Vec::new(), behind: 0 }
    }

    /// Each writer sends so many queues full, and the reader reads a part of what they send: `one_in` times less.
    fn flow(&mut self, queues: u64, one_in: usize) {
        let until = self.sent + queues * QUEUE as u64 / FRAME as u64;
        while self.sent < until {
            for number in 0..self.writers.len() {
                let frames = self.frames(number);
                self.writers[number].send(&frames);
                self.behind = self.read(self.behind + frames.len() / one_in);
            }
            self.sent += STEP;
        }
    }

    /// The same with a reader that reads everything before more is sent.
    fn flow_freely(&mut self, queues: u64) {
        let until = self.sent + queues * QUEUE as u64 / FRAME as u64;
        while self.sent < until {
            for number in 0..self.writers.len() {
                let frames = self.frames(number);
                self.writers[number].send(&frames);
            }
            self.sent += STEP;
            let all = self.sent * self.writers.len() as u64;
            eventually("all of it is through", || {
                self.read(usize::MAX);
                self.relay.input().frames == all && self.relay.output(0).frames_queued == 0
            });
        }
    }

    /// The next frames of a writer.
    fn frames(&self, number: usize) -> Vec<u8> {
        numbered::frames_of_len(number as u32, self.sent..self.sent + STEP, LEN)
    }

    /// Reads so many bytes, or as many as have arrived; returns how many have not.
    fn read(&mut self, mut bytes: usize) -> usize {
        while bytes > 0 && self.reader.unread_bytes() > 0 {
            let some = self.reader.read_some(bytes.min(64 << 10)).expect("the connection stands");
            bytes -= some.len();
            self.read.extend(some);
        }
        bytes
    }

    /// Drains, and returns what the reader got. Everything is in it or counted as sampled.
    fn end(mut self) -> Vec<Vec<u64>> {
        self.writers.into_iter().for_each(|writer| {
            writer.finish();
        });
        let drained = thread::spawn(move || self.relay.drain());
        while !self.read.ends_with(&wire::stop()) {
            let some = self.reader.read_some(64 << 10).expect("the connection stands");
            assert!(!some.is_empty(), "closed without STOP");
            self.read.extend(some);
        }
        self.reader.send(&wire::finish());
        let output = drained.join().expect("the drain ends well").outputs.remove(0);
        let data = &self.read[..self.read.len() - wire::stop().len()];
        let sequences: Vec<Vec<u64>> = numbered::sequences(wire::payloads(data)).into_values().collect();
        let got: usize = sequences.iter().map(Vec::len).sum();
        assert_eq!(output.frames_received, 3 * self.sent);
        assert_eq!(output.frames_sent, got as u64);
        assert_eq!(dropped_for(&output, "sampled"), dropped(&output), "nothing else is lost: {output:?}");
        numbered::assert_rising(wire::payloads(data));
        sequences
    }
}

/// The longest gap within a part of what was sent, in frames.
fn gap_max(sequence: &[u64], part: Range<u64>) -> u64 {
    let within = sequence.windows(2).filter(|pair| part.contains(&pair[0]) && part.contains(&pair[1]));
    within.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

on_both_backends! {
    /// A tenth of what comes is read. n is 8 or 16, and there are fewer than 2 n batches between two that are kept. At the
    /// beginning it may overshoot.
    fn a_slow_reader_gets_an_evenly_thinned_stream_and_all_of_it_once_it_keeps_up(backend) {
        for (transport, ack_received) in [(Transport::Unix, false), (Transport::Unix, true), (Transport::Tcp, false)] {
            let folder = folder();
            let mut scene = Scene::begin(backend, transport, folder.path(), ack_received);
            scene.flow(10, 10);
            let thinned_until = scene.sent;
            scene.flow_freely(4);
            let whole_from = scene.sent;
            scene.flow_freely(2);
            let sent = scene.sent;
            for sequence in scene.end() {
                let case = format!("{transport:?}, ack received: {ack_received}");
                for (from, batches_max) in [(0, 64), (thinned_until * 3 / 8, 32)] {
                    let gap = gap_max(&sequence, from..thinned_until);
                    assert!(gap <= batches_max * BATCH, "{case}: from {from} on a gap of {gap} frames, {BATCH} a batch");
                }
                // After the beginning, every part of the time has its share.
                let part = thinned_until / 8;
                for index in 3..8 {
                    let got = sequence.iter().filter(|number| *number / part == index).count() as u64;
                    assert!((part / 32..=part / 5).contains(&got), "{case}: {got} of {part} in part {index}");
                }
                let whole = sequence.iter().filter(|number| **number >= whole_from).count() as u64;
                assert_eq!(whole, sent - whole_from, "n is 1 again");
            }
        }
    }

    fn nothing_is_left_out_for_a_reader_that_keeps_up(backend) {
        let folder = folder();
        let mut scene = Scene::begin(backend, Transport::Unix, folder.path(), false);
        scene.flow_freely(10);
        let sent = scene.sent;
        for sequence in scene.end() {
            assert_eq!(sequence.len() as u64, sent);
        }
    }

    /// The queue fills up slower and slower, and is bounded like any other.
    fn a_stalled_reader_finds_a_sample_of_all_that_came(backend) {
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path()).stalled();
        let relay = relay(backend)
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader).when_full(WhenFull::Sample).queue(QUEUE))
            .start();
        reader.wait_for_sessions(1);
        let frames = 25_000;
        let mut writer = relay.writer();
        writer.send(&numbered::frames_of_len(0, 0..frames, LEN));
        writer.finish();
        let waiting = relay.output(0);
        assert!(waiting.frames_queued as usize * FRAME <= QUEUE, "{waiting:?}");
        assert_eq!(dropped_for(&waiting, "sampled"), dropped(&waiting), "not full until now: {waiting:?}");
        reader.resume();
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.frames() + dropped(&ledger.outputs[0]), frames);
        let sequence = &numbered::sequences(collected.payloads())[&0];
        assert!(sequence.is_sorted());
        let second_half = sequence.iter().filter(|number| **number >= frames / 2).count() as u64;
        assert!(second_half > 0, "the second half has nothing: {:?}", ledger.outputs[0]);
        assert!(collected.frames() - second_half > 4 * second_half, "thinned ever more");
    }

    /// Time alone ends the thinning, however few frames come.
    fn a_reader_that_has_caught_up_gets_every_frame_within_a_second(backend) {
        for (rate, len) in [(900, 1500), (20, 60_000)] {
            let folder = folder();
            let reader = CollectingReader::start(Transport::Unix, folder.path()).stalled();
            let relay = relay(backend)
                .input(listening(Transport::Unix, folder.path()))
                .output(to(&reader).when_full(WhenFull::Sample).queue(8 << 20))
                .start();
            reader.wait_for_sessions(1);
            let mut writer = relay.writer();
            let (mut sent, began) = (0, Instant::now());
            let mut write_until = |writer: &mut Peer, until: Instant| {
                while Instant::now() < until {
                    let due = began + Duration::from_secs(1) * sent as u32 / rate;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    writer.send(&numbered::frames_of_len(0, sent..sent + 1, len));
                    sent += 1;
                }
                sent
            };
            write_until(&mut writer, began + Duration::from_secs(10));
            let stalled = dropped_for(&relay.output(0), "sampled");
            assert!(stalled > 0, "{rate}/s: nothing was left out: {:?}", relay.output(0));
            reader.resume();
            // It catches up, which takes it no time to speak of.
            write_until(&mut writer, began + Duration::from_millis(10_300));
            eventually("it has caught up", || relay.output(0).frames_queued == 0);
            let caught_up = Instant::now();
            let from = write_until(&mut writer, caught_up + Duration::from_secs(1));
            relay.wait_for_frames(from);
            let before = dropped_for(&relay.output(0), "sampled");
            let all = write_until(&mut writer, caught_up + Duration::from_secs(3));
            writer.finish();
            let (ledger, collected) = relay.drain_into(reader);
            assert_eq!(dropped_for(&ledger.outputs[0], "sampled"), before, "{rate}/s");
            let sequence = &numbered::sequences(collected.payloads())[&0];
            assert_eq!(sequence.iter().filter(|number| **number >= from).count() as u64, all - from);
        }
    }
}
