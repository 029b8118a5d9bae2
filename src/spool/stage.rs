//! The stage between two queues that has a spool, on a thread beside the workers: file work never holds up a worker.
//!
//! ```text
//! inputs ─► front queue ─► stage ──────────► back queue ─► lane ─► collector
//!                          │    ▲                           │
//!                   append ▼    │ next                      │ reports
//!                          spool ◄───────────────────────────┘
//! ```
//!
//! Everything passes the stage, and in order: while the spool holds what the lane has not got, whatever arrives goes behind
//! it. The two queues share what the output may have of memory. Frames that are on disk may be in the back queue or with the
//! lane too; their segment goes when the lane has reported their end.
//!
//! [`Stage::turn`] does everything that can be done now. It is given a clock, and asks it again behind everything that may have
//! waited for the disk. `stage_loop` calls it, and waits. While the disk hangs, another thread gives the lane what arrives: see
//! [`entrance`](crate::spool::entrance).
//!
//! This file has the order of a turn. What is done in a turn is in the files beside it: `health` opens the spool and tries again
//! what fails, `arrivals` has the way in, `lane` has the way out, `losses` knows what is not on disk any more, and `end` closes
//! everything.

mod arrivals;
mod end;
mod health;
mod lane;
mod losses;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use crate::batch::Batch;
use crate::faults;
use crate::observability::account::OutputAccount;
use crate::protocol::ContentType;
use crate::queue::Queue;
use crate::queue::channel::QueueEnd;
use crate::spool::Folder;
use crate::spool::Moment;
use crate::spool::RecoveryReport;
use crate::spool::Spool;
use crate::spool::SpoolError;
use crate::spool::SpoolSettings;
use crate::spool::Storage;
use crate::spool::entrance::Entrance;
use crate::spool::entrance::StandIn;
use crate::spool::outgoing::Outgoing;
use crate::spool::reports::LeftBatches;
use crate::spool::reports::ReportReceiver;

/// Settings of a stage.
#[derive(Debug)]
pub(crate) struct StageConfig {
    /// Name of the output, for the log.
    pub(crate) output: String,
    pub(crate) content_type: Option<ContentType>,
    /// Longer frames (payload bytes) are not given to the lane: the limit may have been another when they were stored.
    pub(crate) frame_len_max: u32,
    pub(crate) settings: SpoolSettings,
    /// Whether everything goes to disk, and not only what memory has no room for.
    pub(crate) stores_all: bool,
}

/// What a stage waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    /// Something is due by time.
    pub(super) due: Option<Instant>,
    /// A batch that arrives.
    pub(super) batch: bool,
    /// The end of the front queue, as far as the stage has seen it.
    pub(super) seen: QueueEnd,
    /// Room for so many bytes in the back queue.
    pub(super) room_for: Option<usize>,
}

/// Opens the spool of a stage.
pub(crate) type OpenSpool<S> = fn(&StageConfig, Moment) -> Result<(Spool<S>, RecoveryReport), SpoolError>;

/// The stage of one lane.
pub(crate) struct Stage<S: Storage = Folder> {
    config: StageConfig,
    open_spool: OpenSpool<S>,
    pub(super) front: Arc<Queue>,
    pub(super) back: Arc<Queue>,
    pub(super) reports: ReportReceiver,
    account: Arc<OutputAccount>,
    /// `None`: the spool cannot be opened.
    spool: Option<Spool<S>>,
    /// What has come out of the front queue, and calls of the disk.
    pub(super) entrance: Arc<Entrance>,
    /// What the lane has, or is about to get, of what is on disk.
    outgoing: Outgoing,
    /// What the lane has left at its end.
    left: Vec<Batch>,
    /// The spool cannot be opened, or written to: then it is tried again.
    retry_at: Option<Instant>,
    /// Since when that is so.
    unusable_since: Option<Instant>,
    /// The disk has no room for a record of this length: when that is looked at again.
    short_of_disk: Option<(Instant, u64)>,
    /// What was due by time has failed.
    upkeep_failed: bool,
    /// Places in segments with a lower number were in a folder that is gone.
    orphans_before: u64,
}

impl Stage {
    /// Opens the spool of a stage in its folder.
    pub(crate) fn open_folder(
        config: &StageConfig,
        now: Moment,
    ) -> Result<(Spool, RecoveryReport), SpoolError> {
        let SpoolSettings { folder, config: limits } = &config.settings;
        Spool::open(folder, limits.clone(), config.content_type.clone(), now)
    }
}

impl<S: Storage> Stage<S> {
    /// A stage between two queues, whose spool is not open.
    pub(crate) fn new(
        config: StageConfig,
        open_spool: OpenSpool<S>,
        (front, back): (Arc<Queue>, Arc<Queue>),
        reports: ReportReceiver,
        account: Arc<OutputAccount>,
    ) -> Self {
        // The ledger shows that there is a spool.
        account.spool();
        let queues = (Arc::clone(&front), Arc::clone(&back));
        let entrance = Entrance::new(config.output.clone(), Arc::clone(&account), queues);
        Self {
            config,
            open_spool,
            front,
            back,
            reports,
            account,
            spool: None,
            entrance: Arc::new(entrance),
            outgoing: Outgoing::default(),
            left: Vec::new(),
            retry_at: None,
            unusable_since: None,
            short_of_disk: None,
            upkeep_failed: false,
            orphans_before: 0,
        }
    }

    /// What the stage has not taken of its lane, should the disk hang.
    pub(crate) fn left_batches(&self) -> LeftBatches {
        self.reports.left_batches()
    }

    /// Who gives the lane what arrives while the disk hangs.
    pub(crate) fn stand_in(&self) -> StandIn {
        StandIn::new(&self.entrance)
    }

    /// Does everything that can be done now. Returns whether anything moved: then there may be more.
    pub(super) fn turn(&mut self, clock: impl Fn() -> Moment) -> bool {
        let mut now = clock();
        self.take_reports(now);
        if self.look_after_spool(now) {
            now = clock();
        }
        self.drop_old(now);
        let taken = self.take_in(now);
        if taken {
            faults::point("spool stage", &self.config.output);
            now = clock();
        }
        let passed = self.pass_on(now);
        self.tell_clock_step();
        self.tell_state();
        if self.front.is_closed() {
            self.back.end_inputs();
        }
        if !taken && !passed && self.everything_passed() {
            self.back.close();
        }
        taken || passed
    }

    /// Whether the lane would take what has arrived, without passing anything older.
    fn lane_takes(&self) -> bool {
        self.spool_is_read() && !self.reports.lane_ended()
    }

    /// Whether the lane has got, or is getting, everything that the spool holds: what arrives may follow in memory.
    fn spool_is_read(&self) -> bool {
        self.outgoing.is_empty() && self.spool.as_ref().is_none_or(Spool::reader_caught_up)
    }

    fn everything_passed(&self) -> bool {
        self.front.is_closed()
            && self.front.is_empty()
            && self.entrance.arrived().is_empty()
            && self.spool_is_read()
    }

    /// Tells how the spool stands.
    fn tell_state(&self) {
        let account = self.account.spool();
        self.show_degraded();
        let arrived = self.entrance.arrived().front().filter(|_| self.spool_is_read()).map(Batch::read_at);
        let oldest = self.outgoing.oldest().or(arrived);
        // Between two reads of the spool it is not known, and hardly another.
        if oldest.is_some() || self.spool_is_read() {
            account.oldest.set(oldest);
        }
        let Some(spool) = &self.spool else { return };
        account.bytes.store(spool.bytes(), Relaxed);
        account.bytes_unsynced.store(spool.unsynced_bytes(), Relaxed);
    }

    /// What the stage waits for after a turn in which nothing moved.
    pub(super) fn waits(&self, now: Instant) -> Waits {
        let arrived = self.entrance.arrived();
        let blocked = !arrived.is_empty();
        let due = [
            self.spool.as_ref().map(Spool::poll_timeout),
            self.retry_at,
            self.short_of_disk.map(|(at, _)| at),
            self.outgoing.read_at(),
            (!self.outgoing.offsets.is_empty()).then(|| now + REPORTS_PAUSE),
            blocked.then(|| now + BLOCKED_PAUSE),
        ];
        let first = arrived.front().filter(|_| self.spool_is_read()).map(Batch::byte_len);
        let for_lane = self.outgoing.next_len().or(first);
        Waits {
            due: due.into_iter().flatten().min(),
            batch: !blocked,
            seen: self.front.end(),
            room_for: for_lane.filter(|_| !self.back.is_closed()),
        }
    }
}

/// How often reports are looked at while nothing else happens: what is acknowledged is sent again after a crash until then.
const REPORTS_PAUSE: Duration = Duration::from_millis(100);
/// The same while something waits for room on disk.
const BLOCKED_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
