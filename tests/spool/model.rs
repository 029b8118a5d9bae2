//! The spool against a queue in memory: whatever is done to it in whatever order, it gives what the queue gives.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
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
    /// Appends a batch and passes it on from memory, if the reader has caught up.
    PassOn {
        frames: u64,
    },
    Next,
    /// Acknowledges some of what was read: this many of the 8 parts.
    Done {
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
        2 => (1..4u64).prop_map(|frames| Step::PassOn { frames }),
        8 => Just(Step::Next),
        4 => (0..=8usize).prop_map(|eighths| Step::Done { eighths }),
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
    /// Places behind what was read, and how many frames had been appended before them.
    positions: VecDeque<(LogPosition, u64)>,
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
            Step::PassOn { frames } => {
                let batch = self.books.batch(*frames, 100, self.clock.now());
                let caught_up = self.spool.reader_caught_up();
                let positions = self.append(std::slice::from_ref(&batch));
                if let (Some(position), true) = (positions.first(), caught_up) {
                    self.spool.skip_to(*position);
                    self.was_read(&batch, *position);
                }
            }
            Step::Next => match self.spool.next(self.clock.now()).expect("nothing fails") {
                Some((batch, position)) => self.was_read(&batch, position),
                None => assert_eq!(self.model.read, self.model.waiting.len(), "everything was read"),
            },
            Step::Done { eighths } => {
                let count = self.model.positions.len() * eighths / 8;
                let Some((position, last)) = self.model.positions.drain(..count).next_back() else { return };
                let done = self.spool.done(position, self.clock.now());
                let count = self.model.waiting.iter().take_while(|number| **number <= last).count();
                assert_eq!(done, count as u64);
                self.model.waiting.drain(..count);
                self.model.read -= count;
            }
            Step::Rewind => {
                self.spool.rewind();
                self.model.read = 0;
                self.model.positions.clear();
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
        self.model.positions.retain(|(_, last)| *last >= first);
        appended.positions
    }

    fn was_read(&mut self, batch: &FrameBatch, position: LogPosition) {
        let numbers = numbers(batch);
        let expected: Vec<_> =
            self.model.waiting.iter().skip(self.model.read).take(numbers.len()).copied().collect();
        assert_eq!(numbers, expected);
        self.model.read += numbers.len();
        self.model.positions.push_back((position, *numbers.last().expect("a batch has frames")));
    }

    /// Opens it again. Duplicates may come: they were acknowledged after the cursor was written.
    fn reopen(&mut self) {
        self.spool = open(&self.folder, &self.config, self.clock.now()).expect("whatever is in the folder");
        self.model.read = 0;
        self.model.positions.clear();
        let waiting = self.spool.frames();
        let expected = self.model.waiting.len() as u64;
        assert!(waiting >= expected, "{waiting} frames are there, {expected} are expected");
        // I4: duplicates are what was acknowledged last.
        let mut again = Vec::new();
        let mut frames = 0;
        let mut last = None;
        while frames < waiting - expected {
            let (batch, position) =
                self.spool.next(self.clock.now()).expect("nothing fails").expect("a frame");
            frames += u64::from(batch.frames());
            again.extend(numbers(&batch));
            last = Some(position);
        }
        assert!(again.is_sorted() && again.last() < self.model.waiting.front().or(Some(&u64::MAX)));
        if let Some(position) = last {
            assert_eq!(self.spool.done(position, self.clock.now()), frames);
        }
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
        assert!(self.spool.bytes() <= self.config.max + (64 << 10)); // I6
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
        // In the end all of it can be had.
        while let Some((batch, position)) = pair.spool.next(pair.clock.now()).expect("nothing fails") {
            pair.was_read(&batch, position);
        }
        assert_eq!(pair.model.read, pair.model.waiting.len());
    }
}
