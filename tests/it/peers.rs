//! P: the programs that the relay is for. Writers: `fstrm_replay`, `dnstap`, `named`, `unbound`. Readers:
//! `fstrm_capture`, `dnstap`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::dns::Named;
use crate::support::dns::Queries;
use crate::support::dns::Unbound;
use crate::support::files::FstrmFile;
use crate::support::files::fstrm_file;
use crate::support::numbered;
use crate::support::peers::Capture;
use crate::support::peers::all_there;
use crate::support::peers::dnstap_passes_on;
use crate::support::peers::dnstap_sends;
use crate::support::peers::find;
use crate::support::peers::free_address;
use crate::support::peers::replay;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::in_quiet;
use crate::support::wait::millis;
use crate::support::wire::D;

/// A file of numbered frames below `folder`.
fn input_file(folder: &Path, writer: u32, frames: u64) -> PathBuf {
    let path = folder.join(format!("in-{writer}.fstrm"));
    fs::write(&path, fstrm_file(D, &numbered::frames(writer, 0..frames))).expect("a file");
    path
}

/// The payloads of files, one after the other; each file must end with STOP.
fn payloads_of(paths: &[&Path]) -> Vec<Vec<u8>> {
    let files =
        paths.iter().map(|path| FstrmFile::read(path).unwrap_or_else(|| panic!("{}", path.display())));
    files
        .flat_map(|file| {
            assert!(file.clean);
            file.payloads().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

fn sorted(mut payloads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    payloads.sort();
    payloads
}

/// Counts how many of `all` (sorted) are not in `some` (sorted); fails where `some` has one that `all` has not,
/// or has it more often.
#[track_caller]
fn missing(all: &[Vec<u8>], some: &[Vec<u8>]) -> usize {
    let mut rest = all.iter();
    for payload in some {
        assert!(rest.any(|other| other == payload), "a frame that was not written, or not as often");
    }
    all.len() - some.len()
}

on_both_backends! {
    fn p01_a_file_from_fstrm_replay_comes_out_of_two_fstrm_captures_byte_identical(backend) {
        let Some(program) = find("fstrm_replay") else { return };
        for transport in Transport::BOTH {
            for frames in [0, 1, 1000, 100_000] {
                let folder = folder();
                let file = input_file(folder.path(), 0, frames);
                let Some(mut one) = Capture::start(transport, folder.path()) else { return };
                let Some(mut two) = Capture::start(transport, folder.path()) else { return };
                let relay = relay(backend)
                    .input(listening(transport, folder.path()))
                    .output(to_address(one.address()))
                    .output(to_address(two.address()))
                    .start();
                replay(&program, &file, &relay.address()).wait_for_success(Duration::from_secs(20));
                let ledger = relay.drain();
                one.terminate();
                two.terminate();
                let expected = fs::read(&file).expect("our file");
                for (capture, output) in [one, two].iter().zip(&ledger.outputs) {
                    let got = fs::read(capture.path()).expect("its file");
                    assert!(got == expected, "{} bytes became {}", expected.len(), got.len());
                    assert_eq!((output.frames_sent, output.sessions_finished), (frames, 1));
                }
            }
        }
    }

    fn p01_many_fstrm_replays_share_one_fstrm_capture_and_each_keeps_its_order(backend) {
        let Some(program) = find("fstrm_replay") else { return };
        for transport in Transport::BOTH {
            let folder = folder();
            let Some(mut capture) = Capture::start(transport, folder.path()) else { return };
            let relay = relay(backend)
                .input(listening(transport, folder.path()))
                .output(to_address(capture.address()))
                .start();
            let counts = (0..16).map(|writer| (writer, [1, 1000, 10_000][writer as usize % 3]));
            let files = counts.clone().map(|(writer, count)| input_file(folder.path(), writer, count));
            let files: Vec<PathBuf> = files.collect();
            let replays = files.iter().map(|file| replay(&program, file, &relay.address()));
            let mut replays: Vec<_> = replays.collect();
            replays.iter_mut().for_each(|replay| replay.wait_for_success(Duration::from_secs(30)));
            relay.drain();
            capture.terminate();
            let payloads = payloads_of(&[capture.path()]);
            let expected: Vec<_> = counts.map(|(writer, count)| (writer, 0..count)).collect();
            numbered::assert_complete(payloads.iter().map(Vec::as_slice), &expected);
        }
    }

    /// Both transports at a time: the program waits five seconds until it passes the last frames on.
    fn the_dnstap_program_is_understood_as_writer_and_understands_as_reader(backend) {
        thread::scope(|scope| {
            for transport in Transport::BOTH {
                scope.spawn(move || through_dnstap(backend, transport));
            }
        });
    }

    /// P02: a reference reader that is killed and comes back, again and again, under load.
    fn p02_an_fstrm_capture_that_is_killed_and_returns_never_holds_a_damaged_frame(backend) {
        let folder = folder();
        let healthy = CollectingReader::tcp();
        for transport in Transport::BOTH {
            let Some(mut capture) = Capture::start(transport, folder.path()) else { return };
            let relay = relay(backend).output(to_address(capture.address())).output(to(&healthy)).start();
            let before = healthy.frames();
            let mut writer = relay.writer();
            let writing = thread::spawn(move || {
                for round in 0..300 {
                    writer.send(&numbered::frames(transport as u32, round * 100..round * 100 + 100));
                    thread::sleep(millis(5));
                }
                writer.finish();
            });
            let mut files = Vec::new();
            for life in 0..3 {
                // Killed with a stream under way: connected, and a few hundred frames on.
                eventually("the capture is written to", || relay.output(0).connections == life + 1);
                let sent = relay.output(0).frames_sent;
                eventually("frames go out", || relay.output(0).frames_sent.min(30_000) >= (sent + 500).min(30_000));
                capture.kill();
                files.push(capture.path().to_owned());
                let path = folder.path().join(format!("{transport:?}-{life}.fstrm"));
                capture = Capture::start_at(&capture.address(), path).expect("it was there before");
            }
            writing.join().expect("the writer ends well");
            healthy.wait_for_frames(before + 30_000);
            eventually("the last life is written to", || relay.output(0).connections == 4);
            relay.wait_until_written();
            let ledger = relay.drain();
            capture.terminate();
            files.push(capture.path().to_owned());
            // A killed capture leaves whatever its buffer had flushed; what is whole must be right.
            let payloads: Vec<Vec<u8>> = files
                .iter()
                .filter_map(|path| FstrmFile::read(path))
                .flat_map(|file| file.payloads().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>())
                .collect();
            numbered::assert_rising(payloads.iter().map(Vec::as_slice));
            let output = &ledger.outputs[0];
            assert_eq!((output.frames_sent, dropped(output)), (30_000, 0), "{output:?}");
            assert_eq!(output.connections, 4, "{output:?}");
            assert_eq!(output.sessions_finished, 1, "{output:?}");
        }
        assert_eq!(healthy.close().frames(), 60_000);
    }

    /// The main job: three DNS servers, one each over unix, TCP and without handshake, at 2000 queries a
    /// second; two captures, a `dnstap` and a file; one capture stopped and started again meanwhile.
    fn named_and_unbound_reach_every_consumer_while_one_is_stopped_and_started_again(backend) {
        if !all_there(&["named", "unbound", "dnsperf", "fstrm_capture", "dnstap"]) {
            return;
        }
        main_job(backend).expect("all are there");
    }

    fn named_ends_at_once_when_nobody_can_be_written_to(backend) {
        if !all_there(&["named", "dnsperf"]) {
            return;
        }
        let folder = folder();
        let down = free_address(Transport::Tcp, folder.path());
        let socket = Transport::Unix.fresh_address(folder.path());
        let config = folder.path().join("tapster.toml");
        fs::write(&config, "drain_timeout = \"500ms\"\n").expect("a file");
        let summary = folder.path().join("summary.json");
        let mut program =
            tapster(backend).arg("-c").arg(&config).listen(&socket).to(&down, "").summary(summary).start();
        let mut named = Named::start(folder.path(), &socket).expect("it is there");
        let answered = Queries::start(folder.path(), named.port(), 1000, 1).expect("it is there").wait();
        let took = named.stop();
        assert!(took < Duration::from_secs(3), "{took:?}");
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!(summary.dropped(0, "shutdown"), 2 * answered, "a query and a response each");
    }
}

on_both_backends! {
    /// BIND waits for FINISH without a timeout: a relay that is late with it freezes the name server.
    alone fn rndc_is_quick_under_an_output_that_stalls(backend) {
        if all_there(&["named", "rndc", "dnsperf"]) {
            in_quiet(Duration::from_secs(1), || reopen_and_stop(backend));
        }
    }
}

/// The error is what took too long.
fn reopen_and_stop(backend: Backend) -> Result<(), String> {
    let folder = folder();
    let stalled = CollectingReader::tcp().stalled();
    let socket = Transport::Unix.fresh_address(folder.path());
    let mut program =
        tapster(backend).listen(&socket).to(&stalled.address(), "queue=64KiB&frame_len_max=32KiB").start();
    let mut named = Named::start(folder.path(), &socket).expect("it is there");
    let mut queries = Queries::start(folder.path(), named.port(), 2000, 4).expect("it is there");
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        thread::sleep(millis(500));
        took.push(named.control(&["dnstap", "-reopen"]).expect("it is there"));
    }
    let answered = queries.wait();
    let began = Instant::now();
    named.control(&["stop"]);
    named.wait_for_end();
    let stopped = began.elapsed();
    stalled.resume();
    program.terminate();
    let quick = took.iter().all(|took| *took < Duration::from_secs(1)) && stopped < Duration::from_secs(3);
    (quick && answered > 7000)
        .then_some(())
        .ok_or(format!("reopened in {took:?}, stopped in {stopped:?}, {answered} queries of 8000 answered"))
}

/// From a `dnstap` to a collector, and to another `dnstap` with a collector behind it.
fn through_dnstap(backend: Backend, transport: Transport) {
    let folder = folder();
    let file = input_file(folder.path(), 0, 5000);
    let reader = CollectingReader::start(Transport::Unix, folder.path());
    let behind = CollectingReader::start(Transport::Unix, folder.path());
    let dnstap = free_address(transport, folder.path());
    let Some(_passing) = dnstap_passes_on(&dnstap, &behind.address()) else { return };
    let relay = relay(backend)
        .input(listening(transport, folder.path()))
        .output(to(&reader))
        .output(to_address(dnstap))
        .start();
    let Some(mut sender) = dnstap_sends(&file, &relay.address()) else { return };
    sender.wait_for_success(Duration::from_secs(20));
    behind.wait_for_frames(5000);
    let ledger = relay.drain();
    numbered::assert_complete(reader.close().payloads(), &[(0, 0..5000)]);
    numbered::assert_complete(behind.close().payloads(), &[(0, 0..5000)]);
    for output in &ledger.outputs {
        assert_eq!((output.frames_sent, output.sessions_finished, dropped(output)), (5000, 1, 0));
    }
}

/// `None` where a program is missing.
fn main_job(backend: Backend) -> Option<()> {
    let folder = folder();
    let unix = Transport::Unix.fresh_address(folder.path());
    let tcp = free_address(Transport::Tcp, folder.path());
    let steady = Capture::start(Transport::Tcp, folder.path())?;
    let restarted = Capture::start(Transport::Unix, folder.path())?;
    let behind = CollectingReader::start(Transport::Unix, folder.path());
    let dnstap = free_address(Transport::Tcp, folder.path());
    let mut passing = dnstap_passes_on(&dnstap, &behind.address())?;
    let file = folder.path().join("tapster.fstrm");
    let mut program = tapster(backend)
        .listen(&unix)
        .listen(&tcp)
        .to(&steady.address(), "")
        .to(&restarted.address(), "")
        .to(&dnstap, "")
        .file(&file)
        .summary(folder.path().join("summary.json"))
        .start();

    let mut named = Named::start(folder.path(), &unix)?;
    let mut servers =
        [Unbound::start(folder.path(), &tcp, true)?, Unbound::start(folder.path(), &unix, false)?];
    let mut queries = vec![Queries::start(folder.path(), named.port(), 2000, 5)?];
    for server in &servers {
        queries.push(Queries::start(folder.path(), server.port(), 2000, 5)?);
    }

    let mut captures = vec![steady, restarted];
    thread::sleep(millis(1500));
    let mut stopped = captures.pop().expect("two");
    stopped.terminate();
    thread::sleep(millis(1000));
    captures.push(Capture::start_at(&stopped.address(), folder.path().join("after.fstrm"))?);

    let answered: Vec<u64> = queries.iter_mut().map(Queries::wait).collect();
    named.stop();
    servers.iter_mut().for_each(Unbound::stop);
    end_and_compare(&mut program, &mut captures, &stopped, behind, &file, &answered);
    passing.kill();
    Some(())
}

/// Ends the relay and its readers, and compares what each has.
fn end_and_compare(
    program: &mut Tapster,
    captures: &mut [Capture],
    stopped: &Capture,
    behind: CollectingReader,
    file: &Path,
    answered: &[u64],
) {
    program.terminate();
    captures.iter_mut().for_each(Capture::terminate);
    let summary = program.summary();
    summary.assert_balanced();
    let taken = (summary.input(0, "frames") + summary.input(1, "frames")) as usize;
    for output in 0..4 {
        assert_eq!(summary.output(output, "frames_received"), taken as u64);
        assert_eq!(summary.output(output, "frames_sent"), taken as u64, "{summary:?}");
        assert_eq!(summary.output(output, "sessions_finished"), 1, "{summary:?}");
    }
    assert_eq!(summary.output(1, "connections"), 2, "stopped once, started once");

    // Every query and every response, except what Unbound does not send when it ends.
    let expected: u64 = answered.iter().map(|answered| 2 * answered).sum();
    assert!(answered.iter().sum::<u64>() > 27_000, "the machine was too busy: {answered:?}");
    assert!(taken as u64 <= expected, "{taken} frames of {expected}");
    assert!(taken as u64 > expected - expected / 20, "only {taken} frames of {expected}");

    let written = sorted(payloads_of(&[file]));
    assert_eq!(written.len(), taken);
    assert!(sorted(payloads_of(&[captures[0].path()])) == written, "the steady capture has something else");
    eventually("the dnstap program has passed all on", || behind.frames() >= taken);
    let behind = behind.close();
    let passed = sorted(behind.payloads().into_iter().map(<[u8]>::to_vec).collect());
    assert!(passed == written, "the dnstap program has something else");

    let both_lives = sorted(payloads_of(&[stopped.path(), captures[1].path()]));
    let lost = missing(&written, &both_lives);
    let unconfirmed = summary.output(1, "bytes_unconfirmed");
    assert!(lost as u64 * 60 <= unconfirmed, "{lost} frames lost, {unconfirmed} bytes known to be");
    assert!(lost < taken / 20, "{lost} frames lost by a restart");
}
