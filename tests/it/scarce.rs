//! A host that gives too little: locked memory for rings, descriptors, threads; and writers that pass descriptors along.

use std::fs;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::process::Command;

use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::sendmsg;
use rustix::pipe::pipe;
use tapster::faults;
use tapster::relay::Relay;
use tapster::relay::StartError;
use tapster::transport::Address;
use tapster::transport::Backend;
use tapster::transport::BackendChoice;

use crate::skips::Cause;
use crate::skips::skip;
use crate::support::backend::uring_works;
use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::process::tapster;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::beside_others;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

/// Rings are charged to the locked memory of a user: the first fits, and one for each worker does not.
#[test]
fn where_one_worker_finds_no_ring_all_run_on_epoll() {
    if !faults::ENABLED || !uring_works() {
        return;
    }
    let _turn = beside_others();
    for (choice, name) in [(BackendChoice::Auto, "rings auto "), (BackendChoice::Uring, "rings uring ")] {
        let reader = CollectingReader::tcp();
        let builder = relay(Backend::Uring).named(name).workers(4).input(tcp()).output(to(&reader));
        let mut config = builder.config();
        config.backend = choice;
        faults::arm("ring", &format!("{name}input0"), 2);
        let started = Relay::start(config);
        if choice == BackendChoice::Uring {
            let error = started.expect_err("a ring for each worker");
            assert!(matches!(error, StartError::Backend(_)), "{error}");
            assert!(
                error.to_string().contains("too little locked memory")
                    && error.to_string().contains("4 workers")
            );
            continue;
        }
        let relay = started.expect("epoll needs no ring");
        assert_eq!(relay.backend(), Backend::Epoll);
        let address = relay.listeners()[0].1.clone();
        for writer in 0..8 {
            let mut peer = Peer::writer(&address);
            peer.send(&numbered::frames(writer, 0..10));
            peer.finish();
        }
        relay.drain();
        let expected: Vec<_> = (0..8).map(|writer| (writer, 0..10)).collect();
        numbered::assert_complete(reader.close().payloads(), &expected);
    }
}

on_both_backends! {
    /// Writers hold every descriptor that they can have. The collector comes back, and files rotate.
    fn outputs_have_descriptors_while_writers_hold_all_others(backend) {
        let (folder, mut reader) = (folder(), CollectingReader::tcp());
        let address = Transport::Unix.fresh_address(folder.path());
        let files = folder.path().join("files");
        let mut program = tapster(backend)
            .arg("--workers").arg("2")
            .listen(&address)
            .to(&reader.address(), "reconnect.max=200ms")
            .arg("--to").arg(format!("file:{}/out.fstrm?rotate.size=10KiB", files.display()))
            .summary(folder.path().join("summary.json"))
            .start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..10));
        reader.wait_for_frames(10);
        program.process.limit_descriptors(program.process.descriptors() as u64 + 60);
        let crowd: Vec<_> = (0..100).map(|_| Stream::connect(&address).expect("room in the backlog")).collect();
        program.process.wait_for_output("cannot accept a connection");
        reader.die();
        writer.send(&numbered::frames_of_len(0, 10..20, 1000));
        reader.revive();
        reader.wait_for_sessions(2);
        // Files rotate with what comes after each.
        for round in 2..8 {
            writer.send(&numbered::frames_of_len(0, round * 10..round * 10 + 10, 1100));
            std::thread::sleep(millis(20));
        }
        eventually("files rotate", || fs::read_dir(&files).is_ok_and(|files| files.count() >= 4));
        let log = program.process.output();
        assert!(!log.contains("Too many open files"), "{log}");
        // Those who wait are served when others have gone.
        drop(crowd);
        let mut late = Peer::writer(&address);
        late.send(&numbered::frames(1, 0..10));
        late.finish();
        writer.finish();
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        assert_eq!((summary.output(1, "frames_sent"), summary.dropped(1, "shutdown")), (90, 0));
    }

    /// A full socket is watched with a second descriptor on epoll.
    fn a_slow_output_is_not_broken_off_for_want_of_a_descriptor(backend) {
        let (temporary, reader) = (folder(), CollectingReader::tcp().stalled());
        let address = Transport::Unix.fresh_address(temporary.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..1));
        program.process.wait_for_output("connected");
        // Not one is left below the limit.
        let folder = format!("/proc/{}/fd", program.process.id());
        let open = |number: &u64| fs::symlink_metadata(format!("{folder}/{number}")).is_ok();
        program.process.limit_descriptors((0..).find(|number| !open(number)).expect("a free number"));
        writer.send(&numbered::frames_of_len(0, 1..20_001, 1000));
        std::thread::sleep(millis(300));
        reader.resume();
        reader.wait_for_frames(20_001);
        writer.finish();
        program.process.limit_descriptors(1024);
        program.terminate();
        assert_eq!(reader.close().sessions.len(), 1);
    }

    /// The spool can open nothing, neither to read nor to begin a segment. What is on disk counts as spooled, and the next run has it.
    fn without_descriptors_what_is_on_disk_counts_as_spooled(backend) {
        const FRAMES: u64 = 10_000;
        let (folder, mut reader) = (folder(), CollectingReader::tcp());
        let address = Transport::Unix.fresh_address(folder.path());
        let keys = format!(
            "queue=8MiB&frame_len_max=8KiB&buffer=disk&spool.dir={}/spool&spool.min_free=0B",
            folder.path().display()
        );
        let collector = reader.address();
        let start = || {
            tapster(backend)
                .arg("--drain-timeout").arg("500ms")
                .listen(&address)
                .to(&collector, &keys)
                .summary(folder.path().join("summary.json"))
                .start()
        };
        reader.die();
        let mut program = start();
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..FRAMES / 2));
        let spooled = || fs::read_dir(folder.path().join("spool")).map_or(0, |files| {
            files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
        });
        eventually("the frames are on disk", || spooled() > FRAMES / 2 * 100);
        // Not one is left below the limit.
        let open = format!("/proc/{}/fd", program.process.id());
        let is_open = |number: &u64| fs::symlink_metadata(format!("{open}/{number}")).is_ok();
        program.process.limit_descriptors((0..).find(|number| !is_open(number)).expect("a free number"));
        writer.send(&numbered::frames(0, FRAMES / 2..FRAMES));
        writer.finish();
        // The segment that is open takes them while tapster runs.
        eventually("all frames are on disk", || spooled() > FRAMES * 100);
        program.terminate();
        let summary = program.summary();
        summary.assert_balanced();
        let (spooled, queued) = (summary.output(0, "frames_spooled"), summary.output(0, "frames_queued"));
        assert_eq!((spooled, queued, summary.output(0, "frames_sent")), (FRAMES, 0, 0), "{}", program.process.output());
        reader.revive();
        let mut program = start();
        reader.wait_for_frames(FRAMES as usize);
        program.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..FRAMES)]);
    }

    /// Each lookup has a thread of its own. Other processes of the user leave none for it.
    fn a_lookup_that_finds_no_thread_is_an_attempt_that_failed(backend) {
        if !rustix::process::geteuid().is_root() {
            return skip(Cause::Missing, "only root can become a user who runs nothing else");
        }
        // Nobody else's threads count.
        let user = 70_000 + std::process::id() % 10_000 * 2 + u32::from(backend == Backend::Uring);
        let folder = folder();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("ours");
        let mut reader = CollectingReader::tcp();
        let Address::Tcp { port, .. } = reader.address() else { unreachable!() };
        reader.die();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .arg("--workers").arg("2")
            .listen(&address)
            .to(&Address::Tcp { host: "localhost".to_owned(), port }, "reconnect.max=100ms")
            .summary(folder.path().join("summary.json"))
            .with_threads(user, THREADS, folder.path())
            .start();
        program.process.wait_for_output("refused");
        let mut others = Others::begin(user);
        program.process.wait_for_output("Resource temporarily unavailable");
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames(0, 0..10));
        others.end();
        reader.revive();
        reader.wait_for_frames(10);
        let _others = Others::begin(user);
        writer.finish();
        program.terminate();
        program.summary().assert_balanced();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..10)]);
    }

    /// A read of a unix socket ends behind a message that came with descriptors: a short read, which is not the end of what is
    /// there. The kernel closes the descriptors.
    fn descriptors_that_a_writer_passes_along_delay_nothing_and_stay_nowhere(backend) {
        let (folder, reader) = (folder(), CollectingReader::tcp());
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend).listen(&address).to(&reader.address(), "").start();
        program.process.wait_for_output("connected");
        let Address::Unix(path) = &address else { unreachable!() };
        let (ours, passed) = pipe().expect("two descriptors");
        for handshake in [false, true] {
            let mut writer = UnixStream::connect(path).expect("it listens");
            writer.set_read_timeout(Some(millis(20_000))).expect("a socket");
            let mut bytes = wire::start(&[D]);
            if handshake {
                // In pieces, which all wait when the relay begins to read.
                send_with_descriptor(&writer, &wire::ready(&[D]), passed.as_fd(), 5);
                let accept = wire::accept(&[D]);
                writer.read_exact(&mut vec![0; accept.len()]).expect("ACCEPT without delay");
            }
            bytes.extend(numbered::frames(u32::from(handshake), 0..20));
            bytes.extend(wire::stop());
            send_with_descriptor(&writer, &bytes, passed.as_fd(), 7);
            if handshake {
                writer.read_exact(&mut vec![0; wire::finish().len()]).expect("FINISH without delay");
            } else {
                reader.wait_for_frames_within(millis(8000), 20);
            }
            writer.flush().expect("a socket");
        }
        let before = program.process.descriptors();
        assert!(before < 60, "{before} descriptors");
        drop(passed);
        // Its other end is open nowhere.
        let mut pipe = fs::File::from(ours);
        assert_eq!(pipe.read(&mut [0]).expect("a pipe"), 0);
        program.terminate();
        numbered::assert_complete(reader.close().payloads(), &[(0, 0..20), (1, 0..20)]);
    }
}

/// More than the relay needs.
const THREADS: usize = 24;

/// So many processes of a user that he may have no thread more.
struct Others(Vec<Child>);

impl Others {
    fn begin(user: u32) -> Self {
        let sleep = || Command::new("sleep").arg("60").uid(user).spawn().expect("a process");
        Self((0..THREADS).map(|_| sleep()).collect())
    }

    fn end(&mut self) {
        for mut child in self.0.drain(..) {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends bytes in pieces of this length, each with a descriptor.
fn send_with_descriptor(socket: &UnixStream, bytes: &[u8], passed: std::os::fd::BorrowedFd<'_>, len: usize) {
    for piece in bytes.chunks(len) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [passed];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = sendmsg(socket, &[IoSlice::new(piece)], &mut control, SendFlags::empty()).expect("room");
        assert_eq!(sent, piece.len());
    }
}
