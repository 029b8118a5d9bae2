//! Signals: those that ask for the end, those that ask for new output files, and those that must do nothing.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tapster::faults;
use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::millis;

/// A relay before a reader that takes nothing, under `block`: a drain takes as long as it may. With the writer that waits.
fn held_up(backend: Backend, drain_timeout: &str) -> (Tapster, Peer, CollectingReader, tempfile::TempDir) {
    let (folder, reader) = (folder(), CollectingReader::tcp().stalled());
    let address = Transport::Unix.fresh_address(folder.path());
    let program = tapster(backend)
        .arg("--drain-timeout")
        .arg(drain_timeout)
        .listen(&address)
        .to(&reader.address(), "when_full=block&queue=2MiB")
        .start();
    let mut writer = Peer::writer(&address);
    writer.send_until_stalled(&numbered::frames_of_len(0, 0..200_000, 200), millis(500));
    (program, writer, reader, folder)
}

on_both_backends! {
    /// logrotate and closing terminals send SIGHUP, others SIGUSR1; a timer that the parent had set sends SIGALRM.
    fn no_stray_signal_ends_the_relay_and_what_a_signal_did_is_told(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        program.process.wait_for_output("relaying");
        let mut writer = Peer::writer(&address);
        let signals = [Signal::HUP, Signal::USR1, Signal::ALARM, Signal::XFSZ, Signal::PIPE];
        for (round, signal) in (0..).zip(signals) {
            writer.send(&numbered::frames(0, round * 10..(round + 1) * 10));
            program.process.signal(signal);
        }
        for text in ["SIGHUP: file outputs", "SIGHUP: the configuration was read again, and nothing has changed", "SIGUSR1: "] {
            program.process.wait_for_output(text);
        }
        writer.send(&numbered::frames(0, 50..100));
        writer.finish();
        program.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..100)]);
    }

    /// A program that tapster starts inherits what is ignored.
    fn no_signal_but_sigpipe_is_ignored(backend) {
        let folder = folder();
        let address = Transport::Unix.fresh_address(folder.path());
        let program = tapster(backend).listen(&address).file(&folder.path().join("out.fstrm")).start();
        let process = program.process.id();
        for signal in
            [Signal::HUP, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::XFSZ, Signal::TERM, Signal::INT]
        {
            assert!(has(process, "SigCgt:", signal) && !has(process, "SigIgn:", signal), "{signal:?}");
        }
    }

    /// `timeout` and a terminal signal a process and its group, so that one request comes twice.
    fn signals_within_a_second_are_one_and_nothing_stray_ends_a_drain(backend) {
        let (mut program, _writer, _reader, _folder) = held_up(backend, "2s");
        for signal in [Signal::TERM, Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1, Signal::ALARM] {
            program.process.signal(signal);
        }
        program.process.wait_for_output("draining");
        // The drain takes its 2 s, and ends well.
        program.process.wait_for_success(Duration::from_secs(15));
        assert!(!program.process.output().contains("ending at once"), "{}", program.process.output());
    }

    fn a_signal_a_second_later_ends_at_once(backend) {
        let (mut program, _writer, _reader, _folder) = held_up(backend, "1h");
        program.process.signal(Signal::TERM);
        program.process.wait_for_output("draining");
        thread::sleep(millis(1100));
        program.process.signal(Signal::INT);
        let status = program.process.wait_within(Duration::from_secs(15));
        assert_eq!(status.code(), Some(1), "{}", program.process.output());
    }

    /// Name servers that do not answer hold up a start that listens on a name.
    fn a_signal_during_a_start_that_hangs_ends_it_and_leaves_no_socket(backend) {
        if !faults::ENABLED {
            return;
        }
        let folder = folder();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut process = tapster(backend)
            .env("TAPSTER_FAULTS", "start hangs=slow=0")
            .arg("--listen").arg(address.to_string())
            .arg("--listen").arg("tcp://127.0.0.1:0?name=slow")
            .file(&folder.path().join("out.fstrm"))
            .summary(folder.path().join("summary.json"))
            .spawn();
        crate::support::wait::eventually("it has begun", || has(process.id(), "SigCgt:", Signal::TERM));
        process.signal(Signal::TERM);
        process.wait_for_success(Duration::from_secs(15));
        assert!(process.output().contains("SIGTERM: tapster ends before it relays"), "{}", process.output());
        assert!(folder.path().join("summary.json").exists());
        let Address::Unix(path) = address else { unreachable!() };
        assert!(!path.exists());
    }

    fn a_file_that_reaches_the_limit_of_file_sizes_is_an_error_of_that_file(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .listen(&address)
            .to(&reader.address(), "")
            .file(&folder.path().join("out.fstrm"))
            .summary(folder.path().join("summary.json"))
            .start();
        program.process.limit_file_size(64 << 10);
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames_of_len(0, 0..1000, 500));
        writer.finish();
        reader.wait_for_frames(1000);
        program.terminate();
        program.summary().assert_balanced();
        assert!(program.process.output().contains("cannot write to"), "{}", program.process.output());
    }
}

/// Whether this mask of a process in `/proc` has a signal.
fn has(process: u32, mask: &str, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & (1 << (signal.as_raw() - 1)) != 0
}
