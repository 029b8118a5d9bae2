//! A batch on its way to one output, with everything that it owes: memory, and an account of its frames.
//!
//! ```text
//! FrameBatch ── shared by all outputs: bytes in a block
//!   Batch    ── one for each output
//!     Custody  which of its frames are still open: neither sent, dropped nor stored
//!       Permit   the room that it takes of the queue's budget
//! ```
//!
//! A batch that is dropped gives its room back. Frames that are still open then count as lost, reason `internal`, and a
//! debug build panics: every frame ends in exactly one account, and a frame that is forgotten cannot pass unseen.

pub(crate) mod budget;
pub(crate) mod connection;
pub(crate) mod custody;
pub(crate) mod position;

use std::time::Instant;

use crate::batch::connection::ConnectionId;
use crate::batch::custody::Custody;
use crate::batch::position::LogPosition;
use crate::observability::drop_reason::DropReason;
use crate::protocol::FrameBatch;

/// Frames for one output, and what is owed for them.
///
/// Its frames are sent from the first on. So those that were sent are always the first of it.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: FrameBatch,
    /// The connection that the frames came from.
    pub(crate) connection: ConnectionId,
    /// Where the first of the frames is in the spool, if they are there too.
    pub(crate) log_position: Option<LogPosition>,
    pub(crate) custody: Custody,
    // The first bytes of `frames`: whole frames that were wholly written before, on whatever connection.
    sent_bytes: usize,
}

/// Frames of a spool that have arrived, or have ended in another way: it need not keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// Where the first of them is.
    pub(crate) from: LogPosition,
    /// How many there are.
    pub(crate) frames: u32,
}

/// The first frames of a batch, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) frames: u32,
    pub(crate) bytes: usize,
}

/// What a write made of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Frames that nobody had got before.
    pub(crate) first: Prefix,
    /// Frames that were written once more.
    pub(crate) again: u32,
}

impl Batch {
    /// Frames in the custody of an output.
    pub(crate) fn new(
        frames: FrameBatch,
        connection: ConnectionId,
        log_position: Option<LogPosition>,
        custody: Custody,
    ) -> Self {
        debug_assert_eq!(frames.frames(), custody.open());
        Self { frames, connection, log_position, custody, sent_bytes: 0 }
    }

    /// The encoded frames.
    pub(crate) fn frames(&self) -> &FrameBatch {
        &self.frames
    }

    /// Length of the encoded frames, in bytes.
    pub(crate) fn byte_len(&self) -> usize {
        self.frames.byte_len()
    }

    /// When the frames were read.
    pub(crate) fn read_at(&self) -> Instant {
        self.frames.read_at()
    }

    /// Bytes that the queue is charged with.
    pub(crate) fn charge(&self) -> usize {
        self.custody.charge()
    }

    /// Frames that were wholly written before, on whatever connection.
    pub(crate) fn sent_frames(&self) -> u32 {
        self.frames.frames() - self.custody.open()
    }

    /// The frames that lie wholly within the first `bytes` bytes.
    fn prefix(&self, bytes: usize) -> Prefix {
        if bytes >= self.frames.byte_len() {
            return Prefix { frames: self.frames.frames(), bytes: self.frames.byte_len() };
        }
        let mut rest = self.frames.clone();
        let frames = rest.advance(bytes);
        Prefix { frames, bytes: self.frames.byte_len() - rest.byte_len() }
    }

    /// Length of the first frame, with its length word; 0 without one.
    pub(crate) fn first_len(&self) -> usize {
        self.frames.payloads().next().map_or(0, |payload| 4 + payload.len())
    }

    /// Keeps the first frame and gives the others away; `None` if there are no others.
    pub(crate) fn split_off_first(&mut self) -> Option<Self> {
        let len = self.first_len();
        if self.frames.frames() < 2 {
            return None;
        }
        let mut frames = self.frames.clone();
        frames.advance(len);
        let first = self.frames.bytes().slice(..len);
        self.frames = FrameBatch::parse(first, u32::MAX, self.frames.read_at()).ok()?;
        let custody = self.custody.split_off_first(len as u64);
        let log_position = self.log_position.map(|position| position.after(1));
        let sent_bytes = self.sent_bytes.saturating_sub(len);
        self.sent_bytes = self.sent_bytes.min(len);
        Some(Self { frames, connection: self.connection, log_position, custody, sent_bytes })
    }

    /// Bytes of the frames that lie wholly within the first `bytes` bytes.
    pub(crate) fn whole_len(&self, bytes: usize) -> usize {
        self.prefix(bytes).bytes
    }

    /// Counts the frames that lie wholly within the first `bytes` bytes as written: as sent where they were not before.
    /// Those of a batch that is `kept` wait for their acknowledgement from now on.
    pub(crate) fn written(&mut self, bytes: usize, kept: bool) -> Written {
        let written = self.prefix(bytes);
        let before = Prefix { frames: self.sent_frames(), bytes: self.sent_bytes };
        let again = before.frames.min(written.frames);
        let first =
            Prefix { frames: written.frames - again, bytes: written.bytes.saturating_sub(before.bytes) };
        self.custody.sent(first.frames, first.bytes as u64, kept);
        self.sent_bytes = before.bytes.max(written.bytes);
        Written { first, again }
    }

    /// Takes off those of the frames that were sent that lie wholly within the first `bytes` bytes: they have arrived, or are
    /// not kept.
    /// Returns how many there were, and what the spool may forget.
    pub(crate) fn advance(&mut self, bytes: usize) -> (u32, Option<Acknowledgement>) {
        let len = self.frames.byte_len();
        let frames = self.frames.advance(bytes.min(self.sent_bytes));
        let taken_off = len - self.frames.byte_len();
        self.sent_bytes = self.sent_bytes.saturating_sub(taken_off);
        self.custody.taken_off(frames, taken_off as u64);
        let from = self.log_position.filter(|_| frames > 0);
        self.log_position = self.log_position.map(|position| position.after(frames));
        (frames, from.map(|from| Acknowledgement { from, frames }))
    }

    /// Leaves out the first frame, which no reader takes: it is lost, reason `refused`. Returns its payload bytes, and what
    /// the spool may forget.
    pub(crate) fn refuse_first(&mut self) -> (usize, Option<Acknowledgement>) {
        let len = self.frames.payloads().next().map_or(0, |payload| payload.len());
        if self.sent_bytes == 0 {
            self.custody.lost(DropReason::Refused, 1);
        } else {
            self.custody.refused_after_sending(4 + len as u64);
            self.sent_bytes = self.sent_bytes.saturating_sub(4 + len);
        }
        let from = self.log_position;
        self.frames.advance(4 + len);
        self.log_position = from.map(|position| position.after(1));
        (len, from.map(|from| Acknowledgement { from, frames: 1 }))
    }

    fn acknowledgement(&self) -> Option<Acknowledgement> {
        let from = self.log_position.filter(|_| self.frames.frames() > 0)?;
        Some(Acknowledgement { from, frames: self.frames.frames() })
    }

    /// All frames have arrived, as far as this output wants to know. Returns what the spool may forget.
    pub(crate) fn delivered(self) -> Option<Acknowledgement> {
        let acknowledgement = self.acknowledgement();
        self.custody.delivered();
        acknowledgement
    }

    /// The frames that were never sent are lost. Returns what the spool may forget.
    pub(crate) fn dropped(self, reason: DropReason) -> Option<Acknowledgement> {
        let acknowledgement = self.acknowledgement();
        self.custody.dropped(reason);
        acknowledgement
    }

    /// Nobody sends the frames any more: those that were never sent are lost. Returns what the spool may forget.
    pub(crate) fn given_up(self, reason: DropReason) -> Option<Acknowledgement> {
        let acknowledgement = self.acknowledgement();
        self.custody.given_up(reason);
        acknowledgement
    }

    /// The disk has lost the batch: it is in memory alone.
    pub(crate) fn gone_from_disk(&mut self) {
        self.log_position = None;
        self.custody.gone_from_disk();
    }

    /// The frames are on disk, and nowhere else.
    pub(crate) fn stored(self) {
        self.custody.stored();
    }

    /// The relay ends, and nobody takes the batch any more: what is not on disk is lost.
    pub(crate) fn abandoned(self) {
        match self.log_position {
            Some(_) => self.stored(),
            None => drop(self.left()),
        }
    }

    /// The output ends, and nobody takes the batch any more: the frames that were never written are lost.
    pub(crate) fn left(self) -> Option<Acknowledgement> {
        let reason = self.custody.end_reason();
        self.dropped(reason)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::batch::budget::Budget;
    use crate::batch::budget::charge;
    use crate::observability::OutputLedger;
    use crate::observability::account::OutputAccount;

    /// `count` frames of 10 bytes, numbered from `first` on; 14 bytes each.
    pub(crate) fn frames(first: usize, count: usize) -> FrameBatch {
        let payloads = (first..first + count).map(|number| format!("frame {number:04}"));
        FrameBatch::from_payloads(payloads, Instant::now()).unwrap()
    }

    /// A batch of these frames in the custody of `account`.
    pub(crate) fn batch(account: &Arc<OutputAccount>, budget: &Arc<Budget>, frames: FrameBatch) -> Batch {
        let permit = budget.reserve_anyway(charge(frames.byte_len()));
        let custody = Custody::admit(Arc::clone(account), permit, frames.frames());
        Batch::new(frames, ConnectionId::new(0), None, custody)
    }

    pub(crate) fn ledger(account: &OutputAccount) -> OutputLedger {
        let mut ledger = OutputLedger::default();
        account.add_to(&mut ledger);
        ledger
    }

    fn setup() -> (Arc<OutputAccount>, Arc<Budget>) {
        (Arc::default(), Arc::new(Budget::new(1 << 20)))
    }

    #[test]
    fn frames_count_once_as_sent_and_each_time_as_written_again() {
        for first in 0..=5 * 14 {
            for second in 0..=5 * 14 {
                let (account, budget) = setup();
                let mut batch = batch(&account, &budget, frames(0, 5));
                let (a, b) = (batch.written(first, true), batch.written(second, true));
                let (first, second) = (first as u32 / 14, second as u32 / 14);
                assert_eq!((a.first.frames, a.again), (first, 0));
                assert_eq!((b.first.frames, b.again), (second.saturating_sub(first), first.min(second)));
                let sent = u64::from(first.max(second));
                let now = ledger(&account);
                assert_eq!(
                    (now.frames_sent, now.bytes_sent, now.frames_unacknowledged),
                    (sent, 14 * sent, sent)
                );
                assert_eq!(now.frames_queued, 5 - sent);
                batch.dropped(DropReason::Shutdown);
                let end = ledger(&account);
                assert!(end.balances() && end.frames_queued == 0, "{end:?}");
                assert_eq!(budget.charged(), 0);
            }
        }
    }

    #[test]
    fn what_a_spool_may_forget_is_told_to_the_frame() {
        let (account, budget) = setup();
        let position = LogPosition { segment: 3, offset: 4096, frame_seq: 100 };
        let mut batch = batch(&account, &budget, frames(0, 5));
        batch.log_position = Some(position);
        batch.written(3 * 14 + 5, false);
        let (frames, forget) = batch.advance(3 * 14 + 5);
        assert_eq!((frames, forget), (3, Some(Acknowledgement { from: position, frames: 3 })));
        assert_eq!(batch.refuse_first(), (10, Some(Acknowledgement { from: position.after(3), frames: 1 })));
        batch.written(14, false);
        assert_eq!(batch.delivered(), Some(Acknowledgement { from: position.after(4), frames: 1 }));
        let end = ledger(&account);
        assert_eq!((end.frames_sent, end.frames_dropped["refused"]), (4, 1));
        assert!(end.balances());
    }

    #[test]
    fn a_frame_that_is_split_off_has_its_part_of_everything() {
        let position = LogPosition { segment: 3, offset: 4096, frame_seq: 100 };
        for written in 0..=3 {
            let (account, budget) = setup();
            let mut first = batch(&account, &budget, frames(0, 3));
            first.log_position = Some(position);
            first.written(written * 14, true);
            let before = ledger(&account);
            let charged = budget.charged();
            let mut rest = first.split_off_first().expect("there are others");
            assert_eq!((ledger(&account), budget.charged()), (before, charged));
            assert_eq!((first.byte_len(), rest.byte_len()), (14, 28));
            assert_eq!(
                (first.sent_frames(), rest.sent_frames()),
                (written.min(1) as u32, written.saturating_sub(1) as u32)
            );
            assert!(first.split_off_first().is_none());
            first.written(14, true);
            assert_eq!(first.delivered(), Some(Acknowledgement { from: position, frames: 1 }));
            rest.written(28, true);
            assert_eq!(rest.delivered(), Some(Acknowledgement { from: position.after(1), frames: 2 }));
            let end = ledger(&account);
            assert_eq!((end.frames_sent, end.bytes_sent, end.frames_acknowledged), (3, 42, 3));
            assert!(end.balances() && budget.charged() == 0);
        }
    }

    /// The ledger can fail, and a debug build says at once where.
    #[test]
    #[cfg_attr(debug_assertions, should_panic = "2 frames of a batch have no end")]
    fn a_batch_that_is_forgotten_is_counted_as_a_fault_of_ours() {
        let (account, budget) = setup();
        drop(batch(&account, &budget, frames(0, 2)));
        assert_eq!(ledger(&account).frames_dropped["internal"], 2);
        assert!(ledger(&account).balances());
    }

    /// A lane that fails while the spool has its frames loses none: they come again.
    #[test]
    fn what_a_failed_lane_had_of_a_spool_is_back_there() {
        let (account, budget) = setup();
        account.spool_opened(5);
        let permit = budget.reserve_anyway(1000);
        let custody = Custody::load(Arc::clone(&account), permit, 5);
        let mut batch = Batch::new(frames(0, 5), ConnectionId::new(0), None, custody);
        batch.written(2 * 14, true);
        assert_eq!(ledger(&account).frames_sent, 2);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _batch = batch;
            panic!("on purpose");
        }));
        assert!(failed.is_err());
        let end = ledger(&account);
        assert_eq!((end.frames_sent, end.frames_spooled, end.frames_unacknowledged), (0, 5, 0));
        assert!(end.balances());
    }
}
