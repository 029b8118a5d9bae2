//! Every operation fails once, and again and again; the power is cut after every operation. Whatever happens, nothing is
//! lost that was not counted.

use std::time::Duration;

use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

use crate::corruption::two_segments;
use crate::support::Books;
use crate::support::Clock;
use crate::support::numbers;
use crate::support::open;
use crate::support::small;

const SYNCS: [SyncPolicy; 3] =
    [SyncPolicy::None, SyncPolicy::Interval(Duration::from_millis(100)), SyncPolicy::Batch];

fn config(sync: SyncPolicy) -> SpoolConfig {
    SpoolConfig { max: 256 << 10, ..small(sync, OnFull::DropOldest) }
}

/// A life that sees every kind of operation: a spool is opened, filled until it drops, read in part, rewound and drained.
/// The books balance after every step; what the spool refused is not in them. `None` where it could not be opened.
fn live(
    folder: &SimFolder,
    sync: SyncPolicy,
    clock: &mut Clock,
    books: &mut Books,
) -> Option<Spool<SimFolder>> {
    let mut spool = (0..5).find_map(|_| open(folder, &config(sync), clock.now()).ok())?;
    for step in 0..STEPS {
        clock.advance(Duration::from_millis(70));
        if step % 3 < 2 {
            let batches = [books.batch(2, 4000, clock.now()), books.batch(1, 5000, clock.now())];
            let _ = books.append(&mut spool, &batches, clock.now());
        }
        if step % 2 == 0
            && let Ok(Some((batch, start))) = books.read_batch(&mut spool, clock.now())
            && step % 4 == 0
        {
            // Every other time only the first frame of the batch.
            let frames = if step % 8 == 0 { batch.frames() } else { 1 };
            books.acknowledged += spool.acknowledge(start.after(frames), clock.now());
        }
        if step == STEPS / 2 {
            spool.rewind();
            books.again();
        }
        let _ = spool.handle_timeout(clock.now());
        books.losses(&mut spool);
        books.balance(&spool);
        assert!(spool.bytes() <= config(sync).max + (64 << 10), "{} bytes on disk", spool.bytes());
    }
    Some(spool)
}

/// Enough for the spool to be full.
const STEPS: usize = 40;

/// Reads and acknowledges all there is. Failures pass.
fn drain(spool: &mut Spool<SimFolder>, clock: &mut Clock, books: &mut Books) {
    for _ in 0..3 {
        while let Ok(Some(position)) = books.read(spool, clock.now()) {
            books.acknowledged += spool.acknowledge(position, clock.now());
        }
        clock.advance(Duration::from_secs(2));
        let _ = spool.handle_timeout(clock.now());
        books.losses(spool);
        books.balance(spool);
    }
    assert_eq!(spool.frames(), 0);
}

/// Opens what a life has left, and reads it all.
fn live_again(folder: &SimFolder, sync: SyncPolicy, clock: &mut Clock, books: &mut Books) {
    let mut spool = open(folder, &config(sync), clock.now()).expect("a spool opens whatever was left");
    books.restart(spool.frames());
    drain(&mut spool, clock, books);
    // And it goes on.
    let batch = books.batch(1, 1000, clock.now());
    let appended = spool.append(std::slice::from_ref(&batch), clock.now()).expect("the disk is sound again");
    let (read, position) =
        spool.next(clock.now()).expect("the disk is sound again").expect("what was appended");
    assert_eq!((read.bytes(), Some(&position)), (batch.bytes(), appended.positions.first()));
}

#[test]
fn no_failure_of_any_operation_loses_a_frame_uncounted() {
    for sync in SYNCS {
        for count in [1, 2, 1000] {
            for after in 0.. {
                let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
                println!("{sync:?}: {count} operations fail after {after}");
                folder.fail_after(after, count);
                let Some(mut spool) = live(&folder, sync, &mut clock, &mut books) else { continue };
                if folder.heal() == 0 {
                    assert!(after > 60, "only {after} operations");
                    break;
                }
                // The process goes on.
                spool.rewind();
                books.again();
                drain(&mut spool, &mut clock, &mut books);
                assert!(!spool.is_degraded());
                assert!(books.missing() <= books.lost(), "{} missing, {:?}", books.missing(), books.lost);
                if count == 1 {
                    assert_eq!(books.lost.get("spool_damaged"), None, "one failure destroys nothing");
                }
                spool.close(clock.now()).expect("the disk is sound again");
            }
        }
    }
}

#[test]
fn a_kill_after_failures_loses_only_what_waited_in_memory() {
    for sync in SYNCS {
        for count in [1, 1000] {
            for after in 0.. {
                let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
                println!("{sync:?}: {count} operations fail after {after}");
                folder.fail_after(after, count);
                let Some(spool) = live(&folder, sync, &mut clock, &mut books) else { continue };
                if folder.heal() == 0 {
                    break;
                }
                let in_memory = if spool.is_degraded() { spool.unsynced_frames() } else { 0 };
                drop(spool);
                live_again(&folder, sync, &mut clock, &mut books);
                assert!(books.missing() <= books.lost() + in_memory, "{} missing", books.missing());
            }
        }
    }
}

#[test]
fn a_power_cut_after_any_operation_loses_only_what_was_not_synced() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for sync in SYNCS {
        for after in 0.. {
            let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
            println!("{sync:?}: power cut after operation {after}");
            folder.die_after(after);
            let Some(spool) = live(&folder, sync, &mut clock, &mut books) else { continue };
            let unsynced = spool.unsynced_frames();
            let cut = folder.cut_power(&mut random);
            if folder.heal() == 0 {
                break;
            }
            live_again(&cut, sync, &mut clock, &mut books);
            if sync != SyncPolicy::None {
                let allowed = books.lost() + unsynced;
                assert!(books.missing() <= allowed, "{} missing, not {allowed}", books.missing());
            }
        }
    }
}

/// Every read of the opening fails in turn, and then a thousand of them: nothing is set aside, removed or skipped.
#[test]
fn a_spool_that_cannot_be_read_when_it_is_opened_is_whole_afterwards() {
    for count in [1, 3, 10, 1000] {
        for after in 0.. {
            let (clock, mut books) = (Clock::new(), Books::default());
            let folder = two_segments(clock, &mut books);
            let names = folder.names();
            folder.fail_after(after, count);
            while open(&folder, &config(SyncPolicy::Batch), clock.now()).is_err() {}
            let failures = folder.heal();
            assert_eq!(folder.names(), names, "{count} operations failed after {after}");
            let mut spool = open(&folder, &config(SyncPolicy::Batch), clock.now()).expect("nothing fails");
            books.restart(spool.frames());
            while books.read(&mut spool, clock.now()).expect("nothing fails").is_some() {}
            assert_eq!((books.missing(), books.lost()), (0, 0), "{count} operations failed after {after}");
            if failures == 0 {
                assert!(after >= 10, "only {after} operations");
                break;
            }
            books.again();
        }
    }
}

/// The numbers of all frames that a spool has, from the oldest that is not acknowledged on.
fn read_again(spool: &mut Spool<SimFolder>, clock: Clock) -> Vec<u64> {
    spool.rewind();
    let batches = std::iter::from_fn(|| spool.next(clock.now()).expect("what waits in memory can be read"));
    batches.flat_map(|(batch, _)| numbers(&batch)).collect()
}

/// The disk fails while batches are taken back that were not synced, and so does the sync: what waits in memory is what is left.
#[test]
fn what_was_taken_back_does_not_come_again_from_memory() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let sync = SyncPolicy::Interval(Duration::from_millis(100));
    let mut spool = open(&folder, &config(sync), clock.now()).unwrap();
    let kept = books.batch(2, 100, clock.now());
    spool.append(&[kept], clock.now()).unwrap();
    let elsewhere = books.batch(3, 100, clock.now());
    let appended = spool.append(&[elsewhere], clock.now()).unwrap();
    folder.fail_after(0, 1000);
    spool.take_back(appended.positions[0]);
    clock.advance(Duration::from_millis(200));
    spool.handle_timeout(clock.now()).unwrap_err();
    assert!(spool.is_degraded());
    assert_eq!((spool.frames(), read_again(&mut spool, clock)), (2, vec![0, 1]));
    folder.heal();
    clock.advance(Duration::from_secs(2));
    spool.handle_timeout(clock.now()).unwrap();
    assert_eq!((spool.frames(), read_again(&mut spool, clock)), (2, vec![0, 1]));
    assert_eq!(spool.poll_loss(), None);
}

/// A record is damaged before its sync, and told as lost: the copy in memory is not read as well.
#[test]
fn what_was_told_as_damaged_does_not_come_again_from_memory() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let sync = SyncPolicy::Interval(Duration::from_millis(100));
    let mut spool = open(&folder, &config(sync), clock.now()).unwrap();
    let batches = [2, 3, 1].map(|frames| books.batch(frames, 100, clock.now()));
    let appended = books.append(&mut spool, &batches, clock.now()).unwrap();
    let name = "seg-0000000000000001.fsr";
    let mut bytes = folder.content(name).unwrap();
    bytes[usize::try_from(appended.positions[1].offset()).unwrap() + 50] ^= 1;
    folder.put(name, bytes);
    while books.read(&mut spool, clock.now()).unwrap().is_some() {}
    assert_eq!((books.lost["spool_damaged"], books.missing()), (3, 3));
    folder.fail_after(0, 1000);
    clock.advance(Duration::from_millis(200));
    spool.handle_timeout(clock.now()).unwrap_err();
    assert!(spool.is_degraded());
    assert_eq!((spool.frames(), read_again(&mut spool, clock)), (3, vec![0, 1, 5]));
    assert_eq!(spool.poll_loss(), None);
}
