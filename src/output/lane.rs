//! What the task of one lane has: where its batches come from, and where those go that it leaves.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tracing::warn;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::delivery::DeliveryMachine;
use crate::delivery::config::Reconnect;
use crate::faults;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::observability::account::OutputAccount;
use crate::queue::Queue;
use crate::queue::channel::QueueEnd;
use crate::spool::reports::Report;
use crate::spool::reports::ReportSender;

/// The queue of one lane, and the spool before it where there is one.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Name of the output, for the log.
    pub(crate) output: String,
    pub(crate) queue: Arc<Queue>,
    pub(crate) account: Arc<OutputAccount>,
    /// To the stage that has the spool.
    pub(crate) reports: Option<ReportSender>,
    /// Older frames are not sent, where the output has a spool: they hold addresses of clients.
    pub(crate) max_age: Option<Duration>,
}

impl Source {
    /// Tells the spool what it need not keep any more.
    pub(crate) fn acknowledge(&self, acknowledged: impl Iterator<Item = Acknowledgement>) {
        let Some(reports) = &self.reports else { return acknowledged.for_each(drop) };
        acknowledged.for_each(|acknowledged| reports.send(Report::Acknowledged(acknowledged)));
    }

    /// Gives batches to the delivery, as many as it wants, and says how far the end of the queue has come.
    pub(crate) fn feed(&self, delivery: &mut DeliveryMachine, now: Instant) -> QueueEnd {
        while delivery.wants_batch()
            && let Some(batch) = self.queue.pop()
        {
            if faults::hit("count twice", &self.output) {
                self.account.sent(1, 0);
            }
            if faults::hit("forget a batch", &self.output) {
                std::mem::forget(batch);
                continue;
            }
            delivery.handle_batch(batch, now);
            faults::point("lane", &self.output);
        }
        // In this order: what was pushed before the queue was closed is seen.
        let end = self.queue.end();
        let over = end == QueueEnd::Closed && self.queue.is_empty();
        delivery.handle_source(end >= QueueEnd::InputsEnded, over, now);
        end
    }

    /// Runs the task of the lane to its end. If it panics, it begins again, after pauses that double: the spool gives the next
    /// one the frames that it had; without a spool they are lost, reason `internal`.
    pub(crate) async fn run<F: Future<Output = ()>>(
        &self,
        scope: &Scope,
        reconnect: Reconnect,
        task: impl Fn() -> F,
    ) {
        let mut phases = scope.phases();
        let mut pause = reconnect.min;
        loop {
            let began = Instant::now();
            if scope.guard("lane").supervise(async { task().await }).await.is_some() {
                return;
            }
            if let Some(reports) = &self.reports {
                tokio::select! {
                    _ = reports.fail() => {}
                    () = phases.reached(Phase::Over) => {}
                }
            }
            if scope.phase() == Phase::Over {
                return self.leave(std::iter::empty());
            }
            if began.elapsed() >= LASTING {
                pause = reconnect.min;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = phases.next() => {}
            }
            pause = (2 * pause).min(reconnect.max);
        }
    }

    /// The end of the lane: gives these batches and what is in the queue to the spool, or counts what nobody has got of them
    /// as lost.
    pub(crate) fn leave(&self, batches: impl Iterator<Item = Batch>) {
        for batch in batches.chain(std::iter::from_fn(|| self.queue.pop())) {
            match &self.reports {
                Some(reports) => reports.send(Report::Left(batch)),
                None => drop(batch.left()),
            }
        }
        let frames_unacknowledged = self.account.unacknowledged_now();
        if frames_unacknowledged > 0 {
            let output = &self.output;
            warn!(
                output,
                frames_unacknowledged,
                "the output ends before its reader has acknowledged these frames; nobody knows whether they arrived"
            );
        }
    }
}

/// A lane that failed after so long begins again soon.
const LASTING: Duration = Duration::from_secs(60);
