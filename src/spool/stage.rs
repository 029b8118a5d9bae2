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

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tracing::error;
use tracing::info;
use tracing::warn;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::batch::custody::Custody;
use crate::faults;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;
use crate::observability::output_log::OutputEvent;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::channel::QueueEnd;
use crate::spool::Appended;
use crate::spool::ConnectionId;
use crate::spool::Folder;
use crate::spool::LossReason;
use crate::spool::Moment;
use crate::spool::RecoveryReport;
use crate::spool::Spool;
use crate::spool::SpoolError;
use crate::spool::SpoolSettings;
use crate::spool::Storage;
use crate::spool::SyncPolicy;
use crate::spool::entrance::Entrance;
use crate::spool::entrance::StandIn;
use crate::spool::offsets::Ended;
use crate::spool::outgoing::Outgoing;
use crate::spool::reports::LeftBatches;
use crate::spool::reports::Report;
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

    /// Opens the spool, and tells what was in it.
    pub(super) fn open(&mut self, now: Moment) {
        let (open_spool, config) = (self.open_spool, &self.config);
        // Whatever is on disk comes behind what arrives until it can be read.
        let lane_takes = !self.reports.lane_ended();
        let (opened, _) = self.entrance.call(now.instant, lane_takes, || {
            if faults::hit("spool opens late", &config.output) {
                thread::sleep(Duration::from_millis(300));
            }
            open_spool(config, now)
        });
        match opened {
            Ok((mut spool, report)) => {
                spool.begin_segments_at(self.orphans_before);
                self.spool = Some(spool);
                self.tell_recovered(&report, now);
                self.works(now);
            }
            Err(error) => self.fails(&error, now),
        }
    }

    fn tell_recovered(&self, report: &RecoveryReport, now: Moment) {
        let (output, folder) = (&self.config.output, self.config.settings.folder.display());
        self.account.spool_opened(report.frames);
        let account = self.account.spool();
        account.files_set_aside.fetch_add(report.set_aside.len() as u64, Relaxed);
        for remark in &report.remarks {
            warn!(output, "{remark}");
        }
        for set_aside in &report.set_aside {
            if let Some(left_out) = self.account.log.admit(OutputEvent::SetAside, "", now.instant) {
                let (file, reason) = (&set_aside.name, &set_aside.reason);
                warn!(output, file, left_out, "set aside in the spool {folder}: {reason}");
            }
        }
        let RecoveryReport { frames, bytes, segments, torn_bytes, bad_files, foreign, .. } = report;
        info!(output, frames, bytes, segments, torn_bytes, bad_files, foreign, "the spool {folder} is open");
    }

    /// Notes that the spool cannot be used now.
    fn fails(&mut self, error: &SpoolError, now: Moment) {
        if self.unusable_since.is_none() {
            self.tell_degraded(error, "tapster tries the spool again every second", now);
        }
        let since = *self.unusable_since.get_or_insert(now.instant);
        // A fault that is over soon is found out soon.
        let lasts = now.instant.saturating_duration_since(since);
        self.retry_at = Some(now.instant + (lasts / RETRY_STEPS).clamp(RETRY_PAUSE_MIN, RETRY_PAUSE));
    }

    fn tell_degraded(&self, error: &dyn Display, what_next: &str, now: Moment) {
        if let Some(left_out) = self.account.log.admit(OutputEvent::SpoolFailed, "", now.instant) {
            let output = &self.config.output;
            error!(output, left_out, "{error}; frames wait in memory alone, and {what_next}");
        }
    }

    /// Notes that the spool can be used.
    fn works(&mut self, now: Moment) {
        self.retry_at = None;
        let (unusable, short) = (self.unusable_since.take(), self.short_of_disk.take());
        if (unusable.is_some() || short.is_some())
            && let Some(left_out) = self.account.log.admit(OutputEvent::SpoolWorks, "", now.instant)
        {
            info!(output = self.config.output, left_out, "the spool can be used again");
        }
    }

    /// Notes that a batch was not stored, if `min_free` is the reason and not another limit of the spool.
    fn look_for_short_disk(&mut self, first: &FrameBatch, now: Moment) {
        let Some(len) = self.spool.as_ref().and_then(|spool| spool.kept_out_by_min_free(first)) else {
            return;
        };
        if self.short_of_disk.replace((now.instant + RETRY_PAUSE, len)).is_some() {
            return;
        }
        let SpoolSettings { folder, config } = &self.config.settings;
        let (folder, min_free) = (folder.display(), config.min_free);
        let words =
            format!("the disk of the spool {folder} has no room: min_free keeps {min_free} bytes of it free");
        self.tell_degraded(
            &words,
            "tapster stores again when it has room: free space, or lower `min_free`",
            now,
        );
    }

    /// Looks whether the disk has room again.
    fn look_for_room_on_disk(&mut self, now: Moment) {
        let Some((at, len)) = &mut self.short_of_disk else { return };
        *at = now.instant + RETRY_PAUSE;
        let has_room = self.spool.as_ref().is_some_and(|spool| spool.disk_has_room_for(*len));
        // Where the spool has failed in another way, its retry says when it works.
        if has_room && self.retry_at.is_none() {
            self.works(now);
        }
    }

    fn take_reports(&mut self, now: Moment) {
        while let Some(report) = self.reports.next() {
            match report {
                Report::Acknowledged(acknowledged) => self.acknowledge(acknowledged, now),
                Report::Left(batch) => self.left.push(batch),
                Report::Failed(answer) => {
                    self.take_back();
                    // A lane that does not wait any more has come to its end.
                    let _ = answer.send(());
                }
            }
        }
    }

    /// The task of the stage has failed. The next one opens the spool once more; what was on its way there is lost.
    pub(super) fn begin_again(&mut self) {
        for batch in self.entrance.begin_again() {
            batch.dropped(DropReason::Internal);
        }
        self.spool = None;
        self.outgoing = Outgoing::default();
        (self.retry_at, self.unusable_since, self.short_of_disk) = (None, None, None);
    }

    fn acknowledge(&mut self, acknowledged: Acknowledgement, now: Moment) {
        if acknowledged.from.segment() < self.orphans_before {
            return;
        }
        let ended = self.outgoing.offsets.acknowledge(acknowledged);
        self.forget(ended, now);
    }

    /// The spool need not keep what has ended.
    fn forget(&mut self, ended: Ended, now: Moment) {
        self.account.dropped_from_disk(DropReason::FrameTooLong, ended.left_out);
        if let (Some(position), Some(spool)) = (ended.position, &mut self.spool) {
            spool.acknowledge(position, now);
        }
    }

    /// The lane has failed, and takes nothing until this is done: what it had, and what it was to get, is read from the disk
    /// once more. What is not there goes behind it.
    fn take_back(&mut self) {
        let mut in_memory = VecDeque::new();
        while let Some(mut batch) = self.back.pop() {
            if self.is_on_disk(&mut batch) {
                if let Some(dropped) = self.keep_on_disk(batch) {
                    self.outgoing.offsets.note(dropped);
                }
            } else {
                batch.custody.move_to(self.front.reserve_anyway(batch.byte_len()));
                in_memory.push_back(batch);
            }
        }
        let mut arrived = self.entrance.arrived();
        in_memory.append(&mut arrived);
        *arrived = in_memory;
        drop(arrived);
        // What the lane had of segments that are dropped is not on disk any more.
        for (reason, frames) in self.outgoing.offsets.gone_and_not_ended() {
            self.account.dropped_from_disk(reason, frames);
        }
        self.outgoing.clear();
        if let Some(spool) = &mut self.spool {
            spool.rewind();
            self.account.reconcile_spooled(spool.frames());
        }
    }

    /// Leaves a batch of the lane to the disk. If the spool had to drop it from there, its frames are lost like the others of
    /// their segment: they are the oldest, and stored once more they would come behind younger ones. Returns those that are lost.
    fn keep_on_disk(&self, batch: Batch) -> Option<Acknowledgement> {
        match batch.log_position.and_then(|position| self.outgoing.offsets.gone(position)) {
            Some(reason) => batch.dropped(reason),
            None => {
                batch.stored();
                None
            }
        }
    }

    /// Does what is due by time. Returns whether it has called the disk.
    fn look_after_spool(&mut self, now: Moment) -> bool {
        let retries = self.retry_at.take_if(|at| *at <= now.instant).is_some();
        let lane_takes = self.lane_takes();
        if self.short_of_disk.is_some_and(|(at, _)| at <= now.instant) {
            self.look_for_room_on_disk(now);
        }
        match &mut self.spool {
            None if retries => self.open(now),
            Some(spool) if spool.poll_timeout() <= now.instant => {
                let was_degraded = spool.is_degraded();
                let acknowledged = spool.acknowledged().frame_seq();
                let call = || spool.handle_timeout(now);
                let (result, _) = self.entrance.call(now.instant, lane_takes, call);
                let recovered = was_degraded && !spool.is_degraded();
                self.count_lost(acknowledged, 0);
                match result {
                    Ok(()) if recovered || self.upkeep_failed => {
                        self.upkeep_failed = false;
                        self.works(now);
                    }
                    Ok(()) => {}
                    Err(error) => {
                        self.upkeep_failed = true;
                        self.fails(&error, now);
                        if matches!(error, SpoolError::Gone) {
                            self.leave_folder(now);
                        }
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// The folder is gone. What is in memory too arrives once more; the rest is lost. Another folder may be there, and be opened.
    fn leave_folder(&mut self, now: Moment) {
        let Some(spool) = self.spool.take() else { return };
        self.orphans_before = spool.segment_next();
        let outgoing = std::mem::take(&mut self.outgoing).take_unread();
        let mut arrived = self.entrance.arrived();
        let outgoing = outgoing.into_iter().map(|(connection, frames, _)| (connection, frames));
        for (connection, frames) in outgoing.chain(spool.into_unread()).rev() {
            arrived.push_front(self.in_memory_alone(connection, frames));
        }
        drop(arrived);
        self.account.dropped_from_disk(DropReason::SpoolDamaged, self.account.spooled_now());
        self.retry_at = Some(now.instant);
    }

    /// A batch that counted as on disk, and is not there any more.
    fn in_memory_alone(&self, connection: ConnectionId, frames: FrameBatch) -> Batch {
        let permit = self.front.reserve_anyway(frames.byte_len());
        let mut custody = Custody::load(Arc::clone(&self.account), permit, frames.frames());
        custody.gone_from_disk();
        Batch::new(frames, connection, None, custody)
    }

    /// Leaves to the disk what was read and not given to the lane, if it is there. Returns the rest.
    fn leave_unread(&mut self) -> Vec<Batch> {
        let mut missing = Vec::new();
        for (connection, frames, position) in self.outgoing.take_unread() {
            if self.spool.as_mut().is_some_and(|spool| spool.leave_out_missing(position, frames.frames())) {
                missing.push(self.in_memory_alone(connection, frames));
            }
        }
        missing
    }

    /// Whether a batch of the lane is on disk. One whose file others have removed is in memory alone from now on.
    fn is_on_disk(&mut self, batch: &mut Batch) -> bool {
        let Some(position) = batch.log_position else { return false };
        let is_orphan = position.segment() < self.orphans_before;
        let frames = batch.frames().frames();
        if is_orphan || self.spool.as_mut().is_some_and(|spool| spool.leave_out_missing(position, frames)) {
            batch.gone_from_disk();
        }
        batch.log_position.is_some()
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

    /// Whether the spool is there and was not found unwritable a moment ago.
    fn may_store(&self) -> bool {
        self.spool.is_some() && self.retry_at.is_none()
    }

    /// Drops what has waited in memory for longer than the spool keeps frames.
    fn drop_old(&mut self, now: Moment) {
        let max_age = self.config.settings.config.max_age;
        let is_old = |read_at: Instant| now.instant.saturating_duration_since(read_at) > max_age;
        let mut arrived = self.entrance.arrived();
        while self.front.oldest().is_some_and(is_old)
            && let Some(batch) = self.front.pop()
        {
            arrived.push_back(batch);
        }
        while arrived.front().is_some_and(|first| is_old(first.read_at()))
            && let Some(batch) = arrived.pop_front()
        {
            batch.dropped(DropReason::SpoolAge);
        }
    }

    /// Takes in what arrives: to the lane, to the spool, or both. Returns whether there was any.
    fn take_in(&mut self, now: Moment) -> bool {
        let may_store = self.may_store();
        let mut moved = false;
        if !may_store || !self.config.stores_all {
            moved = self.pass_past_spool();
        }
        if !may_store {
            return moved;
        }
        self.gather();
        if !self.has_room(now) {
            let first = self.entrance.arrived().front().map(|first| first.frames().clone());
            if self.pass_past_spool() {
                // The lane is there, only the disk has no room.
                if let Some(first) = first {
                    self.look_for_short_disk(&first, now);
                }
                return true;
            }
        }
        self.store(now) || moved
    }

    /// Whether the disk has room for the first batch that has arrived, if there is one.
    fn has_room(&mut self, now: Moment) -> bool {
        let lane_takes = self.lane_takes();
        let first = self.entrance.arrived().front().map(|first| first.frames().clone());
        let (Some(first), Some(spool)) = (first, &mut self.spool) else { return true };
        let call = || spool.has_room_for(&first);
        let (has_room, _) = self.entrance.call(now.instant, lane_takes, call);
        has_room
    }

    /// Gives what arrives to the lane, as far as it is its turn and there is room. Returns whether there was any.
    fn pass_past_spool(&mut self) -> bool {
        let mut moved = false;
        if !self.spool_is_read() {
            return false;
        }
        let mut arrived = self.entrance.arrived();
        while let Some(mut batch) = arrived.pop_front().or_else(|| self.front.pop()) {
            let Some(permit) = self.back.reserve(batch.byte_len()) else {
                arrived.push_front(batch);
                break;
            };
            batch.custody.move_to(permit);
            self.back.send(batch);
            moved = true;
        }
        moved
    }

    /// Takes out of the front queue as much as is stored at once.
    fn gather(&mut self) {
        let (len_max, batches_max) = match self.config.settings.config.sync {
            // A sync may take as long for much as for little.
            SyncPolicy::Batch => (SYNC_LEN, SYNC_BATCHES),
            SyncPolicy::Interval(_) | SyncPolicy::None => (STORE_LEN, STORE_BATCHES),
        };
        let mut arrived = self.entrance.arrived();
        let mut len: usize = arrived.iter().map(Batch::byte_len).sum();
        while len < len_max
            && arrived.len() < batches_max
            && let Some(batch) = self.front.pop()
        {
            len += batch.byte_len();
            arrived.push_back(batch);
        }
    }

    /// Puts what has arrived into the spool. Returns whether something became of any of it.
    fn store(&mut self, now: Moment) -> bool {
        let lane_takes = self.lane_takes();
        // What the lane gets at once is not read again.
        let mut passes = self.config.stores_all && lane_takes;
        let arriving = |batch: &Batch| (batch.connection, batch.frames().clone());
        let arriving: Vec<_> = self.entrance.arrived().iter().map(arriving).collect();
        let Some(spool) = self.spool.as_mut().filter(|_| !arriving.is_empty()) else { return false };
        let acknowledged = spool.acknowledged().frame_seq();
        let call = || spool.append_from(&arriving, now);
        let (appended, passed) = self.entrance.call(now.instant, lane_takes, call);
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                self.count_lost(acknowledged, 0);
                self.fails(&error, now);
                return passed > 0;
            }
        };
        if passed > 0 {
            self.take_back_copies(&arriving, &appended, acknowledged, now);
            return true;
        }
        let (settled, stored, all_kept) =
            (appended.settled(), appended.positions.len(), appended.dropped == 0);
        let mut arrived = self.entrance.arrived();
        for (mut batch, position) in arrived.drain(..stored).zip(appended.positions) {
            let permit = if passes { self.back.reserve(batch.byte_len()) } else { None };
            passes = permit.is_some();
            match permit {
                Some(permit) => {
                    let frames = batch.frames().frames();
                    spool.skip_to(position.after(frames));
                    self.outgoing.offsets.push(position, frames);
                    batch.log_position = Some(position);
                    batch.custody.copied_to_disk();
                    batch.custody.move_to(permit);
                    self.back.send(batch);
                }
                None => {
                    // At the end the lane may have sent some of them: they are not among those that count as stored.
                    self.outgoing.offsets.push_sent(position, batch.sent_frames());
                    batch.stored();
                }
            }
        }
        let mut frames_dropped = 0;
        for batch in arrived.drain(..appended.dropped) {
            frames_dropped += u64::from(batch.frames().frames());
            batch.dropped(DropReason::SpoolFull);
        }
        drop(arrived);
        self.count_lost(acknowledged, frames_dropped);
        if stored > 0 && all_kept {
            self.works(now);
        } else if let Some((_, left)) = arriving.get(stored) {
            self.look_for_short_disk(left, now);
        }
        settled > 0
    }

    /// While the disk took these batches, the stand-in gave the lane some of them: nothing of it counts as stored. Those that the
    /// lane did not get are stored again.
    fn take_back_copies(
        &mut self,
        arriving: &[(ConnectionId, FrameBatch)],
        appended: &Appended,
        acknowledged: u64,
        now: Moment,
    ) {
        if let (Some(first), Some(spool)) = (appended.positions.first(), &mut self.spool) {
            self.entrance.call(now.instant, true, || spool.take_back(*first));
        }
        // Those that found no room are not lost: the lane has them, or they are tried again.
        let dropped = arriving.iter().skip(appended.positions.len()).take(appended.dropped);
        let frames_not_lost = dropped.map(|(_, frames)| u64::from(frames.frames())).sum();
        self.count_lost(acknowledged, frames_not_lost);
        self.works(now);
    }

    /// Gives the lane what the spool holds, some of it. Returns whether there was any, and room.
    fn pass_on(&mut self, now: Moment) -> bool {
        let (mut len, mut moved) = (0, false);
        while len < PASS_LEN {
            // Of a batch that was read, all frames may be too long.
            while self.outgoing.is_empty() && self.read_on(now) {
                moved = true;
            }
            let Some((batch, byte_len)) = self.outgoing.next(&self.back, &self.account) else { break };
            len += byte_len;
            self.back.send(batch);
        }
        moved || len > 0
    }

    /// Reads the next batch of the spool, if there is one. Frames that are too long for the lane are left out.
    fn read_on(&mut self, now: Moment) -> bool {
        let Some(spool) = self.spool.as_mut().filter(|_| self.outgoing.may_read(now)) else { return false };
        let acknowledged = spool.acknowledged().frame_seq();
        let read = if spool.reader_caught_up() {
            spool.next_from(now) // without the disk
        } else {
            let (read, _) = self.entrance.call(now.instant, false, || spool.next_from(now));
            read
        };
        self.count_lost(acknowledged, 0);
        match read {
            Ok(read) => {
                if self.outgoing.read_works() {
                    info!(output = self.config.output, "the spool can be read again");
                }
                let Some((connection, frames, position)) = read else { return false };
                let ended = self.outgoing.push(connection, frames, position, self.config.frame_len_max);
                self.forget(ended, now);
                true
            }
            Err(error) => {
                if self.outgoing.read_fails(now)
                    && let Some(left_out) = self.account.log.admit(OutputEvent::SpoolFailed, "", now.instant)
                {
                    let output = &self.config.output;
                    error!(
                        output,
                        left_out,
                        "{error}; the frames stay on disk, and tapster reads again ten times a second"
                    );
                }
                false
            }
        }
    }

    /// Counts the frames that the spool lost, except those that the lane has, and the last `frames_counted` of them, which an
    /// arriving batch has counted. Before, the spool had taken everything up to `acknowledged` as ended.
    fn count_lost(&mut self, acknowledged: u64, frames_counted: u64) {
        let Some(spool) = &mut self.spool else { return };
        let losses: Vec<_> = std::iter::from_fn(|| spool.poll_loss()).collect();
        if losses.is_empty() {
            return;
        }
        let end = spool.acknowledged();
        self.outgoing.lose_before(end);
        let segments = losses.iter().find(|(reason, _)| *reason != LossReason::Damaged);
        let gone = segments.map(|(reason, _)| drop_reason(*reason));
        let mut not_lost = frames_counted + self.outgoing.offsets.drop_before(end, acknowledged, gone);
        for (reason, frames) in losses {
            let lost = frames.saturating_sub(not_lost);
            not_lost -= frames - lost;
            self.account.dropped_from_disk(drop_reason(reason), lost);
        }
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

    fn show_degraded(&self) {
        let degraded = self.unusable_since.is_some()
            || self.short_of_disk.is_some()
            || self.outgoing.read_at().is_some();
        self.account.spool().degraded.store(degraded, Relaxed);
    }

    /// Tells if the clock was set.
    fn tell_clock_step(&mut self) {
        let step = self.spool.as_mut().map_or(0, Spool::poll_clock_step);
        if step != 0 {
            let (output, by) = (&self.config.output, Duration::from_nanos(step.unsigned_abs()));
            let way = if step > 0 { "forward" } else { "back" };
            warn!(
                output,
                "the clock was set {way} by {by:.0?}; frames in the spool are as old as they were before"
            );
        }
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

    /// After the lane: puts what it has left, and what still waits, into the spool, and closes that.
    pub(super) fn end(mut self, clock: impl Fn() -> Moment) {
        let now = clock();
        self.take_reports(now);
        match self.spool {
            None => self.open(now),
            Some(_) => drop(self.look_after_spool(now)),
        }
        // The last chance, whatever has failed a moment ago.
        self.retry_at = None;
        self.left.extend(std::iter::from_fn(|| self.back.pop()));
        let waits = std::iter::from_fn(|| self.front.pop());
        let arrived: Vec<Batch> = self.entrance.arrived().drain(..).chain(waits).collect();
        let read_at = |batch: &Batch| batch.read_at();
        let oldest = self.left.iter().chain(&arrived).map(read_at).chain(self.outgoing.oldest()).min();
        let unread = self.leave_unread();
        // In order: what the lane had is older than what arrived. What is on disk stays there.
        let mut sent = Vec::new();
        for mut batch in std::mem::take(&mut self.left) {
            if self.is_on_disk(&mut batch) {
                sent.extend(batch.log_position.map(|position| (position, batch.sent_frames())));
                self.keep_on_disk(batch);
            } else {
                self.entrance.arrived().push_back(batch);
            }
        }
        self.outgoing.offsets.keep_sent(&sent);
        self.entrance.arrived().extend(unread.into_iter().chain(arrived));
        self.drop_old(now);
        while !self.entrance.arrived().is_empty() && self.may_store() && self.store(clock()) {}
        for batch in self.entrance.arrived().drain(..) {
            batch.left();
        }
        self.account.spool().oldest.set(oldest.filter(|_| self.account.spooled_now() > 0));
        self.show_degraded();
        self.close(clock());
    }

    fn close(&mut self, now: Moment) {
        let Some(spool) = &mut self.spool else { return };
        let output = &self.config.output;
        if let Err(error) = spool.close(now) {
            // The kernel has what was written; what is in memory alone is lost.
            let in_memory = if spool.is_degraded() { spool.unsynced_frames() } else { 0 };
            let frames_lost = in_memory.min(self.account.spooled_now());
            self.account.dropped_from_disk(self.account.end_reason(), frames_lost);
            error!(output, frames_lost, "the spool was not closed in order: {error}");
        }
        if !spool.is_in_place() {
            // The next run does not find it.
            let frames_lost = self.account.spooled_now();
            self.account.dropped_from_disk(DropReason::SpoolDamaged, frames_lost);
            error!(
                output,
                frames_lost,
                "the spool folder is not there any more, and the next run will not find its frames"
            );
        }
        self.look_for_room_on_disk(now);
        let Some(spool) = &self.spool else { return };
        let account = self.account.spool();
        account.bytes.store(spool.bytes(), Relaxed);
        account.bytes_unsynced.store(spool.unsynced_bytes(), Relaxed);
        let (frames_spooled, bytes) = (self.account.spooled_now(), spool.bytes());
        info!(output = self.config.output, frames_spooled, bytes, "the spool is closed");
    }
}

fn drop_reason(reason: LossReason) -> DropReason {
    match reason {
        LossReason::Full => DropReason::SpoolFull,
        LossReason::Age => DropReason::SpoolAge,
        LossReason::Damaged => DropReason::SpoolDamaged,
    }
}

/// Most bytes and batches that are stored, and bytes that are read, before the other is looked at.
const STORE_LEN: usize = 1 << 20;
const STORE_BATCHES: usize = 1024;
const PASS_LEN: usize = 1 << 20;
/// The same where each store is synced.
const SYNC_LEN: usize = 8 << 20;
const SYNC_BATCHES: usize = 16 << 10;

/// After the spool could not be opened, or written to.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The same at first: later it is this part of the time for which it has failed.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_STEPS: u32 = 20;
/// How often reports are looked at while nothing else happens: what is acknowledged is sent again after a crash until then.
const REPORTS_PAUSE: Duration = Duration::from_millis(100);
/// The same while something waits for room on disk.
const BLOCKED_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
