//! What a stage gives to its lane out of the spool, and what the lane reports of it.

use std::collections::VecDeque;

use tracing::error;
use tracing::info;

use crate::batch::Acknowledgement;
use crate::observability::drop_reason::DropReason;
use crate::observability::output_log::OutputEvent;
use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::offsets::Ended;
use crate::spool::reports::Report;
use crate::spool::stage::Stage;

impl<S: Storage> Stage<S> {
    /// Gives the lane what the spool holds, some of it. Returns whether there was any, and room.
    pub(super) fn pass_on(&mut self, now: Moment) -> bool {
        let (mut len, mut moved) = (0, false);
        while len < PASS_LEN {
            // Of a batch that was read, all frames may be too long.
            while self.outgoing.is_empty() && self.read_on(now) {
                moved = true;
            }
            let Some((batch, byte_len)) = self.outgoing.next(&self.back, &self.account) else { break };
            len += byte_len;
            self.back.send(batch);
        }
        moved || len > 0
    }

    /// Reads the next batch of the spool, if there is one. Frames that are too long for the lane are left out.
    fn read_on(&mut self, now: Moment) -> bool {
        let Some(spool) = self.spool.as_mut().filter(|_| self.outgoing.may_read(now)) else { return false };
        let acknowledged = spool.acknowledged().frame_seq();
        let read = if spool.reader_caught_up() {
            spool.next_from(now) // without the disk
        } else {
            let (read, _) = self.entrance.call(now.instant, false, || spool.next_from(now));
            read
        };
        self.count_lost(acknowledged, 0);
        match read {
            Ok(read) => {
                if self.outgoing.read_works() {
                    info!(output = self.config.output, "the spool can be read again");
                }
                let Some((connection, frames, position)) = read else { return false };
                let ended = self.outgoing.push(connection, frames, position, self.config.frame_len_max);
                self.forget(ended, now);
                true
            }
            Err(error) => {
                if self.outgoing.read_fails(now)
                    && let Some(left_out) = self.account.log.admit(OutputEvent::SpoolFailed, "", now.instant)
                {
                    let output = &self.config.output;
                    error!(
                        output,
                        left_out,
                        "{error}; the frames stay on disk, and tapster reads again ten times a second"
                    );
                }
                false
            }
        }
    }

    pub(super) fn take_reports(&mut self, now: Moment) {
        while let Some(report) = self.reports.next() {
            match report {
                Report::Acknowledged(acknowledged) => self.acknowledge(acknowledged, now),
                Report::Left(batch) => self.left.push(batch),
                Report::Failed(answer) => {
                    self.take_back();
                    // A lane that does not wait any more has come to its end.
                    let _ = answer.send(());
                }
            }
        }
    }

    fn acknowledge(&mut self, acknowledged: Acknowledgement, now: Moment) {
        if acknowledged.from.segment() < self.orphans_before {
            return;
        }
        let ended = self.outgoing.offsets.acknowledge(acknowledged);
        self.forget(ended, now);
    }

    /// The spool need not keep what has ended.
    fn forget(&mut self, ended: Ended, now: Moment) {
        self.account.dropped_from_disk(DropReason::FrameTooLong, ended.left_out);
        if let (Some(position), Some(spool)) = (ended.position, &mut self.spool) {
            spool.acknowledge(position, now);
        }
    }

    /// The lane has failed, and takes nothing until this is done: what it had, and what it was to get, is read from the disk
    /// once more. What is not there goes behind it.
    fn take_back(&mut self) {
        let mut in_memory = VecDeque::new();
        while let Some(mut batch) = self.back.pop() {
            if self.is_on_disk(&mut batch) {
                if let Some(dropped) = self.keep_on_disk(batch) {
                    self.outgoing.offsets.note(dropped);
                }
            } else {
                batch.custody.move_to(self.front.reserve_anyway(batch.byte_len()));
                in_memory.push_back(batch);
            }
        }
        let mut arrived = self.entrance.arrived();
        in_memory.append(&mut arrived);
        *arrived = in_memory;
        drop(arrived);
        // What the lane had of segments that are dropped is not on disk any more.
        for (reason, frames) in self.outgoing.offsets.gone_and_not_ended() {
            self.account.dropped_from_disk(reason, frames);
        }
        self.outgoing.clear();
        if let Some(spool) = &mut self.spool {
            spool.rewind();
            self.account.reconcile_spooled(spool.frames());
        }
    }
}

const PASS_LEN: usize = 1 << 20;
