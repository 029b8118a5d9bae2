//! Writers and peers that take all they can get leave the others their share: a healthy writer's frames arrive in time.
//!
//! One worker serves all of them. A flood of connections once kept a writer waiting for seconds on io_uring.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tapster::queue::WhenFull;
use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::PATIENCE;
use crate::support::wait::eventually;
use crate::support::wait::eventually_within;
use crate::support::wait::in_quiet;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

on_both_backends! {
    alone fn connections_without_end_leave_a_writer_its_time(backend) {
        in_time_beside(backend, |address, goes_on| {
            while goes_on() {
                drop(Stream::connect(address));
            }
        });
    }

    alone fn handshakes_without_end_leave_a_writer_its_time(backend) {
        in_time_beside(backend, |address, goes_on| {
            while goes_on() {
                let mut peer = Peer::connect(address);
                let _ = peer.try_send(&wire::ready(&[D]));
            }
        });
    }

    alone fn control_frames_without_end_leave_a_writer_its_time(backend) {
        flood(backend, &UNKNOWN);
    }

    alone fn control_frames_between_data_frames_leave_a_writer_its_time(backend) {
        flood(backend, &[&UNKNOWN[..], &wire::data(b"x")].concat());
    }

    alone fn short_frames_without_end_leave_a_writer_its_time(backend) {
        flood(backend, &wire::data(b"x"));
    }
}

on_both_backends! {
    /// A round of a thousand writers takes what all of their sockets hold: 200 MB. Counted in bytes and not in time, so that a
    /// busy machine does not matter; with a short queue, so that a reader that gets no processor does not matter.
    fn a_crowd_that_sends_without_pause_leaves_a_writer_its_turn(backend) {
        let (folder, listener) = (folder(), PeerListener::tcp());
        let relay = relay(backend)
            .workers(1)
            .input(listening(Transport::Unix, folder.path()))
            .output(to_address(listener.address()).when_full(WhenFull::Block).queue(4 << 20))
            .start();
        let (passed, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let (arrived, arrivals) = mpsc::channel();
        let mut overtaken = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| take_all(listener.accept_session(), &passed, &arrived));
            let mut writer = relay.writer();
            let mut crowd: Vec<_> = (0..room_for(1000)).map(|_| Talker::connect(&relay.address())).collect();
            let talking = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let talked = crowd.iter_mut().filter_map(Talker::talk).count();
                    if talked == 0 {
                        thread::sleep(millis(1));
                    }
                }
                drop(crowd);
            });
            let at_end = Tell(&over);
            for round in 0..25 {
                // The frames do not come at the same point of every round of the crowd.
                eventually("the crowd is served", || passed.load(Ordering::Relaxed) > (round * 7) << 20);
                let before = passed.load(Ordering::Relaxed);
                writer.send(&wire::data(&[0; HEALTHY_LEN]));
                overtaken.push(arrivals.recv_timeout(PATIENCE).expect("the frame arrives") - before);
            }
            drop(at_end);
            talking.join().expect("the crowd ends well");
            // What its sockets still hold would count as time of the drain.
            eventually_within(3 * PATIENCE, "what the crowd wrote is taken", || {
                relay.ledger().inputs[0].connections_open == 1
            });
            writer.finish();
            relay.drain();
        });
        overtaken.sort_unstable();
        let median = overtaken[overtaken.len() / 2] >> 20;
        assert!(median <= 16, "{median} MiB of the crowd came first; {overtaken:?}");
    }
}

/// Tells that it was dropped: a test that fails ends all the same.
struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One writer of a crowd: it writes whatever its socket has room for.
struct Talker {
    stream: UnixStream,
    // Of a frame, what has to follow what was written.
    rest: usize,
}

/// Long frames: a test program reads their lengths slowly.
const TALK: usize = 32 << 10;

impl Talker {
    fn connect(address: &Address) -> Self {
        let Stream::Unix(mut stream) = Stream::connect(address).expect("a connection") else {
            panic!("{address} is no unix socket")
        };
        stream.write_all(&wire::start(&[D])).expect("room for START");
        stream.set_nonblocking(true).expect("a socket that does not wait");
        Self { stream, rest: TALK }
    }

    /// `None` if there was no room.
    fn talk(&mut self) -> Option<usize> {
        static FRAME: LazyLock<Vec<u8>> = LazyLock::new(|| wire::data(&[b'x'; TALK - 4]));
        let count = self.stream.write(&FRAME[TALK - self.rest..]).ok()?;
        self.rest = if count == self.rest { TALK } else { self.rest - count };
        Some(count)
    }
}

/// Takes frames until STOP. Tells how many bytes have passed: all the time, and for each frame of a healthy writer.
fn take_all(mut peer: Peer, passed: &AtomicU64, arrived: &mpsc::Sender<u64>) {
    let mut unread = Vec::new();
    loop {
        unread.extend(peer.read_some(1 << 20).expect("the relay writes on"));
        let mut at = 0;
        while let Some(word) = unread.get(at..at + 4) {
            let len = u32::from_be_bytes(word.try_into().expect("four bytes")) as usize;
            if len == 0 {
                return peer.send(&wire::finish());
            }
            if unread.len() - at < 4 + len {
                break;
            }
            at += 4 + len;
            let passed = passed.fetch_add(4 + len as u64, Ordering::Relaxed);
            if len == HEALTHY_LEN {
                arrived.send(passed).expect("the test waits for it");
            }
        }
        unread.drain(..at);
    }
}

/// Raises the soft limit of descriptors. Says how many connections are possible whose ends are both in this process, at most
/// `wanted`.
fn room_for(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("up to the hard limit");
    let room = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    wanted.min(room.saturating_sub(500) / 2)
}

/// A control frame of a type that nobody knows.
const UNKNOWN: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 77];

/// Most time that a frame of the healthy writer may take.
const BOUND: Duration = Duration::from_millis(100);

const ATTACKERS: usize = 3;

/// Attackers that write this again and again.
fn flood(backend: Backend, bytes: &[u8]) {
    let block = bytes.repeat((256 << 10) / bytes.len());
    in_time_beside(backend, |address, goes_on| {
        let mut peer = Peer::writer(address);
        while goes_on() && peer.try_send(&block).is_ok() {}
    });
}

/// The 99th percentile of what the frames of a healthy writer take, beside attackers that do as they like.
fn in_time_beside(backend: Backend, attack: impl Fn(&Address, &dyn Fn() -> bool) + Sync) {
    in_quiet(BOUND, || {
        let p99 = p99_beside(backend, &attack);
        (p99 <= BOUND).then_some(()).ok_or(format!("{p99:?} at p99"))
    });
}

fn p99_beside(backend: Backend, attack: &(impl Fn(&Address, &dyn Fn() -> bool) + Sync)) -> Duration {
    const FRAMES: u64 = 400;
    let folder = folder();
    let reader = CollectingReader::tcp();
    let input = listening(Transport::Unix, folder.path());
    let relay = relay(backend).workers(1).input(input).output(to(&reader)).start();
    let address = relay.address();
    let mut writer = relay.writer();
    reader.wait_for_sessions(1);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| attack(&address, &|| !over.load(Ordering::Relaxed)));
        }
        let began = Instant::now();
        for sequence in 0..FRAMES {
            let intended = began + millis(2 * sequence);
            thread::sleep(intended.saturating_duration_since(Instant::now()));
            writer.send(&wire::data(&numbered::payload(0, sequence, HEALTHY_LEN, Instant::now())));
        }
        over.store(true, Ordering::Relaxed);
    });
    writer.finish();
    relay.drain();
    let mut latencies = Vec::new();
    for session in reader.close().sessions {
        let payloads = wire::payloads(&session.encoded);
        let mut from = 0;
        for (until, arrived_at) in &session.arrivals {
            let healthy = payloads[from..*until].iter().filter(|payload| payload.len() == HEALTHY_LEN);
            latencies.extend(healthy.map(|payload| Number::of(payload).latency(*arrived_at)));
            from = *until;
        }
    }
    assert_eq!(latencies.len() as u64, FRAMES, "none is lost");
    latencies.sort();
    latencies[latencies.len() * 99 / 100]
}

const HEALTHY_LEN: usize = 130;
