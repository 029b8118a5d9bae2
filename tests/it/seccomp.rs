//! A host that forbids io_uring, as the default profiles of container runtimes do.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::thread;
use std::time::Duration;

use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompFilter;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::TapsterCommand;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::beside_others;

/// `io_uring_setup`, the same number on every architecture.
const IO_URING_SETUP: i64 = 425;
const EPERM: u32 = 1;

/// Runs `start` in a thread that may not use io_uring; what it starts inherits that.
fn without_io_uring<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        BTreeMap::from([(IO_URING_SETUP, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM),
        ARCH.try_into().expect("an architecture with seccomp"),
    )
    .expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&program).expect("a kernel with seccomp");
            start()
        });
        thread.join().expect("the program starts")
    })
}

#[test]
fn the_relay_runs_on_epoll_and_says_why() {
    let _turn = beside_others();
    let folder = folder();
    let reader = CollectingReader::tcp();
    let address = Transport::Unix.fresh_address(folder.path());
    let command = TapsterCommand::new()
        .listen(&address)
        .to(&reader.address(), "")
        .summary(folder.path().join("summary.json"));
    let mut program = without_io_uring(|| command.start());
    let mut writer = Peer::writer(&address);
    writer.send(&numbered::frames(0, 0..1000));
    writer.finish();
    program.terminate();
    numbered::assert_complete(reader.close().payloads(), &[(0, 0..1000)]);
    let log = program.process.output();
    assert!(log.contains("epoll") && log.contains("EPERM") && log.contains("doctor"), "{log}");
    program.summary().assert_balanced();
}

#[test]
fn asked_for_io_uring_alone_it_does_not_start_and_says_why() {
    let _turn = beside_others();
    let folder = folder();
    let reader = CollectingReader::tcp();
    let address = Transport::Unix.fresh_address(folder.path());
    let command = TapsterCommand::new()
        .arg("--backend")
        .arg("uring")
        .arg("--listen")
        .arg(address.to_string())
        .to(&reader.address(), "");
    let mut program = without_io_uring(|| command.spawn());
    let status = program.wait_within(Duration::from_secs(10));
    assert!(!status.success());
    let log = program.output();
    assert!(log.contains("io_uring") || log.contains("uring"), "{log}");
    assert!(log.contains("EPERM") && log.contains("doctor"), "{log}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("our folder").count(), 0, "nothing is left bound");
}
