//! What arrives at a stage: it goes to the lane, to the spool, or to both.

use std::time::Instant;

use crate::batch::Batch;
use crate::observability::drop_reason::DropReason;
use crate::protocol::FrameBatch;
use crate::spool::Appended;
use crate::spool::ConnectionId;
use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::SyncPolicy;
use crate::spool::stage::Stage;

impl<S: Storage> Stage<S> {
    /// Drops what has waited in memory for longer than the spool keeps frames.
    pub(super) fn drop_old(&mut self, now: Moment) {
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
    pub(super) fn take_in(&mut self, now: Moment) -> bool {
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
    pub(super) fn store(&mut self, now: Moment) -> bool {
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
        let refused = self.spool.as_ref().is_some_and(|spool| spool.disk_refusal().is_some());
        if stored > 0 && all_kept && !refused {
            self.works(now);
        } else if let Some((_, left)) = arriving.get(stored).or(arriving.last()) {
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
}

/// Most bytes and batches that are stored, and bytes that are read, before the other is looked at.
const STORE_LEN: usize = 1 << 20;
const STORE_BATCHES: usize = 1024;
/// The same where each store is synced.
const SYNC_LEN: usize = 8 << 20;
const SYNC_BATCHES: usize = 16 << 10;
