//! The reading end of a spool: batches are read in order, from disk or from memory, and acknowledged.

use crate::batch::connection::ConnectionId;
use crate::batch::position::LogPosition;
use crate::protocol::FrameBatch;
use crate::spool::disk_queue::Spool;
use crate::spool::error::SpoolError;
use crate::spool::loss::LossReason;
use crate::spool::moment::Moment;
use crate::spool::numbered::without_first;
use crate::spool::storage::Storage;

impl<S: Storage> Spool<S> {
    /// The next batch, and where it begins. `None` when everything readable was read.
    ///
    /// Of a record whose first frames are acknowledged, the batch has the rest.
    ///
    /// Under [`SyncPolicy::Batch`](crate::spool::SyncPolicy::Batch) only what is durable is readable. Batches of one read
    /// share its memory.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it may be asked again. What cannot be read now is not lost; a segment that is gone is passed over.
    pub fn next(&mut self, now: Moment) -> Result<Option<(FrameBatch, LogPosition)>, SpoolError> {
        let read = self.next_from(now)?;
        Ok(read.map(|(_, batch, position)| (batch, position)))
    }

    /// The same, and what [`Spool::append_from`] was told of where the batch came from.
    ///
    /// # Errors
    /// As [`Spool::next`].
    pub fn next_from(
        &mut self,
        now: Moment,
    ) -> Result<Option<(ConnectionId, FrameBatch, LogPosition)>, SpoolError> {
        self.follow_clock(now);
        self.read_head.pass(self.progress.acknowledged().frame_seq);
        if self.reader_caught_up() {
            // The read head may stand at the beginning of a record whose frames the caller has.
            return Ok(None);
        }
        while let Some(record) = self.read_head.next_record(&mut self.log, now)? {
            let header = record.header;
            // The first frames of the record may be delivered.
            let first = header.frame_seq.max(self.read_head.position().frame_seq);
            let first = self.progress.first_not_lost(first);
            if first >= header.frame_seq_end() {
                continue;
            }
            self.miss_until(first);
            self.read_head.pass(header.frame_seq_end());
            let batch = without_first(record.batch, first - header.frame_seq);
            let position = LogPosition { frame_seq: first, ..record.position };
            return Ok(Some((header.connection, batch, position)));
        }
        if self.durability.is_homeless() {
            return Ok(self.next_in_memory());
        }
        self.miss_until(self.log.head());
        Ok(None)
    }

    /// Behind the last segment: what is in memory only.
    fn next_in_memory(&mut self) -> Option<(ConnectionId, FrameBatch, LogPosition)> {
        while let Some(kept) = self.durability.batch_from(self.read_head.position().frame_seq) {
            let read = self.read_head.position();
            let first = self.progress.first_not_lost(kept.frame_seq.max(read.frame_seq));
            let (connection, start, end) = (kept.connection, kept.frame_seq, kept.frame_seq_end());
            let rest = (first < end).then(|| without_first(kept.batch.clone(), first - start));
            self.miss_until(first);
            if let Some(batch) = rest {
                self.read_head.pass(end);
                return Some((connection, batch, LogPosition { frame_seq: first, ..read }));
            }
            // It was counted as lost when its record was read.
        }
        // The last numbers may be of batches that were refused.
        self.miss_until(self.log.head());
        None
    }

    /// Counts as lost what lies before `frame_seq` and was not read.
    fn miss_until(&mut self, frame_seq: u64) {
        let missed = self.read_head.position().frame_seq..frame_seq;
        if !missed.is_empty() {
            self.progress.lose(missed, LossReason::Damaged);
            self.read_head.pass(frame_seq);
            self.read_head.pass(self.progress.acknowledged().frame_seq);
        }
    }

    /// Notes that everything before `position` is delivered: a batch that begins at a position which [`Spool::next`] or
    /// [`Spool::append`] gave, and its first `n` frames, are delivered with [`position.after(n)`](LogPosition::after).
    ///
    /// Returns how many frames that acknowledges: not those that were reported as lost in the meantime. A position that
    /// goes back, or beyond what was appended, changes nothing.
    pub fn acknowledge(&mut self, position: LogPosition, now: Moment) -> u64 {
        if position.frame_seq > self.log.head() {
            return 0;
        }
        let acknowledged = self.progress.acknowledge(position, now);
        self.durability.forget_before(self.progress.acknowledged().frame_seq);
        acknowledged
    }

    /// Reads again what is not acknowledged, from the oldest on: after a failed delivery.
    pub fn rewind(&mut self) {
        self.read_head.seek(self.progress.acknowledged());
    }

    /// Whether everything that was appended has been read. Then a batch may be passed on from memory, as soon as it is
    /// appended, with [`Spool::skip_to`].
    pub fn reader_caught_up(&self) -> bool {
        let acknowledged = self.progress.acknowledged().frame_seq;
        self.read_head.position().frame_seq.max(acknowledged) >= self.log.head()
    }

    /// Takes everything before `position` as read: the caller has it. See [`Spool::acknowledge`].
    pub fn skip_to(&mut self, position: LogPosition) {
        self.read_head.skip_to(position);
    }
}
