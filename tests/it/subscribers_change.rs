//! Outputs that listen come, go and change, and another process takes over, while subscribers read.

use std::thread;

use tapster::output::Destination;
use tapster::protocol::ContentType;

use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped_for;
use crate::support::relay::for_subscribers;
use crate::support::relay::for_subscribers_at;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::PATIENCE;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

fn subscribe(address: &tapster::transport::Address) -> Peer {
    let mut peer = Peer::connect(address);
    peer.open_as_reader();
    peer
}

/// Frames that both write and read, so that none is on its way.
fn pass(writer: &mut Peer, readers: &mut [&mut Peer], from: u64) {
    let frames = numbered::frames(0, from..from + 10);
    writer.send(&frames);
    readers.iter_mut().for_each(|reader| reader.expect(&frames));
}

fn drain_beside(relay: TestRelay, readers: impl FnOnce()) -> tapster::observability::Ledger {
    let drain = thread::spawn(move || relay.drain());
    readers();
    drain.join().expect("the drain ends well")
}

on_both_backends! {
    fn subscribers_of_listeners_that_stay_notice_nothing_and_those_of_one_that_goes_get_stop(backend) {
        let folder = folder();
        let addresses: Vec<_> = (0..3).map(|_| Transport::Unix.fresh_address(folder.path())).collect();
        let mut relay = relay(backend).output(for_subscribers_at(addresses[..2].to_vec())).start();
        let (mut stays, mut goes) = (subscribe(&addresses[0]), subscribe(&addresses[1]));
        let mut writer = relay.writer();
        pass(&mut writer, &mut [&mut stays, &mut goes], 0);
        relay.reload(|config| {
            let Destination::Subscribers(subscribers) = &mut config.outputs[0].to else { panic!("listens") };
            subscribers.listen = vec![addresses[0].clone(), addresses[2].clone()];
            subscribers.subscribers_max = 2;
        });
        goes.expect_stop();
        let mut comes = None;
        eventually("one may come in place of the one that went", || {
            let mut peer = Peer::connect(&addresses[2]);
            comes = peer.try_open_as_reader().then_some(peer);
            comes.is_some()
        });
        let mut comes = comes.unwrap();
        Peer::connect(&addresses[0]).expect_close_within(PATIENCE);
        pass(&mut writer, &mut [&mut stays, &mut comes], 10);
        // The room of queues, at once.
        relay.reload(|config| config.outputs[0] = {
            let mut output = for_subscribers_at(Vec::new()).queue(1 << 20).config("output0");
            output.to = config.outputs[0].to.clone();
            output
        });
        pass(&mut writer, &mut [&mut stays, &mut comes], 20);
        writer.finish();
        let ledger = drain_beside(relay, || [stays, comes].into_iter().for_each(Peer::expect_stop));
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.connections, output.sessions_finished), (60, 3, 3));
    }

    fn an_output_comes_and_goes_and_its_subscribers_with_it(backend) {
        let folder = folder();
        let mut relay = relay(backend).output(for_subscribers(Transport::Tcp, folder.path())).start();
        let mut other = relay.subscriber();
        let mut writer = relay.writer();
        for round in 0..3 {
            relay.add_output("live", for_subscribers(Transport::Unix, folder.path()));
            let address = relay.output_listeners()[1].1.clone();
            let mut reader = subscribe(&address);
            pass(&mut writer, &mut [&mut other, &mut reader], 10 * round);
            relay.remove_output("live");
            reader.expect_stop();
            eventually("it is removed", || relay.output_named("live").removed);
            let mut late = None;
            eventually("nobody listens", || {
                late = crate::support::stream::Stream::connect(&address).ok();
                late.is_none()
            });
        }
        let live = relay.output_named("live");
        assert_eq!((live.frames_received, live.frames_sent, live.sessions_finished), (30, 30, 3));
        writer.finish();
        drain_beside(relay, || other.expect_stop());
    }

    fn a_reload_that_cannot_listen_changes_nothing(backend) {
        let folder = folder();
        let mut relay = relay(backend).output(for_subscribers(Transport::Tcp, folder.path())).start();
        let mut reader = relay.subscriber();
        let in_use = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("tcp://{}", in_use.local_addr().unwrap());
        let mut config = relay.config();
        let Destination::Subscribers(subscribers) = &mut config.outputs[0].to else { panic!("listens") };
        subscribers.listen = vec![taken.parse().unwrap()];
        let faults = relay.try_reload(config).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains("output `output0` cannot listen on"), "{faults:?}");
        let mut writer = relay.writer();
        pass(&mut writer, &mut [&mut reader], 0);
        let mut another = relay.subscriber();
        pass(&mut writer, &mut [&mut reader, &mut another], 10);
        writer.finish();
        drain_beside(relay, || [reader, another].into_iter().for_each(Peer::expect_stop));
    }

    fn an_output_that_is_replaced_or_renamed_keeps_its_address(backend) {
        let folder = folder();
        for transport in Transport::BOTH {
            let listens = match transport {
                Transport::Unix => transport.fresh_address(folder.path()),
                _ => crate::support::peers::free_address(transport, folder.path()),
            };
            let input = tcp().content_types(&[D, O]);
            let mut relay =
                relay(backend).input(input).output(for_subscribers_at(vec![listens.clone()])).start();
            let reader = subscribe(&listens);
            relay.reload(|config| config.outputs[0].content_type = ContentType::try_from(O).unwrap());
            reader.expect_stop();
            relay.reload(|config| config.outputs[0].name = "renamed".to_owned());
            let mut reader = Peer::connect(&listens);
            reader.expect(&wire::ready(&[O]));
            reader.send(&wire::accept(&[]));
            reader.expect(&wire::start(&[O]));
            let ledger = drain_beside(relay, || reader.expect_stop());
            let names: Vec<_> = ledger.outputs.iter().map(|output| &output.name[..]).collect();
            assert_eq!(names, ["output0", "renamed"]);
        }
    }

    fn another_process_takes_over_the_listener_and_subscribers_subscribe_again(backend) {
        let folder = folder();
        let addresses = [Transport::Tcp, Transport::Unix].map(|transport| transport.fresh_address(folder.path()));
        let mut relay = relay(backend).output(for_subscribers_at(addresses.to_vec())).start();
        let addresses: Vec<_> = relay.output_listeners().iter().map(|(_, address)| address.clone()).collect();
        let mut writer = relay.writer();
        for round in 0..3 {
            let mut readers: Vec<_> = addresses.iter().map(subscribe).collect();
            let [first, second] = &mut readers[..] else { panic!("two") };
            pass(&mut writer, &mut [first, second], 10 * round);
            let answers = thread::spawn(move || readers.into_iter().for_each(Peer::expect_stop));
            let config = relay.config();
            relay = relay.upgrade(config);
            answers.join().expect("the old process sends STOP");
        }
        let mut reader = subscribe(&addresses[1]);
        pass(&mut writer, &mut [&mut reader], 30);
        writer.finish();
        let ledger = drain_beside(relay, || reader.expect_stop());
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_received, output.frames_sent), (70, 70));
        assert_eq!((output.connections, output.sessions_finished), (7, 7));
        assert_eq!(dropped_for(output, "unsubscribed"), 0);
    }
}
