//! Turns of a worker: between two of them it asks the kernel what has happened, and hands over what it has to submit.
//!
//! A task that always finds something to do keeps the others waiting: the kernel is asked once in 61 polls of tasks. A task that
//! uses up the budget that tokio gives it does worse on io_uring: its turn ends without a submission, so that a flood of
//! connections kept every other connection unread for seconds. So whoever takes work that comes without end takes a share of it
//! in each turn.

use std::cell::Cell;

use crate::transport::Backend;
use crate::transport::sys;

/// Waits for the next turn. Cancel-safe.
pub(crate) async fn next_turn(backend: Backend) {
    match backend {
        // Submitted at the end of the turn, and completed at once. tokio's own `yield_now` would end the turn without that.
        Backend::Uring => sys::ring_nop().await,
        Backend::Epoll => tokio::task::yield_now().await,
    }
}

/// What one task may do in a turn.
pub(crate) struct TurnShare {
    backend: Backend,
    size: u32,
    used: Cell<u32>,
}

impl TurnShare {
    /// A share of `size` pieces of work, on the thread of a worker that runs this backend.
    pub(crate) fn new(backend: Backend, size: u32) -> Self {
        Self { backend, size, used: Cell::new(0) }
    }

    /// A piece of work is done: waits for the next turn if that was the last of the share. Cancel-safe.
    pub(crate) async fn spend(&self) {
        self.used.update(|used| used + 1);
        if self.used.get() >= self.size {
            self.used.set(0);
            next_turn(self.backend).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::transport::backend::Runtime;

    /// Two tasks that are always ready, and a socket that becomes readable beside them.
    #[test]
    fn a_task_with_a_share_lets_the_kernel_be_asked() {
        for backend in [Backend::Uring, Backend::Epoll] {
            let Ok(runtime) = Runtime::new(backend) else {
                eprintln!("skipped: no {backend} here");
                continue;
            };
            runtime.block_on(async {
                let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let waiting = tokio::net::UnixStream::from_std(ours).unwrap();
                let work = Rc::new(Cell::new(0_u32));
                for _ in 0..2 {
                    let (share, work) = (TurnShare::new(backend, 10), Rc::clone(&work));
                    tokio::task::spawn_local(async move {
                        loop {
                            work.update(|work| work + 1);
                            share.spend().await;
                        }
                    });
                }
                next_turn(backend).await;
                let before = work.get();
                std::io::Write::write_all(&mut &theirs, b"x").unwrap();
                waiting.readable().await.unwrap();
                let done = work.get() - before;
                assert!(done <= 100, "{backend}: {done} pieces of work before the socket was seen");
            });
        }
    }
}
