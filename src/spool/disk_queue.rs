//! The queue on disk: what its four parts do together. Its ends are in `writing_end` and `reading_end`, what it removes in `upkeep`,
//! and what others remove in `whereabouts`.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::batch::position::LogPosition;
use crate::protocol::ContentType;
use crate::spool::config::SpoolConfig;
use crate::spool::durability::Durability;
use crate::spool::error::SpoolError;
use crate::spool::folder::Folder;
use crate::spool::gaps::Gaps;
use crate::spool::log::AGE_STEPS;
use crate::spool::log::Log;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::progress::Progress;
use crate::spool::read_head::ReadHead;
use crate::spool::recovery::Recovered;
use crate::spool::recovery::RecoveryReport;
use crate::spool::recovery::recover;
use crate::spool::storage::Standing;
use crate::spool::storage::Storage;

/// A queue of batches on disk, with one writer and one reader. See the [module](crate::spool).
#[derive(Debug)]
pub struct Spool<S: Storage = Folder> {
    pub(super) log: Log<S>,
    pub(super) durability: Durability,
    pub(super) progress: Progress<S::File>,
    pub(super) read_head: ReadHead<S::File>,
    upkeep_due: Instant,
    /// When the folder is looked at next.
    look_due: Instant,
    /// How the folder stood when it was looked at last.
    pub(super) standing: Standing,
    /// Numbers of frames whose files others have removed. The lane may have some of them.
    pub(super) missing: Gaps,
    /// When the clock was read last.
    clock: Moment,
    /// By how many nanoseconds the clock was set since that was asked last.
    clock_step: i64,
}

impl Spool {
    /// Opens the spool in `folder`, which is created (mode 0700) where it is missing, and goes on with what is there.
    ///
    /// Reads header and footer of every segment, and the whole of those that were not closed in order: the last one, after a crash.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] and [`SpoolError::Io`]; [`SpoolError::OtherVersion`] and [`SpoolError::OtherContentType`], which leave
    /// everything as it is. Never for what is damaged.
    pub fn open(
        folder: &Path,
        config: SpoolConfig,
        content_type: Option<ContentType>,
        now: Moment,
    ) -> Result<(Self, RecoveryReport), SpoolError> {
        Self::open_in(Folder::open(folder)?, config, content_type, now)
    }
}

impl<S: Storage> Spool<S> {
    /// Opens the spool in a folder that is open and locked. See [`Spool::open`].
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn open_in(
        storage: S,
        config: SpoolConfig,
        content_type: Option<ContentType>,
        now: Moment,
    ) -> Result<(Self, RecoveryReport), SpoolError> {
        let Recovered { log, progress, mut report } = recover(storage, config, content_type, now)?;
        let durability = Durability::new(log.config());
        let read_head = ReadHead::new(progress.acknowledged());
        let (upkeep_due, look_due) = (now.instant, now.instant + LOOK_INTERVAL);
        let (standing, missing) = (Standing::InPlace, Gaps::default());
        let mut spool = Self {
            log,
            durability,
            progress,
            read_head,
            upkeep_due,
            look_due,
            standing,
            missing,
            clock: now,
            clock_step: 0,
        };
        // What was delivered before is removed. If that fails, it goes with the next segment.
        let _ = spool.retire();
        report.frames = spool.frames();
        report.bytes = spool.bytes();
        report.segments = spool.log.segments_count();
        report.bad_files = spool.log.aside_count();
        Ok((spool, report))
    }

    /// Frames in the spool that are neither acknowledged nor lost.
    pub fn frames(&self) -> u64 {
        self.progress.waiting(self.log.head())
    }

    /// Everything before it is acknowledged, or was lost.
    pub fn acknowledged(&self) -> LogPosition {
        self.progress.acknowledged()
    }

    /// Bytes on disk, except those of the cursor file: 4160 at most.
    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// Bytes that a power cut would lose now.
    pub fn unsynced_bytes(&self) -> u64 {
        self.durability.bytes()
    }

    /// Frames that were appended and are neither acknowledged nor known to be durable.
    pub fn unsynced_frames(&self) -> u64 {
        let acknowledged = self.progress.acknowledged().frame_seq;
        self.durability.first().map_or(0, |first| self.log.head() - first.max(acknowledged))
    }

    /// Whether nothing can be stored now: what was written last could not be made durable anywhere, and waits in memory until that
    /// works; or the folder is away.
    pub fn is_degraded(&self) -> bool {
        self.durability.is_homeless() || self.standing != Standing::InPlace
    }

    /// Frames that were lost since this was asked last, one reason at a time.
    pub fn poll_loss(&mut self) -> Option<(LossReason, u64)> {
        self.progress.poll_loss()
    }

    /// By how many nanoseconds the clock was set since this was asked last; 0 where it was not.
    pub fn poll_clock_step(&mut self) -> i64 {
        std::mem::take(&mut self.clock_step)
    }

    /// Ages go by the time that has passed: if the clock was set, the times of all segments are moved with it.
    pub(super) fn follow_clock(&mut self, now: Moment) {
        if let Some(step) = now.step_since(self.clock) {
            self.log.move_clock(step);
            self.clock_step = self.clock_step.saturating_add(step);
        }
        self.clock = now;
    }

    // What is due now and then.

    /// When [`Spool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let due = [self.durability.poll_timeout(), self.progress.poll_timeout()];
        due.into_iter().flatten().fold(self.upkeep_due.min(self.look_due), Instant::min)
    }

    /// Does what is due: syncs, writes the cursor, removes what is acknowledged or too old, and tries again what failed. There may
    /// be more to do at once: [`Spool::poll_timeout`] tells. So nobody waits for two syncs at a time.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`] and [`SpoolError::Io`]: nothing is lost by it, and it is tried again when
    /// [`Spool::poll_timeout`] says.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.follow_clock(now);
        if self.look_due <= now.instant {
            self.look_due = now.instant + LOOK_INTERVAL;
            self.log.ask_disk_again();
            self.look_at_folder()?;
        }
        if self.durability.take_retry(now) {
            self.find_home(now)?;
        }
        if self.durability.sync_is_due(now) {
            return self.sync(now);
        }
        let mut more = false;
        if self.progress.take_due(now) {
            match self.commit_and_retire() {
                Ok(rest) => more = rest,
                Err(error) => {
                    self.progress.retry_later(now);
                    return Err(error);
                }
            }
        }
        if self.upkeep_due <= now.instant {
            self.upkeep_due = now.instant + (self.log.config().max_age / AGE_STEPS).min(UPKEEP_INTERVAL_MAX);
            self.read_head.free_unused();
            more |= self.remove_some(now)?;
        }
        if more {
            self.upkeep_due = now.instant;
        }
        Ok(())
    }

    /// Makes everything durable, cursor and all, and ends the last segment in order.
    ///
    /// # Errors
    /// [`SpoolError::Degraded`]: what is not durable is lost, [`Spool::unsynced_frames`] of it; and [`SpoolError::Io`]:
    /// at the next start some frames come again, or more time is taken.
    pub fn close(&mut self, now: Moment) -> Result<(), SpoolError> {
        self.sync(now)?;
        self.end_segment(now)?;
        // What is left of the files goes at the next start.
        self.commit_and_retire().map(drop)
    }
}

/// How often the folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Ages are looked at no less often.
const UPKEEP_INTERVAL_MAX: Duration = Duration::from_secs(60);
