//! A look at a spool: what it finds is what the spool then gives, and what it misses is what the spool counts as lost.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tapster::protocol::ContentType;
use tapster::spool::Content;
use tapster::spool::Contents;
use tapster::spool::Flaw;
use tapster::spool::Folder;
use tapster::spool::Moment;
use tapster::spool::OnFull;
use tapster::spool::Part;
use tapster::spool::SEGMENT_HEADER_LEN;
use tapster::spool::SegmentHeader;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SyncPolicy;
use tapster::spool::inspect;

use crate::corruption::FIRST;
use crate::corruption::FRAMES;
use crate::corruption::RECORDS;
use crate::corruption::SECOND;
use crate::corruption::acknowledge_within_second_record;
use crate::corruption::config;
use crate::corruption::two_segments;
use crate::corruption::with;
use crate::support::Books;
use crate::support::Clock;
use crate::support::batch;
use crate::support::numbers;
use crate::support::open;
use crate::support::small;

/// What a look finds: the numbers of frames, and the flaws.
fn look(folder: &SimFolder, part: Part, now: Moment) -> (Vec<u64>, Vec<Flaw>) {
    let inspected = inspect(folder).expect("nothing fails");
    let (mut frames, mut flaws) = (Vec::new(), Vec::new());
    for content in Contents::new(folder, &inspected, part, now) {
        match content {
            Content::Batch(header, batch) => {
                assert_eq!(header.frames, batch.frames());
                assert_eq!(header.received, now.unix);
                frames.extend(numbers(&batch));
            }
            Content::Flaw(flaw) => flaws.push(flaw),
        }
    }
    (frames, flaws)
}

/// What the spool gives, how many frames it reports as lost, and how many files it has set aside.
fn read(folder: &SimFolder, now: Moment) -> (Vec<u64>, u64, usize) {
    let mut spool = open(folder, &config(), now).expect("a spool opens whatever is there");
    let mut frames = Vec::new();
    while let Some((batch, position)) = spool.next(now).expect("nothing fails") {
        frames.extend(numbers(&batch));
        spool.acknowledge(position.after(batch.frames()), now);
    }
    spool.close(now).expect("nothing fails");
    let lost = std::iter::from_fn(|| spool.poll_loss()).map(|(_, frames)| frames).sum();
    (frames, lost, folder.names().iter().filter(|name| name.ends_with(".bad")).count())
}

fn missing(flaws: &[Flaw]) -> u64 {
    let missing = flaws.iter().map(|flaw| match flaw {
        Flaw::Missing { frames, .. } => *frames,
        _ => 0,
    });
    missing.sum()
}

/// Looks, then reads, and compares. Returns the frames and the flaws.
#[track_caller]
fn compare(folder: &SimFolder, now: Moment) -> (Vec<u64>, Vec<Flaw>) {
    let (waiting, flaws) = look(folder, Part::Waiting, now);
    let (given, lost, bad) = read(folder, now);
    assert_eq!(waiting, given, "{flaws:?}");
    assert_eq!(missing(&flaws), lost, "{flaws:?}");
    let damage = flaws.iter().any(|flaw| flaw.is_damage() && !matches!(flaw, Flaw::Missing { .. }));
    assert_eq!(damage, bad > 0, "{flaws:?}");
    (waiting, flaws)
}

#[test]
fn a_look_finds_what_the_spool_gives_whatever_byte_is_damaged() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let last_record = 4096 + (RECORDS - 1) * (40 + FRAMES * 44);
    for name in [FIRST, SECOND] {
        let segment = folder.content(name).unwrap();
        for byte in 0..segment.len() {
            let mut damaged = segment.clone();
            damaged[byte] ^= 0x01;
            let (frames, flaws) = compare(&with(&folder, name, &damaged), clock.now());
            match &flaws[..] {
                [Flaw::Header { file }] => assert_eq!((file.as_str(), byte < 4096), (name, true)),
                [Flaw::Torn { file, bytes: 40, .. }] => {
                    assert_eq!((file.as_str(), byte >= segment.len() - 40), (name, true));
                }
                [Flaw::Damaged { file, offset, bytes }, Flaw::Missing { frames: FRAMES, .. }] => {
                    assert_eq!((file.as_str(), *bytes), (name, 40 + FRAMES * 44));
                    assert!((*offset..offset + bytes).contains(&(byte as u64)) && *offset <= last_record);
                }
                _ => panic!("byte {byte} of {name}: {flaws:?}"),
            }
            assert_eq!(frames.len() as u64 + missing(&flaws), 2 * RECORDS * FRAMES);
        }
    }
}

#[test]
fn a_look_finds_what_the_spool_gives_wherever_a_segment_is_cut() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    for name in [FIRST, SECOND] {
        let segment = folder.content(name).unwrap();
        for len in 0..segment.len() {
            compare(&with(&folder, name, &segment[..len]), clock.now());
        }
    }
}

#[test]
fn what_is_acknowledged_is_no_longer_waiting_and_not_missed() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let mut spool = open(&folder, &config(), clock.now()).unwrap();
    for _ in 0..2 {
        let (batch, position) = spool.next(clock.now()).unwrap().unwrap();
        spool.acknowledge(position.after(batch.frames()), clock.now());
    }
    spool.close(clock.now()).unwrap();
    let numbers = |from| (from..2 * RECORDS * FRAMES).collect::<Vec<_>>();
    // Damage in what nobody waits for is seen by those who look at everything.
    let mut damaged = folder.content(FIRST).unwrap();
    damaged[4096 + 100] ^= 1;
    folder.put(FIRST, damaged);
    assert_eq!(look(&folder, Part::Waiting, clock.now()), (numbers(2 * FRAMES), Vec::new()));
    let (frames, flaws) = look(&folder, Part::Segments, clock.now());
    assert_eq!(frames, numbers(FRAMES));
    assert!(matches!(flaws[..], [Flaw::Damaged { offset: 4096, .. }]), "{flaws:?}");
}

#[test]
fn the_rest_of_a_record_waits_and_a_look_finds_what_the_spool_gives() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    acknowledge_within_second_record(&folder, clock);
    let waiting: Vec<_> = (FRAMES + 1..2 * RECORDS * FRAMES).collect();
    assert_eq!(look(&folder, Part::Waiting, clock.now()), (waiting.clone(), Vec::new()));
    let segment = folder.content(FIRST).unwrap();
    for byte in 4096..segment.len() - 40 {
        let mut damaged = segment.clone();
        damaged[byte] ^= 0x01;
        let (frames, flaws) = compare(&with(&folder, FIRST, &damaged), clock.now());
        assert_eq!(frames.len() as u64 + missing(&flaws), waiting.len() as u64, "byte {byte}");
    }
}

#[test]
fn a_lost_cursor_is_told_and_everything_counts_as_waiting() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let everything: Vec<_> = (0..2 * RECORDS * FRAMES).collect();
    let found = look(&with(&folder, "cursor", &[7; 5000]), Part::Waiting, clock.now());
    assert_eq!(found, (everything, vec![Flaw::Cursor]));
}

#[test]
fn files_that_were_set_aside_are_read_where_everything_is_wanted() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let mut damaged = folder.content(FIRST).unwrap();
    damaged[4096 + 300] ^= 1;
    folder.put(FIRST, damaged);
    let total = 2 * RECORDS * FRAMES;
    assert_eq!(read(&folder, clock.now()), ((0..total).filter(|n| !(3..6).contains(n)).collect(), FRAMES, 1));
    // A copy of a sound segment, and a segment of another spool with numbers of its own.
    let copy = two_segments(clock, &mut Books::default());
    folder.put("seg-0000000000000002.fsr.bad", copy.content(SECOND).unwrap());
    assert_eq!(look(&folder, Part::Waiting, clock.now()), (Vec::new(), Vec::new()));
    let (frames, flaws) = look(&folder, Part::All, clock.now());
    let own = (0..RECORDS * FRAMES).filter(|n| !(3..6).contains(n));
    assert_eq!(frames, own.chain(RECORDS * FRAMES..total).collect::<Vec<_>>());
    assert!(matches!(flaws[..], [Flaw::Damaged { .. }]), "{flaws:?}");
}

#[test]
fn segments_of_another_spool_or_content_type_are_told_and_left_out() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let other = two_segments(clock, &mut Books::default());
    folder.put("seg-0000000000000005.fsr", other.content(FIRST).unwrap());
    let (frames, flaws) = look(&folder, Part::Waiting, clock.now());
    assert_eq!(frames.len() as u64, 2 * RECORDS * FRAMES);
    assert_eq!(flaws, [Flaw::OtherSpool { file: "seg-0000000000000005.fsr".to_owned() }]);

    // Each file has the type in its header.
    let folder = two_segments(clock, &mut Books::default());
    let other = ContentType::try_from(bytes::Bytes::from_static(b"other")).unwrap();
    let bytes = folder.content(FIRST).unwrap();
    let header = SegmentHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    let header = SegmentHeader { content_type: Some(other), ..header };
    folder.put(FIRST, [&header.encode()[..], &bytes[SEGMENT_HEADER_LEN..]].concat());
    let (frames, flaws) = look(&folder, Part::All, clock.now());
    assert_eq!(frames, (RECORDS * FRAMES..2 * RECORDS * FRAMES).collect::<Vec<_>>());
    assert!(matches!(flaws[..], [Flaw::OtherContentType { .. }, Flaw::Missing { .. }]), "{flaws:?}");
}

#[test]
fn a_segment_that_goes_meanwhile_is_neither_damage_nor_missed() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let inspected = inspect(&folder).unwrap();
    let contents = Contents::new(&folder, &inspected, Part::Waiting, clock.now());
    let mut spool = open(&folder, &config(), clock.now()).unwrap();
    for _ in 0..RECORDS {
        let (batch, position) = spool.next(clock.now()).unwrap().unwrap();
        spool.acknowledge(position.after(batch.frames()), clock.now());
    }
    spool.close(clock.now()).unwrap();
    assert_eq!(folder.names(), ["cursor", SECOND]);
    let found: Vec<_> = contents.collect();
    assert_eq!(found.len() as u64, RECORDS);
    assert!(found.iter().all(|content| matches!(content, Content::Batch(..))), "{found:?}");
}

/// A kernel's folder, looked at as often as possible while a spool in it is written, read, and overrun.
#[test]
fn a_spool_at_work_looks_sound_at_any_moment() {
    let tempdir = tempfile::tempdir().unwrap();
    let path = tempdir.path().join("spool");
    let (begun, at_work) = (Barrier::new(2), AtomicBool::new(true));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut clock, config) = (Clock::new(), small(SyncPolicy::None, OnFull::DropOldest));
            let (mut spool, _) = Spool::open(&path, config, None, clock.now()).unwrap();
            begun.wait();
            for round in 0..4000 {
                clock.advance(Duration::from_millis(101));
                spool.append(&[batch(20 * round, 20, 200, clock.now())], clock.now()).unwrap();
                // Now it keeps up, now it does not.
                if round % 700 < 400
                    && let Some((batch, position)) = spool.next(clock.now()).unwrap()
                {
                    spool.acknowledge(position.after(batch.frames()), clock.now());
                }
                spool.handle_timeout(clock.now()).unwrap();
            }
            at_work.store(false, Ordering::Release);
        });
        begun.wait();
        let folder = Folder::open_to_inspect(&path).unwrap();
        let (mut looks, mut frames) = (0, 0);
        while at_work.load(Ordering::Acquire) {
            let inspected = inspect(&folder).unwrap();
            let mut last = None;
            for content in Contents::new(&folder, &inspected, Part::Waiting, Moment::now()) {
                match content {
                    Content::Batch(_, batch) => {
                        for number in numbers(&batch) {
                            assert!(last < Some(number), "{number} after {last:?}");
                            last = Some(number);
                            frames += 1;
                        }
                    }
                    Content::Flaw(flaw) => assert!(!flaw.is_damage(), "look {looks}: {flaw}"),
                }
            }
            looks += 1;
        }
        println!("{looks} looks, {frames} frames");
    });
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_is_read() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let inspected = inspect(&folder).unwrap();
    let contents = Contents::new(&folder, &inspected, Part::Waiting, clock.now());
    // The next opens the first segment, and reads its header and its records.
    folder.fail_after(2, 2);
    let flaws: Vec<_> = contents
        .filter_map(|content| match content {
            Content::Flaw(flaw) => Some(flaw),
            Content::Batch(..) => None,
        })
        .collect();
    assert!(matches!(flaws[..], [Flaw::Unreadable { .. }, Flaw::Missing { first: 0, .. }]), "{flaws:?}");
}

#[test]
fn what_was_read_before_a_moment_is_dropped_by_whole_segments() {
    let (folder, mut clock, mut books) = (SimFolder::new(), Clock::new(), Books::default());
    let config = small(SyncPolicy::Batch, OnFull::Block);
    let begin = clock.now().unix;
    for _ in 0..3 {
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        for _ in 0..2 {
            let batch = books.batch(1, 40, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
            clock.advance(Duration::from_secs(5));
        }
        spool.close(clock.now()).unwrap();
    }
    folder.put("seg-00000000000000aa.fsr.bad", vec![0; 10]);
    let drop_before = |unix, clock: Clock| {
        let mut spool = open(&folder, &config, clock.now()).unwrap();
        let before = spool.frames();
        spool.drop_before(unix, clock.now()).unwrap();
        let lost = std::iter::from_fn(|| spool.poll_loss()).map(|(_, frames)| frames).sum::<u64>();
        assert_eq!(spool.frames() + lost, before);
        spool.close(clock.now()).unwrap();
        lost
    };
    // The footers tell: the files of this folder say that they were last written in another age.
    assert_eq!(drop_before(begin + 5_000_000_000, clock), 0);
    assert_eq!(drop_before(begin + 10_000_000_000, clock), 2);
    assert_eq!(look_at_numbers(&folder, clock), [2, 3, 4, 5]);
    assert_eq!(drop_before(u64::MAX, clock), 4);
    assert_eq!(folder.names(), ["cursor"]);
    // And the numbers go on.
    let mut spool = open(&folder, &config, clock.now()).unwrap();
    let appended = spool.append(&[batch(6, 1, 40, clock.now())], clock.now()).unwrap();
    assert_eq!(appended.positions[0].frame_seq(), 6);
}

fn look_at_numbers(folder: &SimFolder, clock: Clock) -> Vec<u64> {
    let inspected = inspect(folder).unwrap();
    let contents = Contents::new(folder, &inspected, Part::Waiting, clock.now());
    let frames = contents.flat_map(|content| match content {
        Content::Batch(_, batch) => numbers(&batch),
        Content::Flaw(flaw) => panic!("{flaw}"),
    });
    frames.collect()
}
