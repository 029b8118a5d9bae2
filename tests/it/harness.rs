//! The harness itself, against the reference: what it sends is taken by `fstrm_capture`, what it expects is
//! what `fstrm_replay` sends. Without this, a fault of its own could pass for one of the relay.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::dns::Named;
use crate::support::dns::Queries;
use crate::support::dns::Unbound;
use crate::support::files::FstrmFile;
use crate::support::files::fstrm_file;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::Capture;
use crate::support::peers::all_there;
use crate::support::peers::find;
use crate::support::peers::replay;
use crate::support::process::Process;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wire;
use crate::support::wire::D;

#[test]
fn fstrm_capture_takes_what_the_raw_writer_sends() {
    for transport in Transport::BOTH {
        let folder = folder();
        let Some(mut capture) = Capture::start(transport, folder.path()) else { return };
        let frames = numbered::frames(3, 0..1000);
        let mut writer = Peer::writer(&capture.address());
        writer.send(&frames);
        writer.finish();
        capture.terminate();
        assert!(fs::read(capture.path()).expect("a file") == fstrm_file(D, &frames));
    }
}

#[test]
fn the_raw_reader_and_the_collector_understand_fstrm_replay() {
    let Some(program) = find("fstrm_replay") else { return };
    for transport in Transport::BOTH {
        let folder = folder();
        let path = folder.path().join("in.fstrm");
        let frames = numbered::frames(3, 0..1000);
        fs::write(&path, fstrm_file(D, &frames)).expect("a file");

        let listener = PeerListener::bind(transport, folder.path());
        let mut sender = replay(&program, &path, &listener.address());
        let mut reader = listener.accept_session();
        for payload in wire::payloads(&frames) {
            reader.expect_data(payload);
        }
        reader.expect_stop();
        sender.wait_for_success(Duration::from_secs(5));

        let collector = CollectingReader::start(transport, folder.path());
        replay(&program, &path, &collector.address()).wait_for_success(Duration::from_secs(5));
        let collected = collector.close();
        assert!(collected.sessions[0].encoded == frames && collected.sessions[0].stopped);
        numbered::assert_complete(collected.payloads(), &[(3, 0..1000)]);
    }
}

/// Without a relay: what the servers of `peers` write, and how much of it.
#[test]
fn the_name_servers_write_a_query_and_a_response_each_into_fstrm_capture() {
    if !all_there(&["named", "unbound", "dnsperf", "fstrm_capture"]) {
        return;
    }
    let folder = folder();
    let mut captures = Transport::BOTH.map(|kind| Capture::start(kind, folder.path()).expect("it is there"));
    let [tcp, unix] = [captures[0].address(), captures[1].address()];
    let mut named = Named::start(folder.path(), &unix).expect("it is there");
    let mut unbound = Unbound::start(folder.path(), &tcp, true).expect("it is there");
    let mut queries = [named.port(), unbound.port()]
        .map(|port| Queries::start(folder.path(), port, 500, 1).expect("it is there"));
    let answered = queries.each_mut().map(Queries::wait);
    named.stop();
    unbound.stop();
    let counts = captures.each_mut().map(|capture| {
        capture.terminate();
        let file = FstrmFile::read(capture.path()).expect("START");
        assert!(file.clean);
        file.payloads().len() as u64
    });
    assert_eq!(counts[1], 2 * answered[0]);
    // Unbound does not send its last buffer when it ends.
    assert!((answered[1]..=2 * answered[1]).contains(&counts[0]), "{counts:?} for {answered:?}");
}

#[test]
fn the_raw_writer_sees_a_close_and_a_reset_and_half_closes_itself() {
    // The relay's answers depend on the difference.
    let listener = PeerListener::tcp();
    let mut client = Peer::connect(&listener.address());
    client.shutdown_write();
    let mut server = listener.accept();
    server.expect_close();
    server.send(b"still there");
    client.expect(b"still there");
    server.reset();
    client.expect_close();
}

#[test]
fn numbers_reveal_a_missing_a_doubled_a_swapped_and_a_damaged_frame() {
    let frames = numbered::frames(0, 0..5);
    let payloads = wire::payloads(&frames);
    numbered::assert_complete(payloads.clone(), &[(0, 0..5)]);
    let fails = |payloads: Vec<&[u8]>| {
        std::panic::catch_unwind(|| numbered::assert_complete(payloads, &[(0, 0..5)])).is_err()
    };
    let mut damaged = payloads[2].to_vec();
    damaged[17] ^= 1;
    assert!(fails(payloads[..4].to_vec()));
    assert!(fails([&payloads[..], &payloads[4..]].concat()));
    assert!(fails(vec![payloads[1], payloads[0], payloads[2], payloads[3], payloads[4]]));
    assert!(fails(vec![payloads[0], payloads[1], &damaged, payloads[3], payloads[4]]));
}

#[test]
fn a_child_does_not_outlive_its_test() {
    let pid;
    {
        let process = Process::spawn(Command::new("sleep").arg("60"));
        pid = process.id();
        process.signal(Signal::CONT);
    }
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_freed_tcp_port_can_be_bound_again_at_once() {
    // `CollectingReader::revive` depends on it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address =
        Address::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().expect("bound").port() };
    let client = Stream::connect(&address).expect("a listener");
    let (server, _) = listener.accept().expect("a connection");
    drop(listener);
    drop(server);
    drop(client);
    drop(TcpListener::bind(address.to_string().trim_start_matches("tcp://")).expect("the same port"));
}

#[test]
fn a_cut_file_is_read_as_far_as_it_goes() {
    let frames = numbered::frames(0, 0..3);
    let file = fstrm_file(D, &frames);
    let folder = folder();
    let path = folder.path().join("cut.fstrm");
    for len in 0..=file.len() {
        fs::write(&path, &file[..len]).expect("a file");
        let Some(read) = FstrmFile::read(&path) else {
            assert!(len < 42);
            continue;
        };
        assert_eq!(read.clean, len == file.len());
        assert!(frames.starts_with(&read.encoded));
    }
}
