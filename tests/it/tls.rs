//! TLS on inputs and outputs: frames arrive, and who is who is known.

use std::fs;
use std::thread;
use std::time::Duration;

use tapster::transport::Address;
use tapster::transport::tls::ClientTls;
use tapster::transport::tls::TlsVersion;

use crate::support::authority::Authority;
use crate::support::authority::Usage;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::tapster;
use crate::support::relay::InputBuilder;
use crate::support::relay::dropped;
use crate::support::relay::ended;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::Stream;
use crate::support::wire;
use crate::support::wire::D;

/// An input at a free port.
pub(crate) fn tls() -> InputBuilder {
    listening_on(vec![Address::Tls { host: "127.0.0.1".to_owned(), port: 0 }])
}

/// Connects and shakes hands, with the first bytes that are sent.
pub(crate) fn connect(address: &Address, client: &ClientTls) -> Peer {
    let connector = client.load().expect("files of the test");
    Peer::over(Stream::connect_tls(address, &connector).expect("somebody listens"))
}

on_both_backends! {
    fn frames_go_from_relay_to_relay_and_both_know_each_other(backend) {
        let authority = Authority::new();
        for min_version in [TlsVersion::V1_2, TlsVersion::V1_3] {
            let reader = CollectingReader::tcp();
            let server = tapster::transport::tls::ServerTls { min_version, ..authority.server() };
            let last = relay(backend).input(tls().tls(server)).output(to(&reader)).start();
            let client = ClientTls { min_version, ..authority.client("first.example") };
            let first = relay(backend).output(to_address(last.address()).tls(client)).start();
            let mut writer = first.writer();
            for round in 0..50 {
                writer.send(&numbered::frames(0, round * 1000..round * 1000 + 1000));
            }
            writer.finish();
            reader.wait_for_frames(50_000);
            let ledger = first.drain();
            assert_eq!((ledger.outputs[0].frames_sent, dropped(&ledger.outputs[0])), (50_000, 0));
            assert_eq!(ledger.outputs[0].sessions_finished, 1, "{:?}", ledger.outputs[0]);
            let (ledger, collected) = last.drain_into(reader);
            assert_eq!(ended(&ledger.inputs[0], "finished"), 1, "{:?}", ledger.inputs[0]);
            numbered::assert_complete(collected.payloads(), &[(0, 0..50_000)]);
        }
    }

    /// Frames of any size, in pieces that have nothing to do with records.
    fn frames_of_any_size_pass(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::over_tls(authority.server().load().unwrap());
        let relay = relay(backend).input(tls().tls(authority.server())).output(to(&reader).tls(authority.client("a"))).start();
        let mut writer = connect(&relay.address(), &authority.client("w"));
        writer.open_as_writer(D);
        let lens = [1, 2, 100, 16_379, 16_380, 16_381, 40_000, 300_000, 1 << 20, 1];
        let frames: Vec<u8> = lens.iter().flat_map(|len| wire::data(&vec![*len as u8; *len])).collect();
        for size in [1 << 20, 16 << 10, 1000, 70_000] {
            frames.chunks(size).for_each(|piece| writer.send(piece));
        }
        writer.finish();
        let (_, collected) = relay.drain_into(reader);
        let got: Vec<usize> = collected.payloads().iter().map(|payload| payload.len()).collect();
        assert_eq!(got, lens.repeat(4));
    }

    fn a_reader_that_stalls_gets_everything_once_it_reads_again(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::over_tls(authority.server().load().unwrap()).with_receive_buffer(32 << 10);
        let relay = relay(backend).output(to(&reader).tls(authority.client("a"))).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        reader.wait_for_frames(10);
        reader.stall();
        for round in 0..40 {
            writer.send(&numbered::frames(0, 10 + round * 5000..10 + round * 5000 + 5000));
        }
        relay.wait_for_frames(200_010);
        assert!(relay.output(0).frames_queued > 0, "the sockets have room for all of it");
        reader.resume();
        writer.finish();
        reader.wait_for_frames(200_010);
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..200_010)]);
    }

    /// What is acknowledged is ciphertext: the frames in it are found again.
    fn under_received_every_frame_arrives_although_readers_die(backend) {
        let authority = Authority::new();
        // More than the kernel of a reader that dies may have, and its reader has not read.
        let (receive_buffer, margin) = (16 << 10, 512 << 10);
        let reader = CollectingReader::over_tls(authority.server().load().unwrap());
        let mut reader = reader.with_receive_buffer(receive_buffer);
        let output = to(&reader).tls(authority.client("a")).replay_margin(margin);
        let relay = relay(backend).output(output.reconnect(Duration::from_millis(10), Duration::from_millis(20))).start();
        let mut writer = relay.writer();
        let writing = thread::spawn(move || {
            for round in 0..200 {
                writer.send(&numbered::frames(0, round * 200..round * 200 + 200));
                thread::sleep(Duration::from_millis(2));
            }
            writer
        });
        for life in 1..=3 {
            reader.wait_for_frames(life * 4000);
            reader.die();
            reader.revive();
        }
        writing.join().unwrap().finish();
        relay.wait_for_frames(40_000);
        let ledger = relay.drain();
        let output = &ledger.outputs[0];
        assert_eq!((dropped(output), output.frames_acknowledged), (0, 40_000), "{output:?}");
        assert!(output.frames_resent > 0, "{output:?}");
        let collected = reader.close();
        let mut seen: Vec<_> = collected.payloads().into_iter().map(|payload| numbered::Number::of(payload).sequence).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40_000);
    }

    /// Renewed files are seen by the next connection, and those that are wrong by none.
    fn a_renewed_certificate_is_shown_to_new_connections_and_a_wrong_one_never(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let server = authority.server();
        let identity = server.identity.clone();
        let mut relay = relay(backend).input(tls().tls(server)).output(to(&reader)).start();
        let client = authority.client("w.example");
        let mut old = connect(&relay.address(), &client);
        old.open_as_writer(D);
        // Only a client that asks for the new name takes the new certificate.
        authority.sign_as(&identity, Usage::Server, &["renewed.example"], 2100);
        let renewed = ClientTls { server_name: Some("renewed.example".to_owned()), ..client.clone() };
        let config = relay.config();
        assert_eq!(relay.try_reload(config.clone()), Ok(true));
        assert_eq!(relay.try_reload(config.clone()), Ok(false));
        let mut new = connect(&relay.address(), &renewed);
        new.open_as_writer(D);
        // A key of another certificate.
        fs::copy(authority.sign(Usage::Server, &["x"]).key, &identity.key).unwrap();
        let errors = relay.try_reload(config).unwrap_err();
        assert!(errors[0].contains("is not the key of the certificate"), "{errors:?}");
        let mut last = connect(&relay.address(), &renewed);
        last.open_as_writer(D);
        for (number, writer) in (0..).zip([&mut old, &mut new, &mut last]) {
            writer.send(&numbered::frames(number, 0..10));
        }
        for writer in [old, new, last] {
            writer.finish();
        }
        let (_, collected) = relay.drain_into(reader);
        assert_eq!(collected.frames(), 30);
    }

    /// The old process serves what it has encrypted, to its end.
    fn a_connection_stays_with_its_process_in_an_upgrade_and_ends_with_it(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tls().tls(authority.server())).output(to(&reader)).drain_timeout(Duration::from_secs(4)).start();
        let client = authority.client("w.example");
        let mut writer = connect(&relay.address(), &client);
        writer.open_as_writer(D);
        writer.send(&numbered::frames(0, 0..10));
        relay.wait_for_frames(10);
        let config = relay.config();
        let upgrading = thread::spawn(move || relay.upgrade(config));
        // Nobody reads the keys of a connection from another process.
        writer.expect_close_within(Duration::from_secs(10));
        let relay = upgrading.join().unwrap();
        let mut writer = connect(&relay.address(), &client);
        writer.open_as_writer(D);
        writer.send(&numbered::frames(1, 0..10));
        writer.finish();
        reader.wait_for_frames(20);
        let ledger = relay.drain();
        assert_eq!(ledger.inputs[0].frames, 20);
        reader.close();
    }

    fn the_log_names_a_peer_by_its_certificate(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let server = authority.server();
        let port = crate::support::peers::free_port();
        let address = Address::Tls { host: "127.0.0.1".to_owned(), port };
        let keys = format!(
            "tls.cert={}&tls.key={}&tls.client_ca={}&tls.allow_names=*.resolvers.example&tls.allow_names=spiffe://x/y",
            server.identity.cert.display(),
            server.identity.key.display(),
            authority.file().display()
        );
        let mut program = tapster(backend).arg("--listen").arg(format!("{address}?{keys}")).to(&reader.address(), "").start();
        program.process.wait_for_output(&format!("address={address}"));
        for name in ["ns1.resolvers.example", "spiffe://x/y"] {
            let mut writer = connect(&address, &authority.client(name));
            writer.open_as_writer(D);
            writer.finish();
        }
        let mut stranger = connect(&address, &authority.client("other.example"));
        let _ = stranger.try_send(&wire::ready(&[D]));
        stranger.expect_close_within(Duration::from_secs(10));
        program.terminate();
        let log = program.process.output();
        for words in [
            "TLS 1.3, certificate of ns1.resolvers.example",
            "certificate of spiffe://x/y",
            "its certificate is of other.example, and no name in it is in `allow_names`",
        ] {
            assert!(log.contains(words), "{words}: {log}");
        }
    }
}
