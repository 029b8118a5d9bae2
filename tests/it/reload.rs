//! Another configuration while frames flow.

use std::thread;
use std::time::Duration;

use tapster::output::Buffer;
use tapster::output::Destination;
use tapster::protocol::ContentType;
use tapster::queue::WhenFull;

use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::peers::free_port;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::relay::to_file;
use crate::support::relay::to_group;
use crate::support::relay::to_peer;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;

on_both_backends! {
    fn what_is_the_same_is_not_touched_and_the_rest_comes_and_goes(backend) {
        let readers: Vec<_> = (0..3).map(|_| CollectingReader::tcp()).collect();
        let mut relay = relay(backend).output(to(&readers[0])).output(to(&readers[1])).start();
        let flow = Flow::begin(0, &relay.address());
        for round in 0..10 {
            flow.wait_for_more(60);
            // The second is there in every other round.
            relay.reload(|config| {
                if round % 2 == 0 {
                    config.outputs.truncate(1);
                } else {
                    config.outputs.push(to(&readers[1]).config("output1"));
                }
                config.inputs.truncate(1);
                config.inputs.push(tcp().config(&format!("input{round}")));
            });
        }
        let unchanged = relay.config();
        assert_eq!(relay.try_reload(unchanged), Ok(false));
        flow.wait_for_more(60);
        let sent = flow.end();
        let ledger = relay.drain();
        assert_eq!((ledger.inputs[0].frames, ledger.inputs[0].connections), (sent, 1));
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].connections), (sent, 1));
        assert_eq!((ledger.outputs[1].connections, dropped(&ledger.outputs[1])), (6, 0));
        for (reader, output) in readers.into_iter().zip(&ledger.outputs) {
            let collected = reader.close();
            assert_sent(output, &collected);
            numbered::assert_rising(collected.payloads());
        }
    }

    fn an_output_goes_on_elsewhere_with_what_is_queued(backend) {
        let stalled = PeerListener::tcp();
        let (reader, other) = (CollectingReader::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend)
            .output(to_peer(&stalled).queue(64 << 20).finish_timeout(millis(200)))
            .output(to(&reader))
            .drain_timeout(Duration::from_secs(3))
            .start();
        let mut peer = stalled.accept();
        peer.open_as_reader();
        let mut writer = relay.writer();
        writer.send(&numbered::frames_of_len(0, 0..20_000, 1000));
        relay.wait_for_frames(20_000);
        // It takes nothing.
        eventually("nothing moves any more", || relay.output(0).oldest_age_us > Some(300_000));
        relay.reload(|config| {
            config.outputs[0].to = to(&other).config("output0").to;
            config.drain_timeout = millis(500);
        });
        relay.wait_until_written();
        writer.send(&numbered::frames(0, 20_000..20_100));
        writer.finish();
        let ledger = relay.drain();
        assert_eq!((ledger.outputs[0].frames_received, dropped(&ledger.outputs[0])), (20_100, 0));
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].connections), (20_100, 2));
        let moved = other.close();
        // Frames that its socket had taken stay with the former reader, as when a connection breaks.
        assert_eq!(moved.frames() + peer.count_frames_until_end(), 20_100);
        numbered::assert_rising(moved.payloads());
        reader.close();
    }

    fn a_healthy_output_ends_its_connection_in_order_and_goes_on_with_another(backend) {
        let (one, two) = (CollectingReader::tcp(), CollectingReader::tcp());
        let mut relay = relay(backend).output(to(&one).ack_received()).start();
        let flow = Flow::begin(0, &relay.address());
        flow.wait_for_more(100);
        relay.reload(|config| config.outputs[0].to = to(&two).ack_received().config("").to);
        eventually("it goes on there", || two.frames() > 100);
        let sent = flow.end();
        let ledger = relay.drain();
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.connections, output.sessions_finished), (sent, 2, 2));
        assert_eq!(output.frames_acknowledged, sent);
        let (one, two) = (one.close(), two.close());
        assert_eq!((one.frames() + two.frames(), two.sessions.len()), (sent, 1));
        numbered::assert_rising(one.payloads().into_iter().chain(two.payloads()));
    }

    fn an_output_whose_address_was_wrong_is_mended_at_once(backend) {
        let wrong = tcp_address("127.0.0.1", free_port());
        let output = to_address(wrong).reconnect(Duration::from_secs(30), Duration::from_secs(60));
        let mut relay = relay(backend).output(output).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        relay.wait_for_frames(1000);
        let reader = CollectingReader::tcp();
        relay.reload(|config| config.outputs[0].to = to(&reader).config("").to);
        eventually("everything has arrived", || reader.frames() == 1000);
        writer.finish();
        relay.drain_into(reader);
    }

    fn a_file_output_goes_on_under_another_name(backend) {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let mut relay = relay(backend).output(to_file(path("a"))).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..100));
        relay.wait_for_frames(100);
        relay.reload(|config| config.outputs[0].to = to_file(path("b")).config("").to);
        writer.send(&numbered::frames(0, 100..150));
        eventually("the second file is there", || path("b").exists());
        writer.finish();
        let ledger = relay.drain();
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].connections), (150, 2));
        let streams = ["a", "b"].map(|name| std::fs::read(path(name)).unwrap());
        assert!(streams.iter().all(|stream| stream.ends_with(&wire::stop())));
    }

    fn what_is_changed_at_once_keeps_the_connection(backend) {
        let readers = [CollectingReader::tcp(), CollectingReader::tcp()];
        let group = to_group(readers.iter().map(CollectingReader::address), tapster::output::Balance::RoundRobin);
        let mut relay = relay(backend).input(tcp().frame_len_max(2000)).output(group).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..100));
        relay.wait_for_frames(100);
        relay.reload(|config| {
            config.inputs[0].frame_len_max = 100_000;
            let output = &mut config.outputs[0];
            output.frame_len_max = 60_000;
            output.buffer = Buffer::Memory {
                max: 8 << 20,
                when_full: WhenFull::Block,
                lanes: tapster::output::Lanes::One,
            };
            let Destination::Streams(streams) = &mut output.to else { unreachable!("a group") };
            let tapster::output::Endpoints::Group(group) = &mut streams.endpoints else { unreachable!("a group") };
            group.members[0].weight = 3;
            group.balance = tapster::output::Balance::LeastBacklog;
        });
        // Longer than the former limits; the second is too long for the output alone.
        writer.send(&wire::data(&[b'x'; 50_000]));
        writer.send(&wire::data(&[b'x'; 70_000]));
        writer.send(&numbered::frames(0, 100..200));
        writer.finish();
        let ledger = relay.drain();
        assert_eq!((ledger.inputs[0].frames, ledger.inputs[0].connections), (202, 1));
        let output = &ledger.outputs[0];
        assert_eq!((output.frames_sent, output.connections), (201, 2), "{output:?}");
        assert_eq!(output.frames_dropped.get("frame_too_long"), Some(&1));
        readers.into_iter().for_each(|reader| drop(reader.close()));
    }

    fn another_content_type_is_another_output_of_the_same_name(backend) {
        let (dnstap, other) = (CollectingReader::tcp(), CollectingReader::of_type(wire::O, Transport::Tcp, folder().path()));
        let mut relay = relay(backend).input(tcp().any_content_type()).output(to(&dnstap)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..100));
        relay.wait_for_frames(100);
        relay.reload(|config| {
            config.outputs[0].content_type = ContentType::try_from(wire::O).unwrap();
            config.outputs[0].to = to(&other).config("").to;
        });
        let mut second = Peer::connect(&relay.address());
        second.open_as_writer(wire::O);
        second.send(&numbered::frames(1, 0..70));
        second.finish();
        writer.finish();
        let ledger = relay.drain();
        assert_eq!((ledger.outputs.len(), ledger.outputs[0].frames_sent), (1, 170));
        assert_eq!((dnstap.close().frames(), other.close().frames()), (100, 70));
    }

    fn listeners_come_go_and_move_from_one_input_to_another(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let unix = Transport::Unix.fresh_address(folder.path());
        let [stays, moves] = [0, 1].map(|_| tcp_address("127.0.0.1", free_port()));
        let all = vec![stays.clone(), moves.clone(), unix.clone()];
        let mut relay = relay(backend).input(listening_on(all)).output(to(&reader)).drain_timeout(millis(500)).start();
        let flow = Flow::begin(0, &stays);
        let mut old = [&moves, &unix].map(Peer::writer);
        // They wait in the backlog or are taken at any moment of the change: none is lost.
        let addresses = [moves.clone(), unix.clone()];
        let connects = thread::spawn(move || {
            (1..=200).for_each(|number| {
                let mut writer = Peer::writer(&addresses[number as usize % 2]);
                writer.send(&numbered::frames(number, 0..1));
                writer.finish();
            });
        });
        flow.wait_for_more(100);
        relay.reload(|config| {
            config.inputs[0].listen.truncate(1);
            config.inputs.push(listening_on(vec![moves.clone()]).config("tcp"));
            config.inputs.push(listening_on(vec![unix.clone()]).config("unix"));
        });
        for peer in &mut old {
            peer.expect_close_within(Duration::from_secs(5));
        }
        connects.join().expect("every connection is served");
        flow.wait_for_more(100);
        let sent = flow.end();
        let ledger = relay.drain();
        let inputs = &ledger.inputs;
        assert_eq!(inputs.iter().map(|input| input.frames).sum::<u64>(), sent + 200);
        assert!(inputs[1].connections + inputs[2].connections > 0, "{inputs:?}");
        assert_eq!(reader.close().frames(), sent + 200);
        assert!(Stream::connect(&unix).is_err());
    }

    fn one_fault_changes_nothing_and_all_are_told(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let spool = folder.path().join("spool");
        let in_use = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = folder.path().join("file");
        std::fs::write(&taken, "a file").unwrap();
        let mut relay = relay(backend).output(to(&reader).on_disk(&spool)).start();
        let flow = Flow::begin(0, &relay.address());
        let before = relay.config();
        let in_use = format!("tcp://{}", in_use.local_addr().unwrap());
        let free = tcp_address("127.0.0.1", free_port());
        for listen in [vec![in_use.parse().unwrap()], vec![format!("unix:{}", taken.display()).parse().unwrap()]] {
            let mut config = before.clone();
            config.inputs.push(listening_on(vec![free.clone()]).config("free"));
            config.inputs.push(listening_on(listen).config("taken"));
            config.outputs.clear();
            config.outputs.push(to(&reader).config("another"));
            let faults = relay.try_reload(config).unwrap_err();
            assert!(faults.len() == 1 && faults[0].contains("input `taken` cannot listen on"), "{faults:?}");
            assert_eq!(relay.config(), before);
            assert!(Stream::connect(&free).is_err(), "what was bound meanwhile is given up");
        }
        let mut config = before.clone();
        config.workers = 7;
        config.outputs[0] = to(&reader).on_disk(&folder.path().join("other")).config("output0");
        config.outputs.push(to(&reader).config("b"));
        let mut bad = to_group([reader.address()], tapster::output::Balance::RoundRobin).config("c");
        bad.name = "c".to_owned();
        config.outputs.push(bad);
        let faults = relay.try_reload(config).unwrap_err().join("\n");
        for words in ["workers cannot change", "spool.dir of output `output0` cannot change", "a group has two members"] {
            assert!(faults.contains(words), "{words}: {faults}");
        }
        assert_eq!((relay.config(), relay.ledger().outputs.len()), (before, 1));
        flow.wait_for_more(20);
        let sent = flow.end();
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].connections), (sent, 1));
    }

    fn three_hundred_parts_are_reloaded_within_a_second(backend) {
        let folder = folder();
        let readers: Vec<_> = (0..2).map(|_| CollectingReader::tcp()).collect();
        let mut relay = relay(backend).output(to(&readers[0])).start();
        let flow = Flow::begin(0, &relay.address());
        let parts = |config: &mut tapster::relay::RelayConfig| {
            for number in 0..150 {
                config.inputs.push(tcp().config(&format!("many{number}")));
                let away = Transport::Unix.fresh_address(folder.path());
                config.outputs.push(to_address(away).queue(2 << 20).config(&format!("many{number}")));
            }
        };
        relay.reload(parts);
        let began = std::time::Instant::now();
        relay.reload(|config| {
            config.outputs.remove(40);
            config.outputs.push(to(&readers[1]).config("late"));
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        flow.wait_for_more(100);
        flow.end();
        drop(relay);
    }
}
