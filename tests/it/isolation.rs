//! An output that stalls or dies delays neither another output nor a writer.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::support::collector::Collected;
use tapster::transport::Backend;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::peer::Peer;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::in_quiet;
use crate::support::wait::millis;
use crate::support::wire;

/// Frames per second and payload bytes of each.
const RATE: u64 = 100_000;
const LEN: usize = 130;
/// No healthy output, and no writer, is later than this.
const BOUND: Duration = Duration::from_millis(50);
const DURATION: Duration = Duration::from_secs(5);

/// Writes [`RATE`] frames/s for [`DURATION`], from the intended time on however late it is; returns how long
/// each millisecond's write took.
fn write_at_rate(writer: &mut Peer) -> Vec<Duration> {
    let began = Instant::now();
    let ticks = DURATION.as_millis() as u64;
    let per_tick = RATE / 1000;
    let mut took = Vec::with_capacity(ticks as usize);
    let mut chunk = Vec::new();
    for tick in 0..ticks {
        let intended = began + millis(tick);
        chunk.clear();
        for sequence in tick * per_tick..(tick + 1) * per_tick {
            chunk.extend(wire::data(&numbered::payload(0, sequence, LEN, intended)));
        }
        thread::sleep(intended.saturating_duration_since(Instant::now()));
        let writing = Instant::now();
        writer.send(&chunk);
        took.push(writing.elapsed());
    }
    took
}

/// Latencies from the intended send times, sorted.
fn latencies(collected: &Collected) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for session in &collected.sessions {
        let payloads = wire::payloads(&session.encoded);
        let mut from = 0;
        for (until, arrived_at) in &session.arrivals {
            latencies.extend(
                payloads[from..*until].iter().map(|payload| Number::of(payload).latency(*arrived_at)),
            );
            from = *until;
        }
    }
    latencies.sort();
    latencies
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

on_both_backends! {
    alone fn a_stalled_and_a_dying_output_do_not_delay_a_healthy_one(backend) {
        in_quiet(BOUND, || healthy_beside_stalled_and_dying(backend));
    }

    /// The frames of the fast one are too long for the output: what is measured is the reading side.
    alone fn a_slow_writer_is_not_starved_by_a_fast_one(backend) {
        in_quiet(BOUND, || {
            let reader = CollectingReader::tcp();
            let relay = relay(backend).workers(1).output(to(&reader).frame_len_max(500)).start();
            let mut fast = relay.writer();
            let hurry = thread::spawn(move || {
                let chunk = numbered::frames_of_len(1, 0..100, 1000);
                let until = Instant::now() + Duration::from_secs(2);
                while Instant::now() < until {
                    fast.send(&chunk);
                }
                fast.finish();
            });
            let mut slow = relay.writer();
            for sequence in 0..40 {
                slow.send(&wire::data(&numbered::payload(0, sequence, LEN, Instant::now())));
                thread::sleep(millis(45));
            }
            hurry.join().expect("the fast writer ends well");
            slow.finish();
            let (_, collected) = relay.drain_into(reader);
            let latencies = latencies(&collected);
            assert_eq!(latencies.len(), 40);
            (latencies[37] < BOUND).then_some(()).ok_or(format!("{latencies:?}"))
        });
    }
}

/// What is true whatever the time is asserted; what was late is the error.
fn healthy_beside_stalled_and_dying(backend: Backend) -> Result<(), String> {
    let folder = folder();
    let healthy = CollectingReader::start(Transport::Unix, folder.path());
    let stalled = CollectingReader::tcp().stalled();
    let mut mortal = CollectingReader::start(Transport::Unix, folder.path());
    // The pauses of the default configuration: what an operator gets.
    let relay = relay(backend)
        .drain_timeout(Duration::from_secs(5))
        .output(to(&healthy))
        .output(to(&stalled).queue(8 << 20))
        .output(to(&mortal).reconnect(millis(100), Duration::from_secs(30)))
        .start();
    for reader in [&healthy, &stalled, &mortal] {
        reader.wait_for_sessions(1);
    }
    let mut writer = relay.writer();
    let writing = thread::spawn(move || {
        let took = write_at_rate(&mut writer);
        writer.finish();
        took
    });
    thread::sleep(DURATION / 4);
    mortal.die();
    thread::sleep(DURATION / 4);
    let before = mortal.frames();
    mortal.revive();
    let revived = Instant::now();
    mortal.wait_for_frames(before + 1);
    let absent = revived.elapsed();
    let mut writes = writing.join().expect("the writer ends well");
    writes.sort();

    let frames = RATE * DURATION.as_secs();
    eventually("the healthy output has all", || healthy.frames() as u64 == frames);
    relay.wait_until_written_to(0);
    relay.wait_until_written_to(2);
    stalled.resume();
    let ledger = relay.drain();
    let (healthy, stalled, mortal) = (healthy.close(), stalled.close(), mortal.close());

    numbered::assert_complete(healthy.payloads(), &[(0, 0..frames)]);
    numbered::assert_rising(mortal.payloads());
    let died = &ledger.outputs[2];
    assert_eq!(dropped(died), 0, "an absence of a second fits into the queue: {died:?}");
    assert_eq!(died.frames_sent, frames);
    let lost = frames - mortal.frames();
    assert!(lost * (LEN as u64 + 4) <= died.bytes_unconfirmed, "{lost} frames lost: {died:?}");

    numbered::assert_rising(stalled.payloads());
    let full = &ledger.outputs[1];
    assert!(dropped_for(full, "queue_full") > 0, "{full:?}");
    assert_eq!(stalled.frames(), full.frames_sent);

    let (healthy, writes) = (p99(&latencies(&healthy)), p99(&writes));
    let well = healthy < BOUND && writes < BOUND && absent < Duration::from_secs(3);
    well.then_some(()).ok_or(format!(
        "p99: frames {healthy:?}, writes {writes:?}; the output that returned waited {absent:?}"
    ))
}
