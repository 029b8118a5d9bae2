//! What the lane of a storm does: it takes, writes, acknowledges, refuses, stalls and fails. What may come again is noted here.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::spool::reports::Report;
use crate::spool::stage::tests::Life;
use crate::spool::stage::tests::Storm;
use crate::spool::stage::tests::frames::numbers;

impl Storm {
    pub(super) fn lane_acts(&mut self, life: &mut Life) {
        if let Some(answer) = &mut life.failed {
            match answer.try_recv() {
                Ok(()) => life.failed = None,
                Err(_) => return,
            }
        }
        if self.happens(self.weather.lane_stalls) {
            return;
        }
        if self.random.u32(0..1000) < self.weather.lane_fails {
            return self.fail_lane(life);
        }
        if life.held.len() < 6
            && let Some(batch) = life.back.pop()
        {
            self.take(life, batch);
        }
        if life.held.is_empty() {
            return;
        }
        let index = if self.weather.in_order { 0 } else { self.random.usize(0..life.held.len()) };
        if self.weather.keeps {
            self.write_and_keep(life);
            self.acknowledge_some(life, index);
        } else {
            self.write_some(life, index);
        }
        if self.happens(self.weather.lane_refuses) {
            self.refuse(life);
        }
    }

    pub(super) fn take(&mut self, life: &mut Life, batch: Batch) {
        assert!(batch.frames().payload_len_max() <= life.frame_len_max, "longer than the lane takes");
        if batch.log_position.is_some() && std::mem::take(&mut life.opened_late) {
            life.last.clear();
        }
        for (index, (frame, connection)) in numbers(batch.frames()).into_iter().enumerate() {
            // What a failing disk was to take may be there all the same, and come twice, and out of order.
            let copied = self.copied.contains(&frame) || self.stood_in().copied.contains(&frame);
            let copied = copied && self.disk_has_failed;
            assert!(
                copied || !self.settled.contains(&frame),
                "frame {frame} comes again although it had ended"
            );
            let key = (connection, self.displaced.get(&frame).cloned().unwrap_or_default());
            let twice = !self.taken.insert(frame) && self.disk_has_failed || copied;
            let before = if twice { None } else { life.last.insert(key, frame) };
            assert!(before < Some(frame), "frame {frame} of connection {connection} comes behind {before:?}");
            if let Some(position) = batch.log_position {
                life.handed.insert(position.frame_seq() + index as u64, (frame, false));
            }
        }
        life.held.push_back(batch);
    }

    /// Writes any part of a batch, which is delivered by that.
    fn write_some(&mut self, life: &mut Life, index: usize) {
        let Some(mut batch) = life.held.remove(index) else { return };
        let bytes = self.part_of(&batch);
        self.write(&mut batch, bytes, false);
        if bytes >= batch.byte_len() {
            self.delivered(life, batch);
        } else {
            let (_, forget) = batch.advance(bytes);
            self.forget(life, forget);
            life.held.insert(index, batch);
        }
    }

    /// Writes the first batches that are not wholly written.
    fn write_and_keep(&mut self, life: &mut Life) {
        let Some(index) = life.held.iter().position(|batch| batch.custody.open() > 0) else { return };
        let Some(mut batch) = life.held.remove(index) else { return };
        let bytes = self.part_of(&batch);
        self.write(&mut batch, bytes, true);
        if batch.custody.open() == 0 {
            batch.custody.hold();
        }
        life.held.insert(index, batch);
    }

    fn acknowledge_some(&mut self, life: &mut Life, index: usize) {
        if self.happens(50) {
            return;
        }
        let Some(mut batch) = life.held.remove(index) else { return };
        if batch.custody.open() == 0 && self.random.bool() {
            return self.delivered(life, batch);
        }
        let (_, forget) = batch.advance(self.random.usize(0..=batch.byte_len()));
        self.forget(life, forget);
        if batch.frames().frames() == 0 {
            return self.delivered(life, batch);
        }
        life.held.insert(index, batch);
    }

    pub(super) fn delivered(&mut self, life: &mut Life, batch: Batch) {
        if batch.log_position.is_none() {
            self.settled.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
        }
        let forget = batch.delivered();
        self.forget(life, forget);
    }

    /// No reader takes the first frame of what was left of the first batch.
    fn refuse(&mut self, life: &mut Life) {
        let Some(first) = life.held.front_mut() else { return };
        // One that counts as sent is no loss to this storm.
        if first.sent_frames() > 0 {
            return;
        }
        self.totals.count("refused", 1);
        let (_, forget) = first.refuse_first();
        if first.frames().frames() == 0
            && let Some(batch) = life.held.pop_front()
        {
            self.delivered(life, batch);
        }
        self.forget(life, forget);
    }

    fn forget(&mut self, life: &mut Life, forget: Option<Acknowledgement>) {
        let Some(forget) = forget else { return };
        let from = forget.from.frame_seq();
        for seq in from..from + u64::from(forget.frames) {
            let (_, ended) = life.handed.get_mut(&seq).expect("what the lane has");
            assert!(!std::mem::replace(ended, true), "ended twice");
        }
        let reports = life.reports.as_ref().expect("the lane is there");
        reports.send(Report::Acknowledged(forget));
    }

    fn part_of(&mut self, batch: &Batch) -> usize {
        let len = batch.byte_len();
        if self.random.bool() { len } else { self.random.usize(0..=len) }
    }

    fn write(&mut self, batch: &mut Batch, bytes: usize, kept: bool) {
        let before = batch.sent_frames() as usize;
        let written = batch.written(bytes, kept).first.frames as usize;
        for (frame, _) in numbers(batch.frames()).into_iter().skip(before).take(written) {
            *self.delivered.entry(frame).or_default() += 1;
        }
    }

    fn fail_lane(&mut self, life: &mut Life) {
        self.totals.count("lane_failed", 1);
        let held = std::mem::take(&mut life.held);
        let failed = catch_unwind(AssertUnwindSafe(move || {
            let _held = held;
            resume_unwind(Box::new("on purpose"));
        }));
        assert!(failed.is_err());
        // What was only in memory goes behind what is on disk.
        self.displace_waiting(life);
        self.settle_prefix(life);
        life.last.clear();
        life.has_failed = true;
        self.exact = false;
        life.failed = Some(life.reports.as_ref().expect("the lane is there").fail());
        life.woken = true;
    }

    /// What waits behind the stage is taken out of its order, where it is not on disk.
    fn displace_waiting(&mut self, life: &mut Life) {
        let waits: Vec<Batch> = std::iter::from_fn(|| life.back.pop()).collect();
        let mut displaced = Vec::new();
        for batch in waits {
            if batch.log_position.is_none() {
                displaced.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
            }
            life.back.send(batch);
        }
        self.displace(&displaced);
    }

    pub(super) fn displace(&mut self, frames: &[u64]) {
        self.displacements += 1;
        for frame in frames {
            self.displaced.entry(*frame).or_default().push(self.displacements);
        }
    }

    /// What has ended, with everything before it, never comes again.
    pub(super) fn settle_prefix(&mut self, life: &mut Life) -> u64 {
        let handed = std::mem::take(&mut life.handed);
        let mut out_of_order = 0;
        let mut all = true;
        for (frame, ended) in handed.into_values() {
            all &= ended;
            if all {
                self.settled.insert(frame);
            } else {
                out_of_order += u64::from(ended);
            }
        }
        out_of_order
    }
}
