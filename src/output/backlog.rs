//! What an output has taken from its queue and not wholly written.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::observability::metrics::DropReason;
use crate::observability::metrics::LaneMetrics;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::channel::charge;
use crate::transport::sys::SEND_BUFFERS_MAX;

/// The consumer's end of a lane. Batches leave it when their last byte is written; a connection that dies in the
/// middle of one leaves the frames that were not wholly written for the next.
pub(crate) struct Backlog {
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<LaneMetrics>,
    taken: VecDeque<Taken>,
    // Bytes of the first batch that the present connection has taken: front_written < its length.
    front_written: usize,
}

struct Taken {
    batch: FrameBatch,
    // What the queue charged, to be given back whole.
    charge: usize,
}

impl Backlog {
    pub(crate) fn new(queue: Arc<Queue>, metrics: Arc<LaneMetrics>) -> Self {
        Self { queue, metrics, taken: VecDeque::new(), front_written: 0 }
    }

    /// Takes what waits, as much as one write should have, if nothing is left to write.
    pub(crate) fn fill(&mut self) {
        let len_max = self.queue.write_len_max();
        let mut len: usize = self.taken.iter().map(|taken| taken.batch.byte_len()).sum();
        while len < len_max && self.taken.len() < SEND_BUFFERS_MAX {
            let Some(batch) = self.queue.pop() else { return };
            len += batch.byte_len();
            self.taken.push_back(Taken { charge: charge(&batch), batch });
        }
    }

    /// Whether everything is written and the queue is closed.
    pub(crate) fn nothing_to_come(&self) -> bool {
        self.taken.is_empty() && self.queue.is_closed() && self.queue.is_empty()
    }

    /// The bytes to write on a new connection, in order.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = Bytes> {
        debug_assert_eq!(self.front_written, 0);
        self.taken.iter().map(|taken| taken.batch.bytes().clone())
    }

    /// Accounts for bytes that were written.
    pub(crate) fn written(&mut self, count: usize) {
        let mut written = self.front_written + count;
        while let Some(front) = self.taken.front()
            && front.batch.byte_len() <= written
        {
            written -= front.batch.byte_len();
            self.metrics.sent(u64::from(front.batch.frames()), front.batch.byte_len() as u64);
            self.queue.release(front.charge);
            self.taken.pop_front();
        }
        self.front_written = written;
    }

    /// The connection is gone: frames that were wholly written are sent, the first that was not begins the next.
    /// Returns how many bytes of that one were written.
    pub(crate) fn connection_lost(&mut self) -> usize {
        let Some(front) = self.taken.front_mut() else { return 0 };
        let len = front.batch.byte_len();
        let frames = front.batch.advance(self.front_written);
        let whole = len - front.batch.byte_len();
        self.metrics.sent(u64::from(frames), whole as u64);
        std::mem::take(&mut self.front_written) - whole
    }

    /// The end: what is left here and in the queue is lost.
    pub(crate) fn abandon(mut self) {
        self.connection_lost();
        for taken in self.taken.drain(..) {
            self.metrics.dropped(DropReason::Shutdown, u64::from(taken.batch.frames()));
        }
        self.queue.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::observability::OutputLedger;
    use crate::queue::WhenFull;

    fn backlog() -> Backlog {
        let metrics = Arc::<LaneMetrics>::default();
        Backlog::new(
            Arc::new(Queue::new("test".to_owned(), 1 << 20, WhenFull::Block, Arc::clone(&metrics))),
            metrics,
        )
    }

    fn ledger(metrics: &LaneMetrics) -> OutputLedger {
        let mut ledger = OutputLedger::default();
        metrics.add_to(&mut ledger);
        assert!(ledger.balances());
        ledger
    }

    /// Frames of 14 bytes: `count` payloads "payload 00" and on.
    fn batch(first: u32, count: u32) -> FrameBatch {
        let payloads = (first..first + count).map(|number| Bytes::from(format!("payload {number:02}")));
        FrameBatch::from_payloads(payloads, Instant::now()).unwrap()
    }

    /// However the writes of dying connections fall, every frame is written whole on exactly one of them.
    #[tokio::test(flavor = "current_thread")]
    async fn a_frame_is_neither_cut_nor_sent_twice_wherever_connections_die() {
        let all: Vec<u8> = (0..3).flat_map(|n| batch(3 * n, 3).into_bytes()).collect();
        for first in 0..all.len() {
            for second in 0..all.len() {
                let mut backlog = backlog();
                for n in 0..3 {
                    backlog.queue.push(batch(3 * n, 3)).await;
                }
                let metrics = Arc::clone(&backlog.metrics);
                let queue = Arc::clone(&backlog.queue);
                let mut delivered = Vec::new();
                for dies_after in [first, second, usize::MAX] {
                    backlog.fill();
                    let stream: Vec<u8> = backlog.buffers().flatten().collect();
                    let written = stream.len().min(dies_after);
                    // In two writes, the second one of a part.
                    backlog.written(written / 2);
                    backlog.written(written - written / 2);
                    backlog.connection_lost();
                    // What a reader makes of it: whole frames.
                    delivered.extend_from_slice(&stream[..written / 14 * 14]);
                }
                assert_eq!(delivered, all, "{first} {second}");
                assert_eq!((ledger(&metrics).frames_sent, ledger(&metrics).frames_queued), (9, 0));
                assert_eq!(queue.charged(), 0);
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_left_at_the_end_is_counted_to_the_frame() {
        let mut backlog = backlog();
        backlog.queue.push(batch(0, 5)).await;
        backlog.fill();
        backlog.queue.push(batch(5, 5)).await;
        backlog.written(2 * 14 + 3);
        let metrics = Arc::clone(&backlog.metrics);
        backlog.abandon();
        let ledger = ledger(&metrics);
        assert_eq!((ledger.frames_sent, ledger.frames_dropped["shutdown"]), (2, 8));
    }
}
