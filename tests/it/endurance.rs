//! What hosts do to a program that runs for years, and what it has to bear: it is stopped and goes on, its log has no reader, its
//! disk has no inodes, its memory is limited from outside.

use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tapster::observability::SpoolLedger;
use tapster::queue::WhenFull;
use tapster::spool::OnFull;
use tapster::transport::Address;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::backend::word;
use crate::support::collector::CollectingReader;
use crate::support::hosts::Hosts;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::Process;
use crate::support::process::tapster;
use crate::support::relay::RelayBuilder;
use crate::support::relay::dropped;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::tmpfs::Tmpfs;
use crate::support::wait::eventually;

const MIB: u64 = 1 << 20;
const FRAMES: u64 = 20_000;

on_both_backends! {
    fn a_relay_that_is_stopped_for_a_while_goes_on_where_it_was(backend) {
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "when_full=block").start();
        let mut peer = Peer::writer(&address);
        let writer = thread::spawn(move || {
            for first in (0..FRAMES).step_by(100) {
                peer.send(&numbered::frames(0, first..first + 100));
            }
            peer.finish();
        });
        reader.wait_for_frames(1);
        program.process.signal(Signal::STOP);
        // Longer than the pauses of every timer that goes by the second.
        thread::sleep(Duration::from_secs(2));
        program.process.signal(Signal::CONT);
        writer.join().expect("the writer ends well");
        program.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..FRAMES)]);
    }

    fn a_hundred_outputs_have_a_spool_each(backend) {
        const OUTPUTS: usize = 100;
        const EACH: u64 = 500;
        let folder = folder();
        let mut reader = CollectingReader::start(Transport::Unix, folder.path());
        reader.die();
        let spools = (0..OUTPUTS).map(|output| folder.path().join(format!("spool-{output}")));
        let outputs = spools.map(|spool| to(&reader).on_disk(&spool));
        let relay = outputs.fold(relay(backend), RelayBuilder::output).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..EACH));
        writer.finish();
        relay.wait_for_frames(EACH);
        let is_used = |spool: &SpoolLedger| !spool.degraded && spool.bytes > EACH * 100;
        eventually("every spool is used", || {
            relay.ledger().outputs.iter().all(|output| output.spool.as_ref().is_some_and(is_used))
        });
        reader.revive();
        relay.wait_until_written();
        let ledger = relay.drain();
        assert_eq!(reader.close().frames(), OUTPUTS as u64 * EACH);
        assert!(ledger.outputs.iter().all(|output| output.frames_sent == EACH && dropped(output) == 0));
    }

    /// A disk may be full with room to spare: of files.
    fn a_disk_without_inodes_holds_up_nothing_that_its_collector_takes(backend) {
        let folder = folder();
        let Some(disk) = Tmpfs::mount_with(folder.path(), "size=64m,nr_inodes=8") else { return };
        let fill = || {
            let file = |number: u32| disk.path().join(number.to_string());
            (0..).map(file).take_while(|path| std::fs::write(path, b"").is_ok()).collect::<Vec<PathBuf>>()
        };
        let fillers = fill();
        let reader = CollectingReader::tcp();
        let output = to(&reader).on_disk(&disk.path().join("spool"));
        let relay = relay(backend).output(output.spool_config(|config| config.on_full = OnFull::Block)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES / 2));
        reader.wait_for_frames(FRAMES as usize / 2);
        let degraded = || relay.output(0).spool.is_some_and(|spool| spool.degraded);
        assert!(degraded());
        fillers.iter().for_each(|path| std::fs::remove_file(path).expect("it is there"));
        eventually("there is room, and the spool is used again", || !degraded());
        writer.send(&numbered::frames(0, FRAMES / 2..FRAMES));
        writer.finish();
        relay.wait_until_written();
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
        assert_eq!(dropped(&ledger.outputs[0]), 0);
    }

    fn folders_and_files_that_are_not_of_the_spool_stay_as_they_are(backend) {
        let folder = folder();
        let spool = folder.path().join("spool");
        let aside = spool.join("seg-0000000000000001.fsr.bad");
        std::fs::create_dir_all(&aside).expect("a folder to write to");
        for strange in [spool.join("README"), aside.join("kept")] {
            std::fs::write(strange, b"somebody's").expect("a folder to write to");
        }
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader).on_disk(&spool)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..FRAMES));
        writer.finish();
        relay.wait_until_written();
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
        assert!(spool.join("README").is_file() && aside.join("kept").is_file());
    }

    fn a_log_without_a_reader_ends_nothing(backend) {
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut child = Command::new(env!("CARGO_BIN_EXE_tapster"))
            .args(["run", "--backend", word(backend), "--log-level", "debug"])
            .args(["--listen", &address.to_string(), "--to", &reader.address().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program");
        drop((child.stdout.take(), child.stderr.take()));
        let mut process = Process::without_output("tapster".to_owned(), child);
        process.wait_for_socket(&address);
        for writer in 0..50 {
            let mut peer = Peer::writer(&address);
            peer.send(&numbered::frames(writer, 0..100));
            peer.finish();
        }
        reader.wait_for_frames(50 * 100);
        process.signal(Signal::TERM);
        process.wait_for_success(Duration::from_secs(15));
    }

    /// `fe80::1%lo`: an address that means something on one interface alone.
    fn an_address_with_a_zone_is_listened_on_and_connected_to(backend) {
        let Some(hosts) = Hosts::new() else { return };
        hosts.add_relay_address("fe80::1/64", "lo");
        hosts.on_relay_host(|| {
            let zone = |port| -> Address { format!("tcp://[fe80::1%lo]:{port}").parse().expect("an address") };
            let reader = CollectingReader::at(&"tcp://[::]:0".parse().expect("an address"));
            let Address::Tcp { port, .. } = reader.address() else { panic!("{}", reader.address()) };
            let output = to_address(zone(port)).when_full(WhenFull::Block);
            let relay = relay(backend).input(listening_on(vec![zone(0)])).output(output).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..100));
            writer.finish();
            relay.wait_until_written();
            let (_, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..100)]);
        });
    }

    /// A container's limit: queues that fit into it are safe, whatever the writers do.
    fn a_limit_of_memory_above_the_queues_is_enough(backend) {
        let Some(limit) = MemoryLimit::new(48 * MIB) else { return };
        let folder = folder();
        let reader = CollectingReader::tcp().with_receive_buffer(16 << 10).stalled();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .arg("--workers")
            .arg("2")
            .listen(&address)
            .to(&reader.address(), "queue=8MiB&when_full=drop_oldest")
            .start();
        limit.apply(&program.process);
        thread::scope(|scope| {
            for writer in 0..4 {
                let address = &address;
                scope.spawn(move || {
                    let mut peer = Peer::writer(address);
                    for first in (0..100_000).step_by(100) {
                        peer.send(&numbered::frames(writer, first..first + 100));
                    }
                    peer.finish();
                });
            }
        });
        reader.resume();
        program.terminate();
    }

    fn connections_that_come_and_go_leave_nothing_behind(backend) {
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        let rounds = |from: u32, count: u32| {
            for writer in from..from + count {
                let mut peer = Peer::writer(&address);
                peer.send(&numbered::frames(writer, 0..2));
                peer.finish();
            }
        };
        rounds(0, 500);
        let (descriptors, memory) = (program.process.descriptors(), program.process.memory());
        rounds(500, 4000);
        eventually("the descriptors come back", || program.process.descriptors() <= descriptors + 1);
        let grown = program.process.memory().saturating_sub(memory);
        // 4000 connections with 1 KiB each that stays would be seen.
        assert!(grown < 2 * MIB, "{} KiB more", grown >> 10);
        program.terminate();
    }
}

/// A control group with a limit of memory, which goes with this.
struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// `None`, said on stderr, where control groups cannot be made.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("tapster-it-{}-{}", std::process::id(), fastrand::u32(..));
        let first = [("memory/", "memory.limit_in_bytes"), ("", "memory.max")].into_iter().find_map(
            |(root, file)| {
                let group = Self(PathBuf::from(format!("/sys/fs/cgroup/{root}{name}")));
                std::fs::create_dir(&group.0).ok()?;
                std::fs::write(group.0.join(file), bytes.to_string()).ok()?;
                Some(group)
            },
        );
        if first.is_none() {
            skip(Cause::Missing, "no control group of memory can be made here");
        }
        first
    }

    fn apply(&self, process: &Process) {
        std::fs::write(self.0.join("cgroup.procs"), process.id().to_string()).expect("a group of ours");
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Until the process has left it, it cannot go.
        eventually("the group is empty", || std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}
