//! What one member of a group did.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::observability::MemberLedger;
use crate::observability::MemberState;
use crate::observability::age::AgeSum;
use crate::observability::age::Ages;

/// The account of one member: a part of what the account of its group counts, and what it gave back.
#[derive(Debug, Default)]
pub(crate) struct MemberAccount {
    state: AtomicU8,
    sent: AtomicU64,
    bytes_sent: AtomicU64,
    acknowledged: AtomicU64,
    unacknowledged: AtomicI64,
    resent: AtomicU64,
    given_back: AtomicU64,
    connections: AtomicU64,
    sessions_finished: AtomicU64,
    pub(crate) ages: Ages,
}

impl MemberAccount {
    pub(crate) fn set_state(&self, state: MemberState) {
        self.state.store(state as u8, Relaxed);
    }

    /// A delivery begins that has no frames yet: those that another had, which failed, are not this member's any more.
    pub(crate) fn begin(&self) {
        self.set_state(MemberState::Connecting);
        self.unacknowledged.store(0, Relaxed);
    }

    fn state(&self) -> MemberState {
        MemberState::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// The member has wholly written frames: some that nobody had got before, and some once more.
    pub(crate) fn sent(&self, first: u64, bytes: u64, again: u64) {
        self.sent.fetch_add(first, Relaxed);
        self.bytes_sent.fetch_add(bytes, Relaxed);
        self.resent.fetch_add(again, Relaxed);
    }

    /// By so much changes what waits for its acknowledgement here.
    pub(crate) fn unacknowledged(&self, frames: i64) {
        self.unacknowledged.fetch_add(frames, Relaxed);
    }

    pub(crate) fn acknowledged(&self, frames: u64) {
        self.unacknowledged.fetch_sub(frames.cast_signed(), Relaxed);
        self.acknowledged.fetch_add(frames, Relaxed);
    }

    /// Frames that the member had go to another.
    pub(crate) fn given_back(&self, frames: u64) {
        self.given_back.fetch_add(frames, Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn finished(&self) {
        self.sessions_finished.fetch_add(1, Relaxed);
    }

    /// The account as it stands, of the member that writes `to` this address.
    pub(crate) fn ledger(&self, to: String, now: Instant) -> MemberLedger {
        let mut ages = AgeSum::new();
        ages.add(&self.ages);
        MemberLedger {
            to,
            state: self.state(),
            frames_sent: self.sent.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            frames_acknowledged: self.acknowledged.load(Relaxed),
            frames_unacknowledged: u64::try_from(self.unacknowledged.load(Relaxed)).unwrap_or_default(),
            frames_resent: self.resent.load(Relaxed),
            frames_given_back: self.given_back.load(Relaxed),
            connections: self.connections.load(Relaxed),
            sessions_finished: self.sessions_finished.load(Relaxed),
            oldest_age_us: ages.oldest_age_us(now),
            residence: ages.residence(),
        }
    }
}
