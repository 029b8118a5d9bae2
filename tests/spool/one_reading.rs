//! A look and a recovery are one reading: whatever is in a folder, they find the same frames, and miss the same.

#![expect(clippy::single_range_in_vec_init, reason = "segments of one record")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use tapster::protocol::ContentType;
use tapster::spool::ConnectionId;
use tapster::spool::Content;
use tapster::spool::Contents;
use tapster::spool::Flaw;
use tapster::spool::OnFull;
use tapster::spool::Part;
use tapster::spool::RecordHeader;
use tapster::spool::SegmentHeader;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;
use tapster::spool::inspect;

use crate::support::Books;
use crate::support::Clock;
use crate::support::batch;
use crate::support::numbers;
use crate::support::open;
use crate::support::small;

/// The numbers of the frames that wait, and how many are missing.
type Reading = (Vec<u64>, u64);

fn config() -> SpoolConfig {
    small(SyncPolicy::None, OnFull::Block)
}

fn looked(folder: &SimFolder, part: Part, clock: Clock) -> Reading {
    let inspected = inspect(folder).expect("nothing fails");
    let (mut frames, mut missing) = (Vec::new(), 0);
    for content in Contents::new(folder, &inspected, part, clock.now()) {
        match content {
            Content::Batch(_, batch) => frames.extend(numbers(&batch)),
            Content::Flaw(Flaw::Missing { frames, .. }) => missing += frames,
            Content::Flaw(_) => {}
        }
    }
    (frames, missing)
}

fn drained(spool: &mut Spool<SimFolder>, clock: Clock) -> Reading {
    let mut frames = Vec::new();
    while let Some((batch, position)) = spool.next(clock.now()).expect("nothing fails") {
        frames.extend(numbers(&batch));
        spool.acknowledge(position.after(batch.frames()), clock.now());
    }
    (frames, std::iter::from_fn(|| spool.poll_loss()).map(|(_, frames)| frames).sum())
}

/// Looks, opens and reads, and looks again. New frames get new numbers, and come. Returns what was found.
#[track_caller]
fn compare(folder: &SimFolder, clock: Clock) -> Reading {
    let before: Vec<_> = folder.names().iter().map(|name| folder.content(name)).collect();
    let waiting = looked(folder, Part::Waiting, clock);
    looked(folder, Part::Segments, clock);
    looked(folder, Part::All, clock);
    let after: Vec<_> = folder.names().iter().map(|name| folder.content(name)).collect();
    assert!(before == after, "a look changes nothing");

    let refusal = inspect(folder).expect("nothing fails").refusal(Some(&ContentType::DNSTAP));
    let opened = Spool::open_in(folder.clone(), config(), Some(ContentType::DNSTAP), clock.now());
    if let Some(refusal) = refusal {
        let error = opened.expect_err("what a look refuses is not opened");
        assert_eq!(error.to_string(), refusal.to_string());
        return waiting;
    }
    let (mut spool, report) = opened.expect("a spool opens whatever is there");
    assert_eq!(report.frames, waiting.0.len() as u64 + waiting.1, "frames that wait, or turn out to be lost");
    let again = looked(folder, Part::Waiting, clock);
    // A segment without records is removed: it may have been all that told of frames that are missing.
    assert_eq!(again.0, waiting.0, "a recovery changes nothing of what waits");
    assert!(again.1 <= waiting.1);
    assert_eq!(drained(&mut spool, clock), waiting);
    let new = 1_000_000..1_000_005;
    spool.append(&[batch(new.start, 5, 40, clock.now())], clock.now()).expect("nothing fails");
    assert_eq!(drained(&mut spool, clock), (new.collect(), 0), "what is new is not taken for what was there");
    spool.close(clock.now()).expect("nothing fails");
    assert_eq!(looked(folder, Part::Waiting, clock), (Vec::new(), 0));
    waiting
}

/// Segments of some records each, closed, and a cursor somewhere within them.
fn some_segments(random: &mut fastrand::Rng, clock: Clock) -> SimFolder {
    let (folder, mut books) = (SimFolder::new(), Books::default());
    for _ in 0..random.u8(1..5) {
        let mut spool = open(&folder, &config(), clock.now()).expect("nothing fails");
        for _ in 0..random.u8(..4) {
            let batch = books.batch(random.u64(1..4), 16, clock.now());
            books.append(&mut spool, &[batch], clock.now()).expect("nothing fails");
        }
        if random.u8(..4) == 0
            && let Some((batch, position)) = spool.next(clock.now()).expect("nothing fails")
        {
            spool.acknowledge(position.after(random.u32(..=batch.frames())), clock.now());
        }
        if random.u8(..5) > 0 {
            spool.close(clock.now()).expect("nothing fails");
        }
    }
    folder
}

/// One thing that disks and people do to a file.
fn edit(folder: &SimFolder, random: &mut fastrand::Rng) {
    let names = folder.names();
    let Some(name) = random.choice(&names) else { return };
    let mut bytes = folder.content(name).expect("a file");
    // Most of a file is the zeroes of its header: half of the edits are in the rest.
    let first = if random.bool() { bytes.len().min(4096) } else { 0 };
    let at = random.usize(first..=bytes.len());
    match random.u8(..9) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
        1 => bytes.truncate(at),
        2 => bytes.iter_mut().skip(at).take(random.usize(..100)).for_each(|byte| *byte = 0),
        3 => bytes.resize(bytes.len() + random.usize(..5000), random.u8(..)),
        4 => bytes.rotate_left(at),
        5 => {
            let _ = tapster::spool::Storage::unlink(folder, name);
            return;
        }
        6 => folder.put(&format!("seg-{:016x}.fsr", random.u64(1..8)), bytes.clone()),
        7 => {
            // Two names are exchanged.
            let other = random.choice(&names).expect("there is one");
            folder.put(name, folder.content(other).expect("a file"));
            return folder.put(other, bytes);
        }
        // The end of another file.
        _ => {
            let other = folder.content(random.choice(&names).expect("there is one")).expect("a file");
            bytes.extend_from_slice(other.get(at..).unwrap_or_default());
        }
    }
    folder.put(name, bytes);
}

#[test]
fn a_look_and_a_recovery_are_one_reading_of_any_folder() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let clock = Clock::new();
    let (mut rounds, begun) = (0_u64, Instant::now());
    while begun.elapsed() < Duration::from_secs(2) || rounds < 200 {
        let seed = seed.wrapping_add(rounds);
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = some_segments(&mut random, clock);
        for _ in 0..random.u8(..6) {
            edit(&folder, &mut random);
        }
        println!("round {rounds}: seed {seed}: {:?}", folder.names());
        compare(&folder, clock);
        rounds += 1;
    }
    println!("{rounds} folders");
}

/// A sound segment with these frames, one record for each range.
fn segment(number: u64, first: u64, records: &[Range<u64>], footer: Option<u64>, clock: Clock) -> Vec<u8> {
    let header = SegmentHeader {
        spool: [7; 16],
        segment: number,
        frame_seq: first,
        created: clock.now().unix,
        content_type: Some(ContentType::DNSTAP),
    };
    let mut bytes = header.encode().to_vec();
    let record = |frames: &Range<u64>, footer, payload: &[u8]| RecordHeader {
        len: u32::try_from(payload.len()).expect("short"),
        segment: number,
        frame_seq: frames.start,
        frames: u32::try_from(frames.end - frames.start).expect("few"),
        footer,
        connection: ConnectionId::default(),
        received: clock.now().unix,
    };
    for frames in records {
        let batch = batch(frames.start, frames.end - frames.start, 40, clock.now());
        bytes.extend(record(frames, false, batch.bytes()).encode(batch.bytes()));
        bytes.extend_from_slice(batch.bytes());
    }
    if let Some(end) = footer {
        bytes.extend(record(&(end..end), true, &[]).encode(&[]));
    }
    bytes
}

fn folder_of(segments: &[Vec<u8>]) -> SimFolder {
    let folder = SimFolder::new();
    for (bytes, number) in segments.iter().zip(1..) {
        folder.put(&format!("seg-{number:016x}.fsr"), bytes.clone());
    }
    folder
}

/// After a failed sync frames are written again, into the next segment. If the power fails during that, the first segment may have more
/// of them than the second: they come, and their numbers are not used again.
#[test]
fn frames_of_a_segment_that_reach_beyond_the_next_one_come_and_keep_their_numbers() {
    let clock = Clock::new();
    for footer in [None, Some(12)] {
        let first = segment(1, 0, &[0..4, 4..8, 8..12], footer, clock);
        let second = segment(2, 4, &[4..8], Some(8), clock);
        let reading = compare(&folder_of(&[first.clone(), second.clone()]), clock);
        assert_eq!(reading, ((0..12).collect(), 0), "footer {footer:?}");
        // Delivered up to the beginning of the second one, the first one stays.
        let folder = folder_of(&[first, second]);
        let mut spool = open(&folder, &config(), clock.now()).expect("nothing fails");
        let (batch, position) = spool.next(clock.now()).expect("nothing fails").expect("a record");
        spool.acknowledge(position.after(batch.frames()), clock.now());
        spool.close(clock.now()).expect("nothing fails");
        assert_eq!(compare(&folder, clock), ((4..12).collect(), 0), "footer {footer:?}");
    }
}

#[test]
fn a_footer_that_tells_of_fewer_frames_ends_its_segment_and_one_of_more_costs_those() {
    let clock = Clock::new();
    let short = segment(1, 0, &[0..4, 4..8], Some(4), clock);
    assert_eq!(compare(&folder_of(&[short]), clock), ((0..4).collect(), 0));
    let long = segment(1, 0, &[0..4, 4..8], Some(11), clock);
    assert_eq!(compare(&folder_of(&[long]), clock), ((0..8).collect(), 3));
    let long = segment(1, 0, &[0..4, 4..8], Some(11), clock);
    let next = segment(2, 8, &[8..12], Some(12), clock);
    assert_eq!(compare(&folder_of(&[long, next]), clock), ((0..12).collect(), 0));
}

#[test]
fn a_segment_out_of_order_or_out_of_reach_is_left_out_by_both() {
    let clock = Clock::new();
    let first = || segment(1, 10, &[10..14], Some(14), clock);
    let earlier = segment(2, 0, &[0..4], Some(4), clock);
    let far = segment(2, 1 << 61, &[1 << 61..(1 << 61) + 1], None, clock);
    for other in [earlier, far] {
        let folder = folder_of(&[first(), other]);
        assert_eq!(compare(&folder, clock), ((10..14).collect(), 0));
        assert_eq!(folder.names().iter().filter(|name| name.ends_with(".bad")).count(), 1);
    }
}

#[test]
fn two_segments_with_each_others_names_lose_nothing() {
    let clock = Clock::new();
    for cycle in 2..6 {
        let segment =
            |index: u64| segment(index, 4 * index, &[4 * index..4 * index + 4], Some(4 * index + 4), clock);
        // Each has the name of the one before.
        let segments: Vec<_> = (1..=cycle).map(|index| segment(index % cycle + 1)).collect();
        let folder = folder_of(&segments);
        assert_eq!(compare(&folder, clock), ((4..4 * cycle + 4).collect(), 0));
        let bad: BTreeSet<_> = folder.names().into_iter().filter(|name| name.ends_with(".bad")).collect();
        assert_eq!(bad, BTreeSet::new());
    }
}

/// A damaged copy of a later segment under the name of an earlier one used to hide the sound one from a look.
#[test]
fn a_damaged_copy_that_comes_first_hides_nothing() {
    let clock = Clock::new();
    let first = segment(1, 0, &[0..4], Some(4), clock);
    let second = segment(3, 4, &[4..8, 8..12], Some(12), clock);
    let mut copy = second.clone();
    copy[4096 + 60] ^= 1;
    let folder = folder_of(&[first, copy, second]);
    assert_eq!(compare(&folder, clock), ((0..12).collect(), 0));
}

/// A file of no record, or of another spool, under a name that a sound segment should have does not stand in its way.
#[test]
fn what_is_no_segment_takes_no_name() {
    let clock = Clock::new();
    let sound = segment(1, 0, &[0..4], Some(4), clock);
    for (rubbish, asides) in [(vec![0; 5000], 1), (vec![0; 100], 0), (Vec::new(), 0)] {
        let folder = folder_of(&[rubbish, sound.clone()]);
        assert_eq!(compare(&folder, clock), ((0..4).collect(), 0));
        assert_eq!(folder.names().iter().filter(|name| name.ends_with(".bad")).count(), asides);
    }
}
