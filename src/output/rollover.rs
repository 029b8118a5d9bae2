//! When a stream gives way to the next, so that its FINISH acknowledges it, and the connection opened ahead for that.

use std::time::Duration;
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::task::spawn_local;

use crate::output::backlog::Backlog;
use crate::output::streams::Checkpoint;
use crate::session::write::WriteFault;
use crate::session::write::WriteSession;

/// The change from one stream to the next, for outputs with checkpoints.
pub(crate) struct Rollover {
    every: Option<Duration>,
    // A checkpoint comes sooner when the queue charges so much for what it will acknowledge.
    charge_max: usize,
    due: Option<Instant>,
    not_before: Instant,
    // After one that failed: doubles with each.
    pause: Duration,
    // While the present stream lasts a second connection was not to be had.
    refused: bool,
    next: Option<JoinHandle<Result<WriteSession, WriteFault>>>,
    opened: Option<Result<WriteSession, WriteFault>>,
}

impl Rollover {
    /// `None` for outputs without checkpoints.
    pub(crate) fn new(checkpoint: Option<Checkpoint>, backlog: &Backlog) -> Option<Self> {
        let (every, charge_max) = match checkpoint? {
            Checkpoint::Every(every) => (Some(every), backlog.queue_max() / 4),
            Checkpoint::Bytes(bytes) => (None, bytes),
        };
        Some(Self {
            every,
            charge_max,
            due: None,
            not_before: Instant::now(),
            pause: PAUSE_MIN,
            refused: false,
            next: None,
            opened: None,
        })
    }

    /// A stream begins, on whatever connection.
    pub(crate) fn begin_stream(&mut self) {
        self.due = self.every.and_then(|every| Instant::now().checked_add(every));
        self.refused = false;
    }

    /// A stream was ended with STOP, and FINISH has come, or has not. Returns how long the next checkpoint waits at
    /// least: a reader that never sends FINISH gets everything again and again, but each time later.
    pub(crate) fn answered(&mut self, finished: bool) -> Duration {
        if finished {
            self.pause = PAUSE_MIN;
            return Duration::ZERO;
        }
        self.pause = self.pause.max(self.every.unwrap_or_default());
        self.failed()
    }

    /// A next connection could not be had. Returns after which time it is tried again.
    pub(crate) fn no_connection(&mut self) -> Duration {
        self.refused = true;
        self.failed()
    }

    fn failed(&mut self) -> Duration {
        let pause = self.pause;
        self.not_before = Instant::now() + pause;
        self.pause = (2 * pause).min(PAUSE_MAX).max(pause);
        pause
    }

    /// Whether the present stream has to end before the next can begin: its reader takes one connection at a time, and
    /// what waits for FINISH will fill the queue.
    pub(crate) fn stream_must_end(&self, backlog: &Backlog) -> bool {
        self.refused && backlog.unacknowledged_charge() >= backlog.queue_max() / 2
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

    /// Closes the next connection: the present one has ended, and is followed by another in its own time. Returns
    /// whether there was one.
    pub(crate) async fn give_up(&mut self) -> bool {
        if let Some(next) = self.next.take() {
            // Opening is cancel-safe. If it was finished already, this changes nothing.
            next.abort();
            self.opened = next.await.ok();
        }
        let Some(Ok(session)) = self.opened.take() else { return false };
        session.close().await;
        true
    }
}

/// Waits for the task that is under way, and takes it out. Cancel-safe; pending for ever where there is none.
pub(crate) async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(handle) = task else { return std::future::pending().await };
    let output = handle.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    *task = None;
    output
}

/// After a checkpoint that failed.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::Queue;
    use crate::queue::WhenFull;

    fn rollover(checkpoint: Checkpoint) -> (Rollover, Backlog) {
        let queue = Queue::new("test".to_owned(), 1 << 20, WhenFull::Block, Arc::default());
        let backlog = Backlog::new(Arc::new(queue), None, Arc::default(), true);
        (Rollover::new(Some(checkpoint), &backlog).unwrap(), backlog)
    }

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
            let (mut rollover, _) = rollover(checkpoint);
            for _ in 0..2 {
                for pause in pauses {
                    let before = Instant::now();
                    assert_eq!(rollover.answered(false).as_secs(), pause);
                    assert!(rollover.not_before >= before + Duration::from_secs(pause));
                }
                assert_eq!(rollover.answered(true), Duration::ZERO);
            }
        }
    }

    #[test]
    fn a_connection_that_was_refused_is_wanted_again_soon_and_matters_to_the_present_stream_only() {
        let (mut rollover, backlog) = rollover(Checkpoint::Every(Duration::from_secs(60)));
        rollover.begin_stream();
        assert_eq!([rollover.no_connection(), rollover.no_connection()].map(|pause| pause.as_secs()), [1, 2]);
        assert!(rollover.refused && !rollover.stream_must_end(&backlog), "nothing waits for FINISH");
        rollover.begin_stream();
        assert!(!rollover.refused);
    }
}
