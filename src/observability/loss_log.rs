//! Tells of lost frames: the first ones at once, then once a minute for each reason as long as more are lost, and at the end
//! those that were not told. The log has what the end itself costs once, when all of it is known.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use tracing::error;
use tracing::warn;

use crate::observability::drop_reason::DropReason;

/// The lines about the losses of one output.
#[derive(Debug)]
pub(crate) struct LossLog {
    output: String,
    began: Instant,
    // By reason: seconds after `began` from which on the log has the next loss.
    tell_at: [AtomicU64; DropReason::ALL.len()],
    // By reason: frames that were told.
    told: [AtomicU64; DropReason::ALL.len()],
}

impl LossLog {
    pub(crate) fn new(output: String) -> Self {
        Self { output, began: Instant::now(), tell_at: Default::default(), told: Default::default() }
    }

    /// Frames were lost for this reason: `total` since the start. A line is due now and then.
    pub(crate) fn lost(&self, reason: DropReason, total: u64) {
        if reason == DropReason::Shutdown {
            return;
        }
        let now = self.began.elapsed().as_secs();
        let due = |tell_at| (tell_at <= now).then_some(now + TELL_EVERY.as_secs());
        if self.tell_at[reason as usize].fetch_update(Relaxed, Relaxed, due).is_ok() {
            self.tell_rest(reason, total);
        }
    }

    /// Tells how many frames were lost for this reason since the start, unless that was told.
    pub(crate) fn tell_rest(&self, reason: DropReason, total: u64) {
        if self.told[reason as usize].fetch_max(total, Relaxed) >= total {
            return;
        }
        let (output, reason_name, help) = (&self.output, reason.name(), help(reason));
        if reason.is_operators_rule() {
            warn!(output, reason = reason_name, frames_dropped = total, "frames are lost: {help}");
        } else {
            error!(output, reason = reason_name, frames_dropped = total, "frames are lost: {help}");
        }
    }
}

/// Why frames are lost, and what to do.
fn help(reason: DropReason) -> &'static str {
    match reason {
        DropReason::QueueFull => {
            "the queue is full, because the collector reads less than arrives; raise `queue`, or set when_full = \"spill\""
        }
        DropReason::Sampled => {
            "the collector reads less than arrives and gets a sample of the batches, as when_full = \"sample\" says"
        }
        DropReason::FrameTooLong => {
            "they are longer than the `frame_len_max` of this output; raise it if the collector takes longer frames"
        }
        DropReason::Refused => {
            "the collector ended every connection at the same frame, and tapster left the frame out; compare the limits of the collector with `frame_len_max`"
        }
        DropReason::Shutdown => {
            "tapster ended before the collector took them; raise `drain_timeout`, or give this output a spool"
        }
        DropReason::SpoolFull => "the spool is full; raise `spool.max`, or free space on its disk",
        DropReason::SpoolAge => {
            "they were in the spool for longer than `spool.max_age`; raise it, or find out why the collector does not take them"
        }
        DropReason::SpoolDamaged => {
            "they cannot be read back from the spool; `tapster spool check` says what is damaged"
        }
        DropReason::Internal => "a task of tapster failed while it had them; please report this as a bug",
    }
}

/// How often the log has a line about a loss that goes on.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_says_what_to_do() {
        for reason in DropReason::ALL {
            assert!(help(reason).len() > 20, "{reason:?}");
        }
    }

    #[test]
    fn the_first_loss_is_due_at_once_and_the_next_a_minute_later_for_each_reason_apart() {
        let log = LossLog::new("test".to_owned());
        let tell_at = |reason: DropReason| log.tell_at[reason as usize].load(Relaxed);
        log.lost(DropReason::QueueFull, 1);
        let next = tell_at(DropReason::QueueFull);
        assert!(next >= TELL_EVERY.as_secs());
        log.lost(DropReason::QueueFull, 2);
        assert_eq!((tell_at(DropReason::QueueFull), tell_at(DropReason::SpoolAge)), (next, 0));
    }
    #[test]
    fn what_was_not_told_is_told_at_the_end_and_what_the_end_costs_only_then() {
        let log = LossLog::new("test".to_owned());
        let told = |reason: DropReason| log.told[reason as usize].load(Relaxed);
        log.lost(DropReason::QueueFull, 3);
        log.lost(DropReason::QueueFull, 5);
        log.lost(DropReason::Shutdown, 7);
        assert_eq!((told(DropReason::QueueFull), told(DropReason::Shutdown)), (3, 0));
        log.tell_rest(DropReason::QueueFull, 5);
        log.tell_rest(DropReason::Shutdown, 8);
        assert_eq!((told(DropReason::QueueFull), told(DropReason::Shutdown)), (5, 8));
    }
}
