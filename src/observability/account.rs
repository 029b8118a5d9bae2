//! The account of one lane: where each of its frames is, or how it ended.
//!
//! ```text
//! received ─► queued ─► sent
//!               │ ▲ └──► dropped{reason}
//!               ▼ │
//!             spooled ─► dropped{reason}
//! ```
//!
//! Every arrow is one method, called where it happens. No count is derived from the others, so a frame that is counted
//! twice or not at all shows: the ledger does not balance.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::observability::OutputLedger;
use crate::observability::absence::Absences;
use crate::observability::age::AgeSum;
use crate::observability::age::Ages;
use crate::observability::age::OldestOf;
use crate::observability::drop_reason::DropReason;
use crate::observability::output_log::OutputLog;
use crate::observability::spool_account::SpoolAccount;

/// The account of one lane. Any thread adds to it.
#[derive(Debug)]
pub(crate) struct OutputAccount {
    /// How many lines the log gets about the output: one for all its lanes.
    pub(crate) log: Arc<OutputLog>,
    /// Who does not take frames now.
    pub(crate) absences: Absences,
    received: AtomicU64,
    // Below 0 only by a fault of ours, or between two additions of other threads.
    queued: AtomicI64,
    spooled: AtomicI64,
    sent: AtomicU64,
    filtered: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    bytes_sent: AtomicU64,
    bytes_unconfirmed: AtomicU64,
    acknowledged: AtomicU64,
    unacknowledged: AtomicI64,
    resent: AtomicU64,
    connections: AtomicU64,
    sessions_finished: AtomicU64,
    own_input: AtomicU64,
    // Why frames are lost that are left at the end, where that is not the end of the relay.
    end_reason: OnceLock<DropReason>,
    /// How old frames are that wait, and were when they were delivered.
    pub(crate) ages: Ages,
    spool: OnceLock<SpoolAccount>,
}

/// Number of frames, as the difference of two counts.
fn signed(frames: u64) -> i64 {
    frames.cast_signed()
}

impl Default for OutputAccount {
    fn default() -> Self {
        Self::new(Arc::new(OutputLog::new("output")))
    }
}

impl OutputAccount {
    /// The account of a lane of the output with this log, without any frame.
    pub(crate) fn new(log: Arc<OutputLog>) -> Self {
        Self {
            log,
            absences: Absences::default(),
            received: AtomicU64::new(0),
            queued: AtomicI64::new(0),
            spooled: AtomicI64::new(0),
            sent: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            dropped: Default::default(),
            bytes_sent: AtomicU64::new(0),
            bytes_unconfirmed: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unacknowledged: AtomicI64::new(0),
            resent: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            sessions_finished: AtomicU64::new(0),
            own_input: AtomicU64::new(0),
            end_reason: OnceLock::new(),
            ages: Ages::default(),
            spool: OnceLock::new(),
        }
    }

    /// The account of a lane beside this one, of the same output: both tell how long their batches stayed in one place.
    pub(crate) fn beside(&self) -> Self {
        Self { ages: self.ages.beside(), ..Self::new(Arc::clone(&self.log)) }
    }

    /// The output has been removed from the relay: what it cannot write any more is lost for this reason.
    pub(crate) fn remove(&self) {
        let _ = self.end_reason.set(DropReason::Removed);
    }

    /// The reader has left, whose lane this is, and no other takes its place: what it has not got is lost for this reason.
    pub(crate) fn unsubscribe(&self) {
        let _ = self.end_reason.set(DropReason::Unsubscribed);
    }

    /// Why frames are lost that are left at the end of the output.
    pub(crate) fn end_reason(&self) -> DropReason {
        self.end_reason.get().copied().unwrap_or(DropReason::Shutdown)
    }

    fn lost(&self, reason: DropReason, frames: u64) {
        self.dropped[reason as usize].fetch_add(frames, Relaxed);
    }

    /// Frames that an input had for this output now wait in memory.
    pub(crate) fn admitted(&self, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
        self.queued.fetch_add(signed(frames), Relaxed);
    }

    /// Frames that an input had for this output are lost before they waited anywhere.
    pub(crate) fn turned_away(&self, reason: DropReason, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
        self.lost(reason, frames);
    }

    /// Frames that waited in memory are wholly written, for the first time.
    pub(crate) fn sent(&self, frames: u64, bytes: u64) {
        self.queued.fetch_sub(signed(frames), Relaxed);
        self.sent.fetch_add(frames, Relaxed);
        self.bytes_sent.fetch_add(bytes, Relaxed);
    }

    /// Frames that waited in memory are lost.
    pub(crate) fn dropped(&self, reason: DropReason, frames: u64) {
        self.queued.fetch_sub(signed(frames), Relaxed);
        self.lost(reason, frames);
    }

    /// Frames that waited in memory are on disk, and nowhere else.
    pub(crate) fn stored(&self, frames: u64) {
        self.queued.fetch_sub(signed(frames), Relaxed);
        self.spooled.fetch_add(signed(frames), Relaxed);
    }

    /// Frames that were on disk wait in memory now.
    pub(crate) fn loaded(&self, frames: u64) {
        self.spooled.fetch_sub(signed(frames), Relaxed);
        self.queued.fetch_add(signed(frames), Relaxed);
    }

    /// Frames that were on disk are lost.
    pub(crate) fn dropped_from_disk(&self, reason: DropReason, frames: u64) {
        self.spooled.fetch_sub(signed(frames), Relaxed);
        self.lost(reason, frames);
    }

    /// Frames that were sent are read from disk once more: as if they had never been sent.
    pub(crate) fn unsent(&self, frames: u64, bytes: u64) {
        self.sent.fetch_sub(frames, Relaxed);
        self.bytes_sent.fetch_sub(bytes, Relaxed);
        self.spooled.fetch_add(signed(frames), Relaxed);
    }

    /// Frames that waited for their acknowledgement do so no more: they are sent once more as others.
    pub(crate) fn never_acknowledged(&self, frames: u64) {
        self.unacknowledged.fetch_sub(signed(frames), Relaxed);
    }

    /// A frame of `bytes` bytes that was sent, and not acknowledged, is lost after all: no reader takes it.
    pub(crate) fn refused_after_sending(&self, bytes: u64) {
        self.sent.fetch_sub(1, Relaxed);
        self.bytes_sent.fetch_sub(bytes, Relaxed);
        self.unacknowledged.fetch_sub(1, Relaxed);
        self.lost(DropReason::Refused, 1);
    }

    /// Whatever waits in memory now is lost: the thread that has it does not answer any more. Returns how many frames.
    pub(crate) fn abandoned(&self) -> u64 {
        let frames = u64::try_from(self.queued.swap(0, Relaxed)).unwrap_or_default();
        self.lost(self.end_reason(), frames);
        frames
    }

    /// Bytes were on their way to a reader whose connection died before FINISH.
    pub(crate) fn unconfirmed(&self, bytes: u64) {
        self.bytes_unconfirmed.fetch_add(bytes, Relaxed);
    }

    /// Frames that were sent wait for their acknowledgement.
    pub(crate) fn unacknowledged(&self, frames: u64) {
        self.unacknowledged.fetch_add(signed(frames), Relaxed);
    }

    /// Frames that waited for it were acknowledged.
    pub(crate) fn acknowledged(&self, frames: u64) {
        self.unacknowledged.fetch_sub(signed(frames), Relaxed);
        self.acknowledged.fetch_add(frames, Relaxed);
    }

    /// Frames that were wholly written before were written once more.
    pub(crate) fn resent(&self, frames: u64) {
        self.resent.fetch_add(frames, Relaxed);
    }

    /// Frames on disk now, and nowhere else.
    pub(crate) fn spooled_now(&self) -> u64 {
        u64::try_from(self.spooled.load(Relaxed)).unwrap_or_default()
    }

    /// The spool is open, and holds `frames` frames. Those that it should hold beyond them went with a task that failed. Those
    /// that it holds beyond what it should were left by an earlier run, or the task could not say that they were delivered:
    /// they come once more.
    pub(crate) fn spool_opened(&self, frames: u64) {
        let counted = self.spooled_now();
        let recovered = frames.saturating_sub(counted);
        self.dropped_from_disk(DropReason::Internal, counted.saturating_sub(frames));
        self.received.fetch_add(recovered, Relaxed);
        self.spooled.fetch_add(signed(recovered), Relaxed);
        self.spool().frames_recovered.fetch_add(recovered, Relaxed);
    }

    /// A lane has failed, and the spool holds `frames` frames, which the next lane gets. Those that it should have beyond them
    /// went with the lane. If it has more, the lane had sent them, and had no time to say so: they come again.
    pub(crate) fn reconcile_spooled(&self, frames: u64) {
        let spooled = self.spooled_now();
        self.dropped_from_disk(DropReason::Internal, spooled.saturating_sub(frames));
        let again = frames.saturating_sub(spooled);
        self.spooled.fetch_add(signed(again), Relaxed);
        self.sent.fetch_sub(again, Relaxed);
        // Where frames are kept until they are acknowledged, these were.
        let _ = self.acknowledged.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_sub(again)));
    }

    /// About how many bytes the frames on disk have: files have more, until they are removed.
    pub(crate) fn bytes_spooled_now(&self) -> u64 {
        let (spooled, sent) = (self.spooled_now(), self.sent.load(Relaxed));
        let on_disk = self.spool.get().map_or(0, |spool| spool.bytes.load(Relaxed));
        match (spooled, sent) {
            (0, _) => 0,
            (_, 0) => on_disk,
            _ => on_disk.min(spooled.saturating_mul(self.bytes_sent.load(Relaxed)) / sent),
        }
    }

    /// Frames that wait for their acknowledgement now.
    pub(crate) fn unacknowledged_now(&self) -> u64 {
        u64::try_from(self.unacknowledged.load(Relaxed)).unwrap_or_default()
    }

    /// A session began.
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// A session ended with FINISH.
    pub(crate) fn finished(&self) {
        self.sessions_finished.fetch_add(1, Relaxed);
    }

    /// A connection led back to an input of this relay, straight or through other relays.
    pub(crate) fn own_input(&self) {
        self.own_input.fetch_add(1, Relaxed);
    }

    /// The spool of this lane, which has one from the first call on.
    pub(crate) fn spool(&self) -> &SpoolAccount {
        self.spool.get_or_init(SpoolAccount::default)
    }

    /// Frames lost since the start, in the order of [`DropReason::ALL`].
    pub(crate) fn dropped_now(&self) -> [u64; DropReason::ALL.len()] {
        DropReason::ALL.map(|reason| self.dropped[reason as usize].load(Relaxed))
    }

    /// Writes and acknowledgements since the start, in frames: while it stands still, nobody takes anything.
    pub(crate) fn progress(&self) -> u64 {
        [&self.sent, &self.acknowledged, &self.resent].iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Adds the oldest frame that this lane has, except what waits in its queues.
    pub(crate) fn add_oldest_to(&self, sum: &mut OldestOf) {
        sum.add(&self.ages.oldest);
        if let Some(spool) = self.spool.get() {
            sum.add(&spool.oldest);
        }
    }

    /// Adds the ages of what this lane has and had, except what waits in its queues.
    pub(crate) fn add_ages_to(&self, sum: &mut AgeSum) {
        sum.add(&self.ages);
        if let Some(spool) = self.spool.get() {
            sum.add_oldest(&spool.oldest);
        }
    }

    /// Adds this lane to the ledger of its output.
    ///
    /// While frames flow, two counts of one move are seen at different times. So the account is read until it balances; one
    /// that never does is added as it is.
    pub(crate) fn add_to(&self, ledger: &mut OutputLedger) {
        let mut own = self.read();
        for _ in 0..READS_MAX {
            if own.balances() {
                break;
            }
            std::hint::spin_loop();
            own = self.read();
        }
        ledger.add(&own);
        if let Some(spool) = self.spool.get() {
            ledger.spool = Some(spool.ledger());
        }
    }

    fn read(&self) -> OutputLedger {
        let now = |count: &AtomicI64| u64::try_from(count.load(Relaxed)).unwrap_or_default();
        let dropped = DropReason::ALL.into_iter().zip(self.dropped_now()).filter(|(_, frames)| *frames > 0);
        OutputLedger {
            frames_received: self.received.load(Relaxed),
            frames_queued: now(&self.queued),
            frames_spooled: now(&self.spooled),
            frames_sent: self.sent.load(Relaxed),
            frames_filtered: self.filtered.load(Relaxed),
            frames_dropped: dropped.map(|(reason, frames)| (reason.name().to_owned(), frames)).collect(),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_unconfirmed: self.bytes_unconfirmed.load(Relaxed),
            frames_acknowledged: self.acknowledged.load(Relaxed),
            frames_unacknowledged: now(&self.unacknowledged),
            frames_resent: self.resent.load(Relaxed),
            connections: self.connections.load(Relaxed),
            sessions_finished: self.sessions_finished.load(Relaxed),
            connections_to_own_input: self.own_input.load(Relaxed),
            ..OutputLedger::default()
        }
    }
}

/// An account is read so many times before it counts as out of balance: some milliseconds.
const READS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(account: &OutputAccount) -> OutputLedger {
        let mut ledger = OutputLedger::default();
        account.add_to(&mut ledger);
        ledger
    }

    #[test]
    fn every_way_of_a_frame_balances() {
        let account = OutputAccount::default();
        account.spool_opened(7);
        account.admitted(100);
        account.turned_away(DropReason::FrameTooLong, 3);
        account.sent(40, 4000);
        account.dropped(DropReason::QueueFull, 10);
        account.stored(20);
        account.loaded(5);
        account.dropped_from_disk(DropReason::SpoolAge, 2);
        let now = ledger(&account);
        assert!(now.balances(), "{now:?}");
        assert_eq!((now.frames_received, now.frames_queued, now.frames_spooled), (110, 35, 20));
        assert_eq!(account.abandoned(), 35);
        let end = ledger(&account);
        assert!(end.balances() && end.frames_queued == 0 && end.frames_dropped["shutdown"] == 35, "{end:?}");
    }

    /// Nothing is derived: a count too many, or one too few, is seen.
    #[test]
    fn a_frame_that_is_counted_twice_or_never_is_seen() {
        let twice = OutputAccount::default();
        twice.admitted(10);
        twice.sent(6, 600);
        twice.sent(6, 600);
        assert!(!ledger(&twice).balances());
        let never = OutputAccount::default();
        never.admitted(10);
        never.sent.fetch_add(4, Relaxed);
        assert!(!ledger(&never).balances());
    }

    /// Who looks while frames flow sees an account that balances.
    #[test]
    fn an_account_balances_at_every_look() {
        let account = OutputAccount::default();
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| {
                for _ in 0..20_000 {
                    account.admitted(3);
                    account.sent(2, 20);
                    account.dropped(DropReason::QueueFull, 1);
                }
            });
            while !mover.is_finished() {
                let seen = ledger(&account);
                assert!(seen.balances(), "{seen:?}");
            }
        });
        assert_eq!(ledger(&account).frames_sent, 40_000);
    }
}
