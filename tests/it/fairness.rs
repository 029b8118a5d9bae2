//! Writers and peers that take all they can get leave the others their share: a healthy writer's frames arrive in time.
//!
//! One worker serves all of them. A flood of connections once kept a writer waiting for seconds on io_uring.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::transport::Address;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::relay::listening;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Stream;
use crate::support::stream::Transport;
use crate::support::stream::folder;
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
