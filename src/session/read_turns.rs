//! Whose turn it is to read much.
//!
//! Writers that always have something to send would keep all others waiting: a round of thousands of them, with as much as one
//! socket holds from each, takes seconds. So connections that bring much read one after the other, in the order in which they
//! came, and a few at a time: then the worker asks the kernel whose bytes have arrived. The more of them wait, the less each
//! reads, so that a round ends soon.
//!
//! A connection that brings little does not wait for the others. It reads little where others wait: one that has more to bring
//! becomes one of them.

use std::cell::Cell;

use tokio::sync::Mutex;
use tokio::sync::MutexGuard;

use crate::transport::Backend;
use crate::transport::turn::next_turn;

/// The turns of connections of one worker that write to the same outputs.
pub(crate) struct ReadTurns {
    backend: Backend,
    // Bytes that may still be read before the kernel is asked again. Its lock lets those who wait pass in order.
    left: Mutex<usize>,
    waiting: Cell<usize>,
}

impl ReadTurns {
    /// On the thread of a worker that runs this backend.
    pub(crate) fn new(backend: Backend) -> Self {
        Self { backend, left: Mutex::new(TURN), waiting: Cell::new(0) }
    }

    /// Waits for the turn of a connection that brings much. One that brings little does not wait: `None` where it is not its
    /// turn. Cancel-safe.
    pub(crate) async fn take(&self, brings_little: bool) -> Option<ReadTurn<'_>> {
        let mut left = match self.left.try_lock() {
            Ok(left) => left,
            Err(_) if brings_little => return None,
            // In memory of its own: every connection has room for its longest wait, and most are idle.
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                Box::pin(self.left.lock()).await
            }
        };
        if *left == 0 {
            if brings_little {
                return None;
            }
            next_turn(self.backend).await;
            *left = TURN;
        }
        Some(ReadTurn { left, len_max: ROUND / (1 + self.waiting.get()) })
    }
}

/// The turn of one connection. Nobody else has one until it is dropped.
pub(crate) struct ReadTurn<'a> {
    left: MutexGuard<'a, usize>,
    len_max: usize,
}

impl ReadTurn<'_> {
    /// Most bytes of the read.
    pub(crate) fn len_max(&self) -> usize {
        self.len_max.max(LITTLE)
    }

    /// The read has taken so many bytes.
    pub(crate) fn end(mut self, count: usize) {
        *self.left = self.left.saturating_sub(count.max(READ_COST));
    }
}

/// Counts a connection that waits, for as long as it does.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.update(|count| count + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.update(|count| count - 1);
    }
}

/// A read below this many bytes is a small one.
pub(crate) const LITTLE: usize = 16 << 10;

/// So many bytes are read in turn until the kernel is asked again: one or two milliseconds with their writes.
const TURN: usize = 2 << 20;
/// What a read counts at least, however few bytes it takes: control frames cost more than data frames.
const READ_COST: usize = 64 << 10;
/// So many bytes are read in turn until each that waits has had its turn, unless thousands wait.
const ROUND: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::task::spawn_local;

    use super::*;
    use crate::transport::backend::Runtime;

    fn on_both_backends<F: Future<Output = ()>>(scenario: impl Fn(Rc<ReadTurns>) -> F) {
        for backend in [Backend::Uring, Backend::Epoll] {
            match Runtime::new(backend) {
                Ok(runtime) => runtime.block_on(scenario(Rc::new(ReadTurns::new(backend)))),
                Err(_) => eprintln!("skipped: no {backend} here"),
            }
        }
    }

    #[test]
    fn a_crowd_reads_a_few_at_a_time_and_one_after_the_other_and_a_round_of_it_ends_soon() {
        const CROWD: usize = 2000;
        on_both_backends(|turns| async move {
            let reads = Rc::new(RefCell::new(Vec::new()));
            for connection in 0..CROWD {
                let (turns, reads) = (Rc::clone(&turns), Rc::clone(&reads));
                spawn_local(async move {
                    loop {
                        let turn = turns.take(false).await.expect("it waits");
                        let len = turn.len_max().min(200 << 10);
                        reads.borrow_mut().push((connection, len));
                        turn.end(len);
                        next_turn(turns.backend).await;
                    }
                });
            }
            next_turn(turns.backend).await;
            while reads.borrow().len() < 3 * CROWD {
                let before = reads.borrow().len();
                next_turn(turns.backend).await;
                let turn = reads.borrow()[before..].iter().map(|(_, len)| len).sum::<usize>();
                assert!(turn <= 3 * TURN, "{turn} bytes before the kernel was asked");
                // A light connection does not wait.
                assert!(turns.take(true).await.is_none_or(|turn| turn.len_max() >= LITTLE));
            }
            let reads = reads.borrow();
            let round: usize = reads[CROWD..2 * CROWD].iter().map(|(_, len)| len).sum();
            assert!(round <= ROUND + ROUND / 8, "{round} bytes in a round");
            let mut last = [0; CROWD];
            for (place, (connection, _)) in reads.iter().enumerate() {
                // Those that read between two looks at the kernel may come again in another order.
                let others = place - std::mem::replace(&mut last[*connection], place);
                assert!(
                    others <= CROWD + 2 * TURN / READ_COST,
                    "{others} reads until it was the turn of {connection}"
                );
            }
        });
    }

    #[test]
    fn a_connection_alone_reads_as_much_as_it_likes() {
        on_both_backends(|turns| async move {
            for _ in 0..100 {
                let turn = turns.take(false).await.expect("it waits");
                assert_eq!(turn.len_max(), ROUND);
                turn.end(1 << 20);
            }
        });
    }
}
