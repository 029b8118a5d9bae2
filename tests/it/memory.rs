//! Resident memory stays within twice the queues, whatever mix of frames comes while a reader takes little or nothing.
//!
//! A batch is a piece of a larger block that was read at once. A small batch that waits in a queue keeps the whole block, so
//! a few frames among many that nobody keeps once cost a gigabyte. With the program as a child, so that nobody else's memory
//! counts.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::free_address;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;

const MIB: u64 = 1 << 20;
/// What a relay of two workers may have beside its queues: blocks to read into, connections, what the allocator keeps.
const BESIDE_QUEUES: u64 = 32 * MIB;

/// A relay whose collector is away, and what it may need.
struct Scene {
    program: Tapster,
    address: Address,
    reader: CollectingReader,
    queue: u64,
    // Resident memory at the beginning.
    memory: u64,
    reader_is_away: bool,
    folder: tempfile::TempDir,
}

impl Scene {
    /// `input` and `output` are further lines of the configuration.
    fn begin(backend: Backend, transport: Transport, queue: u64, input: &str, output: &str) -> Self {
        let mut reader = CollectingReader::tcp();
        // The kernel's buffers for a reader that stands still take megabytes. Of one that is away everything waits.
        reader.die();
        let scene = Self::before(reader, backend, transport, queue, input, output);
        Self { reader_is_away: true, ..scene }
    }

    /// The same before this reader.
    fn before(
        reader: CollectingReader,
        backend: Backend,
        transport: Transport,
        queue: u64,
        input: &str,
        output: &str,
    ) -> Self {
        let (folder, to) = (folder(), reader.address());
        let address = free_address(transport, folder.path());
        let config = folder.path().join("tapster.toml");
        let text = format!(
            "[[input]]\nname = \"in\"\nlisten = [\"{address}\"]\n{input}\n\
             [[output]]\nname = \"out\"\nto = \"{to}\"\nqueue = \"{queue}B\"\n{output}\n"
        );
        std::fs::write(&config, text).expect("a file");
        let summary = folder.path().join("summary.json");
        let program =
            tapster(backend).arg("--workers").arg("2").arg("-c").arg(&config).summary(summary).start();
        program.process.wait_for_output(&address.to_string());
        let memory = program.process.memory();
        Self { program, address, reader, queue, memory, reader_is_away: false, folder }
    }

    /// Sends `piece` so often on one connection; the relay has taken all of it then.
    fn send(&self, piece: &[u8], times: usize) {
        let mut writer = Peer::writer(&self.address);
        for _ in 0..times {
            writer.send(piece);
        }
        writer.finish();
    }

    /// The same with a pause between two pieces, so that the relay reads little at once.
    fn send_slowly(&self, piece: &[u8], times: usize) {
        let mut writer = Peer::writer(&self.address);
        for _ in 0..times {
            writer.send(piece);
            thread::sleep(Duration::from_micros(100));
        }
        writer.finish();
    }

    /// Fails where the relay ever had more than it may have; then has it write what it has, and closes its account.
    #[track_caller]
    fn end(mut self) {
        let grown = self.program.process.memory_peak().saturating_sub(self.memory);
        let allowed = 2 * self.queue + BESIDE_QUEUES;
        assert!(
            grown <= allowed,
            "{} MiB more for a queue of {} MiB: at most {} MiB",
            grown / MIB,
            self.queue / MIB,
            allowed / MIB
        );
        eprintln!("{} MiB more for a queue of {} MiB", grown / MIB, self.queue / MIB);
        if self.reader_is_away {
            self.reader.revive();
        }
        self.reader.resume();
        self.program.terminate();
        self.program.summary().assert_balanced();
        drop(self.folder);
    }
}

/// Control frames of a type that nobody knows, so many bytes of them.
fn unknown_control_frames(len: usize) -> Vec<u8> {
    let frame = wire::control(99, &[], &[0; 500]);
    frame.repeat(len / frame.len())
}

/// Data frames of `len` bytes, `total` bytes in all.
fn frames(len: usize, total: usize) -> Vec<u8> {
    wire::data(&vec![b'x'; len]).repeat(total / (len + 4))
}

on_both_backends! {
    fn short_frames_among_long_ones_that_the_output_does_not_take_keep_nothing_of_these(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 4 * MIB, "", "frame_len_max = \"512B\"");
            scene.send(&[wire::data(&[b'x'; 100]), frames(1400, 130_000)].concat(), 1000);
            scene.end();
        }
    }

    fn a_short_frame_between_two_of_a_megabyte_that_the_output_does_not_take_costs_its_own_bytes(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 4 * MIB, "", "frame_len_max = \"64KiB\"");
            scene.send(&[wire::data(b"short"), frames(1 << 20, (1 << 20) + 4)].concat(), 150);
            scene.end();
        }
    }

    fn frames_among_control_frames_that_nobody_knows_keep_nothing_of_these(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 4 * MIB, "", "");
            scene.send(&[frames(4200, 4204), unknown_control_frames(1 << 20)].concat(), 150);
            scene.end();
        }
    }

    fn frames_among_those_that_are_skipped_keep_nothing_of_these(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 4 * MIB, "oversize = \"skip\"\nframe_len_max = \"64KiB\"", "");
            scene.send(&[frames(4200, 4204), frames((64 << 10) + 1, 65_541)].concat(), 2000);
            scene.end();
        }
    }

    fn a_sample_for_a_reader_that_is_away_keeps_nothing_of_what_was_left_out(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 16 * MIB, "", "when_full = \"sample\"");
            scene.send(&frames(130, 1 << 20), 200);
            scene.end();
        }
    }

    fn a_sample_of_many_writers_for_a_slow_reader_keeps_nothing_of_what_was_left_out(backend) {
        let reader = CollectingReader::tcp().with_receive_buffer(32 << 10).stalled();
        let scene = Scene::before(reader, backend, Transport::Unix, 8 * MIB, "", "when_full = \"sample\"");
        let all_sent = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !all_sent.load(Relaxed) {
                    scene.reader.resume();
                    thread::sleep(Duration::from_millis(1));
                    scene.reader.stall();
                    thread::sleep(Duration::from_millis(20));
                }
            });
            let send = |writer| {
                let scene = &scene;
                scope.spawn(move || scene.send_slowly(&numbered::frames_of_len(writer, 0..20, 130), 4000))
            };
            let writers: Vec<_> = (0..20).map(send).collect();
            writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
            all_sent.store(true, Relaxed);
        });
        scene.end();
    }

    /// What one connection leaves of a block is no reason to copy: frames that lie close together cost no more.
    fn frames_that_lie_close_together_keep_little_more_than_they_are(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 32 * MIB, "", "");
            scene.send(&frames(130, 1 << 20), 150);
            scene.end();
        }
    }

    /// Frames that are longer than one read are gathered in memory of their own, twice as much at times.
    fn long_frames_keep_little_more_than_they_are(backend) {
        for transport in Transport::BOTH {
            let scene = Scene::begin(backend, transport, 16 * MIB, "", "");
            scene.send(&[frames(5000, 5004), frames(70_000, 70_004), frames(9_000, 9_004)].concat(), 1500);
            scene.end();
        }
    }
}
