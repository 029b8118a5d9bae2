//! A service that is restarted keeps its listeners and its writers: the service manager has them meanwhile.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::manager::Manager;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::free_address;
use crate::support::process::Tapster;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;
use crate::support::wire::D;

/// A service with an input on each transport, its service manager and its collector.
struct Service {
    backend: Backend,
    folder: tempfile::TempDir,
    manager: Manager,
    reader: CollectingReader,
    addresses: [Address; 2],
}

impl Service {
    fn new(backend: Backend, store: usize) -> Self {
        let folder = folder();
        std::fs::write(folder.path().join("tapster.toml"), format!("descriptor_store = {store}\n")).unwrap();
        let addresses =
            [Transport::Unix, Transport::Tcp].map(|transport| free_address(transport, folder.path()));
        Self { backend, folder, manager: Manager::start(), reader: CollectingReader::tcp(), addresses }
    }

    #[track_caller]
    fn start(&self) -> Tapster {
        self.manager.forget();
        let command = tapster(self.backend)
            .arg("--config")
            .arg(self.path("tapster.toml"))
            .arg("--workers")
            .arg("2")
            .listen(&self.addresses[0])
            .listen(&self.addresses[1])
            .to(&self.reader.address(), "")
            .summary(self.path("summary.json"));
        let program = self.manager.manages(command, &[]).start();
        self.manager.wait_for("READY=1");
        program
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    /// Waits until so many connections are in the store.
    #[track_caller]
    fn wait_for_stored(&self, connections: usize) {
        eventually(&format!("{connections} connections: {:?}", self.manager.stored()), || {
            // And the message.
            self.manager.has_stored(CONNECTIONS, connections + 1)
        });
    }
}

const LISTENERS: &str = "tapster-listeners";
const CONNECTIONS: &str = "tapster-connections";
/// A socket at the path, one of the port for each worker, and the message.
const LISTENERS_COUNT: usize = 1 + 2 + 1;

on_both_backends! {
    fn a_restart_keeps_writers_at_any_point_of_their_streams_and_the_totals(backend) {
        let service = Service::new(backend, 100);
        let mut program = service.start();
        let [unix, tcp] = &service.addresses;
        let flows = [(0, unix), (1, tcp)].map(|(writer, address)| Flow::begin(writer, address));
        let frames: Vec<_> = (0..8).map(|writer| numbered::frames_of_len(writer, 0..1, 300)).collect();
        let frame = |writer: usize| &frames[writer][..];
        let mut idle = Peer::writer(unix);
        let mut half = Peer::writer(tcp);
        half.send(&frame(2)[..100]);
        let mut half_unix = Peer::writer(unix);
        half_unix.send(&frame(3)[..2]);
        let mut silent = Peer::connect(tcp);
        let mut opening = Peer::connect(unix);
        let ready = wire::ready(&[D]);
        opening.send(&ready[..7]);
        let mut accepted = Peer::connect(tcp);
        accepted.send(&ready);
        accepted.expect(&wire::accept(&[D]));
        let mut one_way = Peer::connect(tcp);
        one_way.send(&wire::start(&[D]));
        one_way.send(&frame(4)[..3]);
        // One that ends in order while no process is there.
        let mut gone = Peer::writer(unix);
        let mut gone_at = 0;
        for _ in 0..3 {
            flows.iter().for_each(|flow| flow.wait_for_more(60));
            assert!(service.manager.has_stored(LISTENERS, LISTENERS_COUNT), "{:?}", service.manager.stored());
            program.terminate();
            service.wait_for_stored(if gone_at == 0 { 10 } else { 9 });
            if gone_at == 0 {
                gone.send(frame(5));
                gone.send(&wire::stop());
                gone_at = 1;
            }
            program = service.start();
            assert!(service.manager.has_stored(CONNECTIONS, 0), "{:?}", service.manager.stored());
            if gone_at == 1 {
                gone.expect(&wire::finish());
                gone_at = 2;
            }
        }
        half.send(&frame(2)[100..]);
        half_unix.send(&frame(3)[2..]);
        one_way.send(&frame(4)[3..]);
        opening.send(&ready[7..]);
        opening.expect(&wire::accept(&[D]));
        silent.open_as_writer(D);
        for peer in [&mut accepted, &mut opening] {
            peer.send(&wire::start(&[D]));
        }
        idle.send(frame(6));
        for peer in [idle, half, half_unix, silent, opening, accepted] {
            peer.finish();
        }
        one_way.send(&wire::stop());
        one_way.expect_close();
        let mut late = Peer::writer(unix);
        late.send(frame(7));
        late.finish();
        let sent: u64 = flows.into_iter().map(Flow::end).sum::<u64>() + 6;
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        let sum = |key| summary.input(0, key) + summary.input(1, key);
        assert_eq!((sum("frames"), sum("connections"), sum("connections_open")), (sent, 11, 0), "{summary:?}");
        assert_eq!(summary.output(0, "frames_sent"), sent);
        assert_eq!(summary.output(0, "sessions_finished"), 4);
        let collected = service.reader.close();
        assert_eq!(collected.frames(), sent);
        numbered::assert_rising(collected.payloads());
    }

    fn listeners_outlive_a_process_that_is_killed(backend) {
        let service = Service::new(backend, 100);
        let mut program = service.start();
        let mut writers = service.addresses.each_ref().map(Peer::writer);
        program.process.kill();
        writers.iter_mut().for_each(Peer::expect_close);
        assert!(service.manager.has_stored(LISTENERS, LISTENERS_COUNT), "{:?}", service.manager.stored());
        // Those who come while no process is there wait for the next one.
        let mut waiting = service.addresses.each_ref().map(Peer::connect);
        let mut program = service.start();
        waiting.iter_mut().for_each(|peer| peer.open_as_writer(D));
        for (writer, mut peer) in (0..).zip(waiting) {
            peer.send(&numbered::frames(writer, 0..10));
            peer.finish();
        }
        assert!(service.manager.has_stored(LISTENERS, LISTENERS_COUNT), "{:?}", service.manager.stored());
        program.terminate();
        assert_eq!(service.reader.close().frames(), 20);
    }

    fn connections_that_find_no_room_are_drained_and_told(backend) {
        // Three connections beside the listeners and the messages.
        let service = Service::new(backend, LISTENERS_COUNT + 1 + 3);
        let mut program = service.start();
        let mut writers: Vec<_> = (0..5).map(|_| Peer::writer(&service.addresses[0])).collect();
        for (writer, peer) in (0..).zip(&mut writers) {
            peer.send(&numbered::frames(writer, 0..10));
        }
        service.reader.wait_for_frames(50);
        program.terminate();
        service.wait_for_stored(3);
        assert!(program.process.output().contains("raise `descriptor_store`"), "{}", program.process.output());
        let mut next = service.start();
        let kept = writers.into_iter().filter_map(|mut peer| peer.try_send(&wire::stop()).is_ok().then_some(peer));
        let finished = kept.filter_map(|mut peer| peer.read_some(64).ok().filter(|bytes| !bytes.is_empty()));
        assert_eq!(finished.count(), 3);
        next.terminate();
        assert_eq!(next.summary().input(0, "connections"), 5);
    }

    fn connections_that_the_manager_did_not_keep_are_told(backend) {
        let service = Service::new(backend, 100);
        // Room for the message, and for one of three.
        service.manager.limit_store(LISTENERS_COUNT + 2);
        let mut program = service.start();
        let mut writers: Vec<_> = (0..3).map(|_| Peer::writer(&service.addresses[0])).collect();
        program.terminate();
        let mut next = service.start();
        next.process.wait_for_output("2 sockets that a former process had put into the descriptor store are not there");
        let stop = |peer: &mut Peer| peer.try_send(&wire::stop()).and_then(|()| peer.read_some(64));
        let kept = writers.iter_mut().filter_map(|peer| stop(peer).ok()).filter(|bytes| !bytes.is_empty());
        assert_eq!(kept.count(), 1);
        next.terminate();
    }

    fn what_the_next_process_does_not_understand_is_closed_and_told(backend) {
        let service = Service::new(backend, 100);
        let mut program = service.start();
        let mut writer = Peer::writer(&service.addresses[1]);
        writer.send(&numbered::frames(0, 0..10));
        service.reader.wait_for_frames(10);
        program.terminate();
        service.wait_for_stored(1);
        service.manager.with_store(|store| {
            for (_, descriptor) in store.iter().filter(|(name, _)| name == CONNECTIONS) {
                let file = File::from(descriptor.as_fd().try_clone_to_owned().unwrap());
                // The socket takes no write at a place.
                let _ = file.write_all_at(&99_u32.to_be_bytes(), 0);
            }
        });
        let mut next = service.start();
        next.process.wait_for_output("this one version");
        service.manager.with_store(|store| store.retain(|(name, _)| name != CONNECTIONS));
        writer.expect_close();
        let mut late = Peer::writer(&service.addresses[1]);
        late.send(&numbered::frames(1, 0..10));
        late.finish();
        next.terminate();
        assert_eq!(service.reader.close().frames(), 20);
    }

    fn a_store_that_is_not_used_any_more_is_emptied_and_nothing_in_it_is_lost(backend) {
        let service = Service::new(backend, 100);
        let mut program = service.start();
        let mut writer = Peer::writer(&service.addresses[0]);
        program.terminate();
        service.wait_for_stored(1);
        std::fs::write(service.path("tapster.toml"), "descriptor_store = 0\n").unwrap();
        let mut next = service.start();
        eventually("the store is empty", || service.manager.stored().is_empty());
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        // From now on a restart is as without a service manager.
        let mut late = Peer::writer(&service.addresses[0]);
        next.terminate();
        late.expect_close();
        assert_eq!(service.manager.stored(), [""; 0]);
        let Address::Unix(path) = &service.addresses[0] else { unreachable!() };
        assert!(!path.exists());
        assert_eq!(service.reader.close().frames(), 10);
    }
}
