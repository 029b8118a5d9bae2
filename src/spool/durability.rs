//! What was written and is not known to be durable.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::batch::position::LogPosition;
use crate::spool::config::SpoolConfig;
use crate::spool::config::SyncPolicy;
use crate::spool::error::SpoolError;
use crate::spool::log::Log;
use crate::spool::moment::Moment;
use crate::spool::numbered::ArrivingBatch;
use crate::spool::numbered::NumberedBatch;
use crate::spool::numbered::without_first;
use crate::spool::storage::Storage;

/// The batches that a power cut would lose now. They stay in memory until a sync has succeeded: if it fails, they are
/// written again, to another segment, under the same numbers.
#[derive(Debug)]
pub(super) struct Durability {
    sync: SyncPolicy,
    bytes_max: u64,
    /// Written, but not known to be durable, oldest first.
    unsynced: VecDeque<NumberedBatch>,
    /// Length of their records.
    bytes: u64,
    /// No segment that can be relied on has them.
    homeless: bool,
    sync_due: Option<Instant>,
    retry_due: Option<Instant>,
}

impl Durability {
    pub(super) fn new(config: &SpoolConfig) -> Self {
        Self {
            sync: config.sync,
            bytes_max: config.unsynced_max(),
            unsynced: VecDeque::new(),
            bytes: 0,
            homeless: false,
            sync_due: None,
            retry_due: None,
        }
    }

    /// Bytes that a power cut would lose now.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of the first frame that is not known to be durable.
    pub(super) fn first(&self) -> Option<u64> {
        self.unsynced.front().map(|first| first.frame_seq)
    }

    /// Whether the batches could not be made durable anywhere: they wait in memory until that works.
    pub(super) fn is_homeless(&self) -> bool {
        self.homeless
    }

    /// Whether a sync must not wait for its time.
    pub(super) fn must_sync(&self) -> bool {
        self.sync == SyncPolicy::Batch || self.bytes >= self.bytes_max
    }

    /// When a sync, or another attempt after a failure, is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.sync_due, self.retry_due].into_iter().flatten().min()
    }

    pub(super) fn sync_is_due(&self, now: Moment) -> bool {
        self.sync_due.is_some_and(|due| due <= now.instant)
    }

    /// Whether what failed is to be tried again now.
    pub(super) fn take_retry(&mut self, now: Moment) -> bool {
        self.retry_due.take_if(|due| *due <= now.instant).is_some()
    }

    /// Adds a batch that is about to be written.
    pub(super) fn push(&mut self, batch: NumberedBatch) {
        self.bytes += batch.record_len();
        self.unsynced.push_back(batch);
    }

    /// The last `count` batches.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = &NumberedBatch> + Clone {
        self.unsynced.range(self.unsynced.len().saturating_sub(count)..)
    }

    /// The batch in memory that holds frame `frame_seq`, or else the next one.
    pub(super) fn batch_from(&self, frame_seq: u64) -> Option<&NumberedBatch> {
        self.unsynced.iter().find(|batch| batch.frame_seq_end() > frame_seq)
    }

    /// Takes back the last `count` batches, which were not written. Returns how many frames they have.
    pub(super) fn take_back(&mut self, count: usize) -> u64 {
        let mut frames = 0;
        for batch in self.unsynced.drain(self.unsynced.len().saturating_sub(count)..) {
            self.bytes -= batch.record_len();
            frames += u64::from(batch.batch.frames());
        }
        frames
    }

    /// Notes that what was pushed is written.
    pub(super) fn written(&mut self, now: Moment) {
        match self.sync {
            SyncPolicy::None => self.forget_all(),
            SyncPolicy::Batch => {}
            SyncPolicy::Interval(interval) => {
                self.sync_due.get_or_insert(now.instant + interval);
            }
        }
    }

    /// The batches with frames from `frame_seq` on.
    pub(super) fn into_batches_from(self, frame_seq: u64) -> Vec<ArrivingBatch> {
        let batches = self.unsynced.into_iter().filter(|batch| batch.frame_seq_end() > frame_seq);
        let rest = |kept: NumberedBatch| {
            let before = frame_seq.saturating_sub(kept.frame_seq);
            (kept.connection, without_first(kept.batch, before))
        };
        batches.map(rest).collect()
    }

    /// Lets go of the batches before frame `frame_seq`: they are durable, or acknowledged and need not be.
    pub(super) fn forget_before(&mut self, frame_seq: u64) {
        while let Some(first) = self.unsynced.front().filter(|first| first.frame_seq_end() <= frame_seq) {
            self.bytes -= first.record_len();
            self.unsynced.pop_front();
        }
        self.homeless &= !self.unsynced.is_empty();
        if let (SyncPolicy::Interval(interval), Some(_)) = (self.sync, self.sync_due) {
            self.sync_due = self.unsynced.front().map(|first| first.appended + interval);
        }
    }

    /// Lets go of the batches from frame `frame_seq` on: their caller was told that they are not in the spool.
    pub(super) fn forget_from(&mut self, frame_seq: u64) {
        self.unsynced.retain(|batch| batch.frame_seq < frame_seq);
        self.bytes = self.unsynced.iter().map(NumberedBatch::record_len).sum();
        self.homeless &= !self.unsynced.is_empty();
    }

    fn forget_all(&mut self) {
        self.unsynced.clear();
        self.bytes = 0;
    }

    /// Makes durable what was written, if it is in a segment. If that fails, gives the segment up.
    pub(super) fn sync<S: Storage>(&mut self, log: &mut Log<S>) {
        self.sync_due = None;
        if self.unsynced.is_empty() || self.homeless {
            return;
        }
        match log.sync() {
            Ok(()) => self.forget_all(),
            Err(_) => self.lose_segment(log),
        }
    }

    /// Gives up the open segment, which cannot be relied on any more.
    pub(super) fn lose_segment<S: Storage>(&mut self, log: &mut Log<S>) {
        log.abandon_segment();
        self.homeless = !self.unsynced.is_empty();
    }

    /// Writes the homeless batches to a segment of their own, durable. Returns where each begins.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`]: they wait in memory, and this is due again soon.
    pub(super) fn rewrite<S: Storage>(
        &mut self,
        log: &mut Log<S>,
        now: Moment,
    ) -> Result<Vec<LogPosition>, SpoolError> {
        let Some(first) = self.first().filter(|_| self.homeless) else { return Ok(Vec::new()) };
        let rewritten = log.create_segment(first, now).and_then(|()| {
            let positions = log.append(self.unsynced.iter())?;
            log.sync()?;
            Ok(positions)
        });
        match rewritten {
            Ok(positions) => {
                self.homeless = false;
                self.forget_all();
                Ok(positions)
            }
            Err(source) => {
                log.abandon_segment();
                self.retry_due = Some(now.instant + RETRY_INTERVAL);
                Err(SpoolError::Degraded { source })
            }
        }
    }
}

/// How long to wait before writing is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::fixture::config;
    use crate::spool::fixture::empty_log;
    use crate::spool::fixture::numbered;
    use crate::spool::sim::SimFolder;

    const INTERVAL: Duration = Duration::from_millis(100);

    /// Writes a batch of two frames, and keeps it.
    fn write(durability: &mut Durability, log: &mut Log<SimFolder>, now: Moment) {
        if !log.is_open() {
            log.create_segment(log.head(), now).unwrap();
        }
        let batch = numbered(log, 2, now);
        durability.push(batch);
        log.append(durability.last(1)).unwrap();
        durability.written(now);
    }

    fn with_batches(folder: &SimFolder, count: usize, now: Moment) -> (Durability, Log<SimFolder>) {
        let sync = SyncPolicy::Interval(INTERVAL);
        let (mut durability, mut log) = (Durability::new(&config(sync)), empty_log(folder, sync));
        (0..count).for_each(|_| write(&mut durability, &mut log, now));
        (durability, log)
    }

    #[test]
    fn a_sync_is_due_an_interval_after_the_oldest_batch_that_needs_one() {
        let (folder, mut now) = (SimFolder::new(), Moment::now());
        let (mut durability, mut log) = with_batches(&folder, 1, now);
        let begin = now.instant;
        now.instant += INTERVAL / 2;
        write(&mut durability, &mut log, now);
        assert_eq!(durability.poll_timeout(), Some(begin + INTERVAL));
        durability.forget_before(2);
        assert_eq!(durability.poll_timeout(), Some(now.instant + INTERVAL));
        durability.forget_before(4);
        assert_eq!((durability.poll_timeout(), durability.bytes()), (None, 0));
    }

    #[test]
    fn a_failed_sync_makes_batches_homeless_until_they_are_written_again() {
        let (folder, mut now) = (SimFolder::new(), Moment::now());
        let (mut durability, mut log) = with_batches(&folder, 3, now);
        folder.fail_after(0, 1);
        durability.sync(&mut log);
        assert!(durability.is_homeless() && durability.bytes() > 0);
        assert_eq!(durability.first(), Some(0));
        folder.fail_after(0, 1);
        assert!(matches!(durability.rewrite(&mut log, now), Err(SpoolError::Degraded { .. })));
        assert!(durability.is_homeless() && !durability.take_retry(now));
        now.instant = durability.poll_timeout().expect("it is tried again");
        assert!(durability.take_retry(now));
        let positions = durability.rewrite(&mut log, now).unwrap();
        assert_eq!(positions.len(), 3);
        assert!(!durability.is_homeless() && durability.bytes() == 0 && durability.first().is_none());
    }

    #[test]
    fn batches_that_were_refused_or_taken_back_are_forgotten() {
        let (folder, now) = (SimFolder::new(), Moment::now());
        let (mut durability, _) = with_batches(&folder, 4, now);
        let bytes = durability.bytes();
        assert_eq!(durability.take_back(1), 2);
        assert_eq!(durability.bytes(), bytes / 4 * 3);
        durability.forget_from(2);
        assert_eq!((durability.bytes(), durability.first()), (bytes / 4, Some(0)));
        assert_eq!(durability.batch_from(1).map(|batch| batch.frame_seq), Some(0));
        assert!(durability.batch_from(2).is_none());
    }
}
