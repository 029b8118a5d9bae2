//! Inputs that dial, while the relay changes around them: reloads, removals, upgrades.

use std::slice::from_ref;
use std::thread;
use std::time::Duration;

use tapster::relay::Predecessor;
use tapster::relay::Successor;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::A_WHILE;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::dialling;
use crate::support::relay::ended;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

/// A producer that has begun a bidirectional stream.
#[track_caller]
fn produce(listener: &PeerListener) -> Peer {
    let mut producer = listener.accept();
    producer.open_as_writer(D);
    producer
}

on_both_backends! {
    fn a_reload_ends_what_is_dialled_no_more_begins_what_is_new_and_leaves_the_rest(backend) {
        let listeners = [(); 3].map(|()| PeerListener::tcp());
        let [stays, goes, comes] = &listeners;
        let reader = CollectingReader::tcp();
        let mut relay =
            relay(backend).input(dialling(&[stays.address(), goes.address()])).output(to(&reader)).start();
        let (mut first, mut second) = (produce(stays), produce(goes));
        first.send(&numbered::frames(0, 0..100));
        second.send(&numbered::frames(1, 0..100));
        relay.reload(|config| config.inputs[0].dial = vec![stays.address(), comes.address()]);
        second.expect_close_within(Duration::from_secs(5));
        let mut third = produce(comes);
        third.send(&numbered::frames(2, 0..100));
        first.send(&numbered::frames(0, 100..200));
        reader.wait_for_frames(400);
        assert!(goes.accept_unless_silent_for(A_WHILE).is_none(), "it is dialled no more");
        // Other keys change nothing about connections that are open.
        relay.reload(|config| {
            config.inputs[0].reconnect.max = Duration::from_secs(60);
            config.inputs[0].frame_len_max = 100_000;
        });
        first.send(&numbered::frames(0, 200..300));
        first.finish();
        third.finish();
        drop(listeners);
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..300), (1, 0..100), (2, 0..100)]);
        let input = &ledger.inputs[0];
        assert_eq!((ended(input, "drained"), ended(input, "finished")), (1, 2), "{input:?}");
    }

    fn a_shorter_pause_is_seen_by_a_dial_that_waits(backend) {
        let away = PeerListener::tcp();
        let address = away.address();
        drop(away);
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend).input(dialling(from_ref(&address))).output(to(&reader)).start();
        relay.reload(|config| {
            config.inputs[0].reconnect.min = Duration::from_secs(3600);
            config.inputs[0].reconnect.max = Duration::from_secs(3600);
        });
        let failed = relay.input().dials_failed;
        eventually("it has failed once more", || relay.input().dials_failed > failed || failed > 1);
        let listener = PeerListener::on(&address);
        relay.reload(|config| {
            config.inputs[0].reconnect.min = millis(5);
            config.inputs[0].reconnect.max = millis(50);
        });
        produce(&listener).finish();
        drop(listener);
        relay.drain();
    }

    fn inputs_that_dial_come_and_go_while_others_flow(backend) {
        let (listener, reader) = (PeerListener::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend).input(tcp()).output(to(&reader)).start();
        let mut writer = relay.writer();
        for round in 0..3 {
            relay.add_input_that_dials("dials", dialling(&[listener.address()]));
            let mut producer = produce(&listener);
            producer.send(&numbered::frames(1 + round, 0..100));
            writer.send(&numbered::frames(0, u64::from(round) * 10..u64::from(round + 1) * 10));
            relay.remove_input("dials");
            producer.expect_close_within(Duration::from_secs(5));
            reader.wait_for_frames(110 * (round as usize + 1));
        }
        assert!(listener.accept_unless_silent_for(A_WHILE).is_none(), "it is dialled no more");
        writer.finish();
        let (ledger, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..30), (1, 0..100), (2, 0..100), (3, 0..100)]);
        let dials = ledger.inputs.iter().find(|input| input.name == "dials").unwrap();
        assert_eq!((dials.connections, dials.frames, ended(dials, "drained")), (3, 300, 3));
    }

    fn a_reload_brings_and_removes_inputs_that_dial(backend) {
        let (listener, reader) = (PeerListener::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend).input(tcp()).output(to(&reader)).start();
        relay.reload(|config| config.inputs.push(dialling(&[listener.address()]).config("dials")));
        let mut producer = produce(&listener);
        producer.send(&numbered::frames(0, 0..100));
        relay.reload(|config| config.inputs.truncate(1));
        producer.expect_close_within(Duration::from_secs(5));
        let (_, collected) = relay.drain_into(reader);
        numbered::assert_complete(collected.payloads(), &[(0, 0..100)]);
    }

    /// Connections pass to the new process wherever their sessions are, in the middle of a frame too. Nobody is dialled twice.
    fn an_upgrade_hands_over_what_was_dialled_and_the_new_process_dials_again_when_it_ends(backend) {
        for transport in Transport::BOTH {
            let folder = folder();
            let listeners = [(); 3].map(|()| PeerListener::bind(transport, folder.path()));
            let away = PeerListener::bind(transport, folder.path());
            let gone = away.address();
            drop(away);
            let mut addresses: Vec<_> = listeners.iter().map(PeerListener::address).collect();
            addresses.push(gone.clone());
            let reader = CollectingReader::tcp();
            let mut relay = relay(backend).input(dialling(&addresses)).output(to(&reader)).start();
            let (mut bidirectional, mut unidirectional) = (produce(&listeners[0]), listeners[1].accept());
            let mut opening = listeners[2].accept();
            let [first, second] = [numbered::frames(0, 0..200), numbered::frames(1, 0..200)];
            let cut = first.len() / 2;
            bidirectional.send(&first[..cut]);
            unidirectional.send(&[wire::start(&[D]), second[..cut].to_vec()].concat());
            let ready = wire::ready(&[D]);
            opening.send(&ready[..7]);
            eventually("both flow", || relay.input().frames > 100);
            let config = relay.config();
            relay = relay.upgrade(config);
            bidirectional.send(&first[cut..]);
            unidirectional.send(&second[cut..]);
            opening.send(&ready[7..]);
            opening.expect(&wire::accept(&[D]));
            opening.send(&[wire::start(&[D]), numbered::frames(2, 0..50)].concat());
            reader.wait_for_frames(450);
            assert!(listeners.iter().all(|listener| listener.poll_accept().is_none()), "nobody is dialled twice");
            // What ends now is dialled by the new process, and what was away as well.
            bidirectional.finish();
            let mut again = produce(&listeners[0]);
            again.send(&numbered::frames(3, 0..10));
            let late = PeerListener::on(&gone);
            let mut last = produce(&late);
            last.send(&numbered::frames(4, 0..10));
            reader.wait_for_frames(470);
            drop(unidirectional);
            for producer in [opening, again, last] {
                producer.finish();
            }
            drop((listeners, late));
            let ledger = relay.drain();
            let input = &ledger.inputs[0];
            assert_eq!((input.frames, ended(input, "drained")), (470, 0), "{input:?}");
            let collected = reader.close();
            numbered::assert_complete(
                collected.payloads(),
                &[(0, 0..200), (1, 0..200), (2, 0..50), (3, 0..10), (4, 0..10)],
            );
        }
    }

    fn a_new_process_that_does_not_take_over_leaves_dialled_connections_where_they_are(backend) {
        let listeners = [(); 2].map(|()| PeerListener::tcp());
        let reader = CollectingReader::tcp();
        let addresses = listeners.each_ref().map(PeerListener::address);
        let mut relay = relay(backend).input(dialling(&addresses)).output(to(&reader)).start();
        let mut producers = listeners.each_ref().map(produce);
        // It has ended before it reads.
        let (successor, inherited) = Successor::new().unwrap();
        let new = thread::spawn(move || drop(Predecessor::inherited(inherited).unwrap()));
        relay.inner().hand_over(&successor).unwrap_err();
        new.join().unwrap();
        for (number, producer) in (0..).zip(&mut producers) {
            producer.send(&numbered::frames(number, 0..100));
        }
        reader.wait_for_frames(200);
        assert!(listeners.iter().all(|listener| listener.poll_accept().is_none()), "nobody is dialled twice");
        let [first, second] = producers;
        first.finish();
        produce(&listeners[0]).finish();
        second.finish();
        drop(listeners);
        let (ledger, _) = relay.drain_into(reader);
        assert!(ledger.inputs[0].connections >= 3);
    }
}
