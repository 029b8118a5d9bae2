//! Inputs that dial: producers that listen, and that come and go as they like.

use std::net::IpAddr;
use std::slice::from_ref;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::faults;
use tapster::queue::WhenFull;
use tapster::transport::Address;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::free_address;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::relay::TestRelay;
use crate::support::relay::dialling;
use crate::support::relay::ended;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::rejected;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

/// A producer that has begun a bidirectional stream.
#[track_caller]
fn produce(listener: &PeerListener) -> Peer {
    let mut producer = listener.accept();
    producer.open_as_writer(D);
    producer
}

/// Two listeners at different addresses of the loopback and the same port.
fn pair_of_listeners() -> [PeerListener; 2] {
    loop {
        let first = PeerListener::tcp();
        let port = port_of(&first);
        if std::net::TcpListener::bind(("127.0.0.2", port)).is_ok() {
            return [first, PeerListener::on(&tcp_address("127.0.0.2", port))];
        }
    }
}

fn port_of(listener: &PeerListener) -> u16 {
    match listener.address() {
        Address::Tcp { port, .. } | Address::Tls { port, .. } => port,
        Address::Unix(path) => panic!("{} has no port", path.display()),
        other @ Address::Systemd(_) => panic!("{other} is no address of a peer"),
    }
}

on_both_backends! {
    fn a_producer_that_listens_gets_its_reader_and_every_frame_arrives(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let (listener, reader) = (PeerListener::bind(transport, folder.path()), CollectingReader::tcp());
            let relay = relay(backend).input(dialling(&[listener.address()])).output(to(&reader)).start();
            let mut producer = produce(&listener);
            producer.send(&numbered::frames(0, 0..1000));
            reader.wait_for_frames(1000);
            producer.send(&numbered::frames(0, 1000..1100));
            producer.finish();
            reader.wait_for_frames(1100);
            // The stream that has ended in order is followed by another one.
            let mut unidirectional = listener.accept();
            unidirectional.send(&[wire::start(&[D]), numbered::frames(1, 0..500)].concat());
            reader.wait_for_frames(1600);
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..1100), (1, 0..500)]);
            let input = &ledger.inputs[0];
            assert_eq!((input.frames, input.connections, ended(input, "finished")), (1600, 2, 1), "{input:?}");
            assert_eq!((ended(input, "drained"), input.dials_failed), (1, 0), "{input:?}");
        }
    }

    fn a_producer_that_is_absent_at_the_start_or_dies_is_dialled_until_it_is_there(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let gone = PeerListener::bind(transport, folder.path());
            let address = gone.address();
            drop(gone);
            let reader = CollectingReader::tcp();
            let relay = relay(backend).input(dialling(from_ref(&address))).output(to(&reader)).start();
            eventually("attempts fail", || relay.input().dials_failed >= 3);
            for life in 0..5 {
                let failed = relay.input().dials_failed;
                let listener = PeerListener::on(&address);
                let mut producer = produce(&listener);
                producer.send(&numbered::frames(life, 0..100));
                reader.wait_for_frames(100 * (life as usize + 1));
                drop(listener);
                producer.reset();
                eventually("its absence counts", || relay.input().dials_failed > failed);
            }
            let (ledger, collected) = relay.drain_into(reader);
            let lives: Vec<_> = (0..5).map(|life| (life, 0..100)).collect();
            numbered::assert_complete(collected.payloads(), &lives);
            assert_eq!((ledger.inputs[0].connections, ledger.inputs[0].frames), (5, 500));
        }
    }

    fn every_address_has_a_connection_of_its_own(backend) {
        let folder = folder();
        let local = PeerListener::bind(Transport::Unix, folder.path());
        let [first, second] = pair_of_listeners();
        let listeners = [first, second, local];
        let reader = CollectingReader::tcp();
        let addresses: Vec<_> = listeners.iter().map(PeerListener::address).collect();
        let relay = relay(backend).input(dialling(&addresses)).output(to(&reader)).start();
        let mut producers: Vec<_> = listeners.iter().map(produce).collect();
        for (number, producer) in (0..).zip(&mut producers) {
            producer.send(&numbered::frames(number, 0..200));
        }
        reader.wait_for_frames(600);
        assert_eq!(relay.input().connections_open, 3);
        // Nobody is dialled twice.
        assert!(listeners.iter().all(|listener| listener.poll_accept().is_none()));
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..200), (1, 0..200), (2, 0..200)]);
        assert_eq!(ledger.inputs[0].connections, 3);
    }

    /// An address that is new is dialled. One that is gone is read from until its connection ends, and left alone then.
    fn the_addresses_of_a_name_are_looked_up_again(backend) {
        if !faults::ENABLED {
            return skip(Cause::Missing, "a release build has no names for tests");
        }
        let listeners = pair_of_listeners();
        let name = format!("producers-{backend:?}.test");
        let loopback = |last: u8| IpAddr::from([127, 0, 0, last]);
        let reader = CollectingReader::tcp();
        let input = dialling(&[tcp_address(&name, port_of(&listeners[0]))]);
        faults::set_name(&name, &[]);
        let relay = relay(backend).input(input).output(to(&reader)).start();
        eventually("lookups fail", || relay.input().dials_failed >= 2);
        faults::set_name(&name, &[loopback(1)]);
        let mut first = produce(&listeners[0]);
        assert!(listeners[1].poll_accept().is_none());
        faults::set_name(&name, &[loopback(2)]);
        let mut second = produce(&listeners[1]);
        first.send(&numbered::frames(0, 0..100));
        reader.wait_for_frames(100);
        first.finish();
        assert!(listeners[0].accept_unless_silent_for(A_WHILE).is_none(), "the name has another address");
        second.send(&numbered::frames(1, 0..100));
        // Name servers that are away end nothing, and keep nobody from a producer that is known.
        faults::set_name(&name, &[]);
        reader.wait_for_frames(200);
        second.finish();
        produce(&listeners[1]).finish();
        faults::set_name(&name, &[loopback(1), loopback(2)]);
        let producers = listeners.each_ref().map(produce);
        eventually("both", || relay.input().connections_open == 2);
        drop(producers);
        drop(listeners);
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..100), (1, 0..100)]);
        assert!(ledger.inputs[0].connections >= 5, "{:?}", ledger.inputs[0]);
    }

    fn a_drain_takes_what_has_arrived_and_closes_without_finish(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let (listener, reader) = (PeerListener::bind(transport, folder.path()), CollectingReader::tcp());
            let relay = relay(backend).input(dialling(&[listener.address()])).output(to(&reader)).start();
            let mut producer = produce(&listener);
            producer.send(&numbered::frames(0, 0..2000));
            let drain = thread::spawn(move || relay.drain_into(reader));
            producer.expect_close_within(Duration::from_secs(5));
            let (ledger, collected) = drain.join().unwrap();
            numbered::assert_complete(collected.payloads(), &[(0, 0..2000)]);
            assert_eq!(ended(&ledger.inputs[0], "drained"), 1);
            assert!(listener.poll_accept().is_none(), "nobody dials during a drain");
        }
    }

    fn a_drain_does_not_wait_for_a_producer_that_is_away_or_silent(backend) {
        let silent = PeerListener::tcp();
        let away = PeerListener::tcp();
        let addresses = [silent.address(), away.address()];
        drop(away);
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(dialling(&addresses)).output(to(&reader)).start();
        let mut producer = silent.accept();
        let began = Instant::now();
        relay.drain_into(reader);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        producer.expect_close();
    }

    fn a_producer_with_another_type_or_none_at_all_is_left_and_tried_again(backend) {
        let listener = PeerListener::tcp();
        let reader = CollectingReader::tcp();
        let input = dialling(&[listener.address()]).handshake_timeout(millis(300));
        let relay = relay(backend).input(input).output(to(&reader)).start();
        let mut wrong = listener.accept();
        wrong.send(&wire::ready(&[O]));
        wrong.expect_close_within(Duration::from_secs(5));
        let mut nonsense = listener.accept();
        nonsense.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        nonsense.expect_close_within(Duration::from_secs(5));
        let mut cut = listener.accept();
        cut.open_as_writer(D);
        cut.send(&wire::word(0xffff_ffff));
        cut.expect_close_within(Duration::from_secs(5));
        // One that says nothing.
        listener.accept().expect_close_within(Duration::from_secs(5));
        // One that closes at once.
        drop(listener.accept());
        let mut right = produce(&listener);
        right.send(&numbered::frames(0, 0..10));
        reader.wait_for_frames(10);
        right.finish();
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..10)]);
        let input = &ledger.inputs[0];
        assert_eq!((ended(input, "handshake_timeout"), ended(input, "finished")), (1, 1), "{input:?}");
        assert_eq!(input.frames_oversize, 1, "{input:?}");
    }

    fn frames_over_the_limit_of_the_input_are_skipped(backend) {
        let (listener, reader) = (PeerListener::tcp(), CollectingReader::tcp());
        let input = dialling(&[listener.address()]).frame_len_max(1000).skip_oversize();
        let relay = relay(backend).input(input).output(to(&reader)).start();
        let mut producer = produce(&listener);
        producer.send(&numbered::frames_of_len(0, 0..10, 500));
        producer.send(&wire::data(&[7; 5000]));
        producer.send(&numbered::frames_of_len(0, 10..20, 500));
        producer.finish();
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..20)]);
        assert_eq!((ledger.inputs[0].frames, ledger.inputs[0].frames_oversize), (20, 1));
    }

    fn a_queue_that_blocks_stops_the_reading_and_nothing_is_lost(backend) {
        const LEN: usize = 10_000;
        const FRAMES: u64 = 3000;
        for transport in Transport::BOTH {
            let folder = folder();
            let listener = PeerListener::bind(transport, folder.path());
            let reader = CollectingReader::tcp().with_receive_buffer(64 << 10).stalled();
            let output = to(&reader).when_full(WhenFull::Block).queue(2 << 20);
            let relay = relay(backend).input(dialling(&[listener.address()])).output(output).start();
            let mut producer = produce(&listener);
            let bytes = numbered::frames_of_len(0, 0..FRAMES, LEN);
            let sent = producer.send_until_stalled(&bytes, millis(500));
            assert!(sent < bytes.len(), "everything was taken");
            reader.resume();
            producer.send(&bytes[sent..]);
            producer.finish();
            let (ledger, collected) = relay.drain_into(reader);
            numbered::assert_complete(collected.payloads(), &[(0, 0..FRAMES)]);
            assert_eq!(ledger.inputs[0].frames, FRAMES);
        }
    }

    fn an_input_may_listen_and_dial_and_limits_of_listeners_are_not_for_what_it_dials(backend) {
        let folder = folder();
        let (listener, reader) = (PeerListener::tcp(), CollectingReader::tcp());
        let input = listening(Transport::Tcp, folder.path())
            .connections_max(1)
            .max_connection_age(millis(500))
            .access(|access| access.allow = vec!["127.0.0.1/32".parse().unwrap()])
            .and_dialling(&[listener.address()]);
        let relay = relay(backend).input(input).output(to(&reader)).start();
        let mut producer = produce(&listener);
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        producer.send(&numbered::frames(1, 0..10));
        reader.wait_for_frames(20);
        Peer::connect(&relay.address()).expect_close_within(Duration::from_secs(5));
        // The writer is as old as it may become, and the producer goes on.
        writer.expect_close_within(Duration::from_secs(5));
        drop(writer);
        eventually("it has ended", || ended(&relay.input(), "max_age") == 1);
        producer.send(&numbered::frames(1, 10..20));
        producer.finish();
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..10), (1, 0..20)]);
        assert_eq!(rejected(&ledger.inputs[0], "limit"), 1);
    }

    fn a_panic_of_who_dials_costs_a_moment_and_no_connection(backend) {
        if !faults::ENABLED {
            return skip(Cause::Missing, "a release build has no faults");
        }
        let name = format!("dial-panics-{backend:?}-");
        let listeners = [(); 2].map(|()| PeerListener::tcp());
        let reader = CollectingReader::tcp();
        let addresses = listeners.each_ref().map(PeerListener::address);
        // The second connection that it opens is lost with it.
        faults::arm("dialling", &format!("{name}input0"), 1);
        let relay = relay(backend).named(&name).input(dialling(&addresses[..1])).output(to(&reader));
        let mut relay = relay.start();
        let mut first = produce(&listeners[0]);
        first.send(&numbered::frames(0, 0..10));
        reader.wait_for_frames(10);
        first.finish();
        eventually("it has panicked", || relay.input().panics == 1);
        relay.reload(|config| config.inputs[0].dial.push(addresses[1].clone()));
        let mut second = produce(&listeners[1]);
        // The one that was lost waits first.
        eventually("the first is dialled again", || {
            listeners[0].poll_accept().is_some_and(|mut again| {
                again.try_send(&wire::ready(&[D])).is_ok() && again.read_some(4).is_ok_and(|read| !read.is_empty())
            })
        });
        second.send(&numbered::frames(1, 0..10));
        second.finish();
        drop(listeners);
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..10), (1, 0..10)]);
    }

    fn a_producer_that_is_away_has_one_line_in_the_log_until_it_was_there(backend) {
        let folder = folder();
        let (producer, reader) = (free_address(Transport::Tcp, folder.path()), CollectingReader::tcp());
        let (config, to) = (folder.path().join("tapster.toml"), reader.address());
        let text = format!(
            "[[input]]\nname = \"in\"\ndial = \"{producer}\"\nreconnect = {{ min = \"2ms\", max = \"10ms\" }}\n\
             [[output]]\nname = \"out\"\nto = \"{to}\"\n"
        );
        std::fs::write(&config, text).expect("a file");
        let summary = folder.path().join("summary.json");
        let mut program = tapster(backend).arg("-c").arg(&config).summary(summary).start();
        let lines = |program: &Tapster| program.process.output().matches("cannot connect").count();
        program.process.wait_for_output("dialling");
        eventually("its absence is told", || lines(&program) == 1);
        for lines_then in [1, 2] {
            let listener = PeerListener::on(&producer);
            let mut there = produce(&listener);
            assert_eq!(lines(&program), lines_then, "{}", program.process.output());
            there.send(&numbered::frames(0, 0..1));
            drop(listener);
            there.reset();
            eventually("its absence is told again", || lines(&program) == lines_then + 1);
        }
        program.terminate();
        assert!(program.summary().input(0, "dials_failed") >= 3);
        program.summary().assert_balanced();
    }

    /// At each of its addresses this same relay listens: it is left at once, and counted.
    fn a_dial_that_leads_back_to_a_listener_of_this_relay_is_recognised(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let listens = listening(Transport::Unix, folder.path()).config("listens");
        let Address::Unix(path) = listens.listen[0].clone() else { panic!("not a path") };
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(path, &link).unwrap();
        let mut relay = relay(backend).output(to(&reader)).start();
        let own = relay.add_input("listens", listening_on(listens.listen.clone()));
        let tcp = relay.address();
        relay.add_input_that_dials("dials", dialling(&[tcp, Address::Unix(link)]));
        let dials = |relay: &TestRelay| relay.input_named("dials");
        eventually("attempts count", || dials(&relay).dials_failed >= 4);
        assert_eq!(dials(&relay).connections, 0);
        assert!(Stream::connect(&own).is_ok());
        relay.drain();
    }
}
