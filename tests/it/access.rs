//! Who may connect: addresses, users and groups of this host, and how many of each.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tapster::transport::Address;
use tapster::transport::LocalId;

use crate::support::collector::CollectingReader;
use crate::support::files::fstrm_file;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::absent;
use crate::support::peers::find;
use crate::support::peers::free_address;
use crate::support::process::Process;
use crate::support::process::tapster;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::rejected;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::PATIENCE;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::support::wire::D;

/// A connection from this address of the loopback to the port of `to`, on 127.0.0.1.
#[track_caller]
fn connect_from(host: &str, to: &Address) -> Peer {
    let Address::Tcp { port, .. } = to else { panic!("{to} is not TCP") };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let [from, to] = [(host, 0), ("127.0.0.1", *port)]
        .map(|(host, port)| SocketAddr::new(host.parse().expect("an address"), port));
    socket.bind(&from.into()).expect("the loopback has it");
    socket.connect(&to.into()).expect("the relay listens");
    Peer::over(Stream::Tcp(TcpStream::from(socket)))
}

/// READY, to which nothing comes but the end.
#[track_caller]
fn assert_refused(mut peer: Peer) {
    let _ = peer.try_send(&wire::ready(&[D]));
    // Among thousands, on a busy machine.
    peer.expect_close_within(PATIENCE);
}

/// A whole session with ten frames.
#[track_caller]
fn assert_served(mut peer: Peer, writer: u32) {
    peer.open_as_writer(D);
    peer.send(&numbered::frames(writer, 0..10));
    peer.finish();
}

/// `fstrm_replay` as another user, sending ten frames.
fn replay_as(uid: u32, gid: u32, folder: &Path, to: &Path) -> Option<Process> {
    if !rustix::process::geteuid().is_root() {
        absent("root, who can be another user,");
        return None;
    }
    let (program, file) = (find("fstrm_replay")?, folder.join("frames.fstrm"));
    fs::write(&file, fstrm_file(D, &numbered::frames(uid, 0..10))).expect("a file");
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, readable.clone()).expect("ours");
    fs::set_permissions(&file, readable).expect("ours");
    let mut command = Command::new(program);
    command.args(["-t", std::str::from_utf8(D).expect("ASCII"), "-r"]).arg(&file).arg("-u").arg(to);
    // Without the groups of root. Its primary group is the one that counts.
    Some(Process::spawn(command.uid(uid).gid(gid)))
}

const REFUSED: usize = 3000;
const NOBODY: u32 = 65534;

on_both_backends! {
    fn an_address_that_is_not_allowed_is_closed_without_an_answer_and_others_are_served(backend) {
        // One listener of both families sees the addresses of IPv4 within IPv6.
        for host in ["127.0.0.1", "::"] {
            let reader = CollectingReader::tcp();
            let input = listening_on(vec![tcp_address(host, 0)])
                .access(|access| access.allow = vec!["127.0.0.2/31".parse().expect("a network")]);
            let relay = relay(backend).input(input).output(to(&reader)).start();
            let address = relay.address();
            for host in ["127.0.0.1", "127.0.0.4"] {
                assert_refused(connect_from(host, &address));
            }
            for (writer, host) in ["127.0.0.2", "127.0.0.3"].into_iter().enumerate() {
                assert_served(connect_from(host, &address), writer as u32);
            }
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..10), (1, 0..10)]);
            let input = &ledger.inputs[0];
            assert_eq!((rejected(input, "not_allowed"), ended(input, "refused"), input.connections), (2, 2, 4));
        }
    }

    fn an_address_has_no_more_connections_than_it_may_and_others_have_their_own(backend) {
        let reader = CollectingReader::tcp();
        let input = tcp().access(|access| access.connections_max_per_address = Some(2));
        let relay = relay(backend).input(input).output(to(&reader)).start();
        let address = relay.address();
        let open = |host: &str| {
            let mut peer = connect_from(host, &address);
            peer.open_as_writer(D);
            peer
        };
        let first = open("127.0.0.1");
        let _second = open("127.0.0.1");
        for _ in 0..5 {
            assert_refused(connect_from("127.0.0.1", &address));
        }
        let _other = [open("127.0.0.2"), open("127.0.0.2")];
        assert_refused(connect_from("127.0.0.2", &address));
        first.finish();
        eventually("room for another", || relay.input().connections_open == 3);
        assert_served(connect_from("127.0.0.1", &address), 1);
        let input = relay.input();
        assert_eq!((rejected(&input, "limit_address"), rejected(&input, "limit")), (6, 0));
        relay.drain_into(reader);
    }

    fn connections_over_the_maximum_are_counted_with_their_reason(backend) {
        let reader = CollectingReader::tcp();
        let input = tcp().connections_max(1).access(|access| access.connections_max_per_address = Some(5));
        let relay = relay(backend).input(input).output(to(&reader)).start();
        let writer = relay.writer();
        for _ in 0..3 {
            assert_refused(Peer::connect(&relay.address()));
        }
        writer.finish();
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!((rejected(&ledger.inputs[0], "limit"), ended(&ledger.inputs[0], "refused")), (3, 3));
    }

    fn refused_connections_by_the_thousand_make_a_short_log_that_counts_them(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let address = free_address(Transport::Tcp, folder.path());
        let mut program = tapster(backend)
            .arg("--listen").arg(format!("{address}?allow=127.0.0.9"))
            .to(&reader.address(), "")
            .summary(folder.path().join("summary.json"))
            .start();
        program.process.wait_for_output(&address.to_string());
        for number in 0..REFUSED {
            // One after the other: a backlog that is full loses connections.
            let host = ["127.0.0.1", "127.0.0.2", "127.0.0.3"][number % 3];
            connect_from(host, &address).expect_close_within(PATIENCE);
        }
        assert_served(connect_from("127.0.0.9", &address), 0);
        reader.wait_for_frames(10);
        program.terminate();
        let (log, summary) = (program.process.output(), program.summary());
        assert_eq!(summary.0["inputs"][0]["connections_rejected"]["not_allowed"], REFUSED);
        let told: Vec<&str> = log.lines().filter(|line| line.contains("refused")).collect();
        let lines = told.iter().filter(|line| line.contains("is not in `allow`")).count();
        assert_eq!(lines, 3, "one for each address: {log}");
        let left_out: usize = told
            .iter()
            .filter_map(|line| line.split_once("left_out=")?.1.split_whitespace().next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(lines + left_out, REFUSED, "{log}");
        assert!(log.lines().count() < 30, "{log}");
    }

    fn a_local_user_is_let_in_by_its_name_or_its_primary_group(backend) {
        let ids = |texts: &[&str]| texts.iter().map(|text| LocalId::user(text).expect("a number")).collect();
        for (users, groups) in [(vec!["65534"], vec![]), (vec![], vec!["65534"]), (vec!["1", "65534"], vec!["2"])] {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let input = listening(Transport::Unix, folder.path()).socket_mode(0o666).access(|access| {
                (access.allow_users, access.allow_groups) = (ids(&users), ids(&groups));
            });
            let relay = relay(backend).input(input).output(to(&reader)).start();
            let Address::Unix(path) = relay.address() else { panic!("not unix") };
            let Some(mut nobody) = replay_as(NOBODY, NOBODY, folder.path(), &path) else { return };
            nobody.wait_for_success(Duration::from_secs(10));
            // Root is a user like others.
            assert_refused(Peer::connect(&relay.address()));
            let mut other = replay_as(4711, 4712, folder.path(), &path).expect("as before");
            eventually("another user is refused", || rejected(&relay.input(), "peer") == 2);
            other.kill();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(NOBODY, 0..10)]);
            assert!(rejected(&ledger.inputs[0], "peer") >= 2);
        }
    }

    fn a_socket_belongs_to_the_user_and_group_of_the_configuration(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let path = folder.path().join("theirs.sock");
        let address = Address::Unix(path.clone());
        if !rustix::process::geteuid().is_root() {
            return absent("root, who can give files away,");
        }
        let mut program = tapster(backend)
            .arg("--listen").arg(format!("{address}?socket_user=65534&socket_group=4712&socket_mode=0600"))
            .to(&reader.address(), "")
            .start();
        program.process.wait_for_output(&address.to_string());
        let metadata = fs::metadata(&path).expect("a socket");
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (NOBODY, 4712, 0o600));
        let Some(mut nobody) = replay_as(NOBODY, NOBODY, folder.path(), &path) else { return };
        nobody.wait_for_success(Duration::from_secs(10));
        let mut other = replay_as(4711, 4712, folder.path(), &path).expect("as before");
        let status = other.wait_within(Duration::from_secs(10));
        assert!(!status.success(), "the mode keeps others out: {}", other.output());
        reader.wait_for_frames(10);
        program.terminate();
    }

    fn a_user_who_cannot_give_a_socket_away_is_told_so(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        if !rustix::process::geteuid().is_root() {
            return absent("root, who can be another user,");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
        let path = folder.path().join("theirs.sock");
        let mut program = tapster(backend).run_by_nobody(folder.path())
            .arg("--listen").arg(format!("unix:{}?socket_user=root", path.display()))
            .to(&reader.address(), "")
            .spawn();
        let status = program.wait_within(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{}", program.output());
        assert!(program.output().contains("cannot give the socket file to user root"), "{}", program.output());
        assert!(!path.exists());
    }
}
