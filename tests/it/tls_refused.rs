//! Who is not let in over TLS: refused, named in words, and counted once, on both sides.

use tapster::transport::Address;
use tapster::transport::Backend;
use tapster::transport::tls::ClientTls;
use tapster::transport::tls::ServerTls;

use crate::support::authority::Authority;
use crate::support::authority::Usage;
use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::relay::ended;
use crate::support::relay::rejected;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::tls::connect;
use crate::tls::tls;

/// The address as one of TCP, to send something else than TLS to.
fn plain(address: &Address) -> Address {
    let (host, port) = address.host_port().expect("a port");
    tcp_address(host, port)
}

/// The program with an output to `to`, and these settings.
fn program_to(backend: Backend, to: &Address, client: &ClientTls) -> Tapster {
    let path = |path: &std::path::Path| path.display().to_string();
    let mut keys = client.ca.iter().map(|ca| format!("tls.ca={}", path(ca))).collect::<Vec<_>>();
    if let Some(identity) = &client.identity {
        keys.push(format!("tls.cert={}&tls.key={}", path(&identity.cert), path(&identity.key)));
    }
    keys.extend(client.server_name.iter().map(|name| format!("tls.server_name={name}")));
    tapster(backend).arg("--listen").arg("tcp://127.0.0.1:0").to(to, &keys.join("&")).start()
}

/// One way of not being let in.
struct Case {
    what: &'static str,
    server: ServerTls,
    client: ClientTls,
    /// Words in the log of the output, one of them.
    output_says: &'static [&'static str],
    /// How it counts at the input.
    counts: Counts,
}

enum Counts {
    Tls,
    NotAllowed,
}

fn cases(authority: &Authority, stranger: &Authority) -> Vec<Case> {
    let server = || authority.server();
    let client = || authority.client("w.example");
    let expired = authority.sign_until(Usage::Server, &["127.0.0.1"], 2020);
    let expired_client = authority.sign_until(Usage::Client, &["w.example"], 2020);
    let wrong_usage = authority.sign(Usage::Server, &["w.example"]);
    let allow = |names: &[&str]| names.iter().map(|name| name.parse().expect("a name")).collect();
    let identity = |identity| ClientTls { identity: Some(identity), ..authority.stranger() };
    vec![
        Case {
            what: "the reader's authority is not trusted",
            server: server(),
            client: ClientTls { ca: Some(stranger.file()), ..client() },
            output_says: &["is signed by no authority that is trusted here"],
            counts: Counts::Tls,
        },
        Case {
            what: "the reader's certificate has expired",
            server: ServerTls { identity: expired, ..server() },
            client: client(),
            output_says: &["has expired"],
            counts: Counts::Tls,
        },
        Case {
            what: "the reader has another name",
            server: ServerTls { identity: authority.sign(Usage::Server, &["other.example"]), ..server() },
            client: client(),
            output_says: &["is not for 127.0.0.1, but for"],
            counts: Counts::Tls,
        },
        Case {
            what: "the writer has no certificate",
            server: server(),
            client: authority.stranger(),
            output_says: &["it asks for a certificate: set tls.cert and tls.key"],
            counts: Counts::Tls,
        },
        Case {
            what: "the writer's authority is not trusted",
            server: server(),
            client: ClientTls { ca: Some(authority.file()), ..stranger.client("w.example") },
            output_says: &["does not trust the authority that has signed our certificate", "TLS alert"],
            counts: Counts::Tls,
        },
        Case {
            what: "the writer's certificate has expired",
            server: server(),
            client: identity(expired_client),
            output_says: &["our certificate has expired"],
            counts: Counts::Tls,
        },
        Case {
            what: "the writer's certificate is one for servers",
            server: server(),
            client: identity(wrong_usage),
            output_says: &["TLS alert"],
            counts: Counts::Tls,
        },
        Case {
            what: "the writer's name is not allowed",
            server: ServerTls { allow_names: allow(&["*.other.example", "x.example"]), ..server() },
            client: client(),
            output_says: &["before ACCEPT: it does not let us in"],
            counts: Counts::NotAllowed,
        },
        Case {
            what: "the writer's certificate has no name",
            server: ServerTls { allow_names: allow(&["*.example"]), ..server() },
            client: identity(authority.sign(Usage::Client, &[])),
            output_says: &["before ACCEPT: it does not let us in"],
            counts: Counts::NotAllowed,
        },
    ]
}

on_both_backends! {
    fn who_is_refused_is_told_so_and_counted_on_both_sides(backend) {
        let (authority, stranger) = (Authority::new(), Authority::new());
        for case in cases(&authority, &stranger) {
            let reader = CollectingReader::tcp();
            let last = relay(backend).input(tls().tls(case.server)).output(to(&reader)).start();
            let first = program_to(backend, &last.address(), &case.client);
            eventually(case.what, || {
                let output = first.process.output();
                case.output_says.iter().any(|words| output.contains(words))
            });
            eventually(case.what, || last.input().connections_open == 0 && last.input().connections > 0);
            drop(first);
            last.wait_until_idle();
            let input = last.drain().inputs.swap_remove(0);
            let (as_tls, as_name) = (ended(&input, "tls"), rejected(&input, "not_allowed"));
            match case.counts {
                // A connection that was about to begin when the program ended has said nothing.
                Counts::Tls => assert!(as_tls > 0 && as_name == 0, "{}: {input:?}", case.what),
                Counts::NotAllowed => {
                    assert!(as_tls == 0 && as_name > 0, "{}: {input:?}", case.what);
                    assert_eq!(ended(&input, "refused"), as_name, "{}: {input:?}", case.what);
                }
            }
            assert_eq!(input.frames, 0);
            reader.close();
        }
    }

    fn what_is_no_handshake_is_named_or_ended_by_the_deadline(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let input = || tls().tls(authority.server()).handshake_timeout(millis(500));
        let relay = relay(backend).input(input()).output(to(&reader)).start();
        let address = plain(&relay.address());
        // Frame Streams, and other languages: not worth waiting for.
        for bytes in [wire::ready(&[D]), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 100]] {
            let mut peer = Peer::connect(&address);
            peer.send(&bytes);
            peer.expect_close();
        }
        eventually("all are counted", || ended(&relay.input(), "tls") == 3);
        // A record of nothing of use.
        let mut peer = Peer::connect(&address);
        peer.send(&[&[0x16, 3, 1, 0, 104, 1, 0, 0, 100][..], &[0xaa; 100]].concat());
        assert_eq!(peer.read_some(1).expect("an alert"), [0x15]);
        eventually("it is counted", || ended(&relay.input(), "tls") == 4);
        // Nothing, and half of a ClientHello.
        let mut silent = Peer::connect(&address);
        let mut half = Peer::connect(&address);
        half.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
        silent.expect_close();
        half.expect_close();
        eventually("both are late", || ended(&relay.input(), "handshake_timeout") == 2);
        // Whoever closes without a byte asked whether somebody listens.
        drop(Peer::connect(&address));
        eventually("it is counted", || ended(&relay.input(), "no_stream") == 1);
        relay.drain();
        reader.close();
    }

    fn tls_at_an_address_without_it_is_named(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let address = tcp_address("127.0.0.1", crate::support::peers::free_port());
        let mut last = tapster(backend).arg("--listen").arg(address.to_string()).to(&reader.address(), "").start();
        last.process.wait_for_output(&format!("address={address}"));
        let (host, port) = address.host_port().expect("a port");
        let as_tls = Address::Tls { host: host.to_owned(), port };
        let first = program_to(backend, &as_tls, &authority.stranger());
        last.process.wait_for_output("the peer speaks TLS, and this address does not");
        first.process.wait_for_output("no TLS handshake: the peer closed the connection during the TLS handshake");
        drop(first);
        last.terminate();
        // And the other way round.
        let relay = relay(backend).input(tls().tls(authority.server())).output(to(&reader)).start();
        let first = program_to(backend, &plain(&relay.address()), &ClientTls::default());
        eventually("it is refused", || ended(&relay.input(), "tls") > 0);
        drop(first);
        relay.wait_until_idle();
        relay.drain();
        reader.close();
    }

    /// Beyond the limit they wait in the backlog, each until those before it have come to their deadline.
    fn half_open_handshakes_disturb_nobody_else(backend) {
        let authority = Authority::new();
        let reader = CollectingReader::tcp();
        let input = tls().tls(authority.server()).tls_handshakes_max(8).handshake_timeout(millis(1000));
        let relay = relay(backend).input(input).input(tcp()).output(to(&reader)).start();
        let addresses: Vec<_> = relay.listeners().iter().map(|(_, address)| address.clone()).collect();
        let flow = Flow::begin(0, &addresses[1]);
        let client = authority.client("w.example");
        let mut encrypted = connect(&addresses[0], &client);
        encrypted.open_as_writer(D);
        let half_open: Vec<_> = (0..200)
            .map(|_| {
                let mut peer = Peer::connect(&plain(&addresses[0]));
                peer.send(&[0x16, 3, 1, 2, 0]);
                peer
            })
            .collect();
        // Two workers have eight each.
        eventually("the limit is reached", || relay.input().connections_open == 17);
        flow.wait_for_more(200);
        encrypted.send(&numbered::frames(1, 0..1000));
        eventually("what is encrypted goes on", || relay.input().frames == 1000);
        assert!(relay.input().connections_open <= 17, "{:?}", relay.input());
        drop(half_open);
        let mut late = connect(&addresses[0], &client);
        late.open_as_writer(D);
        late.finish();
        encrypted.finish();
        let frames = flow.end();
        relay.wait_until_idle();
        let ledger = relay.drain();
        assert_eq!(ledger.inputs[0].connections, 202);
        assert_eq!(ledger.inputs[1].frames, frames);
        reader.close();
    }

    /// Nobody can be let in without files that fit.
    fn a_relay_does_not_start_with_files_that_do_not_fit(backend) {
        let authority = Authority::new();
        let mut server = authority.server();
        server.identity.key = authority.sign(Usage::Server, &["x"]).key;
        let config = relay(backend).input(tls().tls(server)).output(to_address(tcp_address("127.0.0.1", 1))).config();
        let error = tapster::relay::Relay::start(config).expect_err("the key is another one").to_string();
        assert!(error.contains("input `input0`: tls.key: ") && error.contains("is not the key"), "{error}");
    }
}
