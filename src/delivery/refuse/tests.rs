//! Which frames are left out because no reader takes them, in virtual time.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::batch::budget::Budget;
use crate::batch::tests::batch;
use crate::batch::tests::frames;
use crate::batch::tests::ledger;
use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balance;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::Checkpoint;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Order;
use crate::delivery::config::Reconnect;
use crate::delivery::config::Retry;
use crate::lifecycle::Phase;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;

/// Bytes of a frame.
const FRAME_LEN: usize = 14;
const FRAMES: usize = 30;

const RECEIVED: Acknowledge =
    Acknowledge::Progress { margin: 0, probe_len: 1, probe_pause: Duration::from_millis(1) };
const FINISH: Acknowledge =
    Acknowledge::Finish { checkpoint: Checkpoint::Every(Duration::from_secs(3600)), order: Order::Strict };

/// How a reader ends its connections, 10 ms after the handshake or after the byte at which it does.
#[derive(Clone, Copy, Debug)]
enum Reader {
    /// Whatever it gets.
    AtOnce,
    /// Once it has got a part of a frame.
    AtTheFirstByte,
    /// At these frames, having taken those before. Their first byte is all that goes through.
    At(&'static [usize]),
}

/// What an output counts that writes to this reader for so long, and the frames that arrived.
fn run(reader: Reader, acknowledge: Acknowledge, time: Duration) -> (u64, Vec<usize>) {
    let config = DeliveryConfig {
        weights: vec![1],
        balance: Balance::default(),
        acknowledge,
        answers: true,
        connect_timeout: Duration::from_secs(5),
        finish_timeout: Duration::from_secs(5),
        stall_timeout: Some(Duration::from_millis(300)),
        slow_start: Duration::ZERO,
        reconnect: Reconnect::default(),
        retry: Retry::WhileRunning,
        queue_max: 1 << 20,
        held_max: 1 << 19,
        write_len_max: 1 << 10,
        max_age: None,
        seed: 7,
    };
    let (account, budget) = (Arc::<OutputAccount>::default(), Arc::new(Budget::new(1 << 20)));
    let mut now = Instant::now();
    let end = now + time;
    let mut delivery = DeliveryMachine::new(config, Arc::clone(&account), &[], now);
    let mut first = 0;
    // The stream that stands, what it got and when it breaks.
    let mut open: Option<(StreamId, Vec<u8>, Option<Instant>)> = None;
    let mut arrived = Vec::new();
    while now < end {
        while delivery.wants_batch() && first < FRAMES {
            delivery.handle_batch(batch(&account, &budget, frames(first, 3)), now);
            first += 3;
        }
        while let Some(action) = delivery.poll_action() {
            match action {
                Action::Connect(stream) => {
                    let dies = matches!(reader, Reader::AtOnce).then_some(now + Duration::from_millis(10));
                    open = Some((stream, Vec::new(), dies));
                    delivery.handle_connected(stream, now);
                }
                // It hangs, until the connection ends.
                Action::Write(_) if reads_no_more(&open, reader) => {}
                Action::Write(stream) => {
                    let (_, got, dies) = open.as_mut().unwrap();
                    let before = got.len();
                    delivery.buffers(stream).for_each(|buffer| got.extend_from_slice(&buffer));
                    let refused = match reader {
                        Reader::AtOnce | Reader::AtTheFirstByte => Some(1),
                        Reader::At(refused) => {
                            got.chunks(FRAME_LEN).enumerate().find_map(|(index, frame)| {
                                refused.contains(&number(frame)).then_some(index * FRAME_LEN + 1)
                            })
                        }
                    };
                    // What a reader that ends whatever comes does not read was written all the same.
                    if let (Some(len), Reader::At(_) | Reader::AtTheFirstByte) = (refused, reader) {
                        got.truncate(len);
                        dies.get_or_insert(now + Duration::from_millis(10));
                    }
                    arrived.extend(got[before / FRAME_LEN * FRAME_LEN..].chunks_exact(FRAME_LEN).map(number));
                    let count = got.len() - before;
                    if count > 0 {
                        delivery.handle_written(stream, count, now);
                    }
                }
                Action::Probe(stream) => {
                    let taken = match (&open, reader) {
                        (Some((_, got, _)), Reader::At(_)) => got.len() / FRAME_LEN * FRAME_LEN,
                        _ => 0,
                    };
                    delivery.handle_progress(stream, Some(taken as u64), now);
                }
                Action::Close(..) => open = None,
                Action::Stop(stream) => delivery.handle_finish(stream, true, now),
                Action::Interrupt(_) => {}
            }
        }
        if delivery.wants_batch() && first < FRAMES {
            continue;
        }
        let dies = open.as_ref().and_then(|(_, _, dies)| *dies);
        let due = delivery.poll_timeout();
        now = now.max([dies, due, Some(end)].into_iter().flatten().min().unwrap());
        if dies.is_some_and(|dies| dies <= now) {
            let (stream, got, _) = open.take().unwrap();
            let taken = if matches!(reader, Reader::At(_)) { got.len() / FRAME_LEN * FRAME_LEN } else { 0 };
            delivery.handle_progress(stream, Some(taken as u64), now);
            delivery.handle_lost(stream, now);
        }
        delivery.handle_timeout(now);
        delivery.poll_acknowledged().for_each(drop);
    }
    let refused = delivery.poll_refused().count() as u64;
    delivery.handle_phase(Phase::Over, now);
    while delivery.poll_action().is_some() {}
    if let Some((stream, ..)) = open {
        delivery.handle_written(stream, 0, now);
    }
    for batch in delivery.into_remaining() {
        batch.dropped(DropReason::Shutdown);
    }
    let ledger = ledger(&account);
    assert!(ledger.balances() && ledger.frames_queued == 0, "{ledger:?}");
    assert_eq!(ledger.frames_dropped.get("refused").copied().unwrap_or_default(), refused);
    (refused, arrived)
}

fn reads_no_more(open: &Option<(StreamId, Vec<u8>, Option<Instant>)>, reader: Reader) -> bool {
    let dies = open.as_ref().is_some_and(|(_, _, dies)| dies.is_some());
    dies && !matches!(reader, Reader::AtOnce)
}

fn number(frame: &[u8]) -> usize {
    let digits = frame.get(10..).unwrap_or_default();
    std::str::from_utf8(digits).unwrap().parse().unwrap_or(usize::MAX)
}

/// All frames but these.
fn without(refused: &[usize]) -> Vec<usize> {
    (0..FRAMES).filter(|frame| !refused.contains(frame)).collect()
}

#[test]
fn a_frame_at_which_every_connection_ends_is_left_out_and_those_behind_it_arrive() {
    for acknowledge in [RECEIVED, Acknowledge::Written] {
        for refused in [&[0][..], &[1], &[2], &[13], &[29], &[4, 20]] {
            let reader = Reader::At(Box::leak(refused.into()));
            let (count, arrived) = run(reader, acknowledge, Duration::from_secs(3600));
            assert_eq!(count, refused.len() as u64, "{acknowledge:?}, {refused:?}");
            let all: std::collections::BTreeSet<usize> = arrived.into_iter().collect();
            assert_eq!(all.into_iter().collect::<Vec<_>>(), without(refused), "{acknowledge:?}");
        }
    }
}

/// A second one behind it costs more attempts, because nothing has arrived between them.
#[test]
fn frames_beside_each_other_are_left_out_too() {
    let (count, arrived) = run(Reader::At(&[4, 5]), RECEIVED, Duration::from_secs(3600));
    assert_eq!((count, arrived), (2, without(&[4, 5])));
}

/// A collector that is restarted again and again, and dies before it reads: no frame is the reason.
#[test]
fn a_reader_that_ends_every_connection_at_once_costs_no_frame() {
    for acknowledge in [RECEIVED, FINISH] {
        assert_eq!(run(Reader::AtOnce, acknowledge, Duration::from_secs(24 * 3600)).0, 0, "{acknowledge:?}");
    }
}

/// Nobody can tell it from one that does not take these frames: a day costs a few.
#[test]
fn a_reader_that_ends_every_connection_at_its_first_frame_costs_few() {
    for acknowledge in [RECEIVED, Acknowledge::Written, FINISH] {
        let (count, _) = run(Reader::AtTheFirstByte, acknowledge, Duration::from_secs(60));
        assert!(count <= 1, "{acknowledge:?}: {count}");
        let (count, _) = run(Reader::AtTheFirstByte, acknowledge, Duration::from_secs(24 * 3600));
        assert!((1..=10).contains(&count), "{acknowledge:?}: {count}");
    }
}

/// With FINISH alone, tapster does not know how far a reader is: frames that are written alone show it.
#[test]
fn a_frame_for_which_no_finish_comes_is_found_among_others() {
    for refused in [&[0][..], &[13], &[29], &[4, 20]] {
        let reader = Reader::At(Box::leak(refused.into()));
        let (count, arrived) = run(reader, FINISH, Duration::from_secs(3600));
        let all: std::collections::BTreeSet<usize> = arrived.into_iter().collect();
        assert_eq!((count, all.into_iter().collect::<Vec<_>>()), (refused.len() as u64, without(refused)));
    }
}
