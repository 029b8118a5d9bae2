//! What a lane has to say of its batches, to the stage that has the spool.

use std::convert::Infallible;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use tokio::sync::mpsc;

use crate::batch::Acknowledgement;
use crate::batch::Batch;

/// One report of a lane.
#[derive(Debug)]
pub(crate) enum Report {
    /// The spool need not keep these frames any more.
    Acknowledged(Acknowledgement),
    /// The lane has failed, and with it all that it had. Another one begins.
    Failed,
    /// The lane has ended with this batch.
    Left(Batch),
}

/// The end of a lane.
#[derive(Clone, Debug)]
pub(crate) struct ReportSender {
    // Dropped in this order: who sees that nobody is there any more has everything.
    reports: Sender<Report>,
    _alive: mpsc::Sender<Infallible>,
}

/// The end of the stage.
#[derive(Debug)]
pub(crate) struct ReportReceiver {
    reports: Receiver<Report>,
    alive: mpsc::Receiver<Infallible>,
}

/// Reports about the batches of one spool.
pub(crate) fn reports() -> (ReportSender, ReportReceiver) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let (alive_sender, alive) = mpsc::channel(1);
    let sender = ReportSender { reports: sender, _alive: alive_sender };
    (sender, ReportReceiver { reports: receiver, alive })
}

impl ReportSender {
    /// Nobody is woken: the stage looks when it has to.
    pub(crate) fn send(&self, report: Report) {
        // A stage that is gone has left a batch behind to be counted as lost.
        let _ = self.reports.send(report);
    }
}

impl ReportReceiver {
    /// The next report, if there is one.
    pub(crate) fn next(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    /// Whether the lane has ended.
    pub(crate) fn lane_ended(&self) -> bool {
        self.alive.is_closed()
    }

    /// Waits until the lane has ended. Cancel-safe.
    pub(crate) async fn wait_for_end(&mut self) {
        if let Some(never) = self.alive.recv().await {
            match never {}
        }
    }
}
