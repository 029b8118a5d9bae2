//! The ledger: it balances at every moment, and equals what both ends counted.

use std::thread;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::tapster;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
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
use crate::support::wire::O;

on_both_backends! {
    fn it_balances_at_every_moment_and_ends_as_both_sides_counted(backend) {
        let folder = folder();
        let readers = [
            CollectingReader::tcp(),
            CollectingReader::tcp().stalled(),
            CollectingReader::start(Transport::Unix, folder.path()),
        ];
        let path = folder.path().join("out.fstrm");
        let relay = relay(backend)
            .input(tcp().content_types(&[D, O]))
            .output(to(&readers[0]))
            .output(to(&readers[1]).queue(1 << 20))
            .output(to(&readers[2]).frame_len_max(120))
            .output(to_file(&path))
            .start();
        let streams: Vec<Vec<u8>> = (0..4).map(|number| numbered::frames(number, 0..20_000)).collect();
        let writers: Vec<_> = streams
            .iter()
            .cloned()
            .map(|stream| {
                let mut writer = relay.writer();
                thread::spawn(move || {
                    stream.chunks(10_000).for_each(|piece| writer.send(piece));
                    writer.finish();
                })
            })
            .collect();
        let mut looks = 0;
        while looks < 50 || writers.iter().any(|writer| !writer.is_finished()) {
            let ledger = relay.ledger();
            for output in &ledger.outputs {
                assert!(output.balances(), "look {looks}: {output:?}");
            }
            looks += 1;
            thread::sleep(millis(1));
        }
        writers.into_iter().for_each(|writer| writer.join().expect("the writer ends well"));
        // A stream that no output takes.
        let mut unrouted = Peer::connect(&relay.address());
        unrouted.open_as_writer(O);
        unrouted.send(&numbered::frames(9, 0..70));
        unrouted.finish();

        readers[1].resume();
        let ledger = relay.drain();
        let input = &ledger.inputs[0];
        let all: u64 = streams.iter().map(|stream| stream.len() as u64).sum();
        assert_eq!((input.frames, input.frames_unrouted, input.connections), (80_070, 70, 5));
        assert_eq!(input.bytes, all + numbered::frames(9, 0..70).len() as u64);
        assert_eq!(input.sessions_ended.get("finished"), Some(&5), "{input:?}");
        for output in &ledger.outputs {
            assert_eq!(output.frames_received, 80_000, "{output:?}");
            assert_eq!(output.frames_filtered, 0);
        }
        let long = streams.iter().flat_map(|stream| wire::payloads(stream)).filter(|p| p.len() > 120).count();
        assert_eq!(ledger.outputs[2].frames_dropped.get("frame_too_long"), Some(&(long as u64)));
        assert_eq!((dropped(&ledger.outputs[0]), dropped(&ledger.outputs[3])), (0, 0));
        assert_eq!((ledger.outputs[3].frames_sent, ledger.outputs[3].bytes_sent), (80_000, all));
        for (reader, output) in readers.into_iter().zip(&ledger.outputs) {
            let collected = reader.close();
            assert_sent(output, &collected);
            numbered::assert_rising(collected.payloads());
        }
    }

    fn it_names_inputs_and_outputs_in_the_order_of_the_configuration(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp()).input(tcp()).output(to(&reader)).output(to(&reader)).start();
        let (ledger, names) = (relay.ledger(), relay.listeners().to_vec());
        relay.drain();
        assert_eq!(ledger.inputs.iter().map(|input| &input.name[..]).collect::<Vec<_>>(), ["input0", "input1"]);
        assert_eq!(ledger.outputs.iter().map(|output| &output.name[..]).collect::<Vec<_>>(), ["output0", "output1"]);
        assert_eq!(names.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["input0", "input1"]);
    }

    fn the_program_writes_it_at_exit(backend) {
        let folder = folder();
        let reader = CollectingReader::tcp();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .listen(&address)
            .to(&reader.address(), "frame_len_max=512B")
            .summary(folder.path().join("summary.json"))
            .start();
        let stream = numbered::frames(0, 0..1000);
        let mut writer = Peer::writer(&address);
        writer.send(&stream);
        writer.finish();
        program.terminate();
        let summary = program.summary();
        let collected = reader.close();
        summary.assert_balanced();
        assert_eq!(summary.input(0, "connections"), 1);
        assert_eq!(summary.input(0, "frames"), 1000);
        assert_eq!(summary.input(0, "bytes"), stream.len() as u64);
        assert_eq!(summary.output(0, "frames_received"), 1000);
        assert_eq!(summary.output(0, "frames_sent"), collected.frames());
        assert_eq!(summary.dropped(0, "frame_too_long"), 1000 - collected.frames());
        assert!(program.process.output().contains("1000"), "the log at exit tells it too");
    }

    fn what_is_left_out_of_a_stream_is_in_the_ledger_while_the_stream_goes_on(backend) {
        let reader = CollectingReader::tcp();
        let relay = relay(backend).input(tcp().skip_oversize().frame_len_max(70_000)).output(to(&reader)).start();
        let mut writer = relay.writer();
        for round in 1..=3 {
            writer.send(&[wire::data(&[b'x'; 70_001]), wire::control(99, &[], b"new"), wire::control(98, &[], b"")].concat());
            eventually("the ledger counts what was left out", || {
                let input = relay.input();
                (input.frames_oversize, input.control_frames_ignored) == (round, 2 * round)
            });
            assert_eq!(relay.input().connections_open, 1);
        }
        writer.send(&[wire::data(b"a"), wire::stop(), b"0123456789".to_vec()].concat());
        eventually("bytes after STOP are counted", || relay.input().bytes_after_stop == 10);
        writer.expect(&wire::finish());
        let (ledger, collected) = relay.drain_into(reader);
        assert_eq!(collected.payloads(), [b"a"]);
        let input = &ledger.inputs[0];
        assert_eq!((input.frames_oversize, input.control_frames_ignored, input.bytes_after_stop), (3, 6, 10));
    }
}
