//! Outputs that lead back to an input: 10 frames once became 636 000.
//!
//! `check` sees most of them; these relays are started without it, as when a name or a link changes later.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;

use tapster::transport::Address;
use tapster::transport::Backend;
use tapster::transport::ProxyVersion;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::Capture;
use crate::support::peers::dnstap_passes_on;
use crate::support::peers::free_address;
use crate::support::peers::free_port;
use crate::support::relay::OutputBuilder;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

/// Addresses to listen on, and others that lead there.
fn ways(folder: &Path) -> Vec<(Address, Address)> {
    let [socket, link, hard] = ["in.sock", "link", "hard"].map(|name| folder.join(name));
    symlink(&socket, &link).expect("a link");
    let mut ways = vec![
        (Address::Unix(socket.clone()), Address::Unix(socket.clone())),
        (Address::Unix(socket.clone()), Address::Unix(link)),
        (Address::Unix(socket), Address::Unix(hard)),
    ];
    for (listen, to) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.2"),
        ("0.0.0.0", "localhost"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
    ] {
        let port = free_port();
        ways.push((tcp_address(listen, port), tcp_address(to, port)));
    }
    ways
}

/// A host without IPv6 has no `::`.
fn can_listen(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } if host != "localhost" => {
            std::net::TcpListener::bind((host.as_str(), 0)).is_ok()
        }
        _ => true,
    }
}

type Change = fn(OutputBuilder) -> OutputBuilder;

/// With and without answers of the reader.
const MODES: [Change; 2] = [|output| output, OutputBuilder::unidirectional];

/// Relays each of which writes to the next, and the last to the first; the first writes to a collector too.
fn ring(backend: Backend, addresses: &[Address], mode: Change, reader: &CollectingReader) -> Vec<TestRelay> {
    let next = addresses.iter().cycle().skip(1);
    let relays = addresses.iter().zip(next).enumerate().map(|(index, (address, next))| {
        let round = mode(to_address(next.clone())).reconnect(millis(10), millis(100));
        let relay = relay(backend).input(listening_on(vec![address.clone()])).output(round);
        if index == 0 { relay.output(to(reader)).start() } else { relay.start() }
    });
    relays.collect()
}

fn connected(relay: &TestRelay) -> bool {
    relay.output(0).connections > 0
}

/// How often a relay has found that its first output leads back.
fn found(relay: &TestRelay) -> u64 {
    relay.output(0).connections_to_own_input
}

/// The same frame, so many times.
fn alike(count: usize) -> Vec<u8> {
    wire::data(b"always the same").repeat(count)
}

on_both_backends! {
    fn an_output_that_leads_to_an_input_of_its_own_relay_is_closed_and_multiplies_nothing(backend) {
        for mode in MODES {
            let folder = folder();
            for (listen, back) in ways(folder.path()) {
                if !can_listen(&listen) {
                    continue;
                }
                let reader = CollectingReader::tcp();
                let round = mode(to_address(back.clone())).reconnect(millis(10), millis(50));
                let relay =
                    relay(backend).input(listening_on(vec![listen])).output(to(&reader)).output(round).start();
                if let (Address::Unix(path), Address::Unix(hard)) = (relay.address(), &back)
                    && hard.ends_with("hard")
                {
                    std::fs::hard_link(path, hard).expect("a link");
                }
                let at = match relay.address() {
                    Address::Tcp { port, .. } => tcp_address(&Ipv4Addr::LOCALHOST.to_string(), port),
                    unix => unix,
                };
                let mut writer = Peer::writer(&at);
                writer.send(&numbered::frames(0, 0..10));
                eventually("the loop is seen, and tried again", || {
                    relay.output(1).connections_to_own_input >= 3
                });
                writer.finish();
                reader.wait_for_frames(10);
                let ledger = relay.drain();
                let [good, round] = &ledger.outputs[..] else { panic!("two outputs") };
                assert_eq!((good.frames_received, good.frames_sent), (10, 10), "{back}");
                assert_eq!((round.frames_sent, dropped(round)), (0, 10), "{back}: counted as lost");
                assert_eq!(ledger.inputs[0].frames, 10, "{back}");
                reader.close();
            }
        }
    }

    /// A relay and its collector may live in one process, and share nothing but that.
    fn a_relay_may_write_to_another_one_of_the_same_process(backend) {
        let (reader, folder) = (CollectingReader::tcp(), folder());
        let addresses = vec![tcp_address("0.0.0.0", 0), Address::Unix(folder.path().join("b.sock"))];
        let behind = relay(backend).input(listening_on(addresses)).output(to(&reader)).start();
        let Address::Tcp { port, .. } = behind.address() else { panic!("tcp") };
        let over_unix = behind.listeners()[1].1.clone();
        let front = relay(backend)
            .output(to_address(tcp_address("127.0.0.1", port)))
            .output(to_address(over_unix))
            .start();
        let mut writer = front.writer();
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        reader.wait_for_frames(20);
        assert!(front.drain().outputs.iter().all(|output| output.connections_to_own_input == 0));
        behind.drain_into(reader);
    }

    /// 10 frames once went round 46 000 times in 4 s, and would have until the end.
    fn a_loop_through_other_relays_is_proved_and_ended(backend) {
        for transport in Transport::BOTH {
            for (count, mode) in [(2, MODES[0]), (3, MODES[0]), (2, MODES[1])] {
                let (reader, folder) = (CollectingReader::tcp(), folder());
                let addresses: Vec<_> = (0..count).map(|_| free_address(transport, folder.path())).collect();
                let relays = ring(backend, &addresses, mode, &reader);
                eventually("the loop is closed", || relays.iter().all(connected));
                let mut writer = relays[0].writer();
                writer.send(&numbered::frames(0, 0..10));
                eventually("the loop is found, and found again", || relays.iter().any(|relay| found(relay) >= 3));
                let came_in = |relay: &TestRelay| relay.input().frames;
                let frames: u64 = relays.iter().map(came_in).sum();
                assert!(frames < 20_000, "{frames} frames have come of 10");
                // What is written now goes to the collector, and not round.
                let before = reader.frames();
                writer.send(&numbered::frames(0, 10..20));
                reader.wait_for_frames(before + 10);
                writer.finish();
                let ledgers: Vec<_> = relays.into_iter().map(TestRelay::drain).collect();
                let frames_at_end: u64 = ledgers.iter().map(|ledger| ledger.inputs[0].frames).sum();
                assert!(frames_at_end <= frames + 10 * (count as u64 + 1), "{frames}, then {frames_at_end}");
                reader.close();
            }
        }
    }

    /// The question stands behind a header, as the frames do.
    fn a_loop_through_inputs_that_want_a_proxy_header_is_found(backend) {
        let (reader, folder) = (CollectingReader::tcp(), folder());
        let [first, second] = [(); 2].map(|()| free_address(Transport::Tcp, folder.path()));
        let proxied = |address: &Address| {
            listening_on(vec![address.clone()]).access(|access| access.proxy_from = Some(Vec::new()))
        };
        let next = |address: &Address| {
            to_address(address.clone()).send_proxy(ProxyVersion::V2).reconnect(millis(10), millis(100))
        };
        let relays = [
            relay(backend).input(tcp()).input(proxied(&first)).output(next(&second)).output(to(&reader)).start(),
            relay(backend).input(proxied(&second)).output(next(&first)).start(),
        ];
        eventually("the loop is closed", || relays.iter().all(connected));
        let mut writer = relays[0].writer();
        writer.send(&numbered::frames(0, 0..10));
        eventually("the loop is found", || relays.iter().any(|relay| found(relay) >= 1));
        writer.finish();
        relays.into_iter().for_each(|relay| drop(relay.drain()));
        reader.close();
    }

    fn a_way_that_leads_back_no_longer_is_used_again(backend) {
        let (reader, folder) = (CollectingReader::tcp(), folder());
        let addresses: Vec<_> = (0..2).map(|_| free_address(Transport::Tcp, folder.path())).collect();
        let mut relays = ring(backend, &addresses, MODES[0], &reader);
        eventually("the loop is closed", || relays.iter().all(connected));
        let mut writer = relays[0].writer();
        writer.send(&numbered::frames(0, 0..10));
        eventually("the loop is found", || found(&relays[0]) >= 1);
        relays.pop().expect("two relays").drain();
        let other = CollectingReader::at(&addresses[1]);
        other.wait_for_sessions(1);
        let before = other.frames();
        writer.send(&numbered::frames(0, 10..20));
        other.wait_for_frames(before + 10);
        writer.finish();
        relays.pop().expect("a relay").drain();
        other.close();
    }

    /// The collector of the one is a relay, that of the other answers to dnstap alone: it is asked a question that it does not
    /// understand, now and then.
    fn a_writer_that_repeats_itself_is_no_loop(backend) {
        let far = CollectingReader::tcp();
        let behind = relay(backend).output(to(&far)).start();
        let near = PeerListener::tcp();
        let front = relay(backend).output(to_address(behind.address())).output(to_peer(&near)).start();
        let mut stream = near.accept_session();
        let mut writer = front.writer();
        let asked = std::cell::Cell::new(0);
        for round in 1..=100 {
            writer.send(&alike(100));
            for _ in 0..100 {
                stream.expect_data(b"always the same");
            }
            far.wait_for_frames(100 * round);
            while let Some(mut asking) = near.poll_accept() {
                assert!(matches!(asking.read_frame(), wire::Frame::Control(_)));
                asked.set(asked.get() + 1);
            }
        }
        assert!(asked.get() > 0, "frames that are alike look like a loop");
        writer.finish();
        let reading = std::thread::spawn(move || stream.expect_stop());
        let ledger = front.drain();
        reading.join().expect("STOP comes");
        assert!(ledger.outputs.iter().all(|output| output.connections_to_own_input == 0));
        assert!(ledger.outputs.iter().all(|output| (output.connections, output.frames_sent) == (1, 10_000)));
        behind.drain();
    }

    /// Each frame comes to the last relay by two ways.
    fn a_diamond_of_relays_is_no_loop(backend) {
        let reader = CollectingReader::tcp();
        let last = relay(backend).output(to(&reader)).start();
        let middle = || relay(backend).output(to_address(last.address())).start();
        let (left, right) = (middle(), middle());
        let first = relay(backend).output(to_address(left.address())).output(to_address(right.address())).start();
        let mut writer = first.writer();
        for round in 0..100 {
            writer.send(&numbered::frames(0, 10 * round..10 * (round + 1)));
            reader.wait_for_frames(20 * (round as usize + 1));
        }
        writer.finish();
        for relay in [first, left, right, last] {
            let ledger = relay.drain();
            assert_eq!(ended(&ledger.inputs[0], "loop_probe"), 0, "nobody has a suspicion");
            assert!(ledger.outputs.iter().all(|output| output.connections_to_own_input == 0));
        }
        assert_eq!(reader.close().frames(), 2000);
    }

    fn a_question_is_asked_on_once_and_is_no_stream(backend) {
        let name = |number: u32, hops: u8, of: &[u8]| {
            let text = format!("tapster-loop/1 0123456789abcdef 00000007 {number:08x} {hops:02x} ");
            [text.as_bytes(), of].concat()
        };
        for transport in Transport::BOTH {
            let (folder, next) = (folder(), PeerListener::tcp());
            let [strict, any] = [listening(transport, folder.path()), listening(transport, folder.path())];
            let relay =
                relay(backend).input(strict).input(any.any_content_type()).output(to_peer(&next)).start();
            let stream = next.accept_session();
            let inputs: Vec<_> = relay.listeners().iter().map(|(_, address)| address.clone()).collect();
            let ask = |input: usize, name: &[u8]| {
                let mut asking = Peer::connect(&inputs[input]);
                asking.send(&wire::ready(&[name]));
                asking.expect_close();
            };
            ask(0, &name(1, 5, b"another type"));
            ask(1, &name(2, 5, b"another type"));
            ask(1, &name(3, 0, D));
            ask(0, &name(4, 5, D));
            let mut asked = next.accept();
            asked.expect(&wire::ready(&[&name(4, 4, D)]));
            drop(asked);
            // It comes again where there are two ways to here, or a loop without the relay that asks.
            ask(1, &name(4, 5, D));
            ask(0, &name(4, 4, D));
            ask(0, &name(5, 1, D));
            next.accept().expect(&wire::ready(&[&name(5, 0, D)]));
            assert!(next.poll_accept().is_none(), "one question too many was asked on");
            let reading = std::thread::spawn(move || stream.expect_stop());
            let ledger = relay.drain();
            reading.join().expect("STOP comes");
            let probes: Vec<_> = ledger.inputs.iter().map(|input| ended(input, "loop_probe")).collect();
            assert_eq!(probes, [4, 3]);
        }
    }

    /// The readers of other people are asked what they do not understand, and go on with their streams.
    fn a_question_disturbs_no_stream_of_another_reader(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let Some(mut capture) = Capture::start(transport, folder.path()) else { return };
            let reader = CollectingReader::tcp();
            let dnstap = free_address(transport, folder.path());
            let Some(passing) = dnstap_passes_on(&dnstap, &reader.address()) else { return };
            let relay = relay(backend)
                .input(listening(transport, folder.path()))
                .output(to_address(capture.address()))
                .output(to_address(dnstap.clone()))
                .start();
            eventually("both are there", || [0, 1].iter().all(|index| relay.output(*index).connections == 1));
            let mut writer = relay.writer();
            let mut frames = 0;
            eventually("dnstap is asked", || {
                writer.send(&alike(10));
                frames += 10;
                passing.output().contains("content type mismatch")
            });
            writer.send(&alike(1000));
            frames += 1000;
            writer.finish();
            let ledger = relay.drain();
            reader.wait_for_frames(frames);
            for output in &ledger.outputs {
                let sessions = (output.connections, output.sessions_finished, output.connections_to_own_input);
                assert_eq!((output.frames_sent, sessions), (frames as u64, (1, 1, 0)));
            }
            capture.terminate();
            let file = std::fs::read(capture.path()).expect("its file");
            assert_eq!(file, [wire::start(&[D]), alike(frames), wire::stop()].concat());
        }
    }
}
