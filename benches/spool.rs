//! What the disk costs: `cargo bench --bench spool`. `Mitem/s` are million frames per second, of 130 bytes in batches of
//! 64 KiB; look at the mean, in which the syncs are. `append` without sync is the work of the processor, above 10; with an
//! interval of 100 ms and batches without end it is the disk's: compare `dd oflag=dsync bs=16M` to a new file.
//!
//! It writes to the folder for temporary files (`TMPDIR`), some GiB in all and 1 GiB at a time.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::time::Duration;
use std::time::Instant;

use divan::Bencher;
use divan::counter::ItemsCount;
use tapster::protocol::FrameBatch;
use tapster::spool::ConnectionId;
use tapster::spool::Moment;
use tapster::spool::RecordHeader;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;
use tempfile::TempDir;

fn main() {
    divan::main();
}

const BATCH_LEN: usize = 64 << 10;
const PAYLOAD_LEN: usize = 130;

/// Batches of 16 MiB: a quarter of a segment.
const BATCHES: usize = 256;

fn batch() -> FrameBatch {
    let payloads = vec![vec![0x5a; PAYLOAD_LEN]; BATCH_LEN / (4 + PAYLOAD_LEN)];
    FrameBatch::from_payloads(payloads, Instant::now()).expect("payloads within the limits")
}

fn frames(batches: usize) -> ItemsCount {
    ItemsCount::new(batches * (BATCH_LEN / (4 + PAYLOAD_LEN)))
}

fn open(folder: &TempDir, sync: SyncPolicy) -> Spool {
    let config = SpoolConfig { max: 1 << 30, min_free: 0, sync, ..SpoolConfig::default() };
    Spool::open(&folder.path().join("spool"), config, None, Moment::now()).expect("a folder to write to").0
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

/// The part of the checksum.
#[divan::bench]
fn checksum(bencher: Bencher) {
    let batch = batch();
    let header = RecordHeader {
        len: batch.byte_len() as u32,
        segment: 1,
        frame_seq: 0,
        frames: batch.frames(),
        footer: false,
        connection: ConnectionId::default(),
        received: 0,
    };
    bencher.counter(frames(1)).bench(|| header.encode(black_box(batch.bytes())));
}

/// Without any sync: checksum and write. With an interval: as it is run. With every batch: the latency of the disk.
#[divan::bench(args = ["none", "100ms", "batch"], sample_count = 40, sample_size = 1)]
fn append(bencher: Bencher, sync: &str) {
    let (sync, batches) = match sync {
        "none" => (SyncPolicy::None, BATCHES),
        "batch" => (SyncPolicy::Batch, 16),
        _ => (SyncPolicy::Interval(Duration::from_millis(100)), BATCHES),
    };
    let folder = folder();
    let mut spool = open(&folder, sync);
    let batch = batch();
    bencher.counter(frames(batches)).bench_local(|| {
        for _ in 0..batches {
            let now = Moment::now();
            let appended = spool.append(std::slice::from_ref(&batch), now).expect("a disk with room");
            assert_eq!(appended.positions.len(), 1);
            if spool.poll_timeout() <= now.instant {
                spool.handle_timeout(now).expect("a sound disk");
            }
        }
    });
}

/// From the page cache: checksum and count of frames.
#[divan::bench(sample_count = 40, sample_size = 1)]
fn read_back(bencher: Bencher) {
    let folder = folder();
    let mut spool = open(&folder, SyncPolicy::None);
    for _ in 0..BATCHES {
        spool.append(&[batch()], Moment::now()).expect("a disk with room");
    }
    bencher.counter(frames(BATCHES)).bench_local(|| {
        spool.rewind();
        let now = Moment::now();
        let mut batches = 0;
        while let Some(batch) = spool.next(now).expect("a sound disk") {
            black_box(batch);
            batches += 1;
        }
        assert_eq!(batches, BATCHES);
    });
}

/// The start after a crash: the last segment, 64 MiB, is read and closed.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn recover_64_mib(bencher: Bencher) {
    let folder = folder();
    let mut spool = open(&folder, SyncPolicy::None);
    // 1023 batches of less than 64 KiB and their headers fill one segment.
    for _ in 0..1023 {
        spool.append(&[batch()], Moment::now()).expect("a disk with room");
    }
    drop(spool);
    let path = folder.path().join("spool/seg-0000000000000001.fsr");
    bencher
        .counter(divan::counter::BytesCount::new(64usize << 20))
        .with_inputs(|| {
            // Takes back the footer that the last start has written.
            let file = OpenOptions::new().write(true).open(&path).expect("the segment");
            let len = file.metadata().expect("the segment").len();
            file.set_len(len - 1).expect("the segment");
        })
        .bench_local_values(|()| open(&folder, SyncPolicy::None));
}
