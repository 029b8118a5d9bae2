//! Every byte of a segment damaged, and every length it may be cut to.

use std::time::Duration;

use tapster::spool::CursorSlot;
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
        books.acknowledged += spool.acknowledge(position, clock.now());
    }
    assert_eq!(spool.frames(), 0);
    books.balance(&spool);
    let before = books.acknowledged;
    let batch = books.batch(1, 40, clock.now());
    spool.append(&[batch], clock.now()).expect("nothing fails");
    let position = books.read(&mut spool, clock.now()).unwrap().expect("the new frame comes");
    assert_eq!(spool.acknowledge(position, clock.now()), 1);
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
            // What was damaged is kept, except what could be a torn tail.
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

/// Acknowledges the first record, and one frame of the second.
pub(crate) fn acknowledge_within_second_record(folder: &SimFolder, clock: Clock) {
    let mut spool = open(folder, &config(), clock.now()).unwrap();
    spool.next(clock.now()).unwrap().expect("the first record");
    let (_, second) = spool.next(clock.now()).unwrap().expect("the second record");
    assert_eq!(spool.acknowledge(second.after(1), clock.now()), FRAMES + 1);
    spool.close(clock.now()).unwrap();
}

#[test]
fn damage_in_a_record_that_was_delivered_in_part_costs_the_rest_of_it() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    acknowledge_within_second_record(&folder, clock);
    let segment = folder.content(FIRST).unwrap();
    let total = 2 * RECORDS * FRAMES - FRAMES - 1;
    let record_len = (segment.len() - 4096 - 40) / RECORDS as usize;
    for byte in 4096..segment.len() - 40 {
        let mut damaged = segment.clone();
        damaged[byte] ^= 0xff;
        let (read, _) = read_all(&with(&folder, FIRST, &damaged), clock, &books);
        let lost = match (byte - 4096) / record_len {
            0 => 0,
            1 => FRAMES - 1,
            _ => FRAMES,
        };
        assert_eq!((read.lost(), read.acknowledged), (lost, total - lost), "byte {byte}");
    }
}

/// A sound cursor that says what no spool would say: it is believed as far as the records allow it, and the books balance.
#[test]
fn a_forged_cursor_skips_by_frame_numbers_and_counts_what_is_not_there() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let total = 2 * RECORDS * FRAMES;
    let record_len = (folder.content(FIRST).unwrap().len() as u64 - 4096 - 40) / RECORDS;
    for segment in [1, 2, 3, 1 << 40] {
        for record in 0..=RECORDS {
            for shift in [0, 1, 60] {
                for frame_seq in 0..total + 3 {
                    let offset = 4096 + record * record_len + shift;
                    let cursor = forge(&folder.content("cursor").unwrap(), segment, offset, frame_seq);
                    let (read, _) = read_all(&with(&folder, "cursor", &cursor), clock, &books);
                    let waiting = total.saturating_sub(frame_seq);
                    assert_eq!(read.acknowledged + read.lost(), waiting, "{segment} {offset} {frame_seq}");
                    // Where the offset is not behind the frame nothing is missed.
                    let first = (segment - 1).saturating_mul(RECORDS * FRAMES) + record * FRAMES;
                    if shift == 0 && first <= frame_seq {
                        assert_eq!(read.lost(), 0, "{segment} {offset} {frame_seq}");
                    }
                }
            }
        }
    }
}

/// A cursor file with a newer slot.
fn forge(cursor: &[u8], segment: u64, offset: u64, frame_seq: u64) -> Vec<u8> {
    let newest = CursorSlot::newest(cursor).expect("a sound cursor");
    let mut slot = CursorSlot { generation: newest.generation + 1, ..newest }.encode();
    for (at, number) in [(16, segment), (24, offset), (32, frame_seq)] {
        slot[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32c::crc32c(&slot[..60]);
    slot[60..].copy_from_slice(&crc.to_le_bytes());
    slot.to_vec()
}

#[test]
fn a_lost_or_old_cursor_costs_duplicates_and_nothing_else() {
    let (clock, mut books) = (Clock::new(), Books::default());
    let folder = two_segments(clock, &mut books);
    let old = folder.content("cursor").unwrap();
    let mut spool = open(&folder, &config(), clock.now()).unwrap();
    books.restart(spool.frames());
    let position = books.read(&mut spool, clock.now()).unwrap().unwrap();
    spool.acknowledge(position, clock.now());
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
