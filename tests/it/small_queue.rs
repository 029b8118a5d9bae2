//! Queues that are smaller than a frame: an empty one always takes one, so every frame passes, and nobody waits for ever.

use std::path::Path;
use std::time::Duration;

use tapster::output::Balance;
use tapster::output::Checkpoint;
use tapster::queue::WhenFull;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::relay::OutputBuilder;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_file;
use crate::support::relay::to_group;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;

const QUEUE: usize = 2 << 10;
/// Bytes: more than the queue many times over, and than a socket takes at once.
const LEN: usize = 300 << 10;

fn reader(folder: &Path) -> CollectingReader {
    CollectingReader::start(Transport::Unix, folder)
}

/// Outputs of every kind that block.
fn kinds(readers: &[CollectingReader], folder: &Path) -> Vec<OutputBuilder> {
    let [plain, tcp, checkpoint, member, other, workers] = readers else { unreachable!() };
    let block = |output: OutputBuilder| output.when_full(WhenFull::Block).queue(QUEUE);
    vec![
        block(to(plain)),
        block(to(tcp).ack_received()),
        block(to(checkpoint).checkpoint(Checkpoint::Every(millis(200)))),
        block(to_group([member.address(), other.address()], Balance::LeastBacklog)),
        block(to(workers).one_connection_per_worker()),
        block(to_file(folder.join("out.fstrm"))),
    ]
}

fn readers(folder: &Path) -> Vec<CollectingReader> {
    (0..6).map(|number| if number == 1 { CollectingReader::tcp() } else { reader(folder) }).collect()
}

on_both_backends! {
    fn one_frame_at_a_time_passes_whatever_the_policy(backend) {
        let folder = folder();
        let policies = [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block, WhenFull::Sample];
        let (readers, disks) = (policies.map(|_| reader(folder.path())), [0, 1].map(|_| reader(folder.path())));
        let mut builder = relay(backend).input(listening(Transport::Unix, folder.path()));
        for (reader, policy) in readers.iter().zip(policies) {
            builder = builder.output(to(reader).when_full(policy).queue(QUEUE));
        }
        // Before a disk and behind it.
        let relay = builder
            .output(to(&disks[0]).spills_to(&folder.path().join("spill")).queue(QUEUE))
            .output(to(&disks[1]).on_disk(&folder.path().join("disk")).queue(QUEUE))
            .start();
        let mut writer = relay.writer();
        for sequence in 0..20 {
            writer.send(&numbered::frames_of_len(0, sequence..sequence + 1, LEN));
            relay.wait_for_frames(sequence + 1);
            relay.wait_until_written();
        }
        writer.finish();
        for output in relay.drain().outputs {
            assert_eq!((output.frames_sent, dropped(&output)), (20, 0), "{output:?}");
        }
        for reader in readers.into_iter().chain(disks) {
            numbered::assert_complete(reader.close().payloads(), &[(0, 0..20)]);
        }
    }

    fn under_block_every_frame_of_a_burst_passes_to_outputs_of_every_kind(backend) {
        let folder = folder();
        let readers = readers(folder.path());
        let mut builder = relay(backend).input(listening(Transport::Unix, folder.path()));
        for output in kinds(&readers, folder.path()) {
            builder = builder.output(output);
        }
        let relay = builder.start();
        let mut writers = [0, 1].map(|_| relay.writer());
        std::thread::scope(|scope| {
            for (number, writer) in (0..).zip(&mut writers) {
                // Frames of all lengths, one at a time and many at once.
                scope.spawn(move || {
                    for (round, len) in [LEN, 100, 1 << 10, 4 << 10, 100 << 10].into_iter().cycle().take(25).enumerate() {
                        let first = round as u64 * 4;
                        writer.send(&numbered::frames_of_len(number, first..first + 4, len));
                    }
                });
            }
        });
        for writer in writers {
            writer.finish();
        }
        relay.wait_until_written();
        let ledger = relay.drain();
        for output in &ledger.outputs {
            assert_eq!((output.frames_received, output.frames_sent, dropped(output)), (200, 200, 0), "{output:?}");
        }
        let collected: Vec<_> = readers.into_iter().map(CollectingReader::close).collect();
        for (index, collected) in collected.iter().enumerate().filter(|(index, _)| ![3, 4].contains(index)) {
            assert_eq!(collected.frames(), 200, "reader {index}");
            // With checkpoints, two sessions are open at once: the collector may see the later one first.
            let mut sequences = numbered::sequences(collected.payloads());
            sequences.values_mut().filter(|_| index == 2).for_each(|sequence| sequence.sort_unstable());
            let complete: Vec<u64> = (0..100).collect();
            assert!(sequences[&0] == complete && sequences[&1] == complete, "reader {index}: {sequences:?}");
        }
        assert_eq!(collected[3].frames() + collected[4].frames(), 200, "the group");
    }

    /// What is kept until it is acknowledged fills such a queue by itself.
    fn frames_that_wait_for_an_acknowledgement_give_way_to_the_next(backend) {
        let folder = folder();
        let (reader, checkpointed) = (CollectingReader::tcp(), reader(folder.path()));
        let relay = relay(backend)
            .output(to(&reader).ack_received().when_full(WhenFull::DropNewest).queue(QUEUE))
            .output(to(&checkpointed).checkpoint(Checkpoint::Every(Duration::from_secs(3600))).when_full(WhenFull::DropNewest).queue(QUEUE))
            .start();
        let mut writer = relay.writer();
        for sequence in 0..5 {
            writer.send(&numbered::frames_of_len(0, sequence..sequence + 1, LEN));
            relay.wait_for_frames(sequence + 1);
            eventually("acknowledged", || {
                (0..2).all(|output| relay.output(output).frames_acknowledged == sequence + 1)
            });
        }
        writer.finish();
        let ledger = relay.drain();
        assert!(ledger.outputs.iter().all(|output| dropped(output) == 0), "{ledger:?}");
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..5)]);
        numbered::assert_complete(checkpointed.close().payloads(), &[(0, 0..5)]);
    }
}
