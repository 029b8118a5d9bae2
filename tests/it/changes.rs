//! Inputs and outputs that come and go while frames flow.

use std::thread;
use std::time::Duration;

use tapster::queue::WhenFull;

use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_file;
use crate::support::relay::to_peer;
use crate::support::stream::Listener;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;

on_both_backends! {
    fn an_output_that_is_added_gets_what_arrives_from_then_on(backend) {
        let (first, second) = (CollectingReader::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend).output(to(&first)).start();
        let flows = [0, 1].map(|number| Flow::begin(number, &relay.address()));
        flows.iter().for_each(|flow| flow.wait_for_more(200));
        relay.add_output("late", to(&second));
        flows.iter().for_each(|flow| flow.wait_for_more(200));
        let sent: u64 = flows.into_iter().map(Flow::end).sum();
        let ledger = relay.drain();
        let (early, late) = (&ledger.outputs[0], &ledger.outputs[1]);
        assert_eq!((early.frames_received, early.frames_sent), (sent, sent));
        assert!((400..sent - 200).contains(&late.frames_sent), "{late:?}");
        assert_eq!((late.frames_received, dropped(late)), (late.frames_sent, 0));
        for (reader, output) in [first, second].into_iter().zip(&ledger.outputs) {
            let collected = reader.close();
            assert_sent(output, &collected);
            numbered::assert_rising(collected.payloads());
        }
    }

    fn an_output_that_is_removed_ends_in_order_and_the_others_notice_nothing(backend) {
        let folder = folder();
        let (stays, goes) = (CollectingReader::tcp(), CollectingReader::start(Transport::Unix, folder.path()));
        let mut relay = relay(backend).output(to(&stays)).output(to(&goes)).start();
        relay.add_output("files", to_file(folder.path().join("out.fstrm")));
        let flows = [0, 1].map(|number| Flow::begin(number, &relay.address()));
        flows.iter().for_each(|flow| flow.wait_for_more(200));
        relay.remove_output("output1");
        relay.remove_output("files");
        eventually("both have ended", || ["output1", "files"].iter().all(|name| relay.output_named(name).removed));
        flows.iter().for_each(|flow| flow.wait_for_more(200));
        let sent: u64 = flows.into_iter().map(Flow::end).sum();
        let ledger = relay.drain();
        let [first, second, files] = [0, 1, 2].map(|index| &ledger.outputs[index]);
        assert_eq!((first.frames_sent, first.connections, first.removed), (sent, 1, false));
        for ended in [second, files] {
            assert!((400..sent - 200).contains(&ended.frames_sent), "{ended:?}");
            assert_eq!((ended.frames_received, dropped(ended)), (ended.frames_sent, 0), "{ended:?}");
            assert_eq!((ended.connections, ended.sessions_finished, ended.removed), (1, 1, true));
        }
        assert_sent(second, &goes.close());
        assert_sent(first, &stays.close());
        let file = std::fs::read(folder.path().join("out.fstrm")).unwrap();
        assert!(file.ends_with(&wire::stop()), "the file ends with STOP");
    }

    fn what_a_removed_output_cannot_write_in_time_is_dropped_as_removed(backend) {
        let stalled = PeerListener::tcp();
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend)
            .output(to_peer(&stalled).queue(1 << 20).when_full(WhenFull::Block))
            .output(to(&reader))
            .drain_timeout(millis(1500))
            .start();
        let mut peer = stalled.accept();
        peer.open_as_reader();
        let mut writer = relay.writer();
        // It waits for room in the queue of the output that goes.
        let sending = thread::spawn(move || {
            writer.send(&numbered::frames_of_len(0, 0..20_000, 1000));
            writer
        });
        eventually("nothing moves any more", || relay.output(0).oldest_age_us > Some(300_000));
        relay.remove_output("output0");
        let mut writer = sending.join().expect("the writer goes on when the output is gone");
        eventually("the output has ended", || relay.output_named("output0").removed);
        writer.send(&numbered::frames(0, 20_000..20_100));
        writer.finish();
        let ledger = relay.drain();
        let gone = &ledger.outputs[0];
        assert!(gone.balances() && dropped_for(gone, "removed") > 100, "{gone:?}");
        assert_eq!(dropped(gone), dropped_for(gone, "removed"));
        assert_eq!(ledger.outputs[1].frames_sent, 20_100);
        reader.close();
    }

    fn a_name_that_is_used_again_continues_its_totals(backend) {
        let (one, two) = (CollectingReader::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend).output(to(&one)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        relay.wait_for_frames(1000);
        relay.remove_output("output0");
        relay.add_output("output0", to(&two));
        writer.send(&numbered::frames(0, 1000..1500));
        writer.finish();
        eventually("the first has ended", || relay.output(0).frames_sent == 1500);
        let ledger = relay.drain();
        assert_eq!((ledger.outputs.len(), ledger.outputs[0].frames_received), (1, 1500));
        assert_eq!((ledger.outputs[0].connections, ledger.outputs[0].removed), (2, false));
        assert_eq!((one.close().frames(), two.close().frames()), (1000, 500));
    }

    fn the_spool_of_a_removed_output_stays_and_the_next_one_takes_it_up(backend) {
        let folder = folder();
        let spool = folder.path().join("spool");
        let away = Transport::Tcp.fresh_address(folder.path());
        let mut relay = relay(backend).drain_timeout(millis(1000)).start();
        let output = || to_address(away.clone());
        relay.add_output("kept", output().on_disk(&spool));
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        relay.wait_for_frames(1000);
        relay.remove_output("kept");
        eventually("it has ended", || relay.output_named("kept").removed);
        let kept = relay.output_named("kept");
        assert_eq!((kept.frames_spooled, kept.frames_sent, dropped(&kept)), (1000, 0, 0), "{kept:?}");
        let reader = CollectingReader::tcp();
        relay.add_output("again", to(&reader).on_disk(&spool));
        writer.send(&numbered::frames(0, 1000..1500));
        writer.finish();
        eventually("everything is delivered", || relay.output_named("again").frames_sent == 1500);
        let ledger = relay.drain();
        assert!(ledger.outputs.iter().all(|output| output.balances() && output.frames_spooled == 0), "{ledger:?}");
        assert_eq!(reader.close().frames(), 1500);
    }

    fn the_address_of_an_input_that_goes_is_free_while_its_connections_are_held_up(backend) {
        let folder = folder();
        let stalled = PeerListener::tcp();
        let mut relay = relay(backend)
            .output(to_peer(&stalled).queue(1 << 20).when_full(WhenFull::Block))
            .drain_timeout(Duration::from_secs(60))
            .start();
        let mut reader = stalled.accept();
        reader.open_as_reader();
        for transport in [Transport::Tcp, Transport::Unix] {
            let address = relay.add_input("goes", listening(transport, folder.path()));
            let mut held_up = Peer::writer(&address);
            held_up.send_until_stalled(&numbered::frames_of_len(0, 0..200_000, 200), millis(500));
            relay.remove_input("goes");
            eventually("nobody listens any more", || Stream::connect(&address).is_err());
            held_up.expect_silence(millis(100));
            let _next = Listener::bind(&address).expect("the address is free");
        }
        let served = thread::spawn(move || reader.serve());
        relay.drain();
        served.join().expect("a reader");
    }

    fn inputs_come_and_go_and_the_connections_of_others_stay(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend).output(to(&reader)).drain_timeout(millis(500)).start();
        let stays = Flow::begin(0, &relay.address());
        let transports = [Transport::Tcp, Transport::Unix];
        let addresses = transports.map(|transport| {
            relay.add_input(&format!("{transport:?}"), listening(transport, folder.path()))
        });
        let mut writers = addresses.clone().map(|address| Peer::writer(&address));
        for (number, writer) in (1..).zip(&mut writers) {
            writer.send(&numbered::frames(number, 0..100));
        }
        eventually("all has arrived", || relay.ledger().inputs[1..].iter().all(|input| input.frames == 100));
        transports.iter().for_each(|transport| relay.remove_input(&format!("{transport:?}")));
        for writer in &mut writers {
            writer.expect_close_within(Duration::from_secs(5));
        }
        for address in &addresses {
            eventually("nobody listens any more", || Stream::connect(address).is_err());
        }
        // The address is free, and the name too.
        let again = relay.add_input("Tcp", listening_on(vec![addresses[0].clone()]));
        let mut writer = Peer::writer(&again);
        writer.send(&numbered::frames(1, 100..150));
        writer.finish();
        stays.wait_for_more(100);
        let sent = stays.end();
        let ledger = relay.drain();
        assert_eq!(ledger.inputs.iter().map(|input| input.frames).collect::<Vec<_>>(), [sent, 150, 100]);
        assert_eq!((ledger.inputs[0].connections, ledger.inputs[1].connections), (1, 2));
        let collected = reader.close();
        assert_eq!(collected.frames(), sent + 250);
        numbered::assert_rising(collected.payloads());
    }
}
