//! What a spool removes when limits, and the time, say so.

use std::time::Duration;

use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

use crate::support::Books;
use crate::support::Clock;
use crate::support::open;
use crate::support::small;

fn config(max: u64) -> SpoolConfig {
    SpoolConfig { max, ..small(SyncPolicy::Batch, OnFull::Block) }
}

/// Does what is due at once.
fn upkeep(spool: &mut Spool<SimFolder>, clock: Clock) -> usize {
    let mut turns = 0;
    while spool.poll_timeout() <= clock.now().instant {
        spool.handle_timeout(clock.now()).expect("nothing fails");
        turns += 1;
        assert!(turns < 10_000, "something stays due");
    }
    turns
}

/// Bytes of the cursor file, once both of its slots were written.
const CURSOR_LEN: u64 = 4096 + 64;

/// Nothing arrives, and the new limit holds all the same; also where one segment has more than the spool may.
#[test]
fn a_max_that_was_lowered_applies_at_once_and_keeps_the_newest() {
    for batches in [30, 100, 400, 1500] {
        let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let mut spool = open(&folder, &config(8 << 20), clock.now()).unwrap();
        for _ in 0..batches {
            let batch = books.batch(4, 1000, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
        }
        spool.close(clock.now()).unwrap();
        let max = 300 << 10;
        let mut spool = open(&folder, &config(max), clock.now()).unwrap();
        books.restart(spool.frames());
        upkeep(&mut spool, clock);
        assert!(folder.bytes() <= max, "{batches} batches: {} bytes", folder.bytes());
        assert_eq!(spool.bytes() + CURSOR_LEN, folder.bytes());
        clock.advance(Duration::from_secs(1));
        let mut read = 0;
        while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
            books.acknowledged += spool.acknowledge(position, clock.now());
            read += 1;
        }
        books.losses(&mut spool);
        books.balance(&spool);
        let all = batches * 4 * 1000 + 4096 < max;
        assert!(
            if all { read == batches } else { read * 4000 > max / 4 },
            "{read} of {batches} batches are kept"
        );
        assert_eq!(books.missing(), books.lost(), "{batches} batches");
        assert_eq!(books.lost.get("spool_full").copied().unwrap_or(0), books.lost());
        assert_eq!(books.appended.last_key_value().map(|(_, times)| *times), Some(1), "the newest");
    }
}

/// The header of a segment and the footer of the segment before it take room too: otherwise a spool that is exactly full drops its
/// oldest frames at the next start.
#[test]
fn a_spool_never_exceeds_max_where_its_last_record_just_fits() {
    for payload_len in 4000..4100 {
        let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let config = config(256 << 10);
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        while spool.bytes() < config.max - 50_000 {
            let batch = books.batch(1, payload_len, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
        }
        let room = usize::try_from(config.max - folder.bytes()).unwrap();
        let mut longest_first = (0..room).rev().map(|len| books.batch(1, len, clock.now()));
        let longest = longest_first.find(|batch| spool.has_room_for(batch)).expect("there is room");
        books.append(&mut spool, &[longest], clock.now()).unwrap();
        spool.close(clock.now()).unwrap();
        assert!(folder.bytes() <= config.max, "{payload_len}: {} bytes", folder.bytes());
        let frames = spool.frames();
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        upkeep(&mut spool, clock);
        assert_eq!((spool.frames(), spool.poll_loss()), (frames, None), "{payload_len}");
    }
}

/// A segment whose records were taken back goes with the next segment. Until then it is not due again and again.
#[test]
fn an_old_segment_without_records_does_not_keep_the_spool_busy() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = SpoolConfig { max_age: Duration::from_secs(60), ..config(8 << 20) };
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let batch = books.batch(1, 1000, clock.now());
    let appended = books.append(&mut spool, &[batch], clock.now()).unwrap();
    spool.take_back(appended.positions[0]);
    clock.advance(Duration::from_secs(100));
    assert!(upkeep(&mut spool, clock) < 5);
}

#[test]
fn thousands_of_old_segments_go_a_few_at_a_time_with_one_write_of_the_cursor_each_time() {
    const SEGMENTS: u64 = 2000;
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    for _ in 0..SEGMENTS {
        let mut spool = open(&folder, &config(512 << 20), clock.now()).unwrap();
        let batch = books.batch(1, 10, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
        std::mem::forget(spool);
    }
    let config = SpoolConfig { max_age: Duration::from_secs(60), ..config(512 << 20) };
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    books.restart(spool.frames());
    clock.advance(Duration::from_secs(70));
    let before = folder.operations();
    let turns = upkeep(&mut spool, clock) as u64;
    books.losses(&mut spool);
    assert_eq!((books.lost["spool_age"], spool.frames(), folder.names().len()), (SEGMENTS, 0, 1));
    let operations = folder.operations() - before;
    assert!(
        turns >= SEGMENTS / 100 && operations < SEGMENTS + 6 * turns,
        "{operations} operations in {turns} turns"
    );
}

/// The clock is set while frames wait: they are as old as the time that has passed.
#[test]
fn a_clock_that_is_set_drops_nothing_young_and_keeps_nothing_old() {
    let years = Duration::from_secs(50 * 365 * 24 * 3600);
    for step in [Duration::from_secs(3600), years] {
        for forward in [true, false] {
            let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
            clock.step(years, true); // room for a step back
            let config = SpoolConfig { max_age: Duration::from_secs(60), ..config(8 << 20) };
            let mut spool = open(&folder, &config, clock.now()).unwrap();
            let batch = books.batch(2, 100, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
            clock.advance(Duration::from_secs(10));
            clock.step(step, forward);
            upkeep(&mut spool, clock);
            let told = i128::from(spool.poll_clock_step());
            assert_eq!(told, i128::try_from(step.as_nanos()).unwrap() * if forward { 1 } else { -1 });
            let batch = books.batch(2, 100, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
            clock.advance(Duration::from_secs(20));
            upkeep(&mut spool, clock);
            assert_eq!(spool.frames(), 4, "{step:?} {forward}");
            for age in [30, 20] {
                let (batch, _) = spool.next(clock.now()).unwrap().expect("two batches");
                assert_eq!(
                    clock.now().instant - batch.read_at(),
                    Duration::from_secs(age),
                    "{step:?} {forward}"
                );
            }
            clock.advance(Duration::from_secs(100));
            upkeep(&mut spool, clock);
            books.losses(&mut spool);
            assert_eq!((spool.frames(), books.lost["spool_age"]), (0, 4), "{step:?} {forward}");
        }
    }
}

/// Times in the future, and from before the clock was set at boot, say nothing: they count as now.
#[test]
fn frames_that_a_wrong_clock_dated_go_in_time_and_not_before() {
    let year = Duration::from_secs(365 * 24 * 3600);
    for (off, forward) in [(year, true), (50 * year, false)] {
        let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let config = SpoolConfig { max_age: Duration::from_secs(60), ..config(8 << 20) };
        clock.step(off, forward);
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        let batch = books.batch(2, 100, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
        spool.close(clock.now()).unwrap();
        clock.step(off, !forward);
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        clock.advance(Duration::from_secs(50));
        upkeep(&mut spool, clock);
        assert_eq!(spool.frames(), 2);
        clock.advance(Duration::from_secs(50));
        upkeep(&mut spool, clock);
        assert_eq!(spool.frames(), 0);
    }
}

/// What was appended was taken back: the segment is open, old, and there is nothing to remove from it.
#[test]
fn an_open_segment_without_records_that_gets_old_gives_no_work() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &config(8 << 20), clock.now()).unwrap();
    let batch = books.batch(4, 1000, clock.now());
    let appended = books.append(&mut spool, &[batch], clock.now()).unwrap();
    spool.take_back(appended.positions[0]);
    clock.advance(8 * 24 * Duration::from_secs(60 * 60));
    for _ in 0..5 {
        spool.handle_timeout(clock.now()).unwrap();
    }
    assert!(spool.poll_timeout() > clock.now().instant, "the upkeep does not end");
    assert_eq!(spool.frames(), 0);
}
