//! The path of a batch from reading to writing, without connections: for the programs in `benches/`, which see public
//! items only. No part of the library's interface.

use std::sync::Arc;

use crate::observability::account::OutputAccount;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::queue::channel::QueueEnd;
use crate::route::Fanout;
use crate::route::Inlet;
use crate::route::Queues;

/// One input's lanes, one to each output.
#[derive(Clone, Debug)]
pub struct Lanes {
    fanout: Fanout,
    queues: Vec<Arc<Queue>>,
}

impl Lanes {
    /// So many lanes that block, each with a queue of `queue_bytes_max` bytes.
    pub fn new(outputs: usize, queue_bytes_max: usize) -> Self {
        let inlet = |_| {
            let account = Arc::new(OutputAccount::default());
            let when_full = WhenFull::Block;
            let queue = Arc::new(Queue::new(queue_bytes_max, when_full, Arc::clone(&account)));
            let queues = Queues::One(Arc::clone(&queue), account);
            (Inlet { content_type: None, frame_len_max: u32::MAX, queues }, queue)
        };
        let (inlets, queues): (Vec<Inlet>, _) = (0..outputs).map(inlet).unzip();
        Self { fanout: Fanout::new(&inlets, None), queues }
    }

    /// Gives a batch to every lane; waits while one is full.
    pub async fn deliver(&self, batch: FrameBatch) {
        self.fanout.deliver(batch).await;
    }

    /// Waits until a lane has a batch.
    pub async fn ready(&self, lane: usize) {
        self.queues[lane].news(true, QueueEnd::Closed).await;
    }

    /// Takes the next batch of a lane, as if it were written at once.
    pub fn take(&self, lane: usize) -> Option<FrameBatch> {
        let mut batch = self.queues[lane].pop()?;
        let frames = batch.frames().clone();
        batch.written(usize::MAX, false);
        batch.delivered();
        Some(frames)
    }
}
