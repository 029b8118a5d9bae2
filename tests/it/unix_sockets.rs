//! Unix sockets: stale files go, sockets of the living stay, and nothing is left behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tapster::relay::Relay;
use tapster::relay::StartError;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::tapster;
use crate::support::relay::InputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;

fn input_at(path: &Path) -> InputBuilder {
    listening_on(vec![Address::Unix(path.to_owned())])
}

/// A session through the relay.
#[track_caller]
fn works(relay: &TestRelay, writer: u32) {
    let mut peer = relay.writer();
    peer.send(&numbered::frames(writer, 0..10));
    peer.finish();
}

on_both_backends! {
    fn a_stale_file_is_removed_and_nothing_is_left_at_the_end(backend) {
        let folder = folder();
        let path = folder.path().join("stale.sock");
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists(), "std leaves the file behind");
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(input_at(&path)).output(to(&reader)).start();
        works(&relay, 0);
        relay.drain_into(reader);
        assert!(!path.exists(), "removed at exit");
        assert_eq!(fs::read_dir(folder.path()).expect("our folder").count(), 0);
    }

    fn a_socket_of_a_live_process_is_not_stolen(backend) {
        let folder = folder();
        let path = folder.path().join("live.sock");
        let owner = UnixListener::bind(&path).expect("a socket");
        let reader = CollectingReader::tcp();
        let config = relay(backend).input(tcp()).input(input_at(&path)).output(to(&reader)).config();
        match Relay::start(config) {
            Err(StartError::Listen { input, address, .. }) => {
                assert_eq!((&input[..], address), ("input1", Address::Unix(path.clone())));
            }
            other => panic!("{other:?}"),
        }
        // The owner still has it.
        Peer::connect(&Address::Unix(path.clone()));
        owner.set_nonblocking(true).expect("a listener");
        while owner.accept().is_ok() {}
        Peer::connect(&Address::Unix(path.clone()));
        owner.accept().expect("the connection just made");
    }

    fn nor_is_one_of_another_relay(backend) {
        let folder = folder();
        let path = folder.path().join("live.sock");
        let reader = CollectingReader::tcp();
        let first = relay(backend).input(input_at(&path)).output(to(&reader)).start();
        let config = relay(backend).input(input_at(&path)).output(to(&reader)).config();
        assert!(matches!(Relay::start(config), Err(StartError::Listen { .. })));
        works(&first, 0);
        first.drain_into(reader);
    }

    fn a_file_that_is_no_socket_is_left_alone(backend) {
        let folder = folder();
        let path = folder.path().join("precious");
        fs::write(&path, b"precious").expect("a file");
        let reader = CollectingReader::tcp();
        let config = relay(backend).input(input_at(&path)).output(to(&reader)).config();
        assert!(matches!(Relay::start(config), Err(StartError::Listen { .. })));
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    fn the_mode_is_the_one_configured(backend) {
        for mode in [0o600, 0o660, 0o666] {
            let folder = folder();
            let path = folder.path().join("mode.sock");
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(input_at(&path).socket_mode(mode)).output(to(&reader)).start();
            assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, mode);
            works(&relay, 0);
            relay.drain_into(reader);
        }
    }

    fn a_socket_that_took_the_place_of_ours_is_not_removed(backend) {
        let folder = folder();
        let path = folder.path().join("ours.sock");
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(input_at(&path)).output(to(&reader)).start();
        fs::remove_file(&path).expect("ours");
        let successor = UnixListener::bind(&path).expect("a socket");
        let inode = fs::metadata(&path).expect("a socket").ino();
        relay.drain_into(reader);
        assert_eq!(fs::metadata(&path).expect("the successor's socket").ino(), inode);
        drop(successor);
    }

    fn a_tcp_address_in_use_is_an_error_that_names_it_and_leaves_nothing_bound(backend) {
        let folder = folder();
        let path = folder.path().join("first.sock");
        let owner = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let taken = tcp_address("127.0.0.1", owner.local_addr().expect("bound").port());
        let reader = CollectingReader::tcp();
        let config = relay(backend)
            .input(listening_on(vec![Address::Unix(path.clone()), taken.clone()]))
            .output(to(&reader))
            .config();
        match Relay::start(config) {
            Err(error @ StartError::Listen { .. }) => {
                assert!(error.to_string().contains(&taken.to_string()), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!path.exists(), "the first address is free again");
    }

    fn a_killed_program_leaves_a_file_that_the_next_start_removes(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Address::Unix(folder.path().join("tapster.sock"));
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        program.process.kill();
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        program.terminate();
        assert_eq!(fs::read_dir(folder.path()).expect("our folder").count(), 0);
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..10)]);
    }

    fn a_program_whose_address_is_in_use_exits_with_1_and_says_which(backend) {
        let folder = folder();
        let path = folder.path().join("live.sock");
        let _owner = UnixListener::bind(&path).expect("a socket");
        let address = Address::Unix(path);
        let mut program = tapster(backend).arg("--listen").arg(address.to_string())
            .file(Path::new("out.fstrm"))
            .in_folder(folder.path())
            .spawn();
        let status = program.wait_within(std::time::Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{}", program.output());
        assert!(program.output().contains(&address.to_string()), "{}", program.output());
    }
}
