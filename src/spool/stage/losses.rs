//! Frames that are not on the disk of a stage any more: the spool lost them, or others removed their files. Each is counted once, and
//! a batch that is in memory too goes on from there.

use std::sync::Arc;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::batch::custody::Custody;
use crate::observability::drop_reason::DropReason;
use crate::protocol::FrameBatch;
use crate::spool::ConnectionId;
use crate::spool::LossReason;
use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::stage::Stage;

impl<S: Storage> Stage<S> {
    /// Counts the frames that the spool lost, except those that the lane has, and the last `frames_counted` of them, which an
    /// arriving batch has counted. Before, the spool had taken everything up to `acknowledged` as ended.
    pub(super) fn count_lost(&mut self, acknowledged: u64, frames_counted: u64) {
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

    /// The folder is gone. What is in memory too arrives once more; the rest is lost. Another folder may be there, and be opened.
    pub(super) fn leave_folder(&mut self, now: Moment) {
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

    /// Whether a batch of the lane is on disk. One whose file others have removed is in memory alone from now on.
    pub(super) fn is_on_disk(&mut self, batch: &mut Batch) -> bool {
        let Some(position) = batch.log_position else { return false };
        let is_orphan = position.segment() < self.orphans_before;
        let frames = batch.frames().frames();
        if is_orphan || self.spool.as_mut().is_some_and(|spool| spool.leave_out_missing(position, frames)) {
            batch.gone_from_disk();
        }
        batch.log_position.is_some()
    }

    /// A batch that counted as on disk, and is not there any more.
    pub(super) fn in_memory_alone(&self, connection: ConnectionId, frames: FrameBatch) -> Batch {
        let permit = self.front.reserve_anyway(frames.byte_len());
        let mut custody = Custody::load(Arc::clone(&self.account), permit, frames.frames());
        custody.gone_from_disk();
        Batch::new(frames, connection, None, custody)
    }

    /// Leaves a batch of the lane to the disk. If the spool had to drop it from there, its frames are lost like the others of
    /// their segment: they are the oldest, and stored once more they would come behind younger ones. Returns those that are lost.
    pub(super) fn keep_on_disk(&self, batch: Batch) -> Option<Acknowledgement> {
        match batch.log_position.and_then(|position| self.outgoing.offsets.gone(position)) {
            Some(reason) => batch.dropped(reason),
            None => {
                batch.stored();
                None
            }
        }
    }
}

fn drop_reason(reason: LossReason) -> DropReason {
    match reason {
        LossReason::Full => DropReason::SpoolFull,
        LossReason::Age => DropReason::SpoolAge,
        LossReason::Damaged => DropReason::SpoolDamaged,
    }
}
