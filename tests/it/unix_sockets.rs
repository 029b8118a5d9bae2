//! Unix sockets: stale files go, sockets of the living stay, and nothing is left behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tapster::relay::Relay;
use tapster::relay::StartError;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::free_address;
use crate::support::process::tapster;
use crate::support::relay::InputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;

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

/// A session through the relay that listens there.
#[track_caller]
fn works_at(address: &Address, writer: u32) {
    let mut peer = Peer::writer(address);
    peer.send(&numbered::frames(writer, 0..10));
    peer.finish();
}

/// Waits until the path has a socket that is listened on: it is there a moment before.
#[track_caller]
fn wait_until_bound_again(address: &Address) {
    eventually("it is bound again", || Stream::connect(address).is_ok());
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

    /// A clean-up of /run or /tmp, and a service manager that makes its folder again.
    fn a_path_that_is_removed_is_bound_again_within_a_second_with_its_mode_and_told(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let run = folder.path().join("run");
        fs::create_dir(&run).expect("a folder");
        let path = run.join("dnstap.sock");
        let address = Address::Unix(path.clone());
        let mut program = tapster(backend)
            .arg("--workers").arg("2")
            .arg("--listen").arg(format!("{address}?socket_mode=0660"))
            .to(&reader.address(), "")
            .start();
        program.process.wait_for_socket(&address);
        let mut before = Peer::writer(&address);
        before.send(&numbered::frames(0, 0..10));
        fs::remove_file(&path).expect("a socket");
        wait_until_bound_again(&address);
        assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o660);
        works_at(&address, 1);
        fs::remove_dir_all(&run).expect("its folder");
        program.process.wait_for_output("cannot bind it again");
        fs::create_dir(&run).expect("a folder");
        wait_until_bound_again(&address);
        // Every worker has the new socket, whichever accepts.
        for writer in 2..10 {
            works_at(&address, writer);
        }
        before.send(&numbered::frames(0, 10..20));
        before.finish();
        program.terminate();
        assert_eq!(program.process.output().matches("has bound it again").count(), 2);
        assert!(!path.exists());
        let expected: Vec<_> = (0..10).map(|writer| (writer, 0..if writer == 0 { 20 } else { 10 })).collect();
        numbered::assert_complete(reader.close().payloads(), &expected);
    }

    /// The log says so, and nothing of somebody else is touched.
    fn a_path_that_somebody_else_has_taken_is_left_to_him_and_bound_again_when_he_is_gone(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let path = folder.path().join("dnstap.sock");
        let address = Address::Unix(path.clone());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        fs::remove_file(&path).expect("a socket");
        fs::write(&path, b"precious").expect("a file");
        program.process.wait_for_output("cannot bind it again");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
        fs::remove_file(&path).expect("a file");
        wait_until_bound_again(&address);
        works_at(&address, 0);
        program.terminate();
    }

    /// A service manager starts the next process while the old one drains for as long as its collector lets it.
    fn a_new_process_has_the_addresses_while_the_old_one_drains_and_keeps_them(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let (path, silent) = (folder.path().join("dnstap.sock"), folder.path().join("silent.sock"));
        let (address, port) = (Address::Unix(path.clone()), free_address(Transport::Tcp, folder.path()));
        let _silent = UnixListener::bind(&silent).expect("a socket");
        let mut old = tapster(backend)
            .arg("--drain-timeout").arg("8s")
            .listen(&address)
            .listen(&port)
            .to(&Address::Unix(silent), "when_full=block&queue=2MiB&handshake_timeout=1h")
            .start();
        works_at(&address, 0);
        // The output holds it up, and so the inputs of the old process do not end.
        let mut held_up = Peer::writer(&port);
        held_up.send_until_stalled(&numbered::frames_of_len(0, 10..200_000, 200), millis(500));
        old.process.signal(Signal::TERM);
        eventually("the old process removes its path", || !path.exists());
        eventually("the old process closes its port", || Stream::connect(&port).is_err());
        held_up.expect_silence(millis(100));
        assert!(old.process.poll_exit().is_none(), "it drains");
        let mut new = tapster(backend).listen(&address).listen(&port).to(&reader.address(), "").start();
        works_at(&address, 1);
        works_at(&port, 3);
        old.process.wait_for_success(Duration::from_secs(20));
        works_at(&address, 2);
        new.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(1, 0..10), (2, 0..10), (3, 0..10)]);
    }

    fn a_path_whose_owner_hangs_with_a_full_backlog_is_in_use_at_once(backend) {
        let folder = folder();
        let path = folder.path().join("hangs.sock");
        let owner = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        owner.bind(&socket2::SockAddr::unix(&path).expect("short")).expect("free");
        owner.listen(0).expect("bound");
        let _waits = std::os::unix::net::UnixStream::connect(&path).expect("room for one");
        let address = Address::Unix(path);
        let mut program = tapster(backend).arg("--listen").arg(address.to_string())
            .file(&folder.path().join("out.fstrm"))
            .spawn();
        let status = program.wait_within(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{}", program.output());
        assert!(program.output().contains("backlog is full"), "{}", program.output());
    }

    fn a_stale_socket_that_must_not_be_removed_is_told_with_its_owner(backend) {
        let folder = folder();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).expect("a folder");
        let path = shared.join("stale.sock");
        drop(UnixListener::bind(&path).expect("a socket"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("ours");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o555)).expect("ours");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let address = Address::Unix(path.clone());
        let mut program = tapster(backend).run_by_nobody(folder.path())
            .arg("--listen").arg(address.to_string())
            .to(&Address::Unix("/nonexistent/collector".into()), "")
            .spawn();
        let status = program.wait_within(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{}", program.output());
        let owner = rustix::process::geteuid().as_raw().to_string();
        for text in ["may not remove it", "the file belongs to user", &owner, "remove the file as"] {
            assert!(program.output().contains(text), "{text}: {}", program.output());
        }
        assert!(path.exists());
    }

    /// Anybody could have put the link there.
    fn no_link_is_followed_in_a_folder_that_others_can_write(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let (open, own) = (folder.path().join("open"), folder.path().join("own"));
        fs::create_dir(&open).expect("a folder");
        fs::create_dir(&own).expect("a folder");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
        std::os::unix::fs::symlink(&own, open.join("link")).expect("a link");
        let config = relay(backend).input(input_at(&open.join("link/dnstap.sock"))).output(to(&reader)).config();
        let error = Relay::start(config).expect_err("a link of anybody");
        assert!(error.to_string().contains("is a link in a folder that others can write"), "{error}");
        assert_eq!(fs::read_dir(&own).expect("our folder").count(), 0);
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
        let status = program.wait_within(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{}", program.output());
        assert!(program.output().contains(&address.to_string()), "{}", program.output());
    }
}
