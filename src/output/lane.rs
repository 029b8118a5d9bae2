//! What the task of one lane has: where its batches come from, and where those go that it leaves.

use std::sync::Arc;

use tracing::warn;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;
use crate::queue::Queue;
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
}

impl Source {
    /// Tells the spool what it need not keep any more.
    pub(crate) fn acknowledge(&self, acknowledged: impl Iterator<Item = Acknowledgement>) {
        let Some(reports) = &self.reports else { return acknowledged.for_each(drop) };
        acknowledged.for_each(|acknowledged| reports.send(Report::Acknowledged(acknowledged)));
    }

    /// The task of the lane has failed with all that it had. Waits until another one may begin: the spool gives it those
    /// frames again.
    pub(crate) async fn begin_again(&self) {
        if let Some(reports) = &self.reports {
            // A stage that is gone has no frames to give.
            let _ = reports.fail().await;
        }
    }

    /// The end of the lane: gives these batches and what is in the queue to the spool, or counts what nobody has got of them
    /// as lost.
    pub(crate) fn leave(&self, batches: impl Iterator<Item = Batch>) {
        for batch in batches.chain(std::iter::from_fn(|| self.queue.pop())) {
            match &self.reports {
                Some(reports) => reports.send(Report::Left(batch)),
                None => drop(batch.dropped(DropReason::Shutdown)),
            }
        }
        let frames_unacknowledged = self.account.unacknowledged_now();
        if frames_unacknowledged > 0 {
            let output = &self.output;
            warn!(output, frames_unacknowledged, "ended, and nobody has acknowledged these frames");
        }
    }
}
