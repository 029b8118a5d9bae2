//! Situations that a storm meets too seldom.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Waker;
use std::time::Duration;

use crate::batch::connection::ConnectionId;
use crate::batch::tests::ledger;
use crate::observability::drop_reason::DropReason;
use crate::protocol::FrameBatch;
use crate::spool::Moment;
use crate::spool::OnFull;
use crate::spool::Spool;
use crate::spool::SpoolConfig;
use crate::spool::SyncPolicy;
use crate::spool::stage::tests::Life;
use crate::spool::stage::tests::Storm;
use crate::spool::storage::Standing;

/// A sync may take as long for much as for little.
#[test]
fn what_has_arrived_is_synced_at_once() {
    const BATCHES: u64 = 3000;
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { max: 64 << 20, sync: SyncPolicy::Batch, ..storm.config };
    storm.weather.payload_len_max = 1 << 20;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    for _ in 0..BATCHES {
        push(&life, FrameBatch::from_payloads([[0; 1000]], storm.now.instant).unwrap());
    }
    life.stage.turn(|| storm.now);
    assert_eq!(life.stage.spool.as_ref().map(Spool::frames), Some(BATCHES));
    life.front.abandon();
    life.back.abandon();
}

/// Otherwise a disk whose syncs take longer than the time between them is synced for every batch.
#[test]
fn the_time_that_a_sync_has_taken_counts() {
    const OPERATION: u64 = 600;
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { sync: SyncPolicy::Interval(Duration::from_secs(1)), ..storm.config };
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    let (passed, begin) = (Arc::new(AtomicU64::new(0)), storm.now);
    let passes = Arc::clone(&passed);
    storm.folder.meanwhile(Some(Arc::new(move || {
        passes.fetch_add(OPERATION, Relaxed);
    })));
    let clock = || {
        let millis = passed.load(Relaxed);
        Moment {
            instant: begin.instant + Duration::from_millis(millis),
            unix: begin.unix + millis * 1_000_000,
        }
    };
    let unsynced = [0; 20].map(|_| {
        push(&life, FrameBatch::from_payloads([[0; 100]], begin.instant).unwrap());
        life.stage.turn(clock);
        life.stage.spool.as_ref().map_or(0, Spool::unsynced_frames)
    });
    assert!(unsynced[10..].contains(&2), "{unsynced:?}");
    life.front.abandon();
    life.back.abandon();
}

fn push(life: &Life, frames: FrameBatch) {
    let push = pin!(life.front.push(frames, ConnectionId::new(0)));
    assert!(push.poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

/// The folder goes when nobody looks at it any more.
#[test]
fn what_is_in_a_folder_that_is_gone_at_the_end_counts_as_lost() {
    let mut storm = Storm::new(1);
    storm.config.on_full = OnFull::Block;
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    for _ in 0..10 {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let arrived = ledger(&life.account).frames_received;
    storm.folder.stand(Standing::Gone);
    life.front.close();
    drop(life.reports.take());
    life.stage.end(|| storm.now);
    let ledger = ledger(&life.account);
    assert_eq!((ledger.frames_spooled, ledger.frames_dropped.get("spool_damaged")), (0, Some(&arrived)));
    assert!(ledger.balances(), "{ledger:?}");
}

#[test]
fn a_stage_that_fails_counts_what_was_on_its_way_to_the_disk() {
    let mut storm = Storm::new(1);
    storm.config.on_full = OnFull::Block;
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    storm.folder.limit(Some(0));
    // The lane takes nothing, and the disk is full.
    while life.stage.entrance.arrived().is_empty() {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let arrived: u64 =
        life.stage.entrance.arrived().iter().map(|batch| u64::from(batch.frames().frames())).sum();
    life.stage.begin_again();
    let ledger = ledger(&life.account);
    assert_eq!(ledger.frames_dropped.get("internal"), Some(&arrived));
    assert!(ledger.balances(), "{ledger:?}");
    life.front.abandon();
    life.back.abandon();
}

#[test]
fn what_waits_for_a_full_disk_is_dropped_at_its_age() {
    let max_age = Duration::from_secs(10);
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { on_full: OnFull::Block, max_age, ..storm.config };
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    storm.folder.limit(Some(0));
    while life.blocked.is_none() {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let mut with_lane = 0;
    while let Some(batch) = life.back.pop() {
        with_lane += u64::from(batch.frames().frames());
        batch.dropped(DropReason::Shutdown);
    }
    let received = ledger(&life.account).frames_received;
    storm.now.instant += max_age + Duration::from_millis(1);
    life.stage.turn(|| storm.now);
    assert!(life.stage.entrance.arrived().is_empty() && life.front.is_empty());
    let ledger = ledger(&life.account);
    assert_eq!(ledger.frames_dropped.get("spool_age"), Some(&(received - with_lane)));
}
