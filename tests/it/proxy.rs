//! The PROXY header: from balancers to inputs, and from outputs.

use std::fs;
use std::time::Duration;

use tapster::transport::Address;
use tapster::transport::Backend;
use tapster::transport::ProxyVersion;
use tapster::transport::proxy_header::encode;
use tapster::transport::proxy_header::parse;

use crate::support::collector::CollectingReader;
use crate::support::files::fstrm_file;
use crate::support::haproxy::haproxy;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::find;
use crate::support::peers::free_address;
use crate::support::peers::replay;
use crate::support::process::Process;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::relay::InputBuilder;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::rejected;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::support::wire::D;

const VERSIONS: [ProxyVersion; 2] = [ProxyVersion::V1, ProxyVersion::V2];

/// A header of this version that names this client.
fn header(version: ProxyVersion, client: &str) -> Vec<u8> {
    let client = client.parse().expect("an address with a port");
    encode(
        version,
        Some((
            client,
            if client.is_ipv4() { "192.0.2.99:6000" } else { "[2001:db8::99]:6000" }
                .parse()
                .expect("an address"),
        )),
    )
}

fn proxied(input: InputBuilder) -> InputBuilder {
    input.access(|access| access.proxy_from = Some(Vec::new()))
}

/// The program with an input of these keys, before the collector.
#[track_caller]
fn program(backend: Backend, address: &Address, keys: &str, reader: &CollectingReader) -> Tapster {
    let program = tapster(backend)
        .arg("--log-level")
        .arg("debug")
        .arg("--listen")
        .arg(format!("{address}?{keys}"))
        .to(&reader.address(), "")
        .start();
    // A warning may name the address before.
    program.process.wait_for_output(&format!("address={address}"));
    program
}

/// `fstrm_replay` of ten frames; `None` where it is not installed.
fn ten_frames(folder: &std::path::Path, writer: u32, to: &Address) -> Option<Process> {
    let file = folder.join(format!("{writer}.fstrm"));
    fs::write(&file, fstrm_file(D, &numbered::frames(writer, 0..10))).expect("a file");
    Some(replay(&find("fstrm_replay")?, &file, to))
}

on_both_backends! {
    fn what_stands_behind_a_header_is_the_stream_however_it_is_cut(backend) {
        let session = [wire::ready(&[D]), wire::start(&[D]), numbered::frames(0, 0..10), wire::stop()].concat();
        for transport in Transport::BOTH {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let relay = relay(backend).input(proxied(listening(transport, folder.path()))).output(to(&reader)).start();
            let mut sessions = 0;
            for head in [header(VERSIONS[0], "192.0.2.1:1"), header(VERSIONS[1], "[2001:db8::1]:1"), b"PROXY UNKNOWN\r\n".to_vec()] {
                let bytes = [&head[..], &session].concat();
                for cuts in [vec![], vec![head.len()], vec![head.len() - 1], vec![head.len() + 1], (1..bytes.len().min(200)).collect()] {
                    let mut writer = Peer::connect(&relay.address());
                    let mut sent = 0;
                    for cut in cuts.into_iter().chain([bytes.len()]) {
                        writer.send(&bytes[sent..cut]);
                        sent = cut;
                    }
                    writer.expect(&wire::accept(&[D]));
                    writer.expect(&wire::finish());
                    writer.expect_close();
                    sessions += 1;
                }
            }
            let (ledger, collected) = relay.drain_into(reader);
            assert_eq!(collected.frames(), 10 * sessions);
            assert_eq!(ended(&ledger.inputs[0], "finished"), sessions);
        }
    }

    fn the_log_names_the_peer_of_the_header_and_allow_applies_to_it(backend) {
        for transport in Transport::BOTH {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let address = free_address(transport, folder.path());
            let mut program = program(backend, &address, "proxy_protocol=true&allow=192.0.2.0/24&allow=127.0.0.1&connections_max_per_address=1", &reader);
            // The second one is IPv4 within IPv6.
            for header in [header(VERSIONS[1], "192.0.2.1:4711"), b"PROXY TCP6 ::ffff:192.0.2.2 ::1 4712 1\r\n".to_vec()] {
                let mut writer = Peer::connect(&address);
                writer.send(&header);
                writer.open_as_writer(D);
                // One of this address is there already.
                let mut second = Peer::connect(&address);
                second.send(&header);
                second.expect_close();
                writer.finish();
            }
            for client in ["192.0.3.1:1", "[2001:db8::1]:1"] {
                let mut refused = Peer::connect(&address);
                refused.send(&header(VERSIONS[1], client));
                refused.expect_close();
            }
            // The balancer speaks for itself.
            let mut local = Peer::connect(&address);
            local.send(&encode(ProxyVersion::V2, None));
            local.open_as_writer(D);
            local.finish();
            program.terminate();
            let log = program.process.output();
            let told = |peer: &str, text: &str| log.lines().any(|line| line.contains(&format!("peer={peer}")) && line.contains(text));
            for peer in ["192.0.2.1:4711", "[::ffff:192.0.2.2]:4712"] {
                assert!(told(peer, "connection: content type") && told(peer, "`connections_max_per_address`"), "{peer}: {log}");
            }
            for peer in ["192.0.3.1:1", "[2001:db8::1]:1"] {
                assert!(told(peer, "is not in `allow`"), "{peer}: {log}");
            }
            let own = if transport == Transport::Unix { "unix" } else { "127.0.0.1:" };
            assert!(told(own, "connection: content type"), "{log}");
        }
    }

    fn peers_outside_of_proxy_from_cannot_forge_an_address(backend) {
        let reader = CollectingReader::tcp();
        let input = tcp().access(|access| {
            access.proxy_from = Some(vec!["127.0.0.2/32".parse().expect("a network")]);
            access.allow = vec!["192.0.2.0/24".parse().expect("a network")];
        });
        let relay = relay(backend).input(input).output(to(&reader)).start();
        for version in VERSIONS {
            let mut forger = Peer::connect(&relay.address());
            let _ = forger.try_send(&[header(version, "192.0.2.1:1"), wire::ready(&[D])].concat());
            forger.expect_close();
        }
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!((rejected(&ledger.inputs[0], "proxy_header"), ended(&ledger.inputs[0], "refused")), (2, 2));
    }

    fn what_is_no_header_is_closed_on_and_counted(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(proxied(tcp())).output(to(&reader)).start();
        let v2 = |rest: &[u8]| [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), rest].concat();
        let wrong = [
            wire::ready(&[D]),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n".to_vec(),
            [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 93]].concat(),
            v2(&[0x21, 0x11, 0x10, 0x01]),
            v2(&[0x21, 0x11, 0, 12]).into_iter().chain([1; 11]).chain([1]).collect::<Vec<u8>>()[..16].to_vec(),
            v2(&[0x33, 0x11, 0, 0]),
        ];
        let mut refused = 0;
        for bytes in &wrong {
            let mut peer = Peer::connect(&relay.address());
            let _ = peer.try_send(bytes);
            if parse(bytes) == Ok(None) {
                // It may become one.
                peer.shutdown_write();
                peer.expect_close();
                continue;
            }
            peer.expect_close();
            refused += 1;
        }
        // The longest that is taken.
        let longest = [v2(&[0x21, 0x11, 0x10, 0x00]), vec![192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2, 4, 0x0f, 0xf1], vec![0; 4081]].concat();
        let mut writer = Peer::connect(&relay.address());
        writer.send(&longest);
        writer.open_as_writer(D);
        writer.finish();
        // A balancer that looks whether somebody listens.
        drop(Peer::connect(&relay.address()));
        relay.wait_until_idle();
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(refused, wrong.len() as u64 - 1);
        assert_eq!(rejected(&ledger.inputs[0], "proxy_header"), refused);
        assert_eq!((ended(&ledger.inputs[0], "no_stream"), ended(&ledger.inputs[0], "finished")), (2, 1));
    }

    fn header_and_handshake_have_one_deadline(backend) {
        let reader = CollectingReader::tcp();
        let timeout = Duration::from_millis(800);
        let relay = relay(backend).input(proxied(tcp()).handshake_timeout(timeout)).output(to(&reader)).start();
        let head = header(VERSIONS[0], "192.0.2.1:1");
        let mut slow = Peer::connect(&relay.address());
        let mut silent = Peer::connect(&relay.address());
        let began = std::time::Instant::now();
        std::thread::sleep(timeout / 2);
        slow.send(&head);
        slow.expect_close();
        silent.expect_close();
        assert!(began.elapsed() >= timeout * 9 / 10, "{:?}", began.elapsed());
        relay.wait_until_idle();
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(ended(&ledger.inputs[0], "handshake_timeout"), 2);
    }

    fn a_header_where_none_is_expected_is_told_with_what_to_do(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let address = free_address(Transport::Tcp, folder.path());
        let mut program = program(backend, &address, "", &reader);
        for version in VERSIONS {
            let mut peer = Peer::connect(&address);
            let _ = peer.try_send(&header(version, "192.0.2.1:1"));
            peer.expect_close();
        }
        program.process.wait_for_output("set `proxy_protocol = true`");
        eventually("both are told", || program.process.output().matches("set `proxy_protocol = true`").count() == 2);
        program.terminate();
    }

    fn haproxy_tells_for_whom_it_connects(backend) {
        for (number, words) in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c", "send-proxy-v2 check inter 100ms"].into_iter().enumerate() {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let address = free_address(Transport::Tcp, folder.path());
            let keys = "proxy_protocol=true&proxy_from=127.0.0.9&allow=127.0.0.1&allow=127.0.0.9";
            let mut program = program(backend, &address, keys, &reader);
            // Not before: the port of the relay is free until the relay listens.
            let between = free_address(Transport::Tcp, folder.path());
            let words = format!("{words} source 127.0.0.9");
            let Some(mut haproxy) = haproxy(folder.path(), (&between, ""), (&address, &words)) else { return };
            let Some(mut replay) = ten_frames(folder.path(), number as u32, &between) else { return };
            replay.wait_for_success(Duration::from_secs(10));
            reader.wait_for_frames(10);
            haproxy.kill();
            program.terminate();
            let log = program.process.output();
            assert!(log.lines().any(|line| line.contains("peer=127.0.0.1:") && line.contains("connection: content type")), "{log}");
            assert!(!log.contains("refused") && !log.contains("PROXY header"), "{log}");
            numbered::assert_complete(reader.close().payloads(), &[(number as u32, 0..10)]);
        }
    }

    /// Its clients on a unix socket have no address, and its connection to us may be one as well.
    fn haproxy_speaks_for_clients_without_an_address(backend) {
        for transport in Transport::BOTH {
            for words in ["send-proxy", "send-proxy-v2"] {
                let (folder, reader) = (folder(), CollectingReader::tcp());
                let address = free_address(transport, folder.path());
                let between = free_address(Transport::Unix, folder.path());
                let mut program = program(backend, &address, "proxy_protocol=true", &reader);
                let Some(mut haproxy) = haproxy(folder.path(), (&between, ""), (&address, words)) else { return };
                let Some(mut replay) = ten_frames(folder.path(), 0, &between) else { return };
                replay.wait_for_success(Duration::from_secs(10));
                reader.wait_for_frames(10);
                haproxy.kill();
                program.terminate();
                assert!(!program.process.output().contains("refused"), "{}", program.process.output());
            }
        }
    }

    fn an_output_tells_of_its_own_connection(backend) {
        for transport in Transport::BOTH {
            for version in VERSIONS {
                let folder = folder();
                let listener = PeerListener::bind(transport, folder.path());
                let relay = relay(backend).output(to_peer(&listener).send_proxy(version)).start();
                let mut collector = listener.accept();
                let header = match (transport, version) {
                    (Transport::Unix, version) => {
                        let header = encode(version, None);
                        collector.expect(&header);
                        header
                    }
                    (_, ProxyVersion::V1) => {
                        let mut line = Vec::new();
                        while !line.ends_with(b"\r\n") {
                            line.extend(collector.read_some(1).expect("a line"));
                        }
                        line
                    }
                    (_, ProxyVersion::V2) => {
                        let mut bytes = Vec::new();
                        while bytes.len() < 28 {
                            bytes.extend(collector.read_some(28 - bytes.len()).expect("a header"));
                        }
                        bytes
                    }
                };
                let parsed = parse(&header).expect("a header").expect("a whole one");
                assert_eq!(parsed.len, header.len());
                assert_eq!(parsed.source.map(|source| source.ip().to_string()), (transport == Transport::Tcp).then(|| "127.0.0.1".to_owned()));
                collector.open_as_reader();
                let mut writer = relay.writer();
                writer.send(&wire::data(b"abc"));
                collector.expect_data(b"abc");
                writer.finish();
                let closing = std::thread::spawn(move || collector.expect_stop());
                let ledger = relay.drain();
                closing.join().expect("STOP came");
                assert_eq!(ledger.outputs[0].bytes_sent, 7, "the header is no data");
            }
        }
    }

    fn frames_are_acknowledged_exactly_behind_a_header(backend) {
        let listener = PeerListener::tcp();
        let relay = relay(backend).output(to_peer(&listener).send_proxy(ProxyVersion::V2).ack_received()).start();
        let mut writer = relay.writer();
        writer.send(&wire::data(b"abc"));
        let mut collector = listener.accept();
        collector.expect(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..]);
        let _ = collector.read_some(12).expect("addresses");
        collector.open_as_reader();
        collector.expect_data(b"abc");
        eventually("acknowledged", || relay.output(0).frames_acknowledged == 1);
        collector.reset();
        // It does not come again.
        let mut collector = listener.accept();
        collector.expect(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..]);
        let _ = collector.read_some(12).expect("addresses");
        collector.open_as_reader();
        writer.send(&wire::data(b"def"));
        collector.expect_data(b"def");
        writer.finish();
        let closing = std::thread::spawn(move || collector.expect_stop());
        relay.drain();
        closing.join().expect("STOP came");
    }

    fn haproxy_takes_the_header_of_an_output_and_of_replay(backend) {
        for words in ["v1", "v2", "true"] {
            let (folder, reader) = (folder(), CollectingReader::tcp());
            let between = free_address(Transport::Tcp, folder.path());
            let Some(program) = find("haproxy") else { return };
            drop(program);
            let address = free_address(Transport::Unix, folder.path());
            let Some(mut haproxy) = haproxy(folder.path(), (&between, "accept-proxy"), (&reader.address(), "")) else { return };
            let mut program = tapster(backend).listen(&address).to(&between, &format!("send_proxy={words}")).start();
            let mut writer = Peer::writer(&address);
            writer.send(&numbered::frames(0, 0..10));
            writer.finish();
            reader.wait_for_frames(10);
            let file = folder.path().join("replayed.fstrm");
            fs::write(&file, fstrm_file(D, &numbered::frames(1, 0..10))).expect("a file");
            let replayed = std::process::Command::new(env!("CARGO_BIN_EXE_tapster"))
                .arg("replay").arg(&file).arg("--to").arg(format!("{between}?send_proxy={words}"))
                .output().expect("tapster runs");
            assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
            reader.wait_for_frames(20);
            program.terminate();
            haproxy.kill();
            numbered::assert_complete(reader.close().payloads(), &[(0, 0..10), (1, 0..10)]);
        }
    }
}
