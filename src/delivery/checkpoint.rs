//! Decides when a checkpoint is due. A checkpoint opens the next connection, then ends the old stream with STOP: its FINISH
//! acknowledges what the stream carried.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::config::Checkpoint;

/// The checkpoints of one member.
#[derive(Debug)]
pub(super) struct CheckpointTimer {
    every: Option<Duration>,
    // A checkpoint comes sooner when the queue charges so much for what it will acknowledge.
    charge_max: usize,
    due: Option<Instant>,
    not_before: Option<Instant>,
    // How long the next checkpoint waits after one that failed: doubles with each.
    pause: Duration,
    // The reader takes one connection at a time, as far as the present stream has shown.
    refused: bool,
}

impl CheckpointTimer {
    /// For a member that may count on `queue_max` bytes of the queue.
    pub(super) fn new(checkpoint: Checkpoint, queue_max: usize) -> Self {
        let (every, charge_max) = match checkpoint {
            Checkpoint::Every(every) => (Some(every), queue_max / 4),
            Checkpoint::Bytes(bytes) => (None, bytes),
        };
        Self { every, charge_max, due: None, not_before: None, pause: PAUSE_MIN, refused: false }
    }

    /// A stream begins, on whatever connection.
    pub(super) fn begin_stream(&mut self, now: Instant) {
        self.due = self.every.and_then(|every| now.checked_add(every));
        self.refused = false;
    }

    /// A stream was ended with STOP, and FINISH has come, or has not: a reader that never sends FINISH gets everything again
    /// and again, but each time later.
    pub(super) fn answered(&mut self, finished: bool, now: Instant) {
        if finished {
            self.pause = PAUSE_MIN;
        } else {
            self.pause = self.pause.max(self.every.unwrap_or_default());
            self.failed(now);
        }
    }

    /// A next connection cannot be opened while the present one is open.
    pub(super) fn refused(&mut self, now: Instant) {
        self.refused = true;
        self.failed(now);
    }

    fn failed(&mut self, now: Instant) {
        self.not_before = now.checked_add(self.pause);
        self.pause = (2 * self.pause).min(PAUSE_MAX).max(self.pause);
    }

    /// When the next connection is wanted, with `charge` bytes of the queue waiting for FINISH of the present stream; `None`
    /// while nothing asks for it.
    pub(super) fn due(&self, charge: usize) -> Option<Instant> {
        if charge == 0 {
            return None;
        }
        let due = if charge >= self.charge_max { self.not_before.or(self.due) } else { self.due };
        match (due, self.not_before) {
            (Some(due), Some(not_before)) => Some(due.max(not_before)),
            (due, _) => due,
        }
    }

    /// Whether the next connection is wanted now.
    pub(super) fn is_due(&self, charge: usize, now: Instant) -> bool {
        let full = charge > 0 && charge >= self.charge_max;
        let wanted = full || self.due.is_some_and(|due| charge > 0 && due <= now);
        wanted && self.not_before.is_none_or(|not_before| not_before <= now)
    }

    /// Whether the present stream has to end before the next can begin: its reader takes one connection at a time, and what
    /// waits for FINISH, `charge` bytes, will fill the `queue_max` bytes of the queue.
    pub(super) fn stream_must_end(&self, charge: usize, queue_max: usize) -> bool {
        self.refused && charge >= queue_max / 2
    }
}

/// After a checkpoint that failed.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: usize = 1 << 20;

    #[test]
    fn each_checkpoint_without_finish_makes_the_next_wait_twice_as_long_until_one_succeeds() {
        for (checkpoint, pauses) in [
            (Checkpoint::Bytes(1 << 16), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]),
            (
                Checkpoint::Every(Duration::from_secs(60)),
                [60, 120, 240, 480, 600, 600, 600, 600, 600, 600, 600, 600],
            ),
            (Checkpoint::Every(Duration::from_secs(3600)), [3600; 12]),
        ] {
            let mut timer = CheckpointTimer::new(checkpoint, QUEUE);
            let now = Instant::now();
            for _ in 0..2 {
                for pause in pauses {
                    timer.answered(false, now);
                    assert_eq!(timer.not_before, Some(now + Duration::from_secs(pause)));
                }
                timer.answered(true, now);
            }
        }
    }

    #[test]
    fn a_checkpoint_is_due_by_time_or_by_bytes_and_never_for_nothing() {
        let now = Instant::now();
        let mut timer = CheckpointTimer::new(Checkpoint::Every(Duration::from_secs(60)), QUEUE);
        timer.begin_stream(now);
        let due = now + Duration::from_secs(60);
        assert_eq!((timer.due(0), timer.due(1)), (None, Some(due)));
        assert!(!timer.is_due(1, now) && timer.is_due(1, due) && !timer.is_due(0, due));
        assert!(timer.is_due(QUEUE / 4, now), "much waits for FINISH");
        timer.refused(now);
        assert!(!timer.is_due(QUEUE / 4, now));
        assert_eq!(timer.due(QUEUE / 4), Some(now + Duration::from_secs(1)));
        assert!(timer.is_due(QUEUE / 4, now + Duration::from_secs(1)));
        let mut by_bytes = CheckpointTimer::new(Checkpoint::Bytes(1000), QUEUE);
        by_bytes.begin_stream(now);
        assert!(!by_bytes.is_due(999, due) && by_bytes.is_due(1000, now));
    }

    #[test]
    fn a_reader_of_one_connection_is_known_for_the_present_stream_only() {
        let now = Instant::now();
        let mut timer = CheckpointTimer::new(Checkpoint::Every(Duration::from_secs(60)), QUEUE);
        timer.begin_stream(now);
        timer.refused(now);
        assert!(!timer.stream_must_end(QUEUE / 2 - 1, QUEUE) && timer.stream_must_end(QUEUE / 2, QUEUE));
        timer.begin_stream(now);
        assert!(!timer.stream_must_end(QUEUE, QUEUE));
    }
}
