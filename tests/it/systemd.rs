//! tapster as a service of systemd: sockets that it is given, and what it says.

use std::fs;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tapster::faults;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::manager::Manager;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::process::Process;
use crate::support::process::TapsterCommand;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;

fn unix_socket(path: &Path) -> (OwnedFd, Address) {
    (UnixListener::bind(path).unwrap().into(), Address::Unix(path.to_owned()))
}

fn tcp_socket() -> (OwnedFd, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp_address("127.0.0.1", listener.local_addr().unwrap().port());
    (listener.into(), address)
}

/// Which of the variables are in the environment of a process.
fn variables(process: u32, names: &[&str]) -> Vec<String> {
    let environment = fs::read_to_string(format!("/proc/{process}/environ")).unwrap_or_default();
    let variables = environment.split('\0').filter_map(|variable| variable.split_once('='));
    variables.map(|(name, _)| name.to_owned()).filter(|name| names.contains(&&name[..])).collect()
}

on_both_backends! {
    fn an_input_takes_every_listener_of_its_name_and_leaves_the_file_of_a_socket(backend) {
        let (folder, reader, manager) = (folder(), CollectingReader::tcp(), Manager::start());
        let (unix, at_path) = unix_socket(&folder.path().join("dns.sock"));
        let [(first, first_address), (second, second_address)] = [tcp_socket(), tcp_socket()];
        let passed = [("dnstap", &unix), ("tcp", &first), ("tcp", &second)];
        let command = || {
            tapster(backend)
                .arg("--listen").arg("systemd?name=first")
                .arg("--listen").arg("systemd:tcp?name=tcp")
                .to(&reader.address(), "")
                .summary(folder.path().join("summary.json"))
        };
        let addresses = [&at_path, &first_address, &second_address];
        for round in 0..2 {
            let mut program = manager.manages(command(), &passed).start();
            manager.wait_for("READY=1");
            for (writer, address) in (0..).zip(addresses) {
                let mut peer = Peer::writer(address);
                peer.send(&numbered::frames(writer, round * 10..(round + 1) * 10));
                peer.finish();
            }
            // Who comes while no process is there waits for the next one.
            program.terminate();
            manager.wait_for("STOPPING=1");
            manager.forget();
            let summary = program.summary();
            let counts = [0, 1].map(|input| (summary.input(input, "connections"), summary.input(input, "frames")));
            assert_eq!(counts, [(1, 10), (2, 20)]);
        }
        assert!(folder.path().join("dns.sock").exists());
        let mut waits = Peer::connect(&at_path);
        waits.send(&crate::support::wire::ready(&[crate::support::wire::D]));
        let mut program = manager.manages(command(), &passed).start();
        waits.expect(&crate::support::wire::accept(&[crate::support::wire::D]));
        program.terminate();
        let complete = [(0, 0..20), (1, 0..20), (2, 0..20)];
        numbered::assert_complete(reader.close().payloads(), &complete);
    }

    fn passed_listeners_go_over_in_an_upgrade_and_not_through_the_environment(backend) {
        let (folder, reader, manager) = (folder(), CollectingReader::tcp(), Manager::start());
        let (unix, at_path) = unix_socket(&folder.path().join("dns.sock"));
        let (tcp, at_port) = tcp_socket();
        let command = tapster(backend)
            .arg("--listen").arg("systemd:dnstap")
            .arg("--listen").arg("systemd:tcp")
            .to(&reader.address(), "")
            .summary(folder.path().join("summary.json"));
        let mut program = manager.manages(command, &[("dnstap", &unix), ("tcp", &tcp)]).start();
        manager.wait_for("READY=1");
        let flows = [(0, &at_path), (1, &at_port)].map(|(writer, address)| Flow::begin(writer, address));
        let listen = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];
        assert_eq!(variables(program.process.id(), &listen).len(), 3);
        let mut next = None;
        let mut chain = Chain::default();
        for _ in 0..2 {
            flows.iter().for_each(|flow| flow.wait_for_more(60));
            manager.forget();
            match next {
                None => program.process.signal(Signal::USR2),
                Some(process) => signal(process, Signal::USR2),
            }
            manager.wait_for("MAINPID=");
            let said = manager.lines().into_iter().find_map(|line| line.strip_prefix("MAINPID=")?.parse().ok());
            assert_ne!(said, next);
            next = said;
            chain.0.extend(next);
            assert_eq!(variables(next.unwrap(), &listen), [""; 0]);
        }
        // Its output goes on with the next process.
        eventually("the first process ends", || program.process.poll_exit().is_some());
        let mut late = [&at_path, &at_port].map(Peer::writer);
        late.iter_mut().zip(2..).for_each(|(peer, writer)| peer.send(&numbered::frames(writer, 0..10)));
        for peer in late {
            peer.finish();
        }
        let sent: u64 = flows.into_iter().map(Flow::end).sum::<u64>() + 20;
        signal(next.unwrap(), Signal::TERM);
        chain.0.clear();
        eventually("the last process writes its ledger", || program.try_summary().is_some());
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!(summary.output(0, "frames_sent"), sent);
        assert_eq!(summary.input(0, "connections") + summary.input(1, "connections"), 4);
        assert_eq!(reader.close().frames(), sent);
        assert!(folder.path().join("dns.sock").exists());
    }

    fn a_listener_that_was_not_passed_is_a_fault_that_names_those_that_were(backend) {
        let (folder, manager) = (folder(), Manager::start());
        let (unix, _) = unix_socket(&folder.path().join("dns.sock"));
        let (tcp, _) = tcp_socket();
        let datagrams: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
        let own = Transport::Unix.fresh_address(folder.path());
        let mut process = manager
            .manages(
                tapster(backend)
                    .arg("--listen").arg("systemd:dns")
                    .arg("--listen").arg(own.to_string())
                    .arg("--listen").arg("systemd:datagrams")
                    .file(&folder.path().join("out.fstrm")),
                &[("dnstap", &unix), ("datagrams", &datagrams), ("tcp", &tcp)],
            )
            .spawn();
        assert_eq!(process.wait_within(Duration::from_secs(15)).code(), Some(64));
        let output = process.output();
        for text in ["2 faults", "systemd:dns: the service manager passes no socket of this name", "dnstap, datagrams, tcp",
            "datagrams is a socket that is no stream"] {
            assert!(output.contains(text), "{text}: {output}");
        }
        let Address::Unix(path) = own else { unreachable!() };
        assert!(!path.exists());
        let mut process = tapster(backend).arg("--listen").arg("systemd:dns").file(&folder.path().join("out.fstrm")).spawn();
        assert_eq!(process.wait_within(Duration::from_secs(15)).code(), Some(64));
        assert!(process.output().contains("passes no socket: start tapster by its socket unit"), "{}", process.output());
    }

    fn the_manager_hears_of_every_step_and_of_outputs_that_are_down(backend) {
        let (folder, reader, manager) = (folder(), CollectingReader::tcp().stalled(), Manager::start());
        let address = Transport::Unix.fresh_address(folder.path());
        let gone = PeerListener::tcp().address();
        let command = tapster(backend)
            .arg("--drain-timeout").arg("2s")
            .listen(&address)
            .to(&reader.address(), "when_full=block&queue=4MiB")
            .to(&gone, "name=siem")
            .to(&gone, "name=away");
        let mut program = manager.manages(command, &[]).env("WATCHDOG_USEC", "200000").start();
        manager.wait_for("READY=1");
        manager.wait_for("WATCHDOG=1");
        manager.wait_for("STATUS=");
        assert_eq!(manager.messages()[0], "READY=1\n");
        let mut writer = Peer::writer(&address);
        writer.send_until_stalled(&numbered::frames_of_len(0, 0..200_000, 200), millis(500));
        eventually("the status names them", || {
            let lines = manager.lines();
            let status = lines.iter().rfind(|line| line.starts_with("STATUS=")).unwrap();
            ["1 writer, ", "siem down", "away down", " MiB behind"].iter().all(|part| status.contains(part))
        });
        manager.forget();
        program.process.signal(Signal::TERM);
        manager.wait_for("STOPPING=1");
        program.process.wait_for_success(Duration::from_secs(15));
        let messages = manager.messages();
        let stopping = messages.iter().find(|message| message.contains("STOPPING=1")).unwrap();
        let extends = stopping.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse::<u64>().ok());
        assert!(extends.is_some_and(|micros| (2_000_000..=5_000_000).contains(&micros)), "{stopping}");
    }

    fn a_reload_is_told_with_its_time_and_its_end_whether_it_is_taken_or_refused(backend) {
        let (folder, manager) = (folder(), Manager::start());
        let [(first, first_address), (second, second_address)] = [tcp_socket(), tcp_socket()];
        let out = folder.path().join("out.fstrm");
        let write = |names: &[&str]| {
            let inputs = names.iter().map(|name| format!("[[input]]\nname = \"{name}\"\nlisten = \"systemd:{name}\"\n"));
            let output = format!("[[output]]\nto = \"file:{}\"\n", out.display());
            fs::write(folder.path().join("tapster.toml"), inputs.collect::<String>() + &output).unwrap();
        };
        write(&["first"]);
        let command = tapster(backend).arg("--config").arg(folder.path().join("tapster.toml"));
        let mut program = manager.manages(command, &[("first", &first), ("second", &second)]).start();
        manager.wait_for("READY=1");
        let mut flow = Peer::writer(&first_address);
        for (names, said) in [(&["first", "second"][..], "read again: input second: added"), (&["first", "third"], "it passes first, second")] {
            write(names);
            manager.forget();
            program.process.signal(Signal::HUP);
            manager.wait_for("READY=1");
            program.process.wait_for_output(said);
            let messages = manager.messages();
            let reloading: Vec<_> = messages.iter().filter(|message| message.contains("RELOADING=1")).collect();
            assert_eq!((reloading.len(), reloading[0].contains("\nMONOTONIC_USEC=")), (1, true), "{messages:?}");
            assert!(messages.last().unwrap().starts_with("READY=1") || messages.iter().any(|message| message == "READY=1\n"));
            // What was there goes on.
            flow.send(&numbered::frames(0, 0..1));
            Peer::writer(&second_address).finish();
        }
        flow.finish();
        // An input that takes a listener over from another one keeps it.
        write(&["second"]);
        program.process.signal(Signal::HUP);
        program.process.wait_for_output("input first: removed");
        Peer::writer(&second_address).finish();
        program.terminate();
    }

    fn a_worker_that_hangs_ends_the_signs_of_life(backend) {
        if !faults::ENABLED {
            return;
        }
        let (folder, manager) = (folder(), Manager::start());
        let address = Transport::Unix.fresh_address(folder.path());
        let command = tapster(backend)
            .env("TAPSTER_FAULTS", "worker hangs=hung=4")
            .env("WATCHDOG_USEC", "100000")
            .arg("--listen").arg(format!("{address}?name=hung"))
            .file(&folder.path().join("out.fstrm"));
        let _process: Process = manager.manages(command, &[]).spawn();
        manager.wait_for("WATCHDOG=1");
        eventually("no sign of life comes any more", || {
            manager.forget();
            std::thread::sleep(millis(500));
            manager.lines().is_empty()
        });
    }

    fn a_log_for_the_journal_has_priorities_and_no_time(backend) {
        let (folder, manager) = (folder(), Manager::start());
        let gone = PeerListener::tcp().address();
        let address = Transport::Unix.fresh_address(folder.path());
        let command = || tapster(backend).listen(&address).to(&gone, "");
        let mut program = manager.manages(command(), &[]).start();
        program.process.wait_for_output("<4>");
        program.terminate();
        let output = program.process.output();
        assert!(output.contains("<6>listening input="), "{output}");
        assert!(output.lines().all(|line| ["<3>", "<4>", "<6>"].contains(&&line[..3])), "{output}");
        // Another stream than the journal's.
        let mut program = command().env("JOURNAL_STREAM", "1:1").start();
        program.terminate();
        assert!(program.process.output().contains(" INFO listening"), "{}", program.process.output());
    }
}

/// Processes that others have started, which do not outlive their test.
#[derive(Default)]
struct Chain(Vec<u32>);

impl Drop for Chain {
    fn drop(&mut self) {
        for process in &self.0 {
            // It may have ended.
            let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
    }
}

fn signal(process: u32, signal: Signal) {
    let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

#[test]
fn check_tells_what_it_cannot_see_and_what_it_can() {
    let (folder, manager) = (folder(), Manager::start());
    let check =
        || TapsterCommand::check().arg("--listen").arg("systemd:dns").file(&folder.path().join("out.fstrm"));
    let mut process = check().spawn();
    assert_eq!(process.wait_within(Duration::from_secs(15)).code(), Some(0));
    let output = process.output();
    assert!(
        output.contains("listen = [\"systemd:dns\"]") && output.contains("cannot be seen here"),
        "{output}"
    );
    let (unix, _) = unix_socket(&folder.path().join("dns.sock"));
    for (name, code) in [("dns", 0), ("other", 64)] {
        let mut process = manager.manages(check(), &[(name, &unix)]).spawn();
        assert_eq!(process.wait_within(Duration::from_secs(15)).code(), Some(code), "{}", process.output());
    }
}
