//! The spool against a queue in memory: whatever is done to it in whatever order, it gives what the queue gives.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::LogPosition;
use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

use crate::support::Books;
use crate::support::Clock;
use crate::support::numbers;
use crate::support::open;
use crate::support::small;

#[derive(Clone, Debug)]
enum Step {
    Append {
        batches: Vec<(u64, usize)>,
    },
    /// Appends a batch and passes it on from memory, or the first `passed` frames of it, if the reader has caught up.
    PassOn {
        frames: u64,
        passed: u32,
    },
    Next,
    /// Acknowledges some of the frames that were read: this many of the 8 parts. A batch may be cut.
    Acknowledge {
        eighths: usize,
    },
    Rewind,
    Wait {
        millis: u64,
    },
    /// The process is killed: what was written is there, memory is not.
    Kill,
    /// The spool is closed, and opened with another policy.
    Close,
    DiskLimit {
        kib: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop_oneof![8 => 8..2000usize, 1 => 2000..70_000usize];
    prop_oneof![
        6 => prop::collection::vec((1..4u64, sizes), 1..6).prop_map(|batches| Step::Append { batches }),
        2 => (1..4u64, 0..4u32).prop_map(|(frames, passed)| Step::PassOn { frames, passed }),
        8 => Just(Step::Next),
        4 => (0..=8usize).prop_map(|eighths| Step::Acknowledge { eighths }),
        1 => Just(Step::Rewind),
        3 => (0..200u64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
        1 => prop_oneof![(40..600u64).prop_map(Some), Just(None)].prop_map(|kib| Step::DiskLimit { kib }),
    ]
}

/// One frame number each.
#[derive(Default)]
struct Model {
    /// Not acknowledged and not lost, oldest first.
    waiting: VecDeque<u64>,
    /// So many of the waiting were read.
    read: usize,
    /// Where the batches begin that were read and are not wholly acknowledged, and their numbers.
    batches: VecDeque<(LogPosition, Vec<u64>)>,
}

struct Pair {
    folder: SimFolder,
    config: SpoolConfig,
    clock: Clock,
    books: Books,
    model: Model,
    spool: Spool<SimFolder>,
}

impl Pair {
    fn new(sync: SyncPolicy, on_full: OnFull) -> Self {
        let (folder, clock) = (SimFolder::new(), Clock::new());
        let config = SpoolConfig { max: 256 << 10, ..small(sync, on_full) };
        let spool = open(&folder, &config, clock.now()).expect("an empty folder");
        Self { folder, config, clock, books: Books::default(), model: Model::default(), spool }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Append { batches } => {
                let now = self.clock.now();
                let batches: Vec<_> =
                    batches.iter().map(|&(frames, len)| self.books.batch(frames, len, now)).collect();
                self.append(&batches);
            }
            Step::PassOn { frames, passed } => {
                let batch = self.books.batch(*frames, 100, self.clock.now());
                let passed = batch.frames().min(*passed);
                let caught_up = self.spool.reader_caught_up();
                let positions = self.append(std::slice::from_ref(&batch));
                if let (Some(position), true, 1..) = (positions.first(), caught_up, passed) {
                    self.spool.skip_to(position.after(passed));
                    let numbers = numbers(&batch).into_iter().take(passed as usize).collect();
                    self.were_read(numbers, *position);
                }
            }
            Step::Next => match self.spool.next(self.clock.now()).expect("nothing fails") {
                Some((batch, position)) => self.were_read(numbers(&batch), position),
                None => assert_eq!(self.model.read, self.model.waiting.len(), "everything was read"),
            },
            Step::Acknowledge { eighths } => {
                let count = self.model.read * eighths / 8;
                let Some(last) = self.model.waiting.drain(..count).next_back() else { return };
                self.model.read -= count;
                let has_last = |(_, numbers): &&(LogPosition, Vec<u64>)| numbers.last() >= Some(&last);
                let (start, numbers) = self.model.batches.iter().find(has_last).expect("it was read");
                let frames = numbers.iter().take_while(|number| **number <= last).count();
                let acknowledged = self.spool.acknowledge(start.after(frames as u32), self.clock.now());
                assert_eq!(acknowledged, count as u64);
                self.model.batches.retain(|(_, numbers)| numbers.last() > Some(&last));
            }
            Step::Rewind => {
                self.spool.rewind();
                self.model.read = 0;
                self.model.batches.clear();
            }
            Step::Wait { millis } => {
                self.clock.advance(Duration::from_millis(*millis));
                self.spool.handle_timeout(self.clock.now()).expect("nothing fails");
            }
            Step::Kill => self.reopen(),
            Step::Close => {
                // The disk may be full: then it is a kill.
                if self.spool.close(self.clock.now()).is_ok() {
                    assert_eq!(self.spool.unsynced_frames(), 0);
                }
                self.config.on_full = match self.config.on_full {
                    OnFull::DropOldest => OnFull::DropNewest,
                    OnFull::DropNewest => OnFull::Block,
                    OnFull::Block => OnFull::DropOldest,
                };
                self.reopen();
            }
            Step::DiskLimit { kib } => self.folder.limit(kib.map(|kib| kib << 10)),
        }
        self.check();
    }

    fn append(&mut self, batches: &[FrameBatch]) -> Vec<LogPosition> {
        let Ok(appended) = self.spool.append(batches, self.clock.now()) else {
            // Only a disk that is full can be the reason.
            return Vec::new();
        };
        for batch in &batches[..appended.positions.len()] {
            self.model.waiting.extend(numbers(batch));
        }
        let dropped = &batches[appended.positions.len()..appended.settled()];
        let mut lost = self.poll_lost();
        lost -= dropped.iter().map(|batch| u64::from(batch.frames())).sum::<u64>();
        // The oldest were dropped to make room.
        assert!(lost == 0 || self.config.on_full == OnFull::DropOldest);
        assert!(dropped.is_empty() || self.config.on_full != OnFull::Block || dropped.len() == 1);
        for _ in 0..lost {
            self.model.waiting.pop_front().expect("no more is lost than was there");
            self.model.read = self.model.read.saturating_sub(1);
        }
        let first = self.model.waiting.front().copied().unwrap_or(u64::MAX);
        self.model.batches.retain(|(_, numbers)| numbers.last() >= Some(&first));
        appended.positions
    }

    fn were_read(&mut self, numbers: Vec<u64>, start: LogPosition) {
        let expected: Vec<_> =
            self.model.waiting.iter().skip(self.model.read).take(numbers.len()).copied().collect();
        assert_eq!(numbers, expected);
        self.model.read += numbers.len();
        self.model.batches.push_back((start, numbers));
    }

    /// Opens it again. Duplicates may come: they were acknowledged after the cursor was written.
    fn reopen(&mut self) {
        self.spool = open(&self.folder, &self.config, self.clock.now()).expect("whatever is in the folder");
        self.model.read = 0;
        self.model.batches.clear();
        let waiting = self.spool.frames();
        let expected = self.model.waiting.len() as u64;
        assert!(waiting >= expected, "{waiting} frames are there, {expected} are expected");
        // I4: duplicates are what was acknowledged last.
        let mut left = waiting - expected;
        while left > 0 {
            let (batch, start) = self.spool.next(self.clock.now()).expect("nothing fails").expect("a frame");
            let again = batch.frames().min(left as u32);
            let last = numbers(&batch).into_iter().nth(again as usize - 1);
            assert!(last < self.model.waiting.front().copied().or(Some(u64::MAX)));
            left -= u64::from(again);
            let acknowledged = self.spool.acknowledge(start.after(again), self.clock.now());
            assert_eq!(acknowledged, u64::from(again));
        }
        // The last of these batches may have frames that are no duplicates.
        self.spool.rewind();
        assert_eq!(self.poll_lost(), 0);
    }

    fn poll_lost(&mut self) -> u64 {
        let mut lost = 0;
        while let Some((reason, frames)) = self.spool.poll_loss() {
            assert_eq!(reason.as_str(), "spool_full");
            lost += frames;
        }
        lost
    }

    fn check(&mut self) {
        assert_eq!(self.spool.frames(), self.model.waiting.len() as u64); // I11
        assert!(self.spool.bytes() <= self.config.max); // I6
        assert_eq!(self.poll_lost(), 0);
        assert_eq!(self.spool.reader_caught_up(), self.model.read == self.model.waiting.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_spool_is_a_queue(
        steps in prop::collection::vec(step(), 1..120),
        sync in prop_oneof![
            Just(SyncPolicy::None), Just(SyncPolicy::Batch), Just(SyncPolicy::Interval(Duration::from_millis(100)))
        ],
        on_full in prop_oneof![Just(OnFull::DropOldest), Just(OnFull::DropNewest), Just(OnFull::Block)],
    ) {
        let mut pair = Pair::new(sync, on_full);
        for step in &steps {
            pair.run(step);
        }
        // In the end all of it comes out.
        while let Some((batch, position)) = pair.spool.next(pair.clock.now()).expect("nothing fails") {
            pair.were_read(numbers(&batch), position);
        }
        assert_eq!(pair.model.read, pair.model.waiting.len());
        // And a restart promises what it gives.
        let Pair { folder, config, clock, spool, .. } = pair;
        drop(spool);
        let opened = Spool::open_in(folder, config, Some(ContentType::DNSTAP), clock.now());
        let (mut spool, report) = opened.expect("whatever is in the folder");
        let read = std::iter::from_fn(|| spool.next(clock.now()).expect("nothing fails"));
        let frames: u64 = read.map(|(batch, _)| u64::from(batch.frames())).sum();
        assert_eq!((report.frames, spool.poll_loss()), (frames, None));
    }
}
