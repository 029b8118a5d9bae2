//! Readers that connect to an output.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use tapster::observability::Ledger;
use tapster::queue::WhenFull;
use tapster::transport::Address;

use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::Capture;
use crate::support::peers::find;
use crate::support::process::Process;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped_for;
use crate::support::relay::for_subscribers;
use crate::support::relay::relay;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::PATIENCE;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::Frame;
use crate::support::wire::O;

/// A reader that begins itself, as python-dnstap-receiver does.
fn begin_as_reader(address: &Address, starts: &[&[u8]]) -> Peer {
    let mut peer = Peer::connect(address);
    peer.send(&wire::ready(&[D]));
    peer.expect(&wire::ready(&[D]));
    peer.expect(&wire::accept(&[D]));
    peer.send(&wire::start(starts));
    peer.expect(&wire::start(&[D]));
    peer
}

/// Drains while subscribers answer.
fn drain_beside(relay: TestRelay, readers: impl FnOnce()) -> Ledger {
    let drain = thread::spawn(move || relay.drain());
    readers();
    drain.join().expect("the drain ends well")
}

/// Sends frames until some wait for the only subscriber, which takes nothing, and others have been dropped.
fn overflow(relay: &TestRelay, writer: &mut Peer) {
    let mut sent = 0;
    eventually("a full queue that does not move", || {
        let output = relay.output(0);
        if output.frames_queued == 0 || output.frames_dropped.is_empty() {
            writer.send(&numbered::frames_of_len(0, sent..sent + 500, 1000));
            sent += 500;
            relay.wait_for_frames(sent);
        }
        output.frames_queued > 0 && !output.frames_dropped.is_empty() && output.oldest_age_us > Some(300_000)
    });
}

fn rejected(relay: &TestRelay, reason: &str) -> u64 {
    relay.output(0).connections_rejected.get(reason).copied().unwrap_or_default()
}

const SMALL: usize = 64 << 10;

on_both_backends! {
    fn three_handshakes_are_understood(backend) {
        let folder = folder();
        for transport in Transport::BOTH {
            for unidirectional in [false, true] {
                let output = for_subscribers(transport, folder.path())
                    .subscribers(|config| config.bidirectional = !unidirectional);
                let relay = relay(backend).output(output).start();
                let address = relay.subscribe_at();
                let mut peers = if unidirectional {
                    let mut peer = Peer::connect(&address);
                    peer.expect(&wire::start(&[D]));
                    vec![peer]
                } else {
                    vec![relay.subscriber(), begin_as_reader(&address, &[]), begin_as_reader(&address, &[D])]
                };
                let frames = numbered::frames(0, 0..100);
                let mut writer = relay.writer();
                writer.send(&frames);
                peers.iter_mut().for_each(|peer| peer.expect(&frames));
                writer.finish();
                let subscribers = peers.len() as u64;
                let ledger = drain_beside(relay, || {
                    peers.iter_mut().for_each(|peer| peer.expect(&wire::stop()));
                    if !unidirectional {
                        // This one knows FINISH, and the others see the end.
                        peers[0].send(&wire::finish());
                        peers[1].expect_close_within(PATIENCE);
                        peers[2].expect_close_within(PATIENCE);
                    }
                    peers.clear();
                });
                let output = &ledger.outputs[0];
                assert_eq!((output.frames_received, output.frames_sent), (100 * subscribers, 100 * subscribers));
                assert_eq!((output.connections, output.sessions_finished), (subscribers, subscribers));
                assert!(output.subscribers.is_empty());
            }
        }
    }

    fn each_gets_what_arrives_from_its_start_on_and_without_any_nothing_is_received(backend) {
        let folder = folder();
        let relay = relay(backend).output(for_subscribers(Transport::Tcp, folder.path())).start();
        let mut writer = relay.writer();
        let mut subscribers = Vec::new();
        for round in 0..4 {
            let frames = numbered::frames(0, 50 * round..50 * (round + 1));
            writer.send(&frames);
            relay.wait_for_frames(50 * (round + 1));
            subscribers.iter_mut().for_each(|peer: &mut Peer| peer.expect(&frames));
            assert_eq!(relay.output(0).frames_received, 50 * round * (round + 1) / 2);
            subscribers.push(relay.subscriber());
        }
        let ledger = relay.ledger();
        assert_eq!((ledger.inputs[0].frames, ledger.inputs[0].frames_unrouted), (200, 0));
        let mut sent: Vec<_> = ledger.outputs[0].subscribers.iter().map(|there| there.frames_sent).collect();
        sent.sort_unstable();
        assert_eq!(sent, [0, 50, 100, 150]);
        assert!(ledger.outputs[0].subscribers.iter().all(|there| there.since.ends_with('Z')));
        writer.finish();
        drain_beside(relay, || subscribers.into_iter().for_each(Peer::expect_stop));
    }

    fn one_that_stalls_loses_its_own_frames_and_nobody_elses(backend) {
        let folder = folder();
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Sample] {
            let output = for_subscribers(Transport::Tcp, folder.path()).queue(SMALL).when_full(when_full);
            let relay = relay(backend).output(output).start();
            let stalled = relay.subscriber();
            let there = relay.output(0).subscribers[0].address.clone();
            let mut writer = relay.writer();
            let mut sent = 0;
            let mut reader = relay.subscriber();
            eventually("a full queue", || {
                let frames = numbered::frames_of_len(0, sent..sent + 20, 1000);
                sent += 20;
                writer.send(&frames);
                reader.expect(&frames);
                relay.output(0).subscribers.iter().any(|subscriber| {
                    subscriber.address == there && !subscriber.frames_dropped.is_empty()
                })
            });
            writer.finish();
            let output = relay.output(0);
            assert!(output.balances() && output.frames_received == 2 * sent, "{output:?}");
            let other = output.subscribers.iter().find(|subscriber| subscriber.address != there).unwrap();
            assert_eq!((other.frames_sent, other.frames_dropped.len()), (sent, 0));
            let read = thread::spawn(move || stalled.serve());
            let ledger = drain_beside(relay, || reader.expect_stop());
            read.join().unwrap();
            assert_eq!(ledger.outputs[0].sessions_finished, 2);
        }
    }

    fn what_waits_for_one_that_leaves_is_dropped_and_counted(backend) {
        let folder = folder();
        let relay = relay(backend).output(for_subscribers(Transport::Tcp, folder.path()).queue(SMALL)).start();
        let leaver = relay.subscriber();
        let mut writer = relay.writer();
        overflow(&relay, &mut writer);
        let before = relay.output(0);
        assert!(before.frames_queued > 0);
        leaver.reset();
        eventually("it has left", || relay.output(0).subscribers.is_empty());
        let after = relay.output(0);
        assert!(after.balances() && after.frames_queued == 0, "{after:?}");
        assert_eq!(after.frames_received, before.frames_received);
        assert!(dropped_for(&after, "unsubscribed") > 0, "{after:?}");
        // Nobody is there.
        writer.send(&numbered::frames(1, 0..100));
        writer.finish();
        relay.wait_until_idle();
        let ledger = relay.drain();
        assert_eq!(ledger.outputs[0].frames_received, before.frames_received);
        assert_eq!(ledger.outputs[0].connections, 1);
    }

    fn one_that_takes_nothing_for_too_long_is_closed(backend) {
        let folder = folder();
        let output = for_subscribers(Transport::Unix, folder.path())
            .queue(SMALL)
            .subscribers(|config| config.stall_timeout = millis(1000));
        let relay = relay(backend).output(output).start();
        let mut idle = relay.subscriber();
        let stalled = relay.subscriber();
        let mut writer = relay.writer();
        let mut sent = 0;
        eventually("one of them is left", || {
            let frames = numbered::frames_of_len(0, sent..sent + 40, 1000);
            sent += 40;
            writer.send(&frames);
            idle.expect(&frames);
            relay.output(0).subscribers.len() == 1
        });
        // What its socket has taken by then it may still read.
        relay.wait_until_written();
        let output = relay.output(0);
        assert!(output.balances(), "{output:?}");
        assert!(sent + stalled.count_frames_until_end() >= output.frames_sent, "{output:?}");
        // One that has nothing to take does not stall.
        thread::sleep(millis(1500));
        assert_eq!(relay.output(0).subscribers.len(), 1);
        writer.finish();
        drain_beside(relay, || idle.expect_stop());
    }

    fn no_more_subscribers_than_there_may_be_are_served(backend) {
        let folder = folder();
        let output = for_subscribers(Transport::Tcp, folder.path())
            .subscribers(|config| config.subscribers_max = 2);
        let relay = relay(backend).output(output).start();
        let (first, second) = (relay.subscriber(), relay.subscriber());
        Peer::connect(&relay.subscribe_at()).expect_close_within(PATIENCE);
        eventually("it is counted", || rejected(&relay, "limit") == 1);
        drop(first);
        eventually("it has left", || relay.output(0).subscribers.len() == 1);
        let mut third = None;
        eventually("another one is served", || {
            let mut peer = Peer::connect(&relay.subscribe_at());
            third = peer.try_open_as_reader().then_some(peer);
            third.is_some()
        });
        drain_beside(relay, || [Some(second), third].into_iter().flatten().for_each(Peer::expect_stop));
    }

    fn those_that_may_not_subscribe_are_closed_without_an_answer(backend) {
        let folder = folder();
        let output = for_subscribers(Transport::Tcp, folder.path())
            .subscribers(|config| config.access.allow = vec!["127.0.0.2/32".parse().unwrap()]);
        let relay = relay(backend).output(output).start();
        let Address::Tcp { port, .. } = relay.subscribe_at() else { panic!("TCP") };
        let connect_from = |host: &str| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(host.parse().unwrap(), 0).into()).unwrap();
            socket.connect(&SocketAddr::new("127.0.0.1".parse().unwrap(), port).into()).unwrap();
            Peer::over(Stream::Tcp(TcpStream::from(socket)))
        };
        connect_from("127.0.0.1").expect_close_within(PATIENCE);
        let mut allowed = connect_from("127.0.0.2");
        allowed.open_as_reader();
        eventually("it is counted", || rejected(&relay, "not_allowed") == 1);
        eventually("one is served", || relay.output(0).connections == 1);
        drain_beside(relay, || allowed.expect_stop());
    }

    fn wrong_peers_and_silent_ones_are_closed_and_take_nothing(backend) {
        let folder = folder();
        let output = for_subscribers(Transport::Tcp, folder.path())
            .subscribers(|config| config.handshake_timeout = millis(400));
        let relay = relay(backend).output(output).start();
        let address = relay.subscribe_at();
        let ready = wire::ready(&[D]);
        let first = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"\xff\xfe\xfd\xfc garbage".to_vec(),
            wire::start(&[D]),
            wire::ready(&[O]),
            wire::accept(&[O]),
            wire::stop(),
            wire::data(b"a frame"),
        ];
        for bytes in first {
            let mut peer = Peer::connect(&address);
            peer.expect(&ready);
            peer.send(&bytes);
            peer.expect_close_within(PATIENCE);
        }
        // One that says nothing, and one that stops in the middle.
        let mut silent = Peer::connect(&address);
        let mut half = Peer::connect(&address);
        half.send(&ready);
        half.expect(&ready);
        half.expect(&wire::accept(&[D]));
        silent.expect(&ready);
        silent.expect_close_within(PATIENCE);
        half.expect_close_within(PATIENCE);
        drop(Peer::connect(&address));
        assert_eq!(relay.output(0).connections, 0);
        // A writer that takes READY for its own affair is found out by what it sends.
        let mut writer = begin_as_reader(&address, &[D]);
        let _ = writer.try_send(&numbered::frames(0, 0..10));
        writer.expect_close_within(PATIENCE);
        let subscriber = relay.subscriber();
        drain_beside(relay, || subscriber.expect_stop());
    }

    fn a_drain_delivers_what_waits_and_does_not_wait_for_those_that_do_not_answer(backend) {
        let folder = folder();
        let output = for_subscribers(Transport::Tcp, folder.path())
            .subscribers(|config| config.finish_timeout = millis(300));
        let relay = relay(backend).output(output).start();
        let (mut reads, silent) = (relay.subscriber(), relay.subscriber());
        let frames = numbered::frames(0, 0..5000);
        let mut writer = relay.writer();
        writer.send(&frames);
        writer.finish();
        let ledger = drain_beside(relay, || {
            reads.expect(&frames);
            reads.expect_stop();
        });
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.sessions_finished), (10_000, 1));
        assert_eq!(silent.count_frames_until_end(), 5000);
    }

    fn what_does_not_fit_into_the_limit_of_the_output_is_left_out_for_each(backend) {
        let folder = folder();
        let relay = relay(backend)
            .output(for_subscribers(Transport::Tcp, folder.path()).frame_len_max(600))
            .start();
        let mut subscribers = [relay.subscriber(), relay.subscriber()];
        let mut writer = relay.writer();
        writer.send(&[wire::data(&[1; 600]), wire::data(&[2; 601]), wire::data(&[3; 10])].concat());
        writer.finish();
        for peer in &mut subscribers {
            peer.expect_data(&[1; 600]);
            peer.expect_data(&[3; 10]);
        }
        let ledger = drain_beside(relay, || subscribers.into_iter().for_each(Peer::expect_stop));
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_received, dropped_for(output, "frame_too_long")), (6, 2));
    }

    fn real_readers_subscribe_through_socat(backend) {
        let (Some(socat), folder) = (find("socat"), folder()) else { return };
        let Some(mut capture) = Capture::start(Transport::Unix, folder.path()) else { return };
        let Address::Unix(socket) = capture.address() else { panic!("unix") };
        let output = |bidirectional| {
            for_subscribers(Transport::Tcp, folder.path())
                .subscribers(move |config| config.bidirectional = bidirectional)
        };
        let relay = relay(backend).output(output(true)).output(output(false)).start();
        let mut addresses = Vec::new();
        // In the order of the outputs.
        for index in 0..2 {
            let Address::Tcp { port, .. } = relay_listener(&relay, index) else { panic!("TCP") };
            addresses.push(format!("TCP:127.0.0.1:{port}"));
        }
        let file = folder.path().join("stream.fstrm");
        let mut bridge = Process::spawn(
            Command::new(&socat).arg(&addresses[0]).arg(format!("UNIX-CONNECT:{}", socket.display())),
        );
        let mut copy = Process::spawn(
            Command::new(&socat).arg("-u").arg(&addresses[1]).arg(format!("CREATE:{}", file.display())),
        );
        eventually("both are there", || (0..2).all(|index| relay.output(index).subscribers.len() == 1));
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        relay.wait_until_written();
        let ledger = relay.drain();
        for output in &ledger.outputs {
            assert_eq!((output.frames_sent, output.sessions_finished), (1000, 1), "{output:?}");
        }
        bridge.wait_within(PATIENCE);
        copy.wait_within(PATIENCE);
        capture.terminate();
        for path in [capture.path(), &file] {
            let bytes = fs::read(path).expect("a file");
            let mut rest = &bytes[..];
            let mut frames = 0;
            while let Ok(frame) = Frame::read(&mut rest) {
                frames += usize::from(matches!(frame, Frame::Data(_)));
            }
            assert_eq!(frames, 1000, "{}", path.display());
        }
    }
}

fn relay_listener(relay: &TestRelay, index: usize) -> Address {
    relay.output_listeners()[index].1.clone()
}
