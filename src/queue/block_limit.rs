//! When batches are copied out of the blocks in which they were read.
//!
//! A batch is charged for its bytes and keeps its whole block. Mostly that is the same: blocks are full of frames, and all of
//! these wait. Where a queue keeps one batch of many, blocks are kept for the sake of small parts. So the blocks that all
//! workers have in use are compared with what all queues have charged. While blocks have more, every batch is copied before
//! it goes to the queues, once for all of them, and keeps no block. Memory in all, of what waits, is therefore
//!
//! ```text
//! blocks in use + copies <= (beside queues + charged) + charged
//! ```
//!
//! A relay without a backlog stays below the first term and never copies. A relay with a full backlog of blocks that are
//! full of frames stays below the second: an eighth of a block is empty on average.

use std::sync::Arc;
use std::sync::RwLock;

use crate::batch::budget::Budget;
use crate::queue::takers::Takers;
use crate::transport::buffer::BlocksInUse;

/// How much the blocks in use may come to. One for all workers of a relay.
#[derive(Debug)]
pub(crate) struct BlockLimit {
    in_use: BlocksInUse,
    // Looked at while blocks are many, and else never.
    queues: RwLock<Queues>,
    beside_queues: usize,
}

/// Every queue that may have a batch.
#[derive(Debug, Default)]
struct Queues {
    budgets: Vec<Arc<Budget>>,
    takers: Vec<Arc<Takers>>,
}

impl BlockLimit {
    /// The limit for so many workers, before there is a queue.
    pub(crate) fn new(workers: usize) -> Self {
        let beside_queues = BESIDE_QUEUES + workers * BESIDE_QUEUES_PER_WORKER;
        Self { in_use: BlocksInUse::default(), queues: RwLock::default(), beside_queues }
    }

    /// From now on the queues with these budgets count, and those of these takers, and no others.
    pub(crate) fn set_queues(&self, budgets: Vec<Arc<Budget>>, takers: Vec<Arc<Takers>>) {
        *self.queues.write().expect(UNPOISONED) = Queues { budgets, takers };
    }

    /// The blocks that count.
    pub(crate) fn in_use(&self) -> &BlocksInUse {
        &self.in_use
    }

    /// Whether blocks have more than they may.
    pub(crate) fn is_exceeded(&self) -> bool {
        let in_use = self.in_use.bytes();
        in_use > self.beside_queues && in_use > self.beside_queues + self.charged()
    }

    fn charged(&self) -> usize {
        let Queues { budgets, takers } = &*self.queues.read().expect(UNPOISONED);
        let in_budgets: usize = budgets.iter().map(|budget| budget.charged()).sum();
        in_budgets + takers.iter().map(|takers| takers.charged()).sum::<usize>()
    }
}

/// Blocks that may be in use whatever queues have charged, bytes: four of the largest, and two more on each worker.
const BESIDE_QUEUES: usize = 8 << 20;
const BESIDE_QUEUES_PER_WORKER: usize = 4 << 20;

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::transport::buffer::ReadBuffer;
    use crate::transport::buffer::Tail;

    const READ_LEN: usize = 1 << 20;

    /// Reads a block full; what is returned keeps it.
    fn fill_block(buffer: &mut ReadBuffer) -> [Bytes; 2] {
        let mut read = || {
            buffer.with_room(&mut Tail::default(), READ_LEN, |bytes| {
                bytes.extend_from_slice(&vec![1; READ_LEN]);
                bytes.split().freeze()
            })
        };
        [read(), read()]
    }

    #[test]
    fn blocks_may_have_what_queues_have_charged_and_some_more() {
        let budgets = [0, 1].map(|_| Arc::new(Budget::new(1 << 30)));
        let limit = BlockLimit::new(2);
        limit.set_queues(budgets.to_vec(), Vec::new());
        let mut workers = [0, 1].map(|_| ReadBuffer::new(limit.in_use().clone()));
        let mut batches = Vec::new();
        // Each worker has a current block that does not count.
        for _ in 0..5 {
            batches.extend(workers.iter_mut().map(fill_block));
        }
        assert_eq!(limit.in_use().bytes(), 16 << 20);
        assert!(!limit.is_exceeded());
        batches.extend(workers.iter_mut().map(fill_block));
        assert!(limit.is_exceeded());
        let mut permits: Vec<_> = budgets.iter().map(|budget| budget.reserve(2 << 20)).collect();
        assert!(!limit.is_exceeded());
        permits.pop();
        assert!(limit.is_exceeded());
        batches.clear();
        workers.iter_mut().for_each(|worker| worker.look_for_free(100));
        assert!(!limit.is_exceeded());
    }
}
