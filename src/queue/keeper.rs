//! The thread beside a lane that has a spool: file work never holds up a worker.
//!
//! ```text
//! inputs ─► front queue ─► keeper ─────────► back queue ─► lane ─► collector
//!                          │    ▲                           │
//!                   append ▼    │ next                      │ settled
//!                          spool ◄───────────────────────────┘
//! ```
//!
//! Everything passes the keeper, and in order: while the spool holds what the lane has not got, whatever arrives goes
//! behind it. The two queues share what the output may have of memory. A batch that is on disk may be in the back queue or
//! the lane too; its segment goes when the lane has settled it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use tracing::error;
use tracing::info;
use tracing::warn;

use crate::observability::metrics::DropReason;
use crate::observability::metrics::LaneMetrics;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::Queued;
use crate::queue::channel::charge;
use crate::queue::outstanding::Outstanding;
use crate::queue::receipts::Receipt;
use crate::queue::receipts::ReceiptReceiver;
use crate::spool::ConnectionId;
use crate::spool::LossReason;
use crate::spool::Moment;
use crate::spool::RecoveryReport;
use crate::spool::Spool;
use crate::spool::SpoolConfig;
use crate::spool::SpoolError;

/// What an output puts on disk, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolUse {
    /// The folder of the spool, its own; created where it is missing, within a folder that is there.
    pub folder: PathBuf,
    /// What goes there.
    pub takes: Takes,
    /// Limits and policies.
    pub config: SpoolConfig,
}

/// What goes to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takes {
    /// What memory has no room for, and everything behind it until the collector has caught up.
    #[default]
    Overflow,
    /// Everything, before it is sent: what has been taken survives a kill.
    All,
}

/// Who keeps the spool of one lane.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// Name of the output, for the log.
    pub(crate) output: String,
    pub(crate) content_type: Option<ContentType>,
    pub(crate) settings: SpoolUse,
    pub(crate) front: Arc<Queue>,
    pub(crate) back: Arc<Queue>,
    pub(crate) receipts: ReceiptReceiver,
    pub(crate) metrics: Arc<LaneMetrics>,
}

impl Keeper {
    /// Keeps the spool until the front queue is closed and every lane has ended. Blocks its thread on file work.
    pub(crate) async fn run(self) {
        let mut keeping = Keeping {
            keeper: self,
            spool: None,
            arrived: VecDeque::new(),
            read: None,
            out: Outstanding::default(),
            left: Vec::new(),
            retry_at: None,
            read_at: None,
        };
        keeping.run().await;
        keeping.end().await;
    }
}

/// A keeper at work.
struct Keeping {
    keeper: Keeper,
    /// `None`: it cannot be opened.
    spool: Option<Spool>,
    /// Out of the front queue, and nowhere else as yet.
    arrived: VecDeque<Arrived>,
    /// Out of the spool, and not in the back queue as yet.
    read: Option<Queued>,
    /// What the lane has, or is about to get, of what is on disk.
    out: Outstanding,
    /// What the lane has left at its end.
    left: Vec<(Queued, u64)>,
    /// The spool cannot be opened, or written to: then it is tried again.
    retry_at: Option<Instant>,
    /// The spool cannot be read: then it is tried again.
    read_at: Option<Instant>,
}

/// A batch that has no place as yet.
struct Arrived {
    queued: Queued,
    /// Of the front queue, to be given back.
    charge: usize,
    /// Frames of it that were sent, and not acknowledged, by a lane that has ended.
    frames_sent: u64,
}

impl Keeping {
    async fn run(&mut self) {
        self.open(Moment::now());
        while !self.keeper.receipts.lanes_ended() {
            let now = Moment::now();
            self.take_receipts(now);
            self.look_after_spool(now);
            let taken = self.take_in(now);
            let passed = self.pass_on(now);
            self.account();
            if !taken && !passed {
                if self.everything_passed() {
                    self.keeper.back.close();
                }
                self.wait().await;
            }
        }
    }

    /// Opens the spool, and tells what was in it.
    fn open(&mut self, now: Moment) {
        let SpoolUse { folder, config, .. } = &self.keeper.settings;
        match Spool::open(folder, config.clone(), self.keeper.content_type.clone(), now) {
            Ok((spool, report)) => {
                self.spool = Some(spool);
                self.tell_recovered(&report);
                self.works();
            }
            Err(error) => self.fails(&error, now),
        }
    }

    fn tell_recovered(&self, report: &RecoveryReport) {
        let (output, folder) = (&self.keeper.output, self.keeper.settings.folder.display());
        let metrics = &self.keeper.metrics;
        metrics.received(report.frames);
        let spool = metrics.spool();
        spool.frames.store(report.frames, Relaxed);
        spool.frames_recovered.fetch_add(report.frames, Relaxed);
        spool.files_set_aside.fetch_add(report.set_aside.len() as u64, Relaxed);
        for set_aside in &report.set_aside {
            warn!(output, file = set_aside.name, "set aside in the spool {folder}: {}", set_aside.reason);
        }
        let RecoveryReport { frames, bytes, segments, torn_bytes, bad_files, foreign, .. } = report;
        info!(output, frames, bytes, segments, torn_bytes, bad_files, foreign, "the spool {folder} is open");
    }

    /// Notes that the spool cannot be used now.
    fn fails(&mut self, error: &SpoolError, now: Moment) {
        self.retry_at = Some(now.instant + RETRY_PAUSE);
        if !self.keeper.metrics.spool().degraded.swap(true, Relaxed) {
            let output = &self.keeper.output;
            error!(output, "{error}; frames wait in memory alone, and the spool is tried again every second");
        }
    }

    /// Notes that the spool can be used.
    fn works(&mut self) {
        self.retry_at = None;
        if self.keeper.metrics.spool().degraded.swap(false, Relaxed) {
            info!(output = self.keeper.output, "the spool can be used again");
        }
    }

    fn take_receipts(&mut self, now: Moment) {
        while let Some(receipt) = self.keeper.receipts.next() {
            match receipt {
                Receipt::Settled(place) => {
                    if let (Some(done), Some(spool)) = (self.out.settled(place), &mut self.spool) {
                        spool.acknowledge(done, now);
                    }
                }
                Receipt::Left { queued, frames_never_sent } => self.left.push((queued, frames_never_sent)),
            }
        }
    }

    /// Does what is due by time.
    fn look_after_spool(&mut self, now: Moment) {
        let retries = self.retry_at.take_if(|at| *at <= now.instant).is_some();
        match &mut self.spool {
            None if retries => self.open(now),
            Some(spool) if spool.poll_timeout() <= now.instant => {
                let was_degraded = spool.is_degraded();
                match spool.handle_timeout(now) {
                    Ok(()) if was_degraded && !spool.is_degraded() => self.works(),
                    Ok(()) => {}
                    Err(error) => self.fails(&error, now),
                }
            }
            _ => {}
        }
    }

    /// Whether the lane has got, or is getting, everything that the spool holds: what arrives may follow in memory.
    fn spool_is_read(&self) -> bool {
        self.read.is_none() && self.spool.as_ref().is_none_or(Spool::reader_caught_up)
    }

    fn everything_passed(&self) -> bool {
        let front = &self.keeper.front;
        front.is_closed() && front.is_empty() && self.arrived.is_empty() && self.spool_is_read()
    }

    /// Whether the spool is there and was not found unwritable a moment ago.
    fn may_store(&self) -> bool {
        self.spool.is_some() && self.retry_at.is_none()
    }

    /// Takes in what arrives: to the lane, to the spool, or both. Returns whether there was any.
    fn take_in(&mut self, now: Moment) -> bool {
        let may_store = self.may_store();
        let mut moved = false;
        if !may_store || self.keeper.settings.takes == Takes::Overflow {
            moved = self.pass_past_spool();
        }
        if !may_store {
            return moved;
        }
        self.gather();
        if let (Some(first), Some(spool)) = (self.arrived.front(), &mut self.spool)
            && !spool.has_room_for(&first.queued.batch)
            && self.pass_past_spool()
        {
            // The lane is there, only the disk has no room.
            return true;
        }
        self.store(now) || moved
    }

    /// Gives what arrives to the lane, as far as it is its turn and there is room. Returns whether there was any.
    fn pass_past_spool(&mut self) -> bool {
        let mut moved = false;
        while self.spool_is_read()
            && let Some(arrived) = self.next_arrived()
        {
            if let Err(queued) = self.keeper.back.offer(arrived.queued) {
                self.arrived.push_front(Arrived { queued, ..arrived });
                break;
            }
            self.keeper.front.release(arrived.charge);
            moved = true;
        }
        moved
    }

    fn next_arrived(&mut self) -> Option<Arrived> {
        self.arrived.pop_front().or_else(|| {
            let queued = self.keeper.front.pop()?;
            Some(Arrived { charge: charge(&queued.batch), queued, frames_sent: 0 })
        })
    }

    /// Takes out of the front queue as much as is stored at once.
    fn gather(&mut self) {
        let mut len: usize = self.arrived.iter().map(|arrived| arrived.queued.batch.byte_len()).sum();
        while len < STORE_LEN
            && self.arrived.len() < STORE_BATCHES
            && let Some(queued) = self.keeper.front.pop()
        {
            len += queued.batch.byte_len();
            self.arrived.push_back(Arrived { charge: charge(&queued.batch), queued, frames_sent: 0 });
        }
    }

    /// Puts what has arrived into the spool. Returns whether something became of any of it.
    fn store(&mut self, now: Moment) -> bool {
        // What the lane gets at once is not read again.
        let mut passes = self.keeper.settings.takes == Takes::All && self.spool_is_read();
        let from = |Queued { upstream, batch, .. }: &Queued| (ConnectionId::new(*upstream), batch.clone());
        let batches: Vec<(ConnectionId, FrameBatch)> =
            self.arrived.iter().map(|arrived| from(&arrived.queued)).collect();
        let Some(spool) = self.spool.as_mut().filter(|_| !batches.is_empty()) else { return false };
        let appended = match spool.append_from(&batches, now) {
            Ok(appended) => appended,
            Err(error) => {
                self.fails(&error, now);
                return false;
            }
        };
        let settled = appended.settled();
        for (arrived, start) in self.arrived.drain(..appended.positions.len()).zip(appended.positions) {
            self.keeper.front.release(arrived.charge);
            let frames = u64::from(arrived.queued.batch.frames());
            let place = start.after(arrived.queued.batch.frames());
            passes =
                passes && self.keeper.back.offer(Queued { place: Some(place), ..arrived.queued }).is_ok();
            if passes {
                spool.skip_to(place);
                self.out.push(place, frames);
            }
        }
        let mut frames_sent = 0;
        for dropped in self.arrived.drain(..appended.dropped) {
            self.keeper.front.release(dropped.charge);
            frames_sent += dropped.frames_sent;
        }
        self.count_lost(frames_sent);
        self.works();
        settled > 0
    }

    /// Gives the lane what the spool holds, some of it. Returns whether there was any, and room.
    fn pass_on(&mut self, now: Moment) -> bool {
        let mut len = 0;
        while len < PASS_LEN {
            let Some(queued) = self.read.take().or_else(|| self.read(now)) else { break };
            let batch_len = queued.batch.byte_len();
            if let Err(queued) = self.keeper.back.offer(queued) {
                self.read = Some(queued);
                break;
            }
            len += batch_len;
        }
        len > 0
    }

    fn read(&mut self, now: Moment) -> Option<Queued> {
        let spool = self.spool.as_mut().filter(|_| self.read_at.is_none_or(|at| at <= now.instant))?;
        self.read_at = None;
        match spool.next_from(now) {
            Ok(read) => {
                let (connection, batch, start) = read?;
                let place = start.after(batch.frames());
                let upstream = connection.get();
                self.out.push(place, u64::from(batch.frames()));
                Some(Queued { upstream, batch, place: Some(place) })
            }
            Err(error) => {
                warn!(output = self.keeper.output, "{error}");
                self.read_at = Some(now.instant + READ_PAUSE);
                None
            }
        }
    }

    /// Brings the ledger up to date.
    fn account(&mut self) {
        self.count_lost(0);
        self.tell_oldest();
        let Some(spool) = &self.spool else { return };
        let metrics = self.keeper.metrics.spool();
        metrics.frames.store(spool.frames().saturating_sub(self.out.frames()), Relaxed);
        metrics.bytes.store(spool.bytes(), Relaxed);
        metrics.bytes_unsynced.store(spool.unsynced_bytes(), Relaxed);
    }

    /// Tells how old the oldest is that the lane has not got.
    fn tell_oldest(&self) {
        let first = self.arrived.front().map(|arrived| &arrived.queued);
        let oldest = self.read.as_ref().or(first.filter(|_| self.spool_is_read()));
        // Between two reads of the spool it is not known, and hardly another.
        if oldest.is_some() || self.spool_is_read() {
            self.keeper.metrics.spool().oldest.set(oldest.map(|queued| queued.batch.read_at()));
        }
    }

    /// Counts what the spool has lost, but for so many frames that are counted already, and what the lane still has.
    fn count_lost(&mut self, frames_counted: u64) {
        let Some(spool) = &mut self.spool else { return };
        let mut not_lost = frames_counted + self.out.drop_before(spool.acknowledged());
        while let Some((reason, frames)) = spool.poll_loss() {
            let lost = frames.saturating_sub(not_lost);
            not_lost -= frames - lost;
            let reason = match reason {
                LossReason::Full => DropReason::SpoolFull,
                LossReason::Age => DropReason::SpoolAge,
                LossReason::Damaged => DropReason::SpoolDamaged,
            };
            self.keeper.metrics.dropped(reason, lost);
        }
    }

    /// Waits until something is to be done.
    async fn wait(&mut self) {
        let now = Instant::now();
        let blocked = !self.arrived.is_empty();
        let due = [
            self.spool.as_ref().map(Spool::poll_timeout),
            self.retry_at,
            self.read_at,
            (!self.out.is_empty()).then(|| now + RECEIPTS_PAUSE),
            blocked.then(|| now + BLOCKED_PAUSE),
        ];
        let due = due.into_iter().flatten().min();
        let first = self.arrived.front().filter(|_| self.spool_is_read()).map(|first| &first.queued);
        let for_lane = self.read.as_ref().or(first);
        let Keeper { front, back, receipts, .. } = &mut self.keeper;
        tokio::select! {
            () = front.ready(), if !blocked && !front.is_closed() => {}
            () = room_for(back, for_lane) => {}
            () = receipts.all_lanes_ended() => {}
            () = sleep_until(due) => {}
        }
    }

    /// After the lane: puts what it has left, and what still comes, into the spool, and closes that.
    async fn end(mut self) {
        let now = Moment::now();
        self.take_receipts(now);
        match self.spool {
            // The last chance.
            None => self.open(now),
            Some(_) => self.look_after_spool(now),
        }
        self.account();
        while let Some(queued) = self.keeper.back.pop() {
            let frames = u64::from(queued.batch.frames());
            self.left.push((queued, frames));
        }
        self.left.extend(self.read.take().map(|queued| {
            let frames = u64::from(queued.batch.frames());
            (queued, frames)
        }));
        let left = self.left.iter().map(|(queued, _)| queued);
        let oldest = left.chain(self.arrived.front().map(|arrived| &arrived.queued));
        let oldest = oldest.map(|queued| queued.batch.read_at()).min();
        let mut frames_kept = 0;
        let mut arrived = VecDeque::new();
        for (queued, frames_never_sent) in std::mem::take(&mut self.left) {
            match queued.place {
                Some(place) if self.out.is_on_disk(place) => frames_kept += frames_never_sent,
                // The oldest of all, dropped from the disk for others: not to be put behind them.
                Some(_) => self.keeper.metrics.dropped(DropReason::Shutdown, frames_never_sent),
                None => {
                    let frames_sent = u64::from(queued.batch.frames()) - frames_never_sent;
                    arrived.push_back(Arrived { queued, charge: 0, frames_sent });
                }
            }
        }
        arrived.append(&mut self.arrived);
        self.arrived = arrived;
        let frames_sent = self.store_rest().await;
        for arrived in std::mem::take(&mut self.arrived) {
            self.keeper.front.release(arrived.charge);
            let never_sent = u64::from(arrived.queued.batch.frames()) - arrived.frames_sent;
            self.keeper.metrics.dropped(DropReason::Shutdown, never_sent);
        }
        self.account();
        let metrics = self.keeper.metrics.spool();
        let frames = (metrics.frames.load(Relaxed) + frames_kept).saturating_sub(frames_sent);
        metrics.frames.store(frames, Relaxed);
        metrics.oldest.set(oldest.filter(|_| frames > 0));
        self.close();
    }

    /// Stores until nothing comes any more, or nothing can be stored. Returns how many frames were stored that were sent
    /// before.
    async fn store_rest(&mut self) -> u64 {
        let mut frames_sent = 0;
        loop {
            let now = Moment::now();
            self.look_after_spool(now);
            self.gather();
            let before: u64 = self.arrived.iter().map(|arrived| arrived.frames_sent).sum();
            let stored = self.may_store() && self.store(now);
            frames_sent += before - self.arrived.iter().map(|arrived| arrived.frames_sent).sum::<u64>();
            self.account();
            if stored {
                continue;
            }
            if self.keeper.front.is_closed() {
                return frames_sent;
            }
            if self.arrived.is_empty() {
                self.keeper.front.ready().await;
            } else {
                tokio::time::sleep(BLOCKED_PAUSE).await;
            }
        }
    }

    fn close(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        let output = &self.keeper.output;
        let metrics = self.keeper.metrics.spool();
        if let Err(error) = spool.close(Moment::now()) {
            // The kernel has what was written; what is in memory alone is lost.
            let in_memory = if spool.is_degraded() { spool.unsynced_frames() } else { 0 };
            let lost = in_memory.min(metrics.frames.load(Relaxed));
            metrics.frames.fetch_sub(lost, Relaxed);
            self.keeper.metrics.dropped(DropReason::Shutdown, lost);
            error!(output, frames_lost = lost, "the spool was not closed in order: {error}");
        }
        metrics.bytes.store(spool.bytes(), Relaxed);
        metrics.bytes_unsynced.store(spool.unsynced_bytes(), Relaxed);
        let (frames_spooled, bytes) = (metrics.frames.load(Relaxed), spool.bytes());
        info!(output, frames_spooled, bytes, "the spool is closed");
    }
}

/// Waits until the queue has room for a batch; for ever where there is none.
async fn room_for(queue: &Queue, queued: Option<&Queued>) {
    match queued {
        Some(queued) if !queue.is_closed() => queue.room_for(&queued.batch).await,
        _ => std::future::pending().await,
    }
}

/// Sleeps; for ever where there is no time.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Most bytes and batches that are stored, and bytes that are read, before the other is looked at.
const STORE_LEN: usize = 1 << 20;
const STORE_BATCHES: usize = 1024;
const PASS_LEN: usize = 1 << 20;

/// After the spool could not be opened, or written to.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// After it could not be read.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// How often receipts are looked at while nothing else happens: what is settled is read again after a crash until then.
const RECEIPTS_PAUSE: Duration = Duration::from_millis(100);
/// The same while something waits for room on disk.
const BLOCKED_PAUSE: Duration = Duration::from_millis(10);
