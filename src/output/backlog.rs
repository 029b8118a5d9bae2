//! What an output has taken from its queue and not settled: what is to be written, and what was written and is not
//! acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::observability::MemberState;
use crate::observability::metrics::DropReason;
use crate::observability::metrics::LaneMetrics;
use crate::output::group::Share;
use crate::output::window::Prefix;
use crate::output::window::Taken;
use crate::output::window::Window;
use crate::queue::Queue;
use crate::queue::Queued;
use crate::queue::receipts::Receipt;
use crate::queue::receipts::ReceiptSender;
use crate::transport::sys::SEND_BUFFERS_MAX;

/// The consumer's end of a lane. A batch is settled when its last byte is written or, for an output that waits for
/// acknowledgements, when that is acknowledged. A connection that dies leaves the frames that were not for the next.
///
/// ```text
/// queue ─► again ─► taken ─► window ─► ending ─► settled
///          died     to be    written,  its stream waits
///          once     written  kept      for FINISH
/// ```
pub(crate) struct Backlog {
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<LaneMetrics>,
    // What comes next is dealt out by the group; `queue` is the one in front of it.
    share: Option<Share>,
    // Where a spool stands before the queue: who wants to know what is settled.
    receipts: Option<ReceiptSender>,
    // Whether batches are kept until they are acknowledged.
    keeps: bool,
    // What dead connections left, in order: written before what waits in the queue.
    again: VecDeque<Taken>,
    taken: VecDeque<Taken>,
    // Bytes of the first of `taken` that the present connection has got: front_written < its length.
    front_written: usize,
    window: Window,
    ending: Option<Window>,
    // When those were read that are settled since the ages were told.
    delivered: Vec<Instant>,
}

impl Backlog {
    /// A backlog whose batches are settled when they are written, or, if it `keeps` them, when they are acknowledged.
    pub(crate) fn new(
        queue: Arc<Queue>,
        receipts: Option<ReceiptSender>,
        metrics: Arc<LaneMetrics>,
        keeps: bool,
    ) -> Self {
        Self::with(queue, receipts, metrics, None, keeps)
    }

    /// The backlog of one member of a group.
    pub(crate) fn of_member(share: Share, metrics: Arc<LaneMetrics>, keeps: bool) -> Self {
        let (queue, receipts) = (Arc::clone(&share.group.front), share.group.receipts.clone());
        Self::with(queue, receipts, metrics, Some(share), keeps)
    }

    fn with(
        queue: Arc<Queue>,
        receipts: Option<ReceiptSender>,
        metrics: Arc<LaneMetrics>,
        share: Option<Share>,
        keeps: bool,
    ) -> Self {
        Self {
            queue,
            metrics,
            share,
            receipts,
            keeps,
            again: VecDeque::new(),
            taken: VecDeque::new(),
            front_written: 0,
            window: Window::default(),
            ending: None,
            delivered: Vec::new(),
        }
    }

    /// Takes what waits, as much as one write should have, if nothing is left to write.
    pub(crate) fn fill(&mut self) {
        let len_max = self.queue.write_len_max().min(self.queue_max());
        let mut len: usize = self.taken.iter().map(|taken| taken.batch.byte_len()).sum();
        while len < len_max && self.taken.len() < SEND_BUFFERS_MAX {
            let Some(taken) = self.next() else { break };
            len += taken.batch.byte_len();
            self.taken.push_back(taken);
        }
        self.tell_ages();
    }

    fn next(&mut self) -> Option<Taken> {
        self.again.pop_front().or_else(|| match &self.share {
            Some(share) => share.pop(),
            None => Some(Taken::new(self.queue.pop()?, 0)),
        })
    }

    /// Bytes of the queue that this lane may count on.
    pub(crate) fn queue_max(&self) -> usize {
        self.share.as_ref().map_or(self.queue.max(), Share::max)
    }

    /// How much of the queue may be held by this lane for any batch to pass.
    fn held_max(&self) -> usize {
        self.share.as_ref().map_or(self.queue.held_max(), Share::held_max)
    }

    /// Waits until [`Backlog::fill`] has something to take, or nothing will come. Cancel-safe. Pending for ever while
    /// only a FINISH can bring more.
    pub(crate) async fn ready(&self) {
        if !self.again.is_empty() {
            return;
        }
        match &self.share {
            Some(share) => share.ready().await,
            None => self.queue.ready().await,
        }
        if self.all_written() && self.ending.is_some() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether everything is written, no stream waits for FINISH and the queue is closed.
    pub(crate) fn nothing_to_come(&self) -> bool {
        self.all_written() && self.ending.is_none()
    }

    fn all_written(&self) -> bool {
        let queue_is_over = || match &self.share {
            Some(share) => share.is_over(),
            None => self.queue.is_closed() && self.queue.is_empty(),
        };
        self.taken.is_empty() && self.again.is_empty() && queue_is_over()
    }

    /// Waits until the other members of a group have written everything, and nothing will come. Cancel-safe. Pending for
    /// ever for a lane of its own.
    pub(crate) async fn written_by_others(&self) {
        match &self.share {
            Some(share) if self.ending.is_none() => share.over().await,
            _ => std::future::pending().await,
        }
    }

    /// A connection is there, past its handshake.
    pub(crate) fn connected(&self) {
        self.metrics.connected();
        if let Some(share) = &self.share {
            share.up();
        }
    }

    /// There is no connection, as before: other members get what this one has by now.
    pub(crate) fn give_back(&mut self) {
        self.disconnected(self.metrics.member_state());
    }

    /// There is no connection: other members get what this one has, but for the batches of a stream that waits for FINISH.
    pub(crate) fn disconnected(&mut self, state: MemberState) {
        if let Some(share) = &self.share {
            debug_assert!(self.taken.is_empty());
            share.down(state, self.again.drain(..));
            self.tell_ages();
        }
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
            && let Some(mut taken) = self.taken.pop_front()
        {
            written -= taken.batch.byte_len();
            let whole = taken.whole();
            self.count_sent(&mut taken, whole);
            if let Some(share) = &self.share {
                share.written(&taken);
            }
            if self.keeps {
                if !std::mem::replace(&mut taken.held, true) {
                    self.queue.hold(taken.charge);
                }
                self.window.push(taken);
            } else {
                self.settle(taken);
            }
        }
        self.front_written = written;
        self.tell_ages();
    }

    /// Counts the first frames of a batch as wholly written: as sent where they were not before, else as resent.
    fn count_sent(&self, taken: &mut Taken, written: Prefix) {
        let again = taken.sent.min(written);
        let first = written.minus(again);
        self.metrics.sent(u64::from(first.frames), first.bytes as u64);
        if self.keeps {
            self.metrics.unacknowledged(u64::from(first.frames));
            self.metrics.resent(u64::from(again.frames));
            if written.bytes > taken.sent.bytes {
                taken.sent = written;
            }
        }
    }

    /// Lets go of a batch for good: as far as this output wants to know, its frames have arrived.
    fn settle(&mut self, taken: Taken) {
        let Taken { batch, charge, place, .. } = taken;
        self.delivered.push(batch.read_at());
        if let (Some(receipts), Some(place)) = (&self.receipts, place) {
            receipts.send(Receipt::Settled(place));
        }
        if self.keeps {
            self.metrics.acknowledged(u64::from(batch.frames()));
            self.queue.release_held(charge);
        } else {
            self.queue.release(charge);
        }
    }

    /// Tells how old the oldest is that this lane has, and how long those stayed that it has settled. Once for each
    /// operation, not for each batch.
    fn tell_ages(&mut self) {
        let windows = self.ending.iter().chain(std::iter::once(&self.window));
        let firsts = windows.map(|window| window.batches().next());
        let firsts = firsts.chain([self.again.front(), self.taken.front()]).flatten();
        self.metrics.ages.oldest.set(firsts.map(|taken| taken.batch.read_at()).min());
        if !self.delivered.is_empty() {
            self.metrics.ages.delivered(self.delivered.drain(..), Instant::now());
        }
    }

    /// Bytes of data frames that the present connection has got.
    pub(crate) fn position(&self) -> u64 {
        self.window.end() + self.front_written as u64
    }

    /// What the queue charges for what the present connection has got and not acknowledged.
    pub(crate) fn unacknowledged_charge(&self) -> usize {
        self.window.charge()
    }

    /// Settles what the present connection has acknowledged: every byte before `position`.
    pub(crate) fn acknowledged(&mut self, position: u64) {
        self.window.acknowledge(position);
        while let Some(taken) = self.window.pop_acknowledged() {
            self.settle(taken);
        }
        self.tell_ages();
    }

    /// Settles what has arrived, every byte before `position`, but for the last `margin` bytes of it.
    pub(crate) fn arrived(&mut self, position: u64, margin: u64) {
        self.acknowledged(position.saturating_sub(margin));
        // A batch is charged with more than its bytes: a margin of short ones could fill the queue, and nothing would
        // ever take its place.
        while position >= self.position() && self.window.charge() > self.held_max() {
            let Some(taken) = self.window.pop() else { break };
            self.settle(taken);
        }
        self.tell_ages();
    }

    /// The present connection has acknowledged everything; the next begins at 0.
    pub(crate) fn finished(&mut self) {
        debug_assert!(self.taken.is_empty());
        let window = std::mem::take(&mut self.window);
        self.settle_all(window);
    }

    /// The present stream ends, everything that was taken is written, and another begins: what the old one has not
    /// acknowledged waits for its FINISH.
    pub(crate) fn end_stream(&mut self) {
        debug_assert!(self.taken.is_empty() && self.ending.is_none());
        self.ending = Some(std::mem::take(&mut self.window));
    }

    /// The stream that was ended is finished: all of it has arrived.
    pub(crate) fn ended_stream_finished(&mut self) {
        let window = self.ending.take().unwrap_or_default();
        self.settle_all(window);
    }

    /// The stream that was ended is not acknowledged: all of it is to be written again.
    pub(crate) fn ended_stream_lost(&mut self) {
        let window = self.ending.take().unwrap_or_default();
        self.write_again(window, VecDeque::new());
    }

    fn settle_all(&mut self, mut window: Window) {
        while let Some(taken) = window.pop() {
            self.settle(taken);
        }
        self.tell_ages();
    }

    /// The connection is gone: the next begins with the first frame that was not wholly written, or not acknowledged.
    /// Returns how many bytes of a frame were written in part.
    pub(crate) fn connection_lost(&mut self) -> usize {
        let mut taken = std::mem::take(&mut self.taken);
        let mut window = std::mem::take(&mut self.window);
        let front_written = std::mem::take(&mut self.front_written);
        let mut cut = 0;
        if let Some(front) = taken.front_mut() {
            let whole = front.prefix(front_written);
            self.count_sent(front, whole);
            cut = front_written - whole.bytes;
            if !self.keeps {
                window.acknowledge(whole.bytes as u64);
            }
        }
        self.write_again(window, taken);
        cut
    }

    /// Puts what a dead connection has got, and what was taken for it, before everything else.
    fn write_again(&mut self, window: Window, taken: VecDeque<Taken>) {
        if let Some(share) = &self.share {
            window.batches().for_each(|taken| share.write_again(taken));
        }
        let (mut rest, acknowledged) = window.into_unacknowledged();
        rest.extend(taken);
        if let Some(first) = rest.front_mut() {
            let gone = first.advance(acknowledged);
            if self.keeps {
                self.metrics.acknowledged(u64::from(gone.frames));
            }
        }
        rest.append(&mut self.again);
        self.again = rest;
    }

    /// The end: what is left here and in the queue, and was never written, is lost, unless a spool keeps it. Returns how
    /// many frames were written and are not acknowledged; for a member of a group 0: the group accounts for what it gave
    /// back.
    pub(crate) fn abandon(mut self) -> u64 {
        self.connection_lost();
        self.ended_stream_lost();
        if self.share.is_some() {
            self.give_back();
            return 0;
        }
        leave(self.again.drain(..), &self.queue, self.receipts.as_ref(), &self.metrics);
        self.tell_ages();
        self.metrics.unacknowledged_now()
    }
}

/// The end of a lane, or of a group: gives these batches and what is in the queue to the keeper of the spool, or counts
/// what nobody has got of them as lost.
pub(crate) fn leave(
    batches: impl IntoIterator<Item = Taken>,
    queue: &Queue,
    receipts: Option<&ReceiptSender>,
    metrics: &LaneMetrics,
) {
    let queued = std::iter::from_fn(|| Some(Taken::new(queue.pop()?, 0)));
    for taken in batches.into_iter().chain(queued) {
        let frames_never_sent = u64::from(taken.batch.frames() - taken.sent.frames);
        match receipts {
            Some(receipts) => {
                let Taken { batch, upstream, place, .. } = taken;
                let queued = Queued { upstream, batch, place };
                receipts.send(Receipt::Left { queued, frames_never_sent });
            }
            None => metrics.dropped(DropReason::Shutdown, frames_never_sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observability::OutputLedger;
    use crate::observability::age::AgeSum;
    use crate::protocol::FrameBatch;
    use crate::queue::WhenFull;

    fn backlog(keeps: bool) -> Backlog {
        let metrics = Arc::<LaneMetrics>::default();
        Backlog::new(
            Arc::new(Queue::new("test".to_owned(), 1 << 20, WhenFull::Block, Arc::clone(&metrics))),
            None,
            metrics,
            keeps,
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

    fn queued(batch: FrameBatch) -> Queued {
        Queued { upstream: 0, batch, place: None }
    }

    /// Age of the oldest that is not settled, in seconds, and how many batches are.
    fn ages(metrics: &LaneMetrics, now: Instant) -> (Option<u64>, u64) {
        let mut sum = AgeSum::new();
        sum.add(&metrics.ages);
        (sum.oldest_age_us(now).map(|us| us / 1_000_000), sum.residence().batches)
    }

    /// Through a connection that dies and a stream that is ended, the oldest is the first that is not acknowledged.
    #[tokio::test(flavor = "current_thread")]
    async fn a_batch_ages_until_it_is_settled_wherever_it_is_meanwhile() {
        let now = Instant::now();
        let mut backlog = backlog(true);
        let metrics = Arc::clone(&backlog.metrics);
        for seconds in [40, 30, 20, 10] {
            let read_at = now - Duration::from_secs(seconds);
            let batch = FrameBatch::from_payloads(["payload 00"], read_at).unwrap();
            backlog.queue.push(queued(batch)).await;
        }
        assert_eq!(ages(&metrics, now), (None, 0), "nothing is taken");
        backlog.fill();
        assert_eq!(ages(&metrics, now), (Some(40), 0));
        backlog.written(2 * 14 + 1);
        assert_eq!(ages(&metrics, now), (Some(40), 0), "written, and not acknowledged");
        backlog.acknowledged(14);
        assert_eq!(ages(&metrics, now), (Some(30), 1));
        backlog.connection_lost();
        assert_eq!(ages(&metrics, now + Duration::from_secs(60)), (Some(90), 1));
        backlog.fill();
        backlog.written(3 * 14);
        backlog.end_stream();
        assert_eq!(ages(&metrics, now), (Some(30), 1), "waits for FINISH");
        backlog.ended_stream_finished();
        assert_eq!(ages(&metrics, now), (None, 4));
        let mut sum = AgeSum::new();
        sum.add(&metrics.ages);
        let residence = sum.residence();
        assert!(residence.p50_us >= 20_000_000 && residence.max_us >= 40_000_000, "{residence:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_given_up_at_the_end_has_no_age_and_was_not_delivered() {
        let mut backlog = backlog(false);
        let metrics = Arc::clone(&backlog.metrics);
        backlog.queue.push(queued(batch(0, 2))).await;
        backlog.queue.push(queued(batch(2, 2))).await;
        backlog.fill();
        backlog.written(2 * 14 + 3);
        assert_eq!(ages(&metrics, Instant::now()), (Some(0), 1));
        backlog.abandon();
        assert_eq!(ages(&metrics, Instant::now()), (None, 1));
    }

    /// However the writes of dying connections fall, every frame is written whole on exactly one of them.
    #[tokio::test(flavor = "current_thread")]
    async fn a_frame_is_neither_cut_nor_sent_twice_wherever_connections_die() {
        let all: Vec<u8> = (0..3).flat_map(|n| batch(3 * n, 3).into_bytes()).collect();
        for first in 0..all.len() {
            for second in 0..all.len() {
                let mut backlog = backlog(false);
                for n in 0..3 {
                    backlog.queue.push(queued(batch(3 * n, 3))).await;
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
        let mut backlog = backlog(false);
        backlog.queue.push(queued(batch(0, 5))).await;
        backlog.fill();
        backlog.queue.push(queued(batch(5, 5))).await;
        backlog.written(2 * 14 + 3);
        let metrics = Arc::clone(&backlog.metrics);
        backlog.abandon();
        let ledger = ledger(&metrics);
        assert_eq!((ledger.frames_sent, ledger.frames_dropped["shutdown"]), (2, 8));
    }

    /// What one connection made of a backlog: the bytes that it was given, of which it took `written`.
    fn connection(backlog: &mut Backlog, written: usize) -> Vec<u8> {
        let mut stream = Vec::new();
        while stream.len() < written {
            backlog.fill();
            let given: Vec<u8> = backlog.buffers().flatten().collect();
            if given.is_empty() {
                break;
            }
            let taken = given.len().min(written - stream.len());
            stream.extend_from_slice(&given[..taken]);
            backlog.written(taken);
        }
        stream
    }

    /// Wherever a connection dies and however much it had acknowledged: the next begins with the first frame that it had
    /// not wholly acknowledged, and everything adds up at every step.
    #[tokio::test(flavor = "current_thread")]
    async fn what_a_dead_connection_had_not_acknowledged_comes_again_wherever_it_dies() {
        let all: Vec<u8> = (0..3).flat_map(|n| batch(3 * n, 3).into_bytes()).collect();
        for written in 0..=all.len() {
            for acknowledged in 0..=written {
                let mut backlog = backlog(true);
                for n in 0..3 {
                    backlog.queue.push(queued(batch(3 * n, 3))).await;
                }
                let metrics = Arc::clone(&backlog.metrics);
                let queue = Arc::clone(&backlog.queue);
                let case = format!("{written} {acknowledged}");
                let frames = |bytes: usize| bytes as u64 / 14;

                assert_eq!(connection(&mut backlog, written), all[..written], "{case}");
                // In two looks, the first of which saw less.
                backlog.acknowledged(acknowledged as u64 / 2);
                backlog.acknowledged(acknowledged as u64);
                backlog.connection_lost();
                let after = ledger(&metrics);
                assert_eq!(after.frames_sent, frames(written), "{case}");
                assert_eq!(after.bytes_sent, 14 * after.frames_sent, "{case}");
                assert_eq!(after.frames_acknowledged, frames(acknowledged), "{case}");
                assert_eq!(after.frames_unacknowledged, frames(written) - frames(acknowledged), "{case}");

                let rest = acknowledged / 14 * 14;
                assert_eq!(connection(&mut backlog, usize::MAX), all[rest..], "{case}");
                let again = ledger(&metrics);
                assert_eq!((again.frames_sent, again.bytes_sent), (9, all.len() as u64), "{case}");
                assert_eq!(again.frames_resent, frames(written) - frames(acknowledged), "{case}");
                assert_eq!(again.frames_acknowledged + again.frames_unacknowledged, 9, "{case}");
                assert!(acknowledged == all.len() || queue.charged() > 0, "{case}");
                backlog.finished();
                assert_eq!(ledger(&metrics).frames_acknowledged, 9, "{case}");
                assert_eq!(queue.charged(), 0, "{case}");
                assert_eq!(backlog.abandon(), 0, "{case}");
            }
        }
    }

    /// A batch of which a part was sent is sent again by a connection that dies too: each frame counts once as sent, and
    /// as resent as often as it was.
    #[tokio::test(flavor = "current_thread")]
    async fn frames_count_once_as_sent_and_each_time_as_resent() {
        for first in 0..=5 * 14 {
            for second in 0..=5 * 14 {
                let mut backlog = backlog(true);
                backlog.queue.push(queued(batch(0, 5))).await;
                let metrics = Arc::clone(&backlog.metrics);
                for written in [first, second] {
                    connection(&mut backlog, written);
                    backlog.connection_lost();
                }
                let (first, second) = (first as u64 / 14, second as u64 / 14);
                let got = ledger(&metrics);
                assert_eq!((got.frames_sent, got.frames_resent), (first.max(second), first.min(second)));
                assert_eq!(got.frames_unacknowledged, got.frames_sent);
                assert_eq!(backlog.abandon(), got.frames_sent);
                let end = ledger(&metrics);
                let never_sent = end.frames_dropped.get("shutdown").copied().unwrap_or_default();
                assert_eq!((end.frames_sent, never_sent), (got.frames_sent, 5 - got.frames_sent));
            }
        }
    }

    /// Or a margin of many short batches, each charged with more than its bytes, would be all that there is for ever.
    #[tokio::test(flavor = "current_thread")]
    async fn a_margin_gives_way_before_it_fills_the_queue() {
        let mut backlog = backlog(true);
        let max = backlog.queue.max();
        let mut kept_max = 0;
        for number in 0..20_000 {
            let pushed = backlog.queue.push(queued(batch(number % 100, 1)));
            tokio::time::timeout(Duration::from_secs(5), pushed).await.expect("there is room");
            connection(&mut backlog, 14);
            // In the middle of the margin nothing changes.
            backlog.arrived(backlog.position() - 1, max as u64 / 4);
            kept_max = kept_max.max(backlog.queue.charged());
            backlog.arrived(backlog.position(), max as u64 / 4);
            assert!(backlog.queue.charged() <= max / 2);
        }
        assert!(kept_max > max / 2, "the queue was never half full: {kept_max}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_ended_stream_is_settled_by_its_finish_and_comes_again_without_it() {
        for finished in [true, false] {
            let mut backlog = backlog(true);
            backlog.queue.push(queued(batch(0, 3))).await;
            connection(&mut backlog, usize::MAX);
            backlog.end_stream();
            backlog.queue.push(queued(batch(3, 3))).await;
            // One and a half frames of the next stream.
            connection(&mut backlog, 21);
            backlog.queue.close();
            let metrics = Arc::clone(&backlog.metrics);
            assert_eq!((ledger(&metrics).frames_sent, ledger(&metrics).frames_unacknowledged), (3, 3));
            if finished {
                backlog.ended_stream_finished();
            } else {
                backlog.ended_stream_lost();
            }
            backlog.connection_lost();
            let acknowledged = if finished { 3 } else { 0 };
            assert_eq!(ledger(&metrics).frames_acknowledged, acknowledged);
            assert_eq!(ledger(&metrics).frames_unacknowledged, 4 - acknowledged);
            assert!(!backlog.nothing_to_come());
            let stream = connection(&mut backlog, usize::MAX);
            // The present stream was the younger one, but died after the older: it is first.
            let expected = if finished { vec![batch(3, 3)] } else { vec![batch(3, 3), batch(0, 3)] };
            assert_eq!(stream, expected.into_iter().flat_map(FrameBatch::into_bytes).collect::<Vec<u8>>());
            backlog.finished();
            assert!(backlog.nothing_to_come());
            assert_eq!((ledger(&metrics).frames_sent, ledger(&metrics).frames_unacknowledged), (6, 0));
            assert_eq!(ledger(&metrics).frames_resent, if finished { 1 } else { 4 });
        }
    }
}
