//! The end: what has arrived is delivered, STOP is answered, outputs are ended, and all of it by a deadline.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use tapster::queue::WhenFull;

use tapster::transport::Backend;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::process::tapster;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_peer;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

on_both_backends! {
    fn what_has_arrived_is_delivered_and_writers_without_stop_see_a_close(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writers: Vec<Peer> = (0..5).map(|_| relay.writer()).collect();
            for (number, writer) in writers.iter_mut().enumerate() {
                // A whole number of frames, and some bytes of the next.
                writer.send(&numbered::frames(number as u32, 0..300));
                writer.send(&numbered::frames(number as u32, 300..301)[..40]);
            }
            // Without waiting: the bytes are in the kernel, and so they have arrived.
            let (ledger, collected) = relay.drain_into(reader);
            let expected: Vec<_> = (0..5).map(|number| (number, 0..300)).collect();
            assert_eq!(ledger.inputs[0].frames, 1500, "{transport:?}: {ledger:?}");
            numbered::assert_complete(collected.payloads(), &expected);
            for writer in &mut writers {
                // None of them has sent STOP.
                writer.expect_close();
            }
            assert_eq!(ledger.outputs[0].sessions_finished, 1);
        }
    }

    /// START and all behind it have arrived, but the relay may not have looked yet.
    fn what_has_arrived_of_a_session_that_has_just_begun_is_delivered_too(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writers: Vec<Peer> = (0..20).map(|_| Peer::connect(&relay.address())).collect();
            for writer in &mut writers {
                writer.send(&wire::ready(&[D]));
                writer.expect(&wire::accept(&[D]));
            }
            let frames = (0..20).map(|number| numbered::frames(number, 0..50));
            let streams: Vec<Vec<u8>> = frames.map(|frames| [wire::start(&[D]), frames].concat()).collect();
            writers.iter_mut().zip(&streams).for_each(|(writer, stream)| writer.send(stream));
            let (ledger, collected) = relay.drain_into(reader);
            assert_eq!(ledger.inputs[0].frames, 1000, "{transport:?}: {ledger:?}");
            let expected: Vec<_> = (0..20).map(|number| (number, 0..50)).collect();
            numbered::assert_complete(collected.payloads(), &expected);
            for writer in &mut writers {
                writer.expect_close();
            }
        }
    }

    /// FINISH says that every frame before STOP was taken: it goes to writers whose STOP came in time, and to no other.
    fn finish_answers_stop_alone_and_says_that_everything_was_taken(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(listening(transport, folder.path())).output(to(&reader)).start();
            let mut writers: Vec<Peer> = (0..20).map(|_| relay.writer()).collect();
            for (number, writer) in writers.iter_mut().enumerate() {
                writer.send(&numbered::frames(number as u32, 0..300));
                if number % 2 == 0 {
                    writer.send(&wire::stop());
                }
            }
            let (ledger, collected) = relay.drain_into(reader);
            let expected: Vec<_> = (0..20).map(|number| (number, 0..300)).collect();
            numbered::assert_complete(collected.payloads(), &expected);
            assert_eq!(ledger.inputs[0].sessions_ended["finished"], 10, "{ledger:?}");
            for (number, mut writer) in writers.into_iter().enumerate() {
                if number % 2 == 0 {
                    writer.expect(&wire::finish());
                }
                writer.expect_close();
            }
        }
    }

    /// Under `block`, with a reader that takes nothing: the relay takes what it has room for, and no FINISH says more.
    fn no_finish_tells_of_frames_that_were_not_taken(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp().stalled();
        let relay = relay(backend)
            .drain_timeout(millis(1500))
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader).when_full(WhenFull::Block).queue(1 << 20))
            .start();
        reader.wait_for_sessions(1);
        let mut writer = relay.writer();
        let frames = numbered::frames_of_len(0, 0..60_000, 200);
        let writing = thread::spawn(move || {
            // The end may come in the middle.
            let _ = writer.try_send(&frames).and_then(|()| writer.try_send(&wire::stop()));
            writer
        });
        eventually("the queue is full", || relay.output(0).frames_queued > 3000);
        let began = Instant::now();
        let ledger = relay.drain();
        assert!(began.elapsed() < millis(2500), "{:?}", began.elapsed());
        assert!(ledger.inputs[0].frames < 60_000, "everything was taken: {ledger:?}");
        assert_eq!(ledger.inputs[0].sessions_ended.get("finished"), None, "{ledger:?}");
        let mut writer = writing.join().expect("the relay closed");
        while let Ok(bytes) = writer.read_some(64)
            && !bytes.is_empty()
        {
            assert_ne!(bytes, wire::finish());
        }
        reader.resume();
    }

    /// Connections that wait in the backlog with all they have to say, when the end is asked for, are taken.
    fn what_waits_in_the_backlog_is_taken_too(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(listening(Transport::Unix, folder.path())).output(to(&reader)).start();
        let count = 200;
        let mut writers: Vec<Peer> = (0..count).map(|_| Peer::connect(&relay.address())).collect();
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.send(&[wire::start(&[D]), numbered::frames(number as u32, 0..10), wire::stop()].concat());
        }
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(ledger.inputs[0].frames, 10 * count, "{ledger:?}");
        let expected: Vec<_> = (0..count as u32).map(|number| (number, 0..10)).collect();
        numbered::assert_complete(collected.payloads(), &expected);
    }

    /// An output that blocks holds up its inputs at a drain: the output beside it gets all that was taken, and ends in order.
    fn the_end_of_an_output_that_blocks_costs_no_other(backend) {
        let folder = folder();
        let stalled = CollectingReader::tcp().stalled();
        let healthy = CollectingReader::tcp();
        let relay = relay(backend)
            .drain_timeout(Duration::from_secs(2))
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&healthy))
            .output(to(&stalled).when_full(WhenFull::Block).queue(1 << 20))
            .start();
        stalled.wait_for_sessions(1);
        let mut writer = relay.writer();
        writer.send_until_stalled(&numbered::frames_of_len(0, 0..100_000, 200), millis(300));
        let began = Instant::now();
        let (ledger, collected) = relay.drain_into(healthy);
        assert!(began.elapsed() < millis(3000), "{:?}", began.elapsed());
        assert!(dropped_for(&ledger.outputs[1], "shutdown") > 0, "{ledger:?}");
        assert_eq!(dropped(&ledger.outputs[0]), 0, "{ledger:?}");
        assert_eq!(ledger.outputs[0].sessions_finished, 1, "{ledger:?}");
        assert_eq!(collected.frames(), ledger.inputs[0].frames);
        stalled.resume();
    }

    fn a_unidirectional_writer_is_closed_on_without_a_word(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut writer = Peer::connect(&relay.address());
        writer.send(&[wire::start(&[D]), numbered::frames(0, 0..100)].concat());
        relay.wait_for_frames(100);
        let (_, collected) = relay.drain_into(reader);
        writer.expect_close();
        numbered::assert_complete(collected.payloads(), &[(0, 0..100)]);
    }

    fn a_writer_that_goes_on_does_not_hold_the_drain(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).drain_timeout(Duration::from_secs(5)).output(to(&reader)).start();
        let mut writer = relay.writer();
        let writing = thread::spawn(move || {
            let mut sequence = 0;
            while writer.try_send(&numbered::frames_of_len(0, sequence..sequence + 100, 100)).is_ok() {
                sequence += 100;
            }
        });
        relay.wait_for_frames(1000);
        let began = Instant::now();
        let (ledger, collected) = relay.drain_into(reader);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        writing.join().expect("the relay closed");
        assert_eq!(collected.frames(), ledger.inputs[0].frames);
        assert_eq!(collected.sessions.len(), 1);
        numbered::assert_complete(collected.payloads(), &[(0, 0..ledger.inputs[0].frames)]);
    }

    fn handshakes_and_silent_connections_are_closed(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).output(to(&reader)).start();
        let mut silent = Peer::connect(&relay.address());
        let mut half = Peer::connect(&relay.address());
        half.send(&wire::ready(&[D])[..20]);
        let mut accepted = Peer::connect(&relay.address());
        accepted.send(&wire::ready(&[D]));
        accepted.expect(&wire::accept(&[D]));
        let began = Instant::now();
        relay.drain_into(reader);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        silent.expect_close();
        half.expect_close();
        while accepted.read_some(64).is_ok_and(|bytes| !bytes.is_empty()) {}
    }

    fn an_output_that_is_down_costs_the_timeout_and_its_frames_are_counted(backend) {
        let reader = CollectingReader::tcp();
        let down = PeerListener::tcp().address();
        let mute = PeerListener::tcp();
        let relay = relay(backend)
            .drain_timeout(millis(500))
            .output(to(&reader))
            .output(to_address(down))
            .output(to_peer(&mute))
            .start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..500));
        relay.wait_for_frames(500);
        let began = Instant::now();
        let (ledger, _) = relay.drain_into(reader);
        let took = began.elapsed();
        assert!((millis(400)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert_eq!(ledger.outputs[0].frames_sent, 500);
        for output in &ledger.outputs[1..] {
            assert_eq!(dropped_for(output, "shutdown"), 500, "{output:?}");
            assert_eq!(output.frames_sent, 0);
        }
        writer.expect_close();
    }

    /// Under `block` the relay waits for a reader that is away as long as the drain may take; under the drop
    /// policies it tries once more and ends.
    fn an_output_that_is_away_is_waited_for_under_block_alone(backend) {
        for (when_full, frames) in [(WhenFull::Block, 500), (WhenFull::DropOldest, 0)] {
            let mut reader = CollectingReader::tcp();
            reader.die();
            let relay = relay(backend).output(to(&reader).when_full(when_full)).start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(0, 0..500));
            relay.wait_for_frames(500);
            let began = Instant::now();
            let drain = thread::spawn(move || relay.drain());
            writer.expect_close();
            if when_full == WhenFull::Block {
                thread::sleep(millis(300));
                reader.revive();
            }
            let ledger = drain.join().expect("the relay drains");
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            assert_eq!(ledger.outputs[0].frames_sent, frames);
            assert_eq!(dropped_for(&ledger.outputs[0], "shutdown"), 500 - frames);
            assert_eq!(reader.close().frames(), frames);
        }
    }

    fn block_keeps_its_promise_while_draining(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp().stalled();
        // What a unix socket has taken has arrived; of TCP, the writer's own buffer holds megabytes too.
        let relay = relay(backend)
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader).when_full(WhenFull::Block).queue(2 << 20))
            .start();
        reader.wait_for_sessions(1);
        let mut writer = relay.writer();
        let stream = numbered::frames_of_len(0, 0..100_000, 200);
        let sent = writer.send_until_stalled(&stream, millis(700));
        assert!(sent < stream.len());
        let drain = thread::spawn(move || relay.drain());
        thread::sleep(millis(300));
        assert!(!drain.is_finished(), "the promise was broken at once");
        reader.resume();
        let ledger = drain.join().expect("the relay drains");
        assert_eq!(dropped(&ledger.outputs[0]), 0);
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..(sent / 204) as u64)]);
        drop(writer);
    }

    fn block_ends_with_the_timeout_too(backend) {
        let reader = CollectingReader::tcp().stalled();
        let relay = relay(backend)
            .drain_timeout(millis(600))
            .output(to(&reader).when_full(WhenFull::Block).queue(2 << 20))
            .start();
        reader.wait_for_sessions(1);
        let mut writer = relay.writer();
        writer.send_until_stalled(&numbered::frames_of_len(0, 0..200_000, 200), millis(500));
        let began = Instant::now();
        let ledger = relay.drain();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert!(dropped_for(&ledger.outputs[0], "shutdown") > 0, "{ledger:?}");
        reader.resume();
        numbered::assert_rising(reader.close().payloads());
    }

    fn nothing_listens_after_a_drain(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let addresses = [Transport::Tcp, Transport::Unix].map(|transport| transport.fresh_address(folder.path()));
        let relay = relay(backend)
            .input(crate::support::relay::listening_on(addresses.into()))
            .output(to(&reader))
            .start();
        let listeners = relay.listeners().to_vec();
        relay.drain_into(reader);
        for (_, address) in listeners {
            assert!(Stream::connect(&address).is_err(), "{address}");
        }
    }

    /// Descriptors and threads go with the relay: it can be started again and again in one process.
    fn a_relay_can_be_started_and_drained_many_times_on_one_address(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = {
            let probe = PeerListener::tcp();
            probe.address()
        };
        for round in 0..20 {
            let relay = relay(backend)
                .input(crate::support::relay::listening_on(vec![
                    address.clone(),
                    tapster::transport::Address::Unix(folder.path().join("again.sock")),
                ]))
                .output(to(&reader))
                .start();
            let mut writer = relay.writer();
            writer.send(&numbered::frames(round, 0..10));
            writer.finish();
            relay.drain();
        }
        let expected: Vec<_> = (0..20).map(|round| (round, 0..10)).collect();
        numbered::assert_complete(reader.close().payloads(), &expected);
    }

    fn sigterm_and_sigint_drain_the_program(backend) {
        for signal in [Signal::TERM, Signal::INT] {
            let folder = folder();
            let reader = CollectingReader::tcp();
            let address = Transport::Unix.fresh_address(folder.path());
            let mut program = tapster(backend)
                .listen(&address)
                .to(&reader.address(), "")
                .summary(folder.path().join("summary.json"))
                .start();
            let mut writer = Peer::writer(&address);
            writer.send(&numbered::frames(0, 0..1000));
            program.process.signal(signal);
            program.process.wait_for_success(Duration::from_secs(8));
            writer.expect_close();
            let collected = reader.close();
            numbered::assert_complete(collected.payloads(), &[(0, 0..1000)]);
            assert!(collected.sessions[0].stopped);
            let summary = program.summary();
            summary.assert_balanced();
            assert_eq!(summary.input(0, "frames"), 1000);
            assert_eq!(summary.output(0, "frames_sent"), 1000);
        }
    }

    fn a_drain_that_ends_in_time_exits_with_0_where_an_output_was_down(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let down = PeerListener::tcp().address();
        let address = Transport::Unix.fresh_address(folder.path());
        let config = folder.path().join("tapster.toml");
        std::fs::write(&config, "drain_timeout = \"500ms\"\n").expect("a file");
        let mut program = tapster(backend)
            .arg("-c")
            .arg(&config)
            .listen(&address)
            .to(&reader.address(), "")
            .to(&down, "")
            .summary(folder.path().join("summary.json"))
            .start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..1000));
        reader.wait_for_frames(1000);
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!(summary.dropped(1, "shutdown"), 1000);
        assert_eq!(summary.output(0, "frames_sent"), 1000);
    }

    /// P02: kill -9 leaves nothing that keeps the next start from working, and no reader sees a damaged frame.
    fn kill_9_damages_nothing_and_the_next_start_works(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        for life in 0..3 {
            let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
            let mut writer = Peer::writer(&address);
            writer.send(&numbered::frames(life, 0..20_000));
            let writing = thread::spawn(move || {
                let mut sequence = 20_000;
                while writer.try_send(&numbered::frames(life, sequence..sequence + 100)).is_ok() {
                    sequence += 100;
                }
            });
            reader.wait_for_sessions(life as usize + 1);
            eventually("frames flow", || {
                reader.sessions().last().is_some_and(|session| session.frames > 5000)
            });
            program.process.kill();
            writing.join().expect("the connection broke");
        }
        let collected = reader.close();
        let sequences = numbered::sequences(collected.payloads());
        for (_, sequence) in sequences {
            assert_eq!(sequence, (0..sequence.len() as u64).collect::<Vec<_>>());
        }
    }

    /// Told once, at WARN, with the number of all frames that the end costs; how tapster ends a connection is no news.
    fn what_a_drain_costs_is_told_with_its_number(backend) {
        let folder = folder();
        for transport in Transport::BOTH {
            let reader = CollectingReader::start(transport, folder.path()).stalled();
            let address = Transport::Unix.fresh_address(folder.path());
            let config = folder.path().join("tapster.toml");
            std::fs::write(&config, "drain_timeout = \"500ms\"\n").expect("a file");
            let summary = folder.path().join("summary.json");
            let mut program = tapster(backend)
                .arg("-c")
                .arg(&config)
                .listen(&address)
                .to(&reader.address(), "")
                .summary(summary)
                .start();
            let mut writer = Peer::writer(&address);
            reader.wait_for_sessions(1);
            writer.send(&numbered::frames_of_len(0, 0..100_000, 200));
            writer.finish();
            program.terminate();
            reader.resume();
            let (summary, output) = (program.summary(), program.process.output());
            summary.assert_balanced();
            let lost = summary.dropped(0, "shutdown");
            assert!(lost > 0, "{output}");
            let told: Vec<&str> = output.lines().filter(|line| line.contains("frames are lost")).collect();
            let number = format!("frames_dropped={lost}");
            assert!(matches!(told[..], [line] if line.contains("WARN") && line.contains(&number)), "{output}");
            assert!(told[0].contains("reason=\"shutdown\"") && told[0].contains(&reader.address().to_string()));
            for word in ["canceled", "cancelled", "ERROR"] {
                assert!(!output.contains(word), "{word}: {output}");
            }
        }
    }

    /// A lookup that hangs sits in the C library, where nothing ends it.
    fn a_drain_is_not_held_up_by_name_servers_that_do_not_answer(backend) {
        // No server of its own is there to ask: this one takes every question, and never answers.
        let server = if backend == Backend::Uring { "127.0.0.77" } else { "127.0.0.78" };
        let Ok(_mute) = std::net::UdpSocket::bind((server, 53)) else {
            return skip(Cause::Missing, "a port 53 that can be bound");
        };
        let folder = folder();
        let resolv = folder.path().join("resolv.conf");
        std::fs::write(&resolv, format!("nameserver {server}\noptions timeout:30 attempts:3\n")).expect("a file");
        let config = folder.path().join("tapster.toml");
        std::fs::write(&config, "drain_timeout = \"2s\"\n").expect("a file");
        let (address, summary) = (Transport::Unix.fresh_address(folder.path()), folder.path().join("summary.json"));
        let script = "mount --bind \"$0\" /etc/resolv.conf || exit 77; exec \"$@\"";
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(&resolv).arg(env!("CARGO_BIN_EXE_tapster"));
        command.args(["run", "--backend", crate::support::backend::word(backend), "-c"]).arg(&config);
        command.args(["--listen", &address.to_string(), "--to", "tcp://siem.example.test:6000"]);
        command.arg("--summary").arg(&summary).env("NO_COLOR", "1");
        let mut process = crate::support::process::Process::spawn(&mut command);
        eventually("tapster listens, or cannot", || {
            process.poll_exit().is_some() || process.output().contains("relaying")
        });
        if process.poll_exit().is_some() {
            return skip(Cause::Missing, "a mount namespace of its own");
        }
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..100));
        writer.finish();
        thread::sleep(millis(200));
        assert!(!process.output().contains("cannot"), "the lookup does not hang: {}", process.output());
        let began = Instant::now();
        process.signal(Signal::TERM);
        process.wait_for_success(Duration::from_secs(3));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let ledger: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&summary).expect("a ledger")).expect("JSON");
        assert_eq!(ledger["outputs"][0]["frames_dropped"]["shutdown"], 100, "{ledger}");
    }
}
