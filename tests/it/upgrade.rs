//! A new relay takes over from an old one: nobody notices.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::relay::Predecessor;
use tapster::relay::Relay;
use tapster::relay::Successor;

use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_file;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

on_both_backends! {
    fn connections_pass_at_any_point_of_their_streams(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend)
            .input(tcp())
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader))
            .output(to_file(folder.path().join("%f.fstrm")))
            .start();
        let addresses: Vec<_> = relay.listeners().iter().map(|(_, address)| address.clone()).collect();
        let flows: Vec<_> = (0..4).map(|number| Flow::begin(number, &addresses[number as usize % 2])).collect();
        // Each of these stands at another point, and takes one more step after each upgrade.
        let frame = wire::data(&numbered::payload(10, 0, 300, Instant::now()));
        let mut idle = Peer::writer(&addresses[0]);
        let mut half = Peer::writer(&addresses[1]);
        half.send(&frame[..100]);
        let mut silent = Peer::connect(&addresses[0]);
        let mut opening = Peer::connect(&addresses[1]);
        let ready = wire::ready(&[D]);
        opening.send(&ready[..7]);
        let mut accepted = Peer::connect(&addresses[0]);
        accepted.send(&ready);
        accepted.expect(&wire::accept(&[D]));
        let mut one_way = Peer::connect(&addresses[1]);
        one_way.send(&wire::start(&[D]));
        one_way.send(&frame[..3]);
        flows.iter().for_each(|flow| flow.wait_for_more(100));
        for generation in 2..=4 {
            let config = relay.config();
            relay = relay.upgrade(config);
            assert_eq!(relay.inner().generation(), generation);
            flows.iter().for_each(|flow| flow.wait_for_more(60));
            assert_eq!(relay.ledger().inputs.iter().map(|input| input.connections_open).sum::<u64>(), 10);
        }
        half.send(&frame[100..]);
        one_way.send(&frame[3..]);
        opening.send(&ready[7..]);
        opening.expect(&wire::accept(&[D]));
        silent.open_as_writer(D);
        for peer in [&mut accepted, &mut opening] {
            peer.send(&wire::start(&[D]));
        }
        idle.send(&frame);
        let others = [idle, half, silent, opening, accepted];
        for peer in others {
            peer.finish();
        }
        one_way.send(&wire::stop());
        one_way.expect_close();
        // New connections are accepted, too.
        let mut late = addresses.iter().map(Peer::writer).collect::<Vec<_>>();
        late.iter_mut().for_each(|peer| peer.send(&frame));
        for peer in late {
            peer.finish();
        }
        let sent = flows.into_iter().map(Flow::end).sum::<u64>() + 5;
        let ledger = relay.drain();
        assert_eq!(ledger.inputs.iter().map(|input| input.frames).sum::<u64>(), sent);
        assert_eq!(ledger.inputs.iter().map(|input| input.connections).sum::<u64>(), 12);
        for output in &ledger.outputs {
            assert_eq!((output.frames_received, output.frames_sent, dropped(output)), (sent, sent, 0), "{output:?}");
            assert_eq!((output.connections, output.sessions_finished), (4, 4));
        }
        let collected = reader.close();
        assert_eq!(collected.frames(), sent);
    }

    fn what_a_spool_has_is_delivered_by_the_next_process(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp().stalled();
        let spool = folder.path().join("spool");
        let mut relay = relay(backend).output(to(&reader).on_disk(&spool)).drain_timeout(millis(1500)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames_of_len(0, 0..20_000, 1000));
        relay.wait_for_frames(20_000);
        let config = relay.config();
        relay = relay.upgrade(config);
        writer.send(&numbered::frames(0, 20_000..20_100));
        reader.resume();
        writer.finish();
        relay.wait_until_written();
        let ledger = relay.drain();
        let output = &ledger.outputs[0];
        assert!(output.balances() && dropped(output) == 0, "{output:?}");
        let collected = reader.close();
        assert!(collected.frames() >= 20_100, "{}", collected.frames());
    }

    fn a_new_process_that_refuses_or_ends_leaves_everything_as_it_was(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend)
            .input(tcp())
            .input(listening(Transport::Unix, folder.path()))
            .output(to(&reader))
            .start();
        let addresses: Vec<_> = relay.listeners().iter().map(|(_, address)| address.clone()).collect();
        let flows: Vec<_> = (0..4).map(|number| Flow::begin(number, &addresses[number as usize % 2])).collect();
        // One that ends before it says a word, and one that refuses.
        for refuses in [false, true] {
            let (successor, inherited) = Successor::new().unwrap();
            let new = Predecessor::inherited(inherited).unwrap();
            if refuses {
                new.refuse(true, "a fault in line 7");
            }
            drop(new);
            let error = relay.inner().hand_over(&successor).unwrap_err().to_string();
            assert!(error.contains(if refuses { "a fault in line 7" } else { "it has ended" }), "{error}");
        }
        // One whose configuration listens on what is taken.
        let in_use = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = relay.config();
        let taken = format!("tcp://{}", in_use.local_addr().unwrap()).parse().unwrap();
        config.inputs.push(listening_on(vec![taken]).config("taken"));
        let (successor, inherited) = Successor::new().unwrap();
        let new = thread::spawn(move || Relay::take_over(config, Predecessor::inherited(inherited).unwrap()));
        relay.inner().hand_over(&successor).unwrap_err();
        assert!(new.join().unwrap().unwrap_err().to_string().contains("cannot listen on"));
        flows.iter().for_each(|flow| flow.wait_for_more(60));
        let mut late = Peer::writer(&addresses[1]);
        late.send(&numbered::frames(9, 0..1));
        late.finish();
        let sent = flows.into_iter().map(Flow::end).sum::<u64>() + 1;
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!((ledger.outputs[0].frames_sent, collected.sessions.len()), (sent, 1));
    }

    fn a_connection_that_is_not_let_in_yet_holds_up_nobody(backend) {
        let reader = CollectingReader::tcp();
        let proxied = tcp().access(|access| access.proxy_from = Some(Vec::new()));
        let mut relay = relay(backend).workers(1).input(proxied).input(tcp()).output(to(&reader)).start();
        let addresses: Vec<_> = relay.listeners().iter().map(|(_, address)| address.clone()).collect();
        // Its PROXY header does not come.
        let mut silent = Peer::connect(&addresses[0]);
        eventually("it is accepted", || relay.input().connections_open == 1);
        let flow = Flow::begin(0, &addresses[1]);
        flow.wait_for_more(60);
        let config = relay.config();
        relay = relay.upgrade(config);
        flow.wait_for_more(60);
        silent.expect_close();
        let sent = flow.end();
        let ledger = relay.drain();
        assert_eq!((ledger.inputs[1].frames, reader.close().frames()), (sent, sent));
    }

    fn a_thousand_connections_pass_at_once(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend).input(listening(Transport::Unix, folder.path())).output(to(&reader)).start();
        let address = relay.address();
        let flow = Flow::begin(0, &address);
        let mut idle: Vec<_> = (0..1000).map(|_| Peer::writer(&address)).collect();
        let config = relay.config();
        let began = Instant::now();
        relay = relay.upgrade(config);
        eprintln!("hand-over of 1000 connections: {:?}", began.elapsed());
        for (number, peer) in (1..).zip(&mut idle) {
            peer.send(&numbered::frames(number, 0..1));
        }
        for peer in idle {
            peer.finish();
        }
        let sent = flow.end() + 1000;
        eventually("everything is read", || relay.input().frames == sent);
        let ledger = relay.drain();
        assert_eq!(ledger.inputs[0].connections, 1001);
        assert_eq!(reader.close().frames(), sent);
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
