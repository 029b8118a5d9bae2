//! What a driver can rely on, one sentence a test.

use std::time::Duration;

use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::ConnectionId;
use tapster::spool::Folder;
use tapster::spool::Moment;
use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SpoolError;
use tapster::spool::Storage;
use tapster::spool::SyncPolicy;

use crate::support::Books;
use crate::support::Clock;
use crate::support::numbers;
use crate::support::open;
use crate::support::small;

const INTERVAL: SyncPolicy = SyncPolicy::Interval(Duration::from_millis(100));

#[test]
fn what_is_appended_comes_back_in_order_and_once() {
    for sync in [SyncPolicy::None, INTERVAL, SyncPolicy::Batch] {
        let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let mut spool = open(&folder, &small(sync, OnFull::Block), clock.now()).unwrap();
        for _ in 0..20 {
            let batches = [books.batch(3, 100, clock.now()), books.batch(1, 5000, clock.now())];
            let appended = books.append(&mut spool, &batches, clock.now()).unwrap();
            assert_eq!(appended.settled(), 2);
        }
        assert_eq!(spool.frames(), 80);
        while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
            books.acknowledged += spool.acknowledge(position, clock.now());
        }
        assert!(spool.reader_caught_up());
        assert_eq!((books.missing(), books.lost(), spool.frames()), (0, 0, 0));
        spool.close(clock.now()).unwrap();
        assert_eq!(folder.names(), ["cursor"], "nothing is left of what was acknowledged");
    }
}

#[test]
fn what_is_not_acknowledged_comes_again_after_a_restart() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = small(INTERVAL, OnFull::Block);
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    for _ in 0..10 {
        let batch = books.batch(2, 100, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
    }
    let mut positions = Vec::new();
    while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
        positions.push(position);
    }
    assert_eq!(spool.acknowledge(positions[3], clock.now()), 8);
    assert_eq!(spool.acknowledge(positions[1], clock.now()), 0, "an older place changes nothing");
    spool.close(clock.now()).unwrap();

    let (mut spool, report) = Spool::open_in(folder, config, Some(ContentType::DNSTAP), clock.now()).unwrap();
    assert_eq!((report.frames, report.segments, report.cursor_found), (12, 1, true));
    let (batch, _) = spool.next(clock.now()).unwrap().unwrap();
    assert_eq!(numbers(&batch), [8, 9]);
}

/// The collector has the first frames of a batch, and the relay ends.
#[test]
fn the_rest_of_a_batch_that_was_delivered_in_part_comes_after_a_restart() {
    for sync in [SyncPolicy::None, INTERVAL, SyncPolicy::Batch] {
        let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let config = small(sync, OnFull::Block);
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        let connection = ConnectionId::new(5);
        let batches = [10, 10, 2].map(|frames| (connection, books.batch(frames, 100, clock.now())));
        let positions = spool.append_from(&batches, clock.now()).unwrap().positions;
        assert_eq!(spool.acknowledge(positions[1].after(4), clock.now()), 14);
        assert_eq!(spool.frames(), 8);
        spool.close(clock.now()).unwrap();
        drop(spool);

        let opened = Spool::open_in(folder.clone(), config.clone(), Some(ContentType::DNSTAP), clock.now());
        let (mut spool, report) = opened.unwrap();
        assert_eq!(report.frames, 8);
        let (from, batch, rest) = spool.next_from(clock.now()).unwrap().unwrap();
        assert_eq!((from, numbers(&batch)), (connection, (14..20).collect()));
        assert_eq!((batch.frames(), batch.payload_len_max()), (6, 100));
        assert_eq!(rest, positions[1].after(4));
        // And again a part of it.
        assert_eq!(spool.acknowledge(rest.after(1), clock.now()), 1);
        spool.rewind();
        let (batch, rest) = spool.next(clock.now()).unwrap().unwrap();
        assert_eq!(numbers(&batch), (15..20).collect::<Vec<_>>());
        assert_eq!(spool.acknowledge(rest.after(batch.frames()), clock.now()), 5);
        assert_eq!(numbers(&spool.next(clock.now()).unwrap().unwrap().0), [20, 21]);
        assert_eq!((spool.frames(), spool.poll_loss()), (2, None));
        drop(spool);
        let (_, report) = Spool::open_in(folder, config, Some(ContentType::DNSTAP), clock.now()).unwrap();
        assert_eq!(report.frames, 8, "a kill, and the cursor was not due: duplicates");
    }
}

/// What is in memory alone, because the disk fails, has no record to be read from.
#[test]
fn the_rest_of_a_batch_comes_from_memory_while_nothing_can_be_written() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
    let batch = books.batch(10, 100, clock.now());
    let position = spool.append(&[batch], clock.now()).unwrap().positions[0];
    folder.fail_after(0, 1000);
    clock.advance(Duration::from_millis(100));
    spool.handle_timeout(clock.now()).unwrap_err();
    assert!(spool.is_degraded());
    assert_eq!(spool.acknowledge(position.after(4), clock.now()), 4);
    assert_eq!(spool.unsynced_frames(), 6);
    spool.rewind();
    folder.heal();
    let (batch, rest) = spool.next(clock.now()).unwrap().unwrap();
    assert_eq!(numbers(&batch), (4..10).collect::<Vec<_>>());
    clock.advance(Duration::from_secs(1));
    spool.handle_timeout(clock.now()).unwrap();
    assert!(!spool.is_degraded());
    spool.rewind();
    assert_eq!(numbers(&spool.next(clock.now()).unwrap().unwrap().0), numbers(&batch));
    assert_eq!(spool.acknowledge(rest.after(6), clock.now()), 6);
    assert_eq!((spool.frames(), spool.poll_loss()), (0, None));
}

#[test]
fn a_rewind_reads_again_from_the_watermark() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(SyncPolicy::Batch, OnFull::Block), clock.now()).unwrap();
    for _ in 0..4 {
        let batch = books.batch(1, 100, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
    }
    let first = books.read(&mut spool, clock.now()).unwrap().unwrap();
    while books.read(&mut spool, clock.now()).unwrap().is_some() {}
    spool.acknowledge(first, clock.now());
    spool.rewind();
    for number in 1..4 {
        let (batch, _) = spool.next(clock.now()).unwrap().unwrap();
        assert_eq!(numbers(&batch), [number]);
    }
}

#[test]
fn a_reader_that_has_caught_up_may_be_spared_what_is_in_memory() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
    assert!(spool.reader_caught_up());
    let batch = books.batch(5, 100, clock.now());
    let appended = books.append(&mut spool, std::slice::from_ref(&batch), clock.now()).unwrap();
    assert!(!spool.reader_caught_up());
    spool.skip_to(appended.positions[0].after(batch.frames()));
    books.delivered(&batch);
    assert!(spool.reader_caught_up());
    // Nothing is read of the disk.
    folder.fail_after(0, 1);
    assert_eq!(books.read(&mut spool, clock.now()).unwrap(), None);
    folder.heal();

    // The delivery failed: it is in the spool.
    spool.rewind();
    books.again();
    let position = books.read(&mut spool, clock.now()).unwrap().unwrap();
    assert_eq!(position, appended.positions[0].after(batch.frames()));
    assert_eq!(spool.acknowledge(position, clock.now()), 5);
    assert_eq!(spool.frames(), 0);
}

#[test]
fn a_full_spool_drops_its_oldest_segment_and_counts_what_was_not_acknowledged() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = small(INTERVAL, OnFull::DropOldest);
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let batch = books.batch(1, 10_000, clock.now());
    books.append(&mut spool, &[batch], clock.now()).unwrap();
    let first = books.read(&mut spool, clock.now()).unwrap().unwrap();
    books.acknowledged += spool.acknowledge(first, clock.now());
    for _ in 0..200 {
        let batch = books.batch(1, 10_000, clock.now());
        let appended = books.append(&mut spool, &[batch], clock.now()).unwrap();
        assert_eq!(appended.positions.len(), 1);
        assert!(spool.bytes() <= config.max && folder.bytes() <= config.max + 10_000);
        books.balance(&spool);
    }
    assert!(books.lost["spool_full"] > 100);
    while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
        books.acknowledged += spool.acknowledge(position, clock.now());
    }
    books.balance(&spool);
    assert_eq!(books.missing(), books.lost());
}

#[test]
fn a_full_spool_that_drops_the_newest_keeps_the_oldest() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::DropNewest), clock.now()).unwrap();
    let batches: Vec<_> = (0..100).map(|_| books.batch(1, 10_000, clock.now())).collect();
    let appended = spool.append(&batches, clock.now()).unwrap();
    assert_eq!(appended.settled(), 100);
    assert!(appended.dropped > 0 && appended.positions.len() > 40);
    assert_eq!(spool.poll_loss().map(|(_, frames)| frames), Some(appended.dropped as u64));
    let (batch, _) = spool.next(clock.now()).unwrap().unwrap();
    assert_eq!(numbers(&batch), [0]);
}

#[test]
fn a_full_spool_that_blocks_takes_more_as_soon_as_a_segment_is_acknowledged() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
    let mut blocked = 0;
    let mut waiting = None;
    while books.next < 500 {
        let batch = waiting.take().unwrap_or_else(|| books.batch(1, 10_000, clock.now()));
        let appended = books.append(&mut spool, std::slice::from_ref(&batch), clock.now()).unwrap();
        if appended.settled() == 0 {
            blocked += 1;
            waiting = Some(batch);
            let position = books.read(&mut spool, clock.now()).unwrap().unwrap();
            books.acknowledged += spool.acknowledge(position, clock.now());
        }
    }
    assert!(blocked > 100);
    assert_eq!(books.lost(), 0);
}

#[test]
fn a_batch_that_can_never_fit_is_lost_alone() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
    let batches = [
        books.batch(1, 100, clock.now()),
        books.batch(1, 200_000, clock.now()),
        books.batch(1, 100_000, clock.now()), // more than a segment, and yet it fits
    ];
    let appended = spool.append(&batches, clock.now()).unwrap();
    assert_eq!((appended.positions.len(), appended.dropped), (1, 0));
    let appended = spool.append(&batches[1..], clock.now()).unwrap();
    assert_eq!((appended.positions.len(), appended.dropped), (0, 1));
    let appended = spool.append(&batches[2..], clock.now()).unwrap();
    assert_eq!((appended.positions.len(), appended.dropped), (1, 0));
    assert_eq!(spool.poll_loss().map(|(reason, frames)| (reason.as_str(), frames)), Some(("spool_full", 1)));
    assert_eq!(numbers(&spool.next(clock.now()).unwrap().unwrap().0), [0]);
    assert_eq!(numbers(&spool.next(clock.now()).unwrap().unwrap().0), [2]);
}

#[test]
fn frames_that_are_too_old_go_and_are_counted() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = SpoolConfig { max_age: Duration::from_secs(800), ..small(INTERVAL, OnFull::Block) };
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    for _ in 0..10 {
        let batch = books.batch(1, 100, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
        clock.advance(Duration::from_secs(60));
        spool.handle_timeout(clock.now()).unwrap();
    }
    assert_eq!(books.lost(), 0);
    for _ in 0..20 {
        clock.advance(Duration::from_secs(60));
        spool.handle_timeout(clock.now()).unwrap();
        books.losses(&mut spool);
        books.balance(&spool);
    }
    assert_eq!(books.lost["spool_age"], 10);
    assert_eq!(folder.names(), ["cursor"]);
}

#[test]
fn the_age_of_a_frame_survives_a_restart() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = small(INTERVAL, OnFull::Block);
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let batch = books.batch(1, 100, clock.now());
    books.append(&mut spool, std::slice::from_ref(&batch), clock.now()).unwrap();
    spool.close(clock.now()).unwrap();
    clock.advance(Duration::from_secs(5));
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let (read, _) = spool.next(clock.now()).unwrap().unwrap();
    assert_eq!(read.read_at(), batch.read_at());
}

#[test]
fn deadlines_are_met_and_then_gone() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
    spool.handle_timeout(clock.now()).unwrap();
    let idle = spool.poll_timeout();
    let batch = books.batch(1, 100, clock.now());
    let appended = books.append(&mut spool, &[batch], clock.now()).unwrap();
    assert_eq!(spool.poll_timeout(), clock.now().instant + Duration::from_millis(100));
    assert!(spool.unsynced_bytes() > 0);
    clock.advance(Duration::from_millis(100));
    spool.handle_timeout(clock.now()).unwrap();
    assert_eq!((spool.unsynced_bytes(), spool.poll_timeout()), (0, idle));
    spool.acknowledge(appended.positions[0].after(1), clock.now());
    clock.advance(Duration::from_millis(100));
    spool.handle_timeout(clock.now()).unwrap();
    assert_eq!(spool.poll_timeout(), idle);
}

/// Power is cut after several segments, with a cursor that is written between any two batches, or seldom.
#[test]
fn what_is_acknowledged_before_its_time_is_never_synced_and_never_missed() {
    for step in [Duration::from_millis(60), Duration::from_millis(1)] {
        let (mut folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let config = small(INTERVAL, OnFull::Block);
        let mut random = fastrand::Rng::with_seed(7);
        for cut in 0..20 {
            let mut spool = open(&folder, &config, clock.now()).unwrap();
            for _ in 0..40 {
                let batches = [(ConnectionId::default(), books.batch(3, 2000, clock.now()))];
                let appended = spool.append_from(&batches, clock.now()).unwrap();
                spool.skip_to(appended.positions[0].after(3));
                clock.advance(step);
                spool.handle_timeout(clock.now()).unwrap();
                assert!(spool.unsynced_bytes() > 0, "it was synced");
                assert_eq!(spool.acknowledge(appended.positions[0].after(3), clock.now()), 3);
                assert_eq!(spool.unsynced_bytes(), 0);
                clock.advance(step);
                spool.handle_timeout(clock.now()).unwrap();
            }
            assert_eq!(spool.poll_loss(), None);
            folder = folder.cut_power(&mut random);
            let mut spool = open(&folder, &config, clock.now()).unwrap();
            while spool.next(clock.now()).unwrap().is_some() {}
            assert_eq!(spool.poll_loss(), None, "cut {cut}");
        }
    }
}

#[test]
fn a_full_disk_is_a_full_spool_and_recovers_by_itself() {
    for on_full in [OnFull::DropOldest, OnFull::DropNewest, OnFull::Block] {
        let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let mut spool = open(&folder, &small(INTERVAL, on_full), clock.now()).unwrap();
        folder.limit(Some(200 << 10));
        for _ in 0..60 {
            let batch = books.batch(1, 10_000, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
            books.balance(&spool);
        }
        assert!(!spool.is_degraded());
        folder.limit(None);
        let batch = books.batch(1, 10_000, clock.now());
        assert_eq!(books.append(&mut spool, &[batch], clock.now()).unwrap().positions.len(), 1);
        while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
            books.acknowledged += spool.acknowledge(position, clock.now());
        }
        books.balance(&spool);
        assert_eq!(
            (books.missing(), books.lost()),
            (books.lost(), if on_full == OnFull::DropOldest { books.lost() } else { 0 })
        );
    }
}

#[test]
fn some_of_the_disk_is_left_to_others() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = SpoolConfig { min_free: 100 << 10, ..small(INTERVAL, OnFull::DropNewest) };
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    folder.limit(Some(300 << 10));
    for _ in 0..60 {
        let batch = books.batch(1, 10_000, clock.now());
        books.append(&mut spool, &[batch], clock.now()).unwrap();
    }
    assert!(folder.free_bytes().unwrap() >= 100 << 10);
    assert!(folder.free_bytes().unwrap() <= 120 << 10);
}

/// A test keeps the folder, and makes it fail, while another thread drives the spool, whatever its storage is.
#[test]
fn a_spool_runs_on_another_thread_in_whatever_storage() {
    fn append_on_a_thread<S: Storage + 'static>(mut spool: Spool<S>, batch: FrameBatch, now: Moment) -> bool
    where
        S::File: 'static,
    {
        std::thread::spawn(move || spool.append(&[batch], now).is_ok()).join().expect("no panic")
    }
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    for fails in [false, true] {
        let spool = open(&folder, &small(SyncPolicy::Batch, OnFull::Block), clock.now()).unwrap();
        folder.fail_after(0, if fails { 1000 } else { 0 });
        let appended = append_on_a_thread(spool, books.batch(1, 100, clock.now()), clock.now());
        folder.heal();
        assert_eq!(appended, !fails);
    }
}

#[test]
fn a_second_spool_in_the_folder_is_refused_and_access_is_the_owners() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("spool");
    let (clock, mut books) = (Clock::new(), Books::default());
    let config = small(INTERVAL, OnFull::Block);
    let (mut spool, _) = Spool::open(&folder, config.clone(), None, clock.now()).unwrap();
    let refused = Spool::open(&folder, config.clone(), None, clock.now());
    assert!(matches!(refused, Err(SpoolError::InUse { .. })));

    let batch = books.batch(1, 100, clock.now());
    books.append(&mut spool, &[batch], clock.now()).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&folder), 0o700);
    for entry in folder.read_dir().unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    // A look takes no lock.
    let inspected = tapster::spool::inspect(&Folder::open_to_inspect(&folder).unwrap()).unwrap();
    assert_eq!(inspected.segments.len(), 1);
    drop(spool);
    Spool::open(&folder, config, None, clock.now()).unwrap();
}

#[test]
fn the_number_of_a_segment_is_not_used_again_when_nothing_but_the_cursor_is_left() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    for number in 1..4 {
        let mut spool = open(&folder, &small(INTERVAL, OnFull::Block), clock.now()).unwrap();
        let batch = books.batch(1, 100, clock.now());
        let appended = books.append(&mut spool, &[batch], clock.now()).unwrap();
        assert_eq!(appended.positions[0].segment(), number);
        let position = books.read(&mut spool, clock.now()).unwrap().expect("the frame comes");
        spool.acknowledge(position, clock.now());
        spool.close(clock.now()).unwrap();
        assert_eq!(folder.names(), ["cursor"]);
    }
}

/// At once, and after the next start.
#[test]
fn a_spool_tells_where_batches_came_from() {
    let (folder, clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = small(INTERVAL, OnFull::Block);
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let connections = [0, 7, u32::MAX >> 1, 7].map(ConnectionId::new);
    let batches = connections.map(|connection| (connection, books.batch(1, 100, clock.now())));
    spool.append_from(&batches, clock.now()).unwrap();
    let read = |spool: &mut Spool<_>| {
        let read = std::iter::from_fn(|| spool.next_from(clock.now()).unwrap());
        read.map(|(connection, _, _)| connection).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut spool), connections);
    spool.close(clock.now()).unwrap();
    drop(spool);
    assert_eq!(read(&mut open(&folder, &config, clock.now()).unwrap()), connections);
}

/// Others cut closed segments: within their records, within the header, to nothing. Nobody has to read them to find out.
#[test]
fn a_closed_segment_that_others_cut_is_noticed_before_it_is_read() {
    for left in [3, 1, 0] {
        let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
        let mut spool = open(&folder, &small(SyncPolicy::Batch, OnFull::Block), clock.now()).unwrap();
        let mut positions = Vec::new();
        for _ in 0..40 {
            let batch = books.batch(2, 2000, clock.now());
            positions.extend(books.append(&mut spool, &[batch], clock.now()).unwrap().positions);
        }
        let first = books.read(&mut spool, clock.now()).unwrap().expect("the first batch");
        let of_segment = |number: u64| {
            positions.iter().copied().filter(move |at| at.segment() == number).collect::<Vec<_>>()
        };
        // Cut behind this many records.
        let (whole, cut) = (of_segment(1), of_segment(2));
        let len = cut.get(left).filter(|_| left > 0).map_or(100, |at| at.offset() + 10);
        let name = format!("seg-{:016x}.fsr", 2);
        let mut bytes = folder.content(&name).unwrap();
        bytes.truncate(usize::try_from(len).unwrap());
        folder.put(&name, bytes);
        clock.advance(Duration::from_secs(1));
        spool.handle_timeout(clock.now()).unwrap();
        books.losses(&mut spool);
        let lost = 2 * (cut.len() - left) as u64;
        assert_eq!(books.lost.get("spool_damaged"), Some(&lost), "{left} records are left");
        books.balance(&spool);
        assert!(spool.bytes() < folder.bytes() && spool.bytes() + 5000 > folder.bytes());
        books.acknowledged += spool.acknowledge(first, clock.now());
        while let Some(position) = books.read(&mut spool, clock.now()).unwrap() {
            books.acknowledged += spool.acknowledge(position, clock.now());
        }
        assert_eq!(
            (books.missing(), books.lost(), spool.frames()),
            (lost, lost, 0),
            "{left} records are left"
        );
        books.balance(&spool);
        assert!(whole.len() > 3 && cut.len() > 3);
    }
}
