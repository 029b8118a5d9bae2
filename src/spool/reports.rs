//! What a lane has to say of its batches, to the stage that has the spool.

use crossbeam_channel::Receiver;
use crossbeam_channel::SendError;
use crossbeam_channel::Sender;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::batch::Acknowledgement;
use crate::batch::Batch;

/// One report of a lane.
#[derive(Debug)]
pub(crate) enum Report {
    /// The spool need not keep these frames any more.
    Acknowledged(Acknowledgement),
    /// The task of the lane has failed, and with it all that it had. The next one begins when this is answered: until then
    /// nobody takes anything out of the back queue.
    Failed(oneshot::Sender<()>),
    /// The lane has ended with this batch.
    Left(Batch),
}

/// The end of a lane.
#[derive(Clone, Debug)]
pub(crate) struct ReportSender {
    // Dropped in this order: who sees that nobody is there any more has everything.
    reports: Sender<Report>,
    wake: mpsc::Sender<()>,
}

/// The end of the stage.
#[derive(Debug)]
pub(crate) struct ReportReceiver {
    reports: Receiver<Report>,
    wakes: mpsc::Receiver<()>,
}

/// What lanes have left to stages that do not answer any more.
#[derive(Clone, Debug)]
pub(crate) struct LeftBatches(Receiver<Report>);

impl LeftBatches {
    /// Counts the batches that a lane has left, and that are not on disk, as lost. For the time after the stage.
    pub(crate) fn abandon(&self) {
        while let Ok(report) = self.0.try_recv() {
            if let Report::Left(batch) = report {
                batch.abandoned();
            }
        }
    }
}

/// Reports about the batches of one spool.
pub(crate) fn reports() -> (ReportSender, ReportReceiver) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let (wake, wakes) = mpsc::channel(1);
    (ReportSender { reports: sender, wake }, ReportReceiver { reports: receiver, wakes })
}

impl ReportSender {
    /// Nobody is woken: the stage looks when it has to.
    pub(crate) fn send(&self, report: Report) {
        if let Err(SendError(Report::Left(batch))) = self.reports.send(report) {
            // The stage is gone.
            batch.left();
        }
    }

    /// Reports that the lane has failed. The stage answers when it has taken back what it gave to the lane, and the next task of
    /// the lane may begin. Without a stage the answer fails at once.
    pub(crate) fn fail(&self) -> oneshot::Receiver<()> {
        let (again, answer) = oneshot::channel();
        self.send(Report::Failed(again));
        // Where there is no room, the stage wakes without.
        let _ = self.wake.try_send(());
        answer
    }
}

impl ReportReceiver {
    /// The next report, if there is one.
    pub(crate) fn next(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    /// What a stage that hangs leaves in here.
    pub(crate) fn left_batches(&self) -> LeftBatches {
        LeftBatches(self.reports.clone())
    }

    /// Whether the lane has ended.
    pub(crate) fn lane_ended(&self) -> bool {
        self.wakes.is_closed()
    }

    /// Waits until the lane has ended, or has a report that cannot wait. Cancel-safe.
    pub(crate) async fn news(&mut self) {
        let _ = self.wakes.recv().await;
    }
}
