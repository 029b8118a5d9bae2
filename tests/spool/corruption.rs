//! Every byte of a segment damaged, and every length it may be cut to.

use std::time::Duration;

use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

use crate::support::Books;
use crate::support::Clock;
use crate::support::open;
use crate::support::small;

pub(crate) const FIRST: &str = "seg-0000000000000001.fsr";
pub(crate) const SECOND: &str = "seg-0000000000000002.fsr";

/// Frames of one record.
pub(crate) const FRAMES: u64 = 3;
/// Records of one segment.
pub(crate) const RECORDS: u64 = 4;

pub(crate) fn config() -> SpoolConfig {
    small(SyncPolicy::Interval(Duration::from_millis(100)), OnFull::Block)
}

/// A folder with two closed segments.
pub(crate) fn two_segments(clock: Clock, books: &mut Books) -> SimFolder {
    let folder = SimFolder::new();
    for _ in 0..2 {
        let mut spool = open(&folder, &config(), clock.now()).unwrap();
        for _ in 0..RECORDS {
            let batch = books.batch(FRAMES, 40, clock.now());
            books.append(&mut spool, &[batch], clock.now()).unwrap();
        }
        spool.close(clock.now()).unwrap();
    }
    assert_eq!(folder.names(), ["cursor", FIRST, SECOND]);
    folder
}

/// A copy of the folder in which the file `name` is another.
pub(crate) fn with(folder: &SimFolder, name: &str, bytes: &[u8]) -> SimFolder {
    let copy = SimFolder::new();
    for file in folder.names() {
        copy.put(&file, folder.content(&file).expect("a file"));
    }
    copy.put(name, bytes.to_vec());
    copy
}

/// Opens and reads it all, adds a frame and reads that. Returns the books and how many files were set aside.
fn read_all(folder: &SimFolder, clock: Clock, books: &Books) -> (Books, usize) {
    let mut books = books.clone();
    let mut spool = open(folder, &config(), clock.now()).expect("a spool opens whatever is there");
    books.restart(spool.frames());
    while let Some(position) = books.read(&mut spool, clock.now()).expect("nothing fails") {
        books.acknowledged += spool.done(position, clock.now());
    }
    assert_eq!(spool.frames(), 0);
    books.balance(&spool);
    let before = books.acknowledged;
    let batch = books.batch(1, 40, clock.now());
    spool.append(&[batch], clock.now()).expect("nothing fails");
    let position = books.read(&mut spool, clock.now()).unwrap().expect("the new frame comes");
    assert_eq!(spool.done(position, clock.now()), 1);
    spool.close(clock.now()).expect("nothing fails");
    books.acknowledged = before;
    let bad = folder.names().iter().filter(|name| name.ends_with(".bad")).count();
    (books, bad)
}

#[test]
fn a_damaged_byte_costs_one_record_at_most_and_is_counted_exactly() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let segment = folder.content(FIRST).unwrap();
    let total = 2 * RECORDS * FRAMES;
    let mut lost_somewhere = 0;
    for byte in 0..segment.len() {
        for flip in [0x01, 0xff] {
            let mut damaged = segment.clone();
            damaged[byte] ^= flip;
            let (read, bad) = read_all(&with(&folder, FIRST, &damaged), clock, &books);
            let lost = read.lost();
            let in_records = (4096..segment.len() - 40).contains(&byte);
            assert_eq!(lost, if in_records { FRAMES } else { 0 }, "byte {byte}");
            assert_eq!(read.missing(), lost, "byte {byte}");
            assert_eq!(read.acknowledged, total - lost, "byte {byte}");
            // What was damaged is kept, but for what could be a torn tail.
            let footer = byte >= segment.len() - 40;
            assert_eq!(bad, usize::from(!footer), "byte {byte}");
            lost_somewhere += lost;
        }
    }
    assert!(lost_somewhere > 0);
}

#[test]
fn a_segment_cut_anywhere_gives_what_is_whole() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    for name in [FIRST, SECOND] {
        let segment = folder.content(name).unwrap();
        let record_len = (segment.len() - 4096 - 40) / RECORDS as usize;
        for len in 0..segment.len() {
            let whole = (len.saturating_sub(4096) / record_len).min(RECORDS as usize) as u64;
            let expected_missing = (RECORDS - whole) * FRAMES;
            for zeroes in [0, 100, 5000] {
                let mut cut = segment[..len].to_vec();
                cut.resize(len + zeroes, 0);
                let zeroed_header = len < 4096 && zeroes > 0;
                if zeroed_header {
                    continue; // other damage: see above
                }
                let (read, bad) = read_all(&with(&folder, name, &cut), clock, &books);
                assert_eq!(read.missing(), expected_missing, "{name} cut to {len}");
                // In the last segment nothing tells that there was more.
                let counted = if name == FIRST { expected_missing } else { 0 };
                assert_eq!((read.lost(), bad), (counted, 0), "{name} cut to {len}");
            }
        }
    }
}

#[test]
fn numbers_go_on_above_a_segment_of_which_nothing_is_left() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let second = folder.content(SECOND).unwrap();
    for garbage in [vec![0; second.len()], vec![0xa5; second.len()], second[..4096].to_vec(), Vec::new()] {
        let (read, _) = read_all(&with(&folder, SECOND, &garbage), clock, &books);
        assert_eq!((read.acknowledged, read.lost()), (RECORDS * FRAMES, 0));
    }
}

#[test]
fn a_lost_or_old_cursor_costs_duplicates_and_nothing_else() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let old = folder.content("cursor").unwrap();
    let mut spool = open(&folder, &config(), clock.now()).unwrap();
    books.restart(spool.frames());
    let position = books.read(&mut spool, clock.now()).unwrap().unwrap();
    spool.done(position, clock.now());
    spool.close(clock.now()).unwrap();
    let newer = folder.content("cursor").unwrap();
    assert_ne!(old, newer);
    for cursor in [old, Vec::new(), vec![0; 4160], newer[..64].to_vec(), vec![0xff; 10_000]] {
        let (read, _) = read_all(&with(&folder, "cursor", &cursor), clock, &books);
        assert_eq!((read.missing(), read.lost()), (0, 0));
    }
    let (read, _) = read_all(&with(&folder, "cursor", &newer), clock, &books);
    assert_eq!(read.acknowledged, (2 * RECORDS - 1) * FRAMES);
}
