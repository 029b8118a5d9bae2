//! The log stays short whatever peers do, and says how much it leaves out. With the program as a child, whose log it is.

use std::path::Path;

use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::free_address;
use crate::support::process::Process;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::support::wire::D;

/// A relay that logs everything, before a collector, with these further lines in the configuration of its input.
fn begin(
    backend: Backend,
    transport: Transport,
    input: &str,
) -> (Tapster, Address, CollectingReader, tempfile::TempDir) {
    let (folder, reader) = (folder(), CollectingReader::tcp());
    let address = free_address(transport, folder.path());
    let config = folder.path().join("tapster.toml");
    let to = reader.address();
    let text = format!(
        "[[input]]\nname = \"in\"\nlisten = [\"{address}\"]\n{input}\n[[output]]\nname = \"out\"\nto = \"{to}\"\n"
    );
    std::fs::write(&config, text).expect("a file");
    let summary = folder.path().join("summary.json");
    let command = tapster(backend).arg("--workers").arg("2").arg("--log-level").arg("debug");
    let program = command.arg("-c").arg(&config).summary(summary).start();
    program.process.wait_for_output(&address.to_string());
    (program, address, reader, folder)
}

/// Lines with this text, and the events that they stand for: themselves, and those that were left out before them.
fn events(log: &str, texts: &[&str]) -> (usize, u64) {
    let lines: Vec<&str> = log.lines().filter(|line| texts.iter().any(|text| line.contains(text))).collect();
    let left_out = |line: &&str| -> u64 {
        let Some((_, rest)) = line.split_once("left_out=") else { return 0 };
        rest.split_whitespace().next().expect("a number").parse().expect("a number")
    };
    let summaries = lines.iter().filter(|line| line.contains("without a line")).count();
    let events = (lines.len() - summaries) as u64 + lines.iter().map(left_out).sum::<u64>();
    (lines.len(), events)
}

const PROBES: usize = 3000;
const FAULTS: usize = 300;

on_both_backends! {
    fn connections_by_the_thousand_make_a_short_log_that_says_what_it_leaves_out(backend) {
        for transport in Transport::BOTH {
            let (mut program, address, reader, folder) = begin(backend, transport, "");
            for _ in 0..PROBES {
                drop(Stream::connect(&address).expect("it listens"));
            }
            for _ in 0..FAULTS {
                let mut peer = Peer::connect(&address);
                peer.send(&wire::ready(&[&[0xff; 256]]));
                peer.expect_close();
            }
            Peer::writer(&address).finish();
            eventually("every connection has ended", || program.process.output().contains("connection ended: finished"));
            program.terminate();
            let log = program.process.output();
            assert!(log.lines().count() <= 60, "{} lines", log.lines().count());
            let probes = ["before it sent a byte", "before a byte was sent"];
            let faults = ["content type: the peer names", "ended irregularly"];
            assert_eq!(events(&log, &probes).1, PROBES as u64);
            assert_eq!(events(&log, &faults).1, FAULTS as u64);
            for line in log.lines().filter(|line| probes.iter().any(|text| line.contains(text))) {
                assert!(line.contains("DEBUG"), "a probe is nothing to be told of: {line}");
            }
            assert!(log.lines().all(|line| line.len() < 600 && line.bytes().all(|byte| (b' '..0x7f).contains(&byte))));
            let summary = program.summary();
            let ended = |how: &str| summary.0["inputs"][0]["sessions_ended"][how].as_u64();
            assert_eq!(summary.input(0, "connections"), (PROBES + FAULTS) as u64 + 1);
            assert_eq!((ended("no_stream"), ended("content_type")), (Some(PROBES as u64), Some(FAULTS as u64)));
            assert_eq!(ended("finished"), Some(1));
            summary.assert_balanced();
            drop((reader, folder));
        }
    }

    fn a_writer_whose_frames_are_skipped_is_told_of_with_what_to_do(backend) {
        let input = "oversize = \"skip\"\nframe_len_max = \"64KiB\"";
        let (mut program, address, _reader, _folder) = begin(backend, Transport::Tcp, input);
        let mut writer = Peer::writer(&address);
        for _ in 0..100 {
            writer.send(&wire::data(&vec![b'x'; (64 << 10) + 1]));
        }
        writer.finish();
        program.terminate();
        let log = program.process.output();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("reason=\"oversize\"")).collect();
        assert!((1..=2).contains(&lines.len()), "{log}");
        let last = lines.last().expect("a line");
        for part in ["WARN", "input=\"in\"", "frames_dropped=100", "raise `frame_len_max`"] {
            assert!(last.contains(part), "{part} in {last}");
        }
        assert_eq!(program.summary().input(0, "frames_oversize"), 100);
    }

    /// Frames that are too long, that find a queue full, a spool whose disk is closed by `min_free`, or no output.
    fn every_loss_of_a_running_relay_is_told_once_with_its_sum(backend) {
        let folder = folder();
        let (away, config) = (folder.path().join("away.sock"), folder.path().join("tapster.toml"));
        let (address, away) = (free_address(Transport::Unix, folder.path()), away.display());
        let spool = folder.path().join("spool");
        let text = format!(
            "[[input]]\nname = \"in\"\nlisten = [\"{address}\"]\ncontent_types = [\"*\"]\n\
             [[output]]\nname = \"short\"\nto = \"unix:{away}\"\nframe_len_max = \"1KiB\"\n\
             [[output]]\nname = \"small\"\nto = \"unix:{away}\"\nqueue = \"64KiB\"\nframe_len_max = \"8KiB\"\n\
             [[output]]\nname = \"closed\"\nto = \"unix:{away}\"\nqueue = \"64KiB\"\nframe_len_max = \"8KiB\"\nbuffer = \"disk\"\n\
             spool = {{ dir = \"{}\", min_free = \"1000000GiB\" }}\n",
            spool.display()
        );
        std::fs::write(&config, text).expect("a file");
        let summary = folder.path().join("summary.json");
        let mut program =
            tapster(backend).arg("--workers").arg("2").arg("-c").arg(&config).summary(summary).start();
        program.process.wait_for_output(&address.to_string());
        for _ in 0..4 {
            let mut writer = Peer::writer(&address);
            writer.send(&wire::data(&[b'x'; 2000]).repeat(50));
            writer.finish();
        }
        let mut stranger = Peer::connect(&address);
        stranger.open_as_writer(b"other");
        stranger.send(&wire::data(b"a"));
        stranger.finish();
        let reasons = ["frame_too_long", "queue_full", "spool_full", "unrouted"];
        for reason in reasons {
            program.process.wait_for_output(&format!("reason=\"{reason}\""));
        }
        program.process.wait_for_output("min_free");
        program.terminate();
        let (log, summary) = (program.process.output(), program.summary());
        let told = |name: &str, reason: &str| -> (usize, u64) {
            let words = [format!("=\"{name}\" reason=\"{reason}\""), "WARN".to_owned()];
            let lines = log.lines().filter(|line| words.iter().all(|word| line.contains(word)));
            let counts = lines.filter_map(|line| {
                line.split_once("frames_dropped=")?.1.split(' ').next()?.parse().ok()
            });
            let counts: Vec<u64> = counts.collect();
            (counts.len(), counts.last().copied().unwrap_or_default())
        };
        for (index, name) in ["short", "small", "closed"].into_iter().enumerate() {
            let dropped = summary.0["outputs"][index]["frames_dropped"].as_object().expect("an object");
            for (reason, frames) in dropped {
                let (lines, sum) = told(name, reason);
                assert!((1..=2).contains(&lines) && Some(sum) == frames.as_u64(), "{name} {reason}: {log}");
            }
        }
        assert_eq!(told("in", "unrouted"), (1, 1), "{log}");
        assert_eq!(told("short", "frame_too_long").1, 200, "{log}");
        assert!(told("small", "queue_full").1 > 0 && told("closed", "spool_full").1 > 0, "{log}");
        assert_eq!(summary.0["outputs"][2]["spool"]["degraded"], true);
        assert!(log.lines().count() < 60, "{log}");
        summary.assert_balanced();
    }

    /// Without a reader, and with one that ends every connection in turn.
    fn a_collector_that_fails_in_turn_for_two_reasons_has_a_short_log(backend) {
        let folder = folder();
        let listener = PeerListener::bind(Transport::Tcp, folder.path());
        let (to, address) = (listener.address(), free_address(Transport::Unix, folder.path()));
        let config = folder.path().join("tapster.toml");
        let text = format!(
            "[[input]]\nlisten = [\"{address}\"]\n[[output]]\nto = \"{to}\"\nreconnect = {{ min = \"10ms\", max = \"10ms\" }}\n"
        );
        std::fs::write(&config, text).expect("a file");
        let mut program = tapster(backend).arg("-c").arg(&config).start();
        for attempt in 0..200 {
            let mut peer = listener.accept();
            match attempt % 3 {
                0 => peer.reset(),
                1 => drop(peer),
                _ => {
                    if peer.try_open_as_reader() {
                        peer.reset();
                    }
                }
            }
        }
        program.terminate();
        let log = program.process.output();
        assert!(log.contains("left_out="), "{log}");
        assert!(log.lines().count() < 50, "{} lines: {log}", log.lines().count());
    }

    /// After ten seconds, and every minute from then on; and when it goes on.
    fn an_input_that_an_output_holds_up_is_told_with_the_age_of_its_oldest_frame(backend) {
        let folder = folder();
        let reader = CollectingReader::start(Transport::Unix, folder.path()).stalled();
        let address = free_address(Transport::Unix, folder.path());
        let keys = "name=siem&when_full=block&queue=64KiB&frame_len_max=8KiB";
        let mut program = tapster(backend).listen(&address).to(&reader.address(), keys).start();
        let mut writer = Peer::writer(&address);
        reader.wait_for_sessions(1);
        let mut sender = writer.try_clone();
        let sending = std::thread::spawn(move || {
            for _ in 0..50 {
                sender.send(&wire::data(&[b'x'; 2000]).repeat(500));
            }
        });
        program.process.wait_for_output("this input is not read from");
        let log = program.process.output();
        let line = log.lines().find(|line| line.contains("this input is not read from")).expect("a line");
        assert!(line.contains("WARN") && line.contains("oldest_age_s=1"), "{line}");
        assert!(line.contains("blocked_by=\"siem\""), "{line}");
        reader.resume();
        program.process.wait_for_output("no output holds this input up any more");
        sending.join().expect("the writer ends well");
        writer.send(&wire::stop());
        reader.wait_for_frames(25_000);
        program.terminate();
    }

    /// Many writers do not care for STOP, or send FINISH in its place.
    fn writers_that_end_without_stop_are_no_reason_for_a_warning(backend) {
        for transport in Transport::BOTH {
            let (mut program, address, reader, _folder) = begin(backend, transport, "");
            for _ in 0..50 {
                let mut unclean = Peer::writer(&address);
                unclean.send(&wire::data(b"a"));
                unclean.shutdown_write();
                unclean.expect_close();
                let mut finish = Peer::writer(&address);
                finish.send(&[wire::data(b"a"), wire::finish()].concat());
                finish.expect_close();
            }
            let mut start = Peer::connect(&address);
            start.send(&[wire::start(&[D]), wire::data(b"a"), wire::finish()].concat());
            start.expect_close();
            reader.wait_for_frames(101);
            program.terminate();
            let log = program.process.output();
            assert!(!log.contains("WARN") && log.contains("INFO"), "{log}");
            let ends = ["without STOP", "in place of STOP", "connections ended, without a line"];
            assert_eq!(events(&log, &ends).1, 101, "{log}");
            let summary = program.summary();
            let ended = |how: &str| summary.0["inputs"][0]["sessions_ended"][how].as_u64();
            assert_eq!((ended("unclean"), ended("finish_from_writer")), (Some(50), Some(51)));
        }
    }

    fn a_local_writer_is_told_as_process_user_and_program(backend) {
        let (mut program, address, _reader, _folder) = begin(backend, Transport::Unix, "");
        Peer::writer(&address).finish();
        program.terminate();
        let log = program.process.output();
        let line = log.lines().find(|line| line.contains("connection: content type")).expect("a line");
        let name = std::fs::read("/proc/self/comm").expect("a name");
        let name = name.trim_ascii_end().escape_ascii();
        let uid = rustix::process::geteuid().as_raw();
        for part in [format!("pid={}", std::process::id()), format!("uid={uid}"), format!("program=\"{name}\"")] {
            assert!(line.contains(&part), "{part} in {line}");
        }
        assert!(uid != 0 || line.contains("user=\"root\""), "{line}");
    }

    fn a_log_in_json_has_fields_and_no_json_within_strings(backend) {
        let folder = folder();
        let (address, away) = (free_address(Transport::Unix, folder.path()), folder.path().join("away.sock"));
        let command = tapster(backend).arg("--log-format").arg("json").listen(&address);
        let mut program = command.arg("--to").arg(format!("unix:{}", away.display())).start();
        let mut writer = Peer::writer(&address);
        writer.send(&wire::data(b"a").repeat(100));
        writer.finish();
        drop(Peer::writer(&address));
        program.process.wait_for_output("tries again");
        program.terminate();
        let log = program.process.output();
        let mut dropped = 0;
        for line in log.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let fields = value.as_object().expect("an object");
            assert!(fields.contains_key("timestamp") && fields.contains_key("level") && fields.contains_key("message"));
            for (key, field) in fields {
                assert!(!field.is_object() && !field.is_array(), "{key} in {line}");
                let text = field.as_str().unwrap_or_default();
                assert!(!text.starts_with(['{', '[']), "{key} in {line}");
            }
            if value["message"] == "dropped" {
                assert_eq!(value["reason"], "shutdown");
                dropped += value["frames_dropped"].as_u64().expect("a number");
            }
        }
        assert_eq!(dropped, 100, "{log}");
    }

    /// Marks that turn the direction of a text, or end a line.
    fn no_name_in_the_log_is_a_command_to_a_terminal(backend) {
        for format in ["text", "json"] {
            let folder = folder();
            let address = free_address(Transport::Unix, folder.path());
            let path = folder.path().join("\u{202e}out\u{2028}.fstrm");
            let command = tapster(backend).arg("--log-format").arg(format).listen(&address);
            let mut program = command.file(&path).start();
            program.process.wait_for_output("opened");
            program.terminate();
            let log = program.process.output();
            assert!(log.contains("out") && !log.contains(['\u{202e}', '\u{2028}']), "{log:?}");
            if format == "json" {
                let names = log.lines().filter_map(|line| {
                    let line: serde_json::Value = serde_json::from_str(line).expect("an object");
                    Some(line.get("file")?.as_str()?.to_owned())
                });
                assert!(names.into_iter().any(|name| Path::new(&name) == path), "{log:?}");
            }
        }
    }

    /// Whether they are closed at the start, or pipes that nobody reads from.
    fn a_relay_whose_outputs_are_both_closed_goes_on(backend) {
        for redirect in [">&- 2>&-", "| true 2>&1"] {
            let folder = folder();
            let (address, reader) = (Transport::Unix.fresh_address(folder.path()), CollectingReader::tcp());
            let word = if backend == Backend::Uring { "uring" } else { "epoll" };
            let summary = folder.path().join("summary.json");
            let relay = format!(
                "{} run --backend {word} --log-level debug --summary {} -l {address} -t {}",
                env!("CARGO_BIN_EXE_tapster"),
                summary.display(),
                reader.address()
            );
            let script = match redirect.strip_prefix('|') {
                // The shell becomes the relay, and its two outputs a pipe whose reader is gone.
                Some(_) => format!("exec > >(true) 2>&1; sleep 0.1; exec {relay}"),
                None => format!("exec {relay} {redirect}"),
            };
            let mut program = Process::spawn(std::process::Command::new("bash").arg("-c").arg(script));
            program.wait_for_socket(&address);
            for _ in 0..30 {
                let mut writer = Peer::writer(&address);
                writer.send(&wire::data(b"a"));
                writer.finish();
            }
            reader.wait_for_frames(30);
            program.signal(rustix::process::Signal::TERM);
            program.wait_for_success(std::time::Duration::from_secs(15));
            let ledger = std::fs::read_to_string(&summary).expect("a ledger");
            assert!(ledger.contains("\"frames_sent\":30"), "{ledger}");
        }
    }

    fn a_stream_that_no_output_takes_is_named_with_all_bytes_escaped(backend) {
        let input = "content_types = [\"*\"]";
        let (mut program, address, _reader, _folder) = begin(backend, Transport::Unix, input);
        let mut writer = Peer::connect(&address);
        let name = [b"evil\x1b[2J\n".as_slice(), D].concat();
        writer.open_as_writer(&name);
        writer.send(&wire::data(b"a"));
        writer.finish();
        program.terminate();
        let log = program.process.output();
        assert!(log.contains(r"no output takes content type evil\x1b[2J\n"), "{log}");
        assert_eq!(program.summary().input(0, "frames_unrouted"), 1);
    }
}
