//! Numbered frames, and the books that every test balances at its end.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Appended;
use tapster::spool::LogPosition;
use tapster::spool::LossReason;
use tapster::spool::Moment;
use tapster::spool::OnFull;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SpoolError;
use tapster::spool::Storage;
use tapster::spool::SyncPolicy;

/// A spool of 512 KiB, segments of 64 KiB.
pub(crate) fn small(sync: SyncPolicy, on_full: OnFull) -> SpoolConfig {
    SpoolConfig { max: 512 << 10, min_free: 0, sync, on_full, ..SpoolConfig::default() }
}

/// A clock that a test moves.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Moment);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Moment {
            instant: Instant::now() + Duration::from_secs(1_000_000),
            unix: 1_700_000_000_000_000_000,
        })
    }

    pub(crate) fn now(&self) -> Moment {
        self.0
    }

    /// Sets the clock: no time passes.
    pub(crate) fn step(&mut self, by: Duration, forward: bool) {
        let by = u64::try_from(by.as_nanos()).expect("within the test's time");
        self.0.unix = if forward { self.0.unix.saturating_add(by) } else { self.0.unix.saturating_sub(by) };
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.0.instant += by;
        self.0.unix += u64::try_from(by.as_nanos()).expect("within the test's time");
    }
}

/// `frames` frames from number `first` on, each of `len` payload bytes that follow from its number.
pub(crate) fn batch(first: u64, frames: u64, len: usize, now: Moment) -> FrameBatch {
    let payloads = (first..first + frames).map(|number| payload(number, len));
    FrameBatch::from_payloads(payloads, now.instant).expect("payloads within the limits")
}

fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().repeat(len.div_ceil(8).max(1));
    payload.truncate(len.max(8));
    payload
}

/// The numbers of the frames in a batch. Every payload is what its number asks for: nothing is altered or invented.
pub(crate) fn numbers(batch: &FrameBatch) -> Vec<u64> {
    let numbers = batch.payloads().map(|bytes| {
        let (number, _) = bytes.split_first_chunk().expect("a numbered frame");
        let number = u64::from_be_bytes(*number);
        assert_eq!(bytes, payload(number, bytes.len()), "frame {number} is as it was");
        number
    });
    numbers.collect()
}

pub(crate) fn open(
    folder: &SimFolder,
    config: &SpoolConfig,
    now: Moment,
) -> Result<Spool<SimFolder>, SpoolError> {
    Spool::open_in(folder.clone(), config.clone(), Some(ContentType::DNSTAP), now).map(|(spool, _)| spool)
}

/// Where frames went, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    /// The next number to be used.
    pub(crate) next: u64,
    /// How often each frame that was appended came back.
    pub(crate) appended: BTreeMap<u64, u32>,
    pub(crate) acknowledged: u64,
    pub(crate) lost: BTreeMap<&'static str, u64>,
    last: Option<u64>,
    /// There was a restart: batches that were refused may be there, too.
    restarted: bool,
    /// Frames that were there at the restart.
    waiting: u64,
    /// Frames lost before the restart.
    lost_before: u64,
}

impl Books {
    /// Makes a batch of new frames.
    pub(crate) fn batch(&mut self, frames: u64, len: usize, now: Moment) -> FrameBatch {
        self.next += frames;
        batch(self.next - frames, frames, len, now)
    }

    /// Appends; returns how many batches were not settled, and counts those that were.
    pub(crate) fn append<S: Storage>(
        &mut self,
        spool: &mut Spool<S>,
        batches: &[FrameBatch],
        now: Moment,
    ) -> Result<Appended, SpoolError> {
        let appended = spool.append(batches, now)?;
        for batch in &batches[..appended.positions.len()] {
            self.appended.extend(numbers(batch).into_iter().map(|number| (number, 0)));
        }
        let dropped = &batches[appended.positions.len()..appended.settled()];
        let dropped: u64 = dropped.iter().map(|batch| u64::from(batch.frames())).sum();
        // Those are in the reports of losses, and never were in the spool.
        self.losses(spool);
        if dropped > 0 {
            let full = self.lost.get_mut("spool_full").expect("what was dropped is reported");
            *full = full.checked_sub(dropped).expect("all of what was dropped is reported");
        }
        Ok(appended)
    }

    /// Reads one batch, and returns the place behind it. The batch is later than the one before, except after a rewind.
    pub(crate) fn read<S: Storage>(
        &mut self,
        spool: &mut Spool<S>,
        now: Moment,
    ) -> Result<Option<LogPosition>, SpoolError> {
        let read = self.read_batch(spool, now)?;
        Ok(read.map(|(batch, start)| start.after(batch.frames())))
    }

    /// The same, and returns the batch and where it begins.
    pub(crate) fn read_batch<S: Storage>(
        &mut self,
        spool: &mut Spool<S>,
        now: Moment,
    ) -> Result<Option<(FrameBatch, LogPosition)>, SpoolError> {
        let next = spool.next(now);
        self.losses(spool);
        let Some((batch, start)) = next? else { return Ok(None) };
        self.delivered(&batch);
        Ok(Some((batch, start)))
    }

    /// Notes a batch that was delivered.
    pub(crate) fn delivered(&mut self, batch: &FrameBatch) {
        for number in numbers(batch) {
            assert!(self.last.is_none_or(|last| last < number), "{number} after {:?}", self.last);
            self.last = Some(number);
            match self.appended.get_mut(&number) {
                Some(times) => *times += 1,
                None => assert!(self.restarted && number < self.next, "{number} was never appended"),
            }
        }
    }

    /// After a rewind or a restart frames come again.
    pub(crate) fn again(&mut self) {
        self.last = None;
    }

    /// The spool was closed or killed, and is opened again: `waiting` frames are in it.
    pub(crate) fn restart(&mut self, waiting: u64) {
        self.again();
        self.restarted = true;
        self.acknowledged = 0;
        self.waiting = waiting;
        self.lost_before += std::mem::take(&mut self.lost).values().sum::<u64>();
    }

    pub(crate) fn losses<S: Storage>(&mut self, spool: &mut Spool<S>) {
        while let Some((reason, frames)) = spool.poll_loss() {
            *self.lost.entry(LossReason::as_str(reason)).or_default() += frames;
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost_before + self.lost.values().sum::<u64>()
    }

    /// Frames that never came.
    pub(crate) fn missing(&self) -> u64 {
        self.appended.values().filter(|&&times| times == 0).count() as u64
    }

    /// Every frame that was put in since the start is acknowledged, lost or in the spool.
    pub(crate) fn balance<S: Storage>(&self, spool: &Spool<S>) {
        let put_in = if self.restarted { self.waiting } else { self.appended.len() as u64 };
        let lost: u64 = self.lost.values().sum();
        assert_eq!(put_in, self.acknowledged + lost + spool.frames(), "{:?}", self.lost);
    }
}
