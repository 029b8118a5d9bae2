//! When a stream gives way to the next, so that its FINISH acknowledges it, and the connection opened ahead for that.

use std::time::Duration;
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::task::spawn_local;

use crate::output::Checkpoint;
use crate::output::OutputConfig;
use crate::output::backlog::Backlog;
use crate::session::write::WriteFault;
use crate::session::write::WriteSession;

/// The change from one stream to the next, for outputs with checkpoints.
pub(crate) struct Rollover {
    every: Option<Duration>,
    // A checkpoint comes sooner when the queue charges so much for what it will acknowledge.
    charge_max: usize,
    due: Option<Instant>,
    not_before: Instant,
    next: Option<JoinHandle<Result<WriteSession, WriteFault>>>,
    opened: Option<Result<WriteSession, WriteFault>>,
}

impl Rollover {
    pub(crate) fn new(config: &OutputConfig, backlog: &Backlog) -> Option<Self> {
        let (every, charge_max) = match config.checkpoint? {
            Checkpoint::Every(every) => (Some(every), backlog.queue_max() / 4),
            Checkpoint::Bytes(bytes) => (None, bytes),
        };
        let not_before = Instant::now();
        let mut rollover = Self { every, charge_max, due: None, not_before, next: None, opened: None };
        rollover.begin_stream();
        Some(rollover)
    }

    pub(crate) fn begin_stream(&mut self) {
        self.due = self.every.and_then(|every| Instant::now().checked_add(every));
    }

    pub(crate) fn try_later(&mut self) {
        self.not_before = Instant::now() + ROLLOVER_PAUSE;
    }

    /// Opens the next connection, while the present one goes on.
    pub(crate) fn open(&mut self, opening: impl Future<Output = Result<WriteSession, WriteFault>> + 'static) {
        self.next = Some(spawn_local(opening));
    }

    /// The connection that was wanted, if it is there, or why it is not.
    pub(crate) async fn opened(&mut self) -> Option<Result<WriteSession, WriteFault>> {
        if self.next.as_ref().is_some_and(JoinHandle::is_finished) {
            self.opened = Some(joined(&mut self.next).await);
        }
        self.opened.take()
    }

    pub(crate) fn is_due(&self, backlog: &Backlog) -> bool {
        self.next.is_none() && self.due_at(backlog).is_some_and(|due| due <= Instant::now())
    }

    /// When the next connection is wanted; `None` while nothing asks for it.
    fn due_at(&self, backlog: &Backlog) -> Option<Instant> {
        let charge = backlog.unacknowledged_charge();
        match self.due {
            _ if charge == 0 || backlog.queue.is_closed() => None,
            _ if charge >= self.charge_max => Some(self.not_before),
            due => due.map(|due| due.max(self.not_before)),
        }
    }

    /// Waits until the next connection is there, or wanted. Cancel-safe.
    pub(crate) async fn progress(rollover: &mut Option<Self>, backlog: &Backlog, may_roll: bool) {
        let Some(rollover) = rollover else { return std::future::pending().await };
        if rollover.next.is_some() {
            rollover.opened = Some(joined(&mut rollover.next).await);
            return;
        }
        match rollover.due_at(backlog) {
            Some(due) if may_roll => tokio::time::sleep_until(due.into()).await,
            _ => std::future::pending().await,
        }
    }

    /// Closes the next connection: the present one has ended, and is followed by another in its own time.
    pub(crate) async fn give_up(mut self) {
        if let Some(next) = self.next.take() {
            // Opening is cancel-safe. If it was finished already, this changes nothing.
            next.abort();
            self.opened = next.await.ok();
        }
        if let Some(Ok(session)) = self.opened {
            session.close().await;
        }
    }
}

/// Waits for the task that is under way, and takes it out. Cancel-safe; pending for ever where there is none.
pub(crate) async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(handle) = task else { return std::future::pending().await };
    let output = handle.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    *task = None;
    output
}

/// After a next connection that could not be had.
const ROLLOVER_PAUSE: Duration = Duration::from_secs(1);
