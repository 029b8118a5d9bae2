//! The end of a stage, after that of its lane: what is left goes to disk, and the spool is closed.

use std::sync::atomic::Ordering::Relaxed;

use tracing::error;
use tracing::info;

use crate::batch::Batch;
use crate::observability::drop_reason::DropReason;
use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::stage::Stage;

impl<S: Storage> Stage<S> {
    /// After the lane: puts what it has left, and what still waits, into the spool, and closes that.
    pub(in crate::spool) fn end(mut self, clock: impl Fn() -> Moment) {
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
