//! From one connection to every lane that takes its content type.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use crate::batch::connection::ConnectionId;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::queue::takers::Takers;

/// The entrance of a lane, or of all lanes of an output whose readers come and go, as inputs see it.
#[derive(Clone, Debug)]
pub(crate) struct Inlet {
    /// `None`: streams without a type.
    pub(crate) content_type: Option<ContentType>,
    pub(crate) frame_len_max: u32,
    pub(crate) queues: Queues,
}

/// Where the frames go that enter.
#[derive(Clone, Debug)]
pub(crate) enum Queues {
    /// Into the queue of a lane, which has this account.
    One(Arc<Queue>, Arc<OutputAccount>),
    /// Into those of whoever is there. None of them waits.
    Takers(Arc<Takers>),
}

/// The lanes of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Fanout {
    connection: ConnectionId,
    // Lanes that may block come last: they delay the next read, not the other lanes.
    inlets: Vec<Inlet>,
    batch_len_max: usize,
}

impl Fanout {
    /// The lanes that take `content_type`, for one connection; `None`: a stream without a type.
    pub(crate) fn new(inlets: &[Inlet], content_type: Option<&ContentType>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::of(ConnectionId::new(NEXT.fetch_add(1, Ordering::Relaxed)), inlets, content_type)
    }

    /// The lanes of the same connection, when there are others.
    pub(crate) fn renew(&self, inlets: &[Inlet], content_type: Option<&ContentType>) -> Self {
        Self::of(self.connection, inlets, content_type)
    }

    fn of(connection: ConnectionId, inlets: &[Inlet], content_type: Option<&ContentType>) -> Self {
        let takes = |inlet: &&Inlet| inlet.content_type.as_ref() == content_type;
        let mut inlets: Vec<_> = inlets.iter().filter(takes).cloned().collect();
        inlets.sort_by_key(Inlet::may_block);
        let batch_len_max = inlets.iter().map(Inlet::write_len_max).min().unwrap_or(usize::MAX);
        Self { connection, inlets, batch_len_max }
    }

    /// Whether nobody takes this content type.
    pub(crate) fn is_empty(&self) -> bool {
        self.inlets.is_empty()
    }

    /// Most bytes that one batch should have: a part of the smallest queue, so that its policy has something to choose
    /// from.
    pub(crate) fn batch_len_max(&self) -> usize {
        self.batch_len_max
    }

    /// Waits a moment for lanes that are behind and keep up. Cancel-safe.
    pub(crate) async fn wait_for_consumers(&self) {
        for inlet in &self.inlets {
            match &inlet.queues {
                Queues::One(queue, _) => queue.wait_for_consumer().await,
                Queues::Takers(takers) => takers.wait_for_consumers().await,
            }
        }
    }

    /// Gives a batch to every lane: a reference each. Waits only for lanes whose policy is to block. Returns whether every lane
    /// has taken it or has lost it by a rule: `false` when the relay ended before.
    pub(crate) async fn deliver(&self, batch: FrameBatch) -> bool {
        let mut taken = true;
        for inlet in &self.inlets {
            taken &= match &inlet.queues {
                Queues::One(queue, _) if batch.payload_len_max() <= inlet.frame_len_max => {
                    queue.push(batch.clone(), self.connection).await
                }
                Queues::One(queue, account) => {
                    let short = inlet.short_frames(&batch);
                    short.deliver(queue, account, self.connection).await
                }
                Queues::Takers(takers) => inlet.deliver_to_takers(takers, &batch, self.connection).await,
            };
        }
        taken
    }
}

impl Inlet {
    fn may_block(&self) -> bool {
        match &self.queues {
            Queues::One(queue, _) => queue.when_full() == WhenFull::Block,
            Queues::Takers(_) => false,
        }
    }

    fn write_len_max(&self) -> usize {
        match &self.queues {
            Queues::One(queue, _) => queue.write_len_max(),
            Queues::Takers(takers) => takers.write_len_max(),
        }
    }

    async fn deliver_to_takers(&self, takers: &Takers, batch: &FrameBatch, connection: ConnectionId) -> bool {
        let present = takers.present();
        if present.is_empty() {
            return true;
        }
        let frames = if batch.payload_len_max() <= self.frame_len_max {
            ShortFrames { frames: Some(batch.clone()), too_long: 0 }
        } else {
            self.short_frames(batch)
        };
        let mut taken = true;
        for taker in present.iter() {
            taken &= frames.deliver(&taker.queue, &taker.account, connection).await;
        }
        taken
    }

    /// Leaves out the frames that are too long for this output: most collectors close the connection on them. The others are
    /// copied: they would keep the memory of the long ones.
    fn short_frames(&self, batch: &FrameBatch) -> ShortFrames {
        let (frames, too_long) = batch.copy_without_longer_than(self.frame_len_max);
        ShortFrames { frames, too_long: u64::from(too_long) }
    }
}

/// Frames that are not too long for an output, and how many others there were.
struct ShortFrames {
    frames: Option<FrameBatch>,
    too_long: u64,
}

impl ShortFrames {
    async fn deliver(&self, queue: &Queue, account: &OutputAccount, connection: ConnectionId) -> bool {
        if self.too_long > 0 {
            account.turned_away(DropReason::FrameTooLong, self.too_long);
        }
        match &self.frames {
            Some(frames) => queue.push(frames.clone(), connection).await,
            None => true,
        }
    }
}

#[cfg(test)]
impl Fanout {
    pub(crate) fn lanes(&self) -> usize {
        self.inlets.len()
    }

    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::batch::Batch;
    use crate::batch::tests::ledger;

    pub(crate) fn inlet(content_type: &'static str, frame_len_max: u32) -> Inlet {
        let account = Arc::<OutputAccount>::default();
        let queue = Arc::new(Queue::new(1 << 20, WhenFull::DropOldest, Arc::clone(&account)));
        let content_type = ContentType::try_from(content_type).ok();
        Inlet { content_type, frame_len_max, queues: Queues::One(queue, account) }
    }

    fn lane(inlet: &Inlet) -> (&Arc<Queue>, &Arc<OutputAccount>) {
        let Queues::One(queue, account) = &inlet.queues else { panic!("{inlet:?}") };
        (queue, account)
    }

    #[test]
    fn a_stream_goes_to_the_outputs_of_its_type_alone() {
        let inlets = [inlet("a", 100), inlet("b", 100), inlet("a", 100)];
        let lanes = |name: &str| Fanout::new(&inlets, ContentType::try_from(name).ok().as_ref()).lanes();
        assert_eq!((lanes("a"), lanes("b"), lanes("c")), (2, 1, 0));
        assert!(Fanout::new(&inlets, None).is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn frames_that_are_too_long_for_an_output_are_left_out_and_counted_there_alone() {
        let inlets = [inlet("a", 3), inlet("a", 100)];
        let fanout = Fanout::new(&inlets, inlets[0].content_type.as_ref());
        let payloads = ["abc", "abcd", "x"].map(|text| Bytes::from_static(text.as_bytes()));
        assert!(fanout.deliver(FrameBatch::from_payloads(payloads, Instant::now()).unwrap()).await);
        let frames = |inlet: &Inlet| {
            let take = |batch: Batch| {
                let frames = batch.frames().frames();
                batch.dropped(DropReason::Shutdown);
                frames
            };
            std::iter::from_fn(|| lane(inlet).0.pop()).map(take).sum::<u32>()
        };
        assert_eq!((frames(&inlets[0]), frames(&inlets[1])), (2, 3));
        let ledger = ledger(lane(&inlets[0]).1);
        assert_eq!((ledger.frames_received, ledger.frames_dropped["frame_too_long"]), (3, 1));
    }
}
