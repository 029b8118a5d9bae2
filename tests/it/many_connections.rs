//! Descriptors and memory: bounded by configuration, and given back. With the program as a child, so that
//! nobody else's count.

use std::thread;
use std::time::Duration;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

const MIB: u64 = 1 << 20;

/// Raises the soft limit of descriptors to the hard one, for this process and its children; says how many
/// connections are possible, at most `wanted`.
fn connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("up to the hard limit");
    let room = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize) - 500;
    if room < wanted {
        eprintln!("only {room} of {wanted} connections: the hard limit of descriptors allows no more");
    }
    wanted.min(room)
}

/// Writes frames of this number on a connection of its own, and waits until they are at the reader.
fn busy_session(address: &Address, reader: &CollectingReader, writer: u32, frames: u64) {
    let before = reader.frames();
    let mut peer = Peer::writer(address);
    peer.send(&numbered::frames(writer, 0..frames));
    peer.finish();
    reader.wait_for_frames(before + frames as usize);
}

#[track_caller]
fn wait_for_descriptors(program: &Tapster, expected: usize) {
    eventually("the descriptors come back", || {
        // One more may be a look at the clock or a timer that comes and goes.
        program.process.descriptors() <= expected + 1
    });
}

/// Connects so many, and has each begin with `bytes`.
fn crowd(address: &Address, count: usize, bytes: &[u8]) -> Vec<Peer> {
    (0..count)
        .map(|_| {
            let mut peer = Peer::connect(address);
            peer.send(bytes);
            peer
        })
        .collect()
}

fn relay_with_idle_writers(backend: Backend, transport: Transport) {
    let count = connections(5000);
    let folder = folder();
    let reader = CollectingReader::tcp();
    let unix = Transport::Unix.fresh_address(folder.path());
    let address = match transport {
        Transport::Unix => unix.clone(),
        _ => PeerListener::tcp().address(),
    };
    let mut program = tapster(backend)
        .arg("--workers")
        .arg("2")
        .listen(&address)
        .to(&reader.address(), "")
        .summary(folder.path().join("summary.json"))
        .start();
    busy_session(&address, &reader, 0, 50_000);
    program.process.wait_for_output("connection ended");
    let (descriptors, memory) = (program.process.descriptors(), program.process.memory());

    let mut idle = crowd(&address, count, &[wire::ready(&[D]), wire::start(&[D])].concat());
    for peer in &mut idle {
        peer.expect(&wire::accept(&[D]));
    }
    let crowded = program.process.memory();
    assert!(
        crowded < memory + count as u64 * 16 * 1024 + 32 * MIB,
        "{count} idle connections cost {} MiB",
        (crowded - memory) / MIB
    );
    busy_session(&address, &reader, 1, 50_000);
    // Each of the idle ones still works.
    for (number, peer) in idle.iter_mut().enumerate().step_by(100) {
        peer.send(&numbered::frames(1000 + number as u32, 0..1));
    }
    reader.wait_for_frames(100_000 + count.div_ceil(100));
    let leave_politely = idle.split_off(count / 2);
    drop(idle);
    for mut peer in leave_politely {
        peer.send(&wire::stop());
    }
    wait_for_descriptors(&program, descriptors);
    busy_session(&address, &reader, 2, 50_000);
    eventually("the memory comes back", || program.process.memory() < memory + 24 * MIB);
    wait_for_descriptors(&program, descriptors);
    program.terminate();
    let summary = program.summary();
    summary.assert_balanced();
    assert_eq!(summary.input(0, "frames"), reader.close().frames());
    assert_eq!(summary.input(0, "connections"), 3 + count as u64);
}

on_both_backends! {
    fn idle_writers_by_the_thousand_over_unix_cost_little_and_all_comes_back(backend) {
        relay_with_idle_writers(backend, Transport::Unix);
    }

    fn idle_writers_by_the_thousand_over_tcp_cost_little_and_all_comes_back(backend) {
        relay_with_idle_writers(backend, Transport::Tcp);
    }

    fn connections_by_the_thousand_that_never_finish_a_handshake_are_closed(backend) {
        let count = connections(3000);
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        let config = folder.path().join("tapster.toml");
        let text = format!(
            "[[input]]\nname = \"in\"\nlisten = [\"{address}\"]\nhandshake_timeout = \"1s\"\n\
             [[output]]\nname = \"out\"\nto = \"{}\"\n",
            reader.address()
        );
        std::fs::write(&config, text).expect("a file");
        let mut program = tapster(backend).arg("-c").arg(&config).summary(folder.path().join("summary.json")).start();
        program.process.wait_for_output(&address.to_string());
        busy_session(&address, &reader, 0, 1000);
        program.process.wait_for_output("connection ended");
        let (descriptors, memory) = (program.process.descriptors(), program.process.memory());
        for (round, bytes) in [&b""[..], &wire::ready(&[D]), &wire::ready(&[D])[..30]].into_iter().enumerate() {
            let crowd = crowd(&address, count / 3, bytes);
            busy_session(&address, &reader, round as u32 + 1, 1000);
            // They stay where they are: it is the relay that closes.
            wait_for_descriptors(&program, descriptors);
            drop(crowd);
        }
        assert!(program.process.memory() < memory + 32 * MIB);
        program.terminate();
        program.summary().assert_balanced();
    }

    /// U7: an accept loop without a pause would burn a core; one without a retry would never serve again.
    fn running_out_of_descriptors_costs_no_processor_time_and_passes(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let addresses = [Transport::Unix.fresh_address(folder.path()), PeerListener::tcp().address()];
        let mut program = tapster(backend)
            .listen(&addresses[0])
            .listen(&addresses[1])
            .to(&reader.address(), "")
            .start();
        for (round, address) in addresses.iter().enumerate() {
            busy_session(address, &reader, round as u32, 1000);
        }
        let open = program.process.descriptors();
        program.process.limit_descriptors(open as u64 + 20);
        // They stay in the kernel's queue of the listener, or are accepted and wait for their handshake.
        let crowds = addresses.each_ref().map(|address| crowd(address, 60, b""));
        program.process.wait_for_output("cannot accept a connection");
        let before = program.process.cpu_ticks();
        thread::sleep(Duration::from_secs(1));
        let ticks = program.process.cpu_ticks() - before;
        assert!(ticks <= 15, "{ticks} % of a core for connections that cannot be accepted");
        // One line a minute for each listener, however often it tries.
        let lines = program.process.output().matches("cannot accept").count();
        assert!((1..=2).contains(&lines), "{lines} lines");
        drop(crowds);
        for (round, address) in addresses.iter().enumerate() {
            busy_session(address, &reader, round as u32 + 2, 1000);
        }
        wait_for_descriptors(&program, open);
        program.terminate();
        let writers: Vec<_> = (0..4).map(|writer| (writer, 0..1000)).collect();
        numbered::assert_complete(reader.close().payloads(), &writers);
    }

    /// U2: nothing is allocated because a peer announced it.
    fn frames_that_are_announced_and_never_sent_cost_no_memory(backend) {
        let count = connections(1000);
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        busy_session(&address, &reader, 0, 10_000);
        let memory = program.process.memory();
        let hello = [wire::ready(&[D]), wire::start(&[D]), wire::word(1 << 20).to_vec(), vec![b'x'; 10]].concat();
        let mut waiting = crowd(&address, count, &hello);
        for peer in &mut waiting {
            peer.expect(&wire::accept(&[D]));
        }
        // Nothing tells that the relay has looked at the lengths, and that nothing comes of it: time must pass.
        thread::sleep(millis(300));
        let grown = program.process.memory().saturating_sub(memory);
        assert!(grown < count as u64 * 32 * 1024 + 32 * MIB, "{} MiB for {count} announcements", grown / MIB);
        for len in [u32::MAX, u32::MAX - 3, 1 << 31] {
            let hello = [wire::ready(&[D]), wire::start(&[D]), wire::word(len).to_vec()].concat();
            for mut peer in crowd(&address, 50, &hello) {
                peer.expect(&wire::accept(&[D]));
                peer.expect_close();
            }
        }
        let grown = program.process.memory().saturating_sub(memory);
        assert!(grown < count as u64 * 32 * 1024 + 32 * MIB, "{} MiB", grown / MIB);
        drop(waiting);
        busy_session(&address, &reader, 1, 10_000);
        program.terminate();
    }

    /// Two outputs that take nothing may keep two queues full and no more.
    fn memory_grows_by_no_more_than_the_queues(backend) {
        let folder = folder();
        let healthy = CollectingReader::tcp();
        let stalled = [0, 1].map(|_| CollectingReader::tcp().stalled());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .listen(&address)
            .to(&healthy.address(), "queue=2MiB&when_full=block")
            .to(&stalled[0].address(), "queue=8MiB")
            .to(&stalled[1].address(), "queue=8MiB&when_full=drop_newest")
            .summary(folder.path().join("summary.json"))
            .start();
        let chunk = numbered::frames_of_len(0, 0..5000, 130);
        let mut writer = Peer::writer(&address);
        // The first megabytes warm up buffers and the allocator; they end up in the kernel.
        writer.send(&chunk);
        healthy.wait_for_frames(5000);
        let memory = program.process.memory();
        for round in 2..=300 {
            writer.send(&chunk);
            if round % 10 == 0 {
                healthy.wait_for_frames(round * 5000);
            }
        }
        writer.finish();
        let grown = program.process.memory_peak().saturating_sub(memory);
        // Beside the queues there are blocks to read into: 4 MiB of each of two workers, and what queues let go of.
        assert!(grown < (2 + 8 + 8 + 8) * MIB, "200 MB through two full queues of 8 MiB: {} MiB more", grown / MIB);
        stalled.iter().for_each(CollectingReader::resume);
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!(summary.output(0, "frames_sent"), 1_500_000);
        assert!(summary.dropped(1, "queue_full") > 0 && summary.dropped(2, "queue_full") > 0);
        drop(healthy);
    }

    /// W12 with signals: stops and continues interrupt system calls in the middle of partial writes.
    fn w12_a_storm_of_signals_damages_nothing(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "when_full=block&queue=2MiB").start();
        let mut writer = Peer::writer(&address);
        let writing = thread::spawn(move || {
            writer.send(&numbered::frames(0, 0..100_000));
            writer.finish();
        });
        while !writing.is_finished() {
            program.process.signal(Signal::STOP);
            program.process.signal(Signal::CONT);
            thread::sleep(Duration::from_micros(500));
        }
        writing.join().expect("the writer ends well");
        program.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..100_000)]);
    }

    fn an_idle_relay_uses_no_processor_time(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let down = PeerListener::tcp().address();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").to(&down, "").start();
        let _writer = Peer::writer(&address);
        reader.wait_for_sessions(1);
        // After the first attempts to reach the output that is down, which are close together.
        thread::sleep(millis(1500));
        let before = program.process.cpu_ticks();
        thread::sleep(Duration::from_secs(1));
        let ticks = program.process.cpu_ticks() - before;
        assert!(ticks <= 5, "{ticks} % of a core for nothing");
        program.terminate();
    }
}
