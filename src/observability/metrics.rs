//! Counters: added to once per batch, read by whoever wants to know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::observability::InputLedger;
use crate::observability::MemberLedger;
use crate::observability::MemberState;
use crate::observability::OutputLedger;
use crate::observability::SpoolLedger;
use crate::observability::age::AgeSum;
use crate::observability::age::Ages;
use crate::observability::age::Oldest;

/// Why a frame was lost on its way to an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The queue was full, and its policy is to drop.
    QueueFull,
    /// The queue was filling up, and its policy is to keep one batch in so many.
    Sampled,
    /// Longer than the output takes.
    FrameTooLong,
    /// The relay ended before it could be written.
    Shutdown,
    /// The spool, or its disk, was full.
    SpoolFull,
    /// It was in the spool for too long.
    SpoolAge,
    /// It could not be read back from the spool.
    SpoolDamaged,
}

impl DropReason {
    const ALL: [Self; 7] = [
        Self::QueueFull,
        Self::Sampled,
        Self::FrameTooLong,
        Self::Shutdown,
        Self::SpoolFull,
        Self::SpoolAge,
        Self::SpoolDamaged,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Sampled => "sampled",
            Self::FrameTooLong => "frame_too_long",
            Self::Shutdown => "shutdown",
            Self::SpoolFull => "spool_full",
            Self::SpoolAge => "spool_age",
            Self::SpoolDamaged => "spool_damaged",
        }
    }
}

/// What became of the frames of one lane. Added to by every worker that feeds it.
///
/// Those of a group's member add to those of the group too.
#[derive(Debug, Default)]
pub(crate) struct LaneMetrics {
    group: Option<Arc<LaneMetrics>>,
    state: AtomicU8,
    given_back: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    filtered: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    bytes_sent: AtomicU64,
    bytes_unconfirmed: AtomicU64,
    acknowledged: AtomicU64,
    unacknowledged: AtomicU64,
    resent: AtomicU64,
    connections: AtomicU64,
    sessions_finished: AtomicU64,
    /// Those of a member are its own alone.
    pub(crate) ages: Ages,
    spool: OnceLock<SpoolMetrics>,
}

/// How a spool stands. Set by its keeper.
#[derive(Debug, Default)]
pub(crate) struct SpoolMetrics {
    pub(crate) degraded: AtomicBool,
    /// Frames that are on disk and nowhere else.
    pub(crate) frames: AtomicU64,
    pub(crate) frames_recovered: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) bytes_unsynced: AtomicU64,
    pub(crate) files_set_aside: AtomicU64,
    /// What is there or about to go there, and not with the lane.
    pub(crate) oldest: Oldest,
}

impl LaneMetrics {
    /// For a member of the group that has `group`.
    pub(crate) fn of_member(group: Arc<Self>) -> Self {
        Self { group: Some(group), ..Self::default() }
    }

    /// These, and those of the group if there is one.
    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.group.as_deref())
    }

    /// Adds to one counter of all.
    fn add(&self, counter: impl Fn(&Self) -> &AtomicU64, count: u64) {
        for metrics in self.all() {
            counter(metrics).fetch_add(count, Relaxed);
        }
    }

    pub(crate) fn received(&self, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
    }

    pub(crate) fn sent(&self, frames: u64, bytes: u64) {
        self.add(|metrics| &metrics.sent, frames);
        self.add(|metrics| &metrics.bytes_sent, bytes);
    }

    pub(crate) fn dropped(&self, reason: DropReason, frames: u64) {
        self.add(|metrics| &metrics.dropped[reason as usize], frames);
    }

    pub(crate) fn unconfirmed(&self, bytes: u64) {
        self.add(|metrics| &metrics.bytes_unconfirmed, bytes);
    }

    /// Frames that were sent wait for their acknowledgement.
    pub(crate) fn unacknowledged(&self, frames: u64) {
        self.add(|metrics| &metrics.unacknowledged, frames);
    }

    /// Frames that waited for it were acknowledged.
    pub(crate) fn acknowledged(&self, frames: u64) {
        for metrics in self.all() {
            metrics.unacknowledged.fetch_sub(frames, Relaxed);
        }
        self.add(|metrics| &metrics.acknowledged, frames);
    }

    /// A member gives frames back to its group, of which so many were sent and not acknowledged.
    pub(crate) fn give_back(&self, frames: u64, unacknowledged: u64) {
        self.given_back.fetch_add(frames, Relaxed);
        self.unacknowledged.fetch_sub(unacknowledged, Relaxed);
    }

    /// A member takes over frames that another had sent and that are not acknowledged.
    pub(crate) fn take_over_unacknowledged(&self, frames: u64) {
        self.unacknowledged.fetch_add(frames, Relaxed);
    }

    pub(crate) fn set_member_state(&self, state: MemberState) {
        self.state.store(state as u8, Relaxed);
    }

    pub(crate) fn member_state(&self) -> MemberState {
        MemberState::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// The account of a member that writes `to` this address.
    pub(crate) fn member_ledger(&self, to: String, now: Instant) -> MemberLedger {
        let mut ages = AgeSum::new();
        self.add_ages_to(&mut ages);
        MemberLedger {
            to,
            state: self.member_state(),
            frames_sent: self.sent.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            frames_acknowledged: self.acknowledged.load(Relaxed),
            frames_unacknowledged: self.unacknowledged.load(Relaxed),
            frames_resent: self.resent.load(Relaxed),
            frames_given_back: self.given_back.load(Relaxed),
            connections: self.connections.load(Relaxed),
            sessions_finished: self.sessions_finished.load(Relaxed),
            oldest_age_us: ages.oldest_age_us(now),
            residence: ages.residence(),
        }
    }

    /// Frames were sent again.
    pub(crate) fn resent(&self, frames: u64) {
        self.add(|metrics| &metrics.resent, frames);
    }

    /// Frames that wait for their acknowledgement now.
    pub(crate) fn unacknowledged_now(&self) -> u64 {
        self.unacknowledged.load(Relaxed)
    }

    pub(crate) fn connected(&self) {
        self.add(|metrics| &metrics.connections, 1);
    }

    pub(crate) fn finished(&self) {
        self.add(|metrics| &metrics.sessions_finished, 1);
    }

    /// Frames lost for this reason until now.
    pub(crate) fn dropped_until_now(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Relaxed)
    }

    /// How the spool of this lane stands, which has one from the first call on.
    pub(crate) fn spool(&self) -> &SpoolMetrics {
        self.spool.get_or_init(SpoolMetrics::default)
    }

    /// Adds the ages of what this lane has and had, but for what waits in its queues.
    pub(crate) fn add_ages_to(&self, sum: &mut AgeSum) {
        sum.add(&self.ages);
        if let Some(spool) = self.spool.get() {
            sum.add_oldest(&spool.oldest);
        }
    }

    /// Adds this lane to the ledger of its output.
    ///
    /// What waits is what was received and has not left: read last, it is never too little while frames flow, and at
    /// the end it is zero unless a frame escaped the other counters.
    pub(crate) fn add_to(&self, ledger: &mut OutputLedger) {
        let mut left = self.sent.load(Relaxed);
        ledger.frames_sent += left;
        let filtered = self.filtered.load(Relaxed);
        ledger.frames_filtered += filtered;
        left += filtered;
        for reason in DropReason::ALL {
            let frames = self.dropped[reason as usize].load(Relaxed);
            left += frames;
            if frames > 0 {
                *ledger.frames_dropped.entry(reason.name().to_owned()).or_default() += frames;
            }
        }
        if let Some(spool) = self.spool.get() {
            left += spool.add_to(ledger);
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let received = self.received.load(Relaxed).max(left);
        ledger.frames_received += received;
        ledger.frames_queued += received - left;
        ledger.bytes_sent += self.bytes_sent.load(Relaxed);
        ledger.bytes_unconfirmed += self.bytes_unconfirmed.load(Relaxed);
        ledger.frames_acknowledged += self.acknowledged.load(Relaxed);
        ledger.frames_unacknowledged += self.unacknowledged.load(Relaxed);
        ledger.frames_resent += self.resent.load(Relaxed);
        ledger.connections += self.connections.load(Relaxed);
        ledger.sessions_finished += self.sessions_finished.load(Relaxed);
    }
}

impl SpoolMetrics {
    /// Adds this spool to the ledger of its output. Returns the frames in it.
    fn add_to(&self, ledger: &mut OutputLedger) -> u64 {
        let frames = self.frames.load(Relaxed);
        ledger.frames_spooled += frames;
        ledger.spool = Some(SpoolLedger {
            degraded: self.degraded.load(Relaxed),
            frames_recovered: self.frames_recovered.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bytes_unsynced: self.bytes_unsynced.load(Relaxed),
            files_set_aside: self.files_set_aside.load(Relaxed),
        });
        frames
    }
}

/// What one input took in on one worker.
#[derive(Debug, Default)]
pub(crate) struct InputMetrics {
    connections: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    unrouted: AtomicU64,
    oversize: AtomicU64,
    controls_ignored: AtomicU64,
    bytes_after_stop: AtomicU64,
    ended: Mutex<BTreeMap<&'static str, u64>>,
}

impl InputMetrics {
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn taken(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn unrouted(&self, frames: u64) {
        self.unrouted.fetch_add(frames, Relaxed);
    }

    /// Adds up the end of a session, once for each connection.
    pub(crate) fn ended(
        &self,
        reason: &'static str,
        oversize: u64,
        controls_ignored: u64,
        bytes_after_stop: u64,
    ) {
        self.oversize.fetch_add(oversize, Relaxed);
        self.controls_ignored.fetch_add(controls_ignored, Relaxed);
        self.bytes_after_stop.fetch_add(bytes_after_stop, Relaxed);
        *self.ended.lock().expect("no panic while it is held").entry(reason).or_default() += 1;
    }

    /// Adds this worker's share to the ledger of the input.
    pub(crate) fn add_to(&self, ledger: &mut InputLedger) {
        let ended = self.ended.lock().expect("no panic while it is held").clone();
        let connections = self.connections.load(Relaxed);
        ledger.connections += connections;
        ledger.connections_open += connections - ended.values().sum::<u64>();
        ledger.frames += self.frames.load(Relaxed);
        ledger.bytes += self.bytes.load(Relaxed);
        ledger.frames_unrouted += self.unrouted.load(Relaxed);
        ledger.frames_oversize += self.oversize.load(Relaxed);
        ledger.control_frames_ignored += self.controls_ignored.load(Relaxed);
        ledger.bytes_after_stop += self.bytes_after_stop.load(Relaxed);
        for (reason, count) in ended {
            *ledger.sessions_ended.entry(reason.to_owned()).or_default() += count;
        }
    }
}
