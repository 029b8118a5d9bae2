//! What a stage gives to its lane out of the spool, from the read to the acknowledgement.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::batch::Batch;
use crate::batch::connection::ConnectionId;
use crate::batch::custody::Custody;
use crate::batch::position::LogPosition;
use crate::observability::account::OutputAccount;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::spool::Moment;
use crate::spool::offsets::Ended;
use crate::spool::offsets::UnacknowledgedOffsets;

/// Batches out of the spool.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Read, and not in the queue of the lane.
    read: VecDeque<ReadBatch>,
    /// What the lane has, or is about to get, of what is on disk.
    pub(super) offsets: UnacknowledgedOffsets,
    /// The spool cannot be read: then it is tried again.
    read_at: Option<Instant>,
}

/// A batch that was read from the spool, before there is room for it in memory.
#[derive(Debug)]
struct ReadBatch {
    connection: ConnectionId,
    frames: FrameBatch,
    position: LogPosition,
}

impl Outgoing {
    /// Whether the lane has been given everything that was read.
    pub(super) fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Whether the spool may be read: it did not fail a moment ago.
    pub(super) fn may_read(&self, now: Moment) -> bool {
        self.read_at.is_none_or(|at| at <= now.instant)
    }

    /// When the spool is read again after a read that failed.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    /// Notes that the spool could not be read. Returns whether that is news.
    pub(super) fn read_fails(&mut self, now: Moment) -> bool {
        self.read_at.replace(now.instant + READ_PAUSE).is_none()
    }

    /// Notes that the spool could be read. Returns whether that is news.
    pub(super) fn read_works(&mut self) -> bool {
        self.read_at.take().is_some()
    }

    /// Adds a batch that was read. Frames with a payload of more than `frame_len_max` bytes are left out: the lane does not get
    /// them. Returns what has ended by that.
    pub(super) fn push(
        &mut self,
        connection: ConnectionId,
        frames: FrameBatch,
        position: LogPosition,
        frame_len_max: u32,
    ) -> Ended {
        if frames.payload_len_max() <= frame_len_max {
            self.offsets.push(position, frames.frames());
            self.read.push_back(ReadBatch { connection, frames, position });
            return Ended::default();
        }
        let mut seen = 0;
        for (index, run) in frames.runs_within(frame_len_max) {
            self.offsets.push_left_out(position.after(seen), index - seen);
            self.offsets.push(position.after(index), run.frames());
            seen = index + run.frames();
            self.read.push_back(ReadBatch { connection, frames: run, position: position.after(index) });
        }
        self.offsets.push_left_out(position.after(seen), frames.frames() - seen);
        self.offsets.take_ended()
    }

    /// The next batch for the lane, and its length in bytes, if there is one and the queue of the lane has room for it.
    pub(super) fn next(&mut self, lane: &Queue, account: &Arc<OutputAccount>) -> Option<(Batch, usize)> {
        let permit = lane.reserve(self.next_len()?)?;
        let ReadBatch { connection, frames, position } = self.read.pop_front()?;
        let byte_len = frames.byte_len();
        let custody = Custody::load(Arc::clone(account), permit, frames.frames());
        Some((Batch::new(frames, connection, Some(position), custody), byte_len))
    }

    /// Bytes of the next batch for the lane.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.read.front().map(|read| read.frames.byte_len())
    }

    /// When the oldest batch was read from its connection that the lane has not been given.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.read.iter().map(|read| read.frames.read_at()).min()
    }

    /// Forgets the batches that were read, and that begin before `end`. The spool has lost them, and the lane was not given them:
    /// they are lost like those that were not read.
    pub(super) fn lose_before(&mut self, end: LogPosition) {
        let is_lost = |read: &ReadBatch| read.position.frame_seq() < end.frame_seq();
        if let Some(first) = self.read.front().filter(|first| is_lost(first)) {
            self.offsets.remove(first.position, end);
            self.read.retain(|read| !is_lost(read));
        }
    }

    /// Forgets everything that is on disk and comes again from there: the lane has failed.
    pub(super) fn clear(&mut self) {
        self.read.clear();
        self.offsets.clear();
    }

    /// Takes what was read and the lane was not given, in order.
    pub(super) fn take_unread(&mut self) -> Vec<(ConnectionId, FrameBatch, LogPosition)> {
        self.read.drain(..).map(|read| (read.connection, read.frames, read.position)).collect()
    }
}

/// After the spool could not be read.
const READ_PAUSE: Duration = Duration::from_millis(100);
