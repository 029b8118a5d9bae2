//! What one endpoint has of the frames: what is to be written, and what was written and is not acknowledged.
//!
//! ```text
//! pending ─► unacknowledged ─► delivered
//!   to be      written, kept
//!   written
//! ```
//!
//! When its stream dies, what is not acknowledged goes back to where it came from, in order, and to whoever is there next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::delivery::item::Item;
use crate::delivery::shared::RefusedFrame;
use crate::delivery::shared::Shared;
use crate::delivery::unacknowledged::Unacknowledged;
use crate::observability::member_account::MemberAccount;

/// The batches of one endpoint.
#[derive(Debug)]
pub(super) struct InFlight {
    member: usize,
    // Of a group.
    account: Option<Arc<MemberAccount>>,
    pending: VecDeque<Item>,
    // The first batches of `pending` that the write under way covers; 0: no write is under way.
    in_write: usize,
    // Bytes of the first of `pending` that the present stream has got: less than its length.
    front_written: usize,
    // Bytes of data frames that the present stream has got.
    stream_written: u64,
    unacknowledged: Unacknowledged,
    // When the batches were read that this member of a group has delivered since the ages were told.
    delivered: Vec<Instant>,
}

impl InFlight {
    pub(super) fn new(member: usize, account: Option<Arc<MemberAccount>>) -> Self {
        Self {
            member,
            account,
            pending: VecDeque::new(),
            in_write: 0,
            front_written: 0,
            stream_written: 0,
            unacknowledged: Unacknowledged::default(),
            delivered: Vec::new(),
        }
    }

    /// Takes a batch, to be written in the order of numbers.
    pub(super) fn take(&mut self, item: Item) {
        if let Some(account) = &self.account {
            account.unacknowledged(i64::from(item.batch.sent_frames()));
        }
        // What came back goes before what is younger, but not into the write under way.
        let rest = self.pending.iter().skip(self.in_write);
        let younger = rest.rev().take_while(|other| other.number > item.number).count();
        self.pending.insert(self.pending.len() - younger, item);
    }

    /// Drops the first of what is to be written, as far as it is too old. What is being written goes on.
    pub(super) fn drop_old(&mut self, shared: &mut Shared, now: Instant) {
        while !self.is_writing()
            && self.pending.front().is_some_and(|item| shared.is_too_old(&item.batch, now))
            && let Some(item) = self.pending.pop_front()
        {
            shared.balancer.written(self.member, item.batch.connection, item.batch.charge() as u64);
            if let Some(account) = &self.account {
                account.unacknowledged(-i64::from(item.batch.sent_frames()));
            }
            shared.drop_old(item.batch);
        }
    }

    /// Whether there is something to write.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.in_write > 0
    }

    /// Bytes of data frames that the present stream has got.
    pub(super) fn stream_written(&self) -> u64 {
        self.stream_written
    }

    /// What the queue charges for what the present stream has got and not acknowledged.
    pub(super) fn unacknowledged_charge(&self) -> usize {
        self.unacknowledged.charge()
    }

    /// When the oldest batch was read.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let pending = self.pending.front().map(|item| item.batch.read_at());
        [self.unacknowledged.oldest(), pending].into_iter().flatten().min()
    }

    /// Tells how long those batches stayed that this member of a group has delivered since the last call.
    pub(super) fn tell_delivered(&mut self, now: Instant) {
        if let Some(account) = self.account.as_ref().filter(|_| !self.delivered.is_empty()) {
            account.ages.delivered(self.delivered.drain(..), now);
        }
    }

    /// Whether the present stream brings nothing yet, and its first frame would be left out if the reader ended this
    /// connection at it too.
    pub(super) fn begins_with_last_chance(&self, shared: &Shared) -> bool {
        let first = self.pending.front().filter(|_| self.stream_written == 0);
        first.is_some_and(|first| first.breaks + 1 >= shared.breaks_max)
    }

    /// Whether what the present stream has got ends with a frame that was written alone.
    pub(super) fn last_is_alone(&self) -> bool {
        self.unacknowledged.items().next_back().is_some_and(|last| last.alone)
    }

    /// Sets the first frame apart, if frames are written alone.
    fn set_apart_first(&mut self, shared: &mut Shared) {
        let Some(first) = self.pending.front_mut().filter(|first| shared.alone > 0 && !first.alone) else {
            return;
        };
        shared.alone -= 1;
        if let Some(rest) = first.set_apart_first() {
            // One batch more: its bytes are counted already.
            shared.balancer.unwritten(self.member, rest.batch.connection, 0);
            self.pending.insert(1, rest);
        }
    }

    /// Begins a write of as many batches as one write takes, one at least.
    pub(super) fn begin_write(&mut self, shared: &mut Shared) {
        self.set_apart_first(shared);
        let len_max = shared.config.write_len_max;
        let mut len = 0;
        let fits = |item: &&Item| {
            let first = len == 0;
            len += item.batch.byte_len();
            first || len <= len_max
        };
        self.in_write = self.pending.iter().take(WRITE_BATCHES_MAX).take_while(fits).count();
        if let Some(alone) = self.pending.iter().take(self.in_write).position(|item| item.alone) {
            self.in_write = alone.max(1);
        }
    }

    /// Bytes at the end of the present stream that are a part of a frame.
    pub(super) fn cut_len(&self) -> usize {
        let whole = self.pending.front().map_or(0, |front| front.batch.whole_len(self.front_written));
        self.front_written - whole
    }

    /// The bytes of the write that begins now.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Bytes> {
        debug_assert_eq!(self.front_written, 0);
        self.pending.iter().take(self.in_write).map(|item| item.batch.frames().bytes().clone())
    }

    /// The present stream has got `count` more bytes of the write under way.
    pub(super) fn written(&mut self, count: usize, shared: &mut Shared) {
        let kept = shared.config.keeps();
        let mut written = self.front_written + count;
        self.stream_written += count as u64;
        while self.in_write > 0
            && let Some(front) = self.pending.front()
            && front.batch.byte_len() <= written
            && let Some(mut item) = self.pending.pop_front()
        {
            self.in_write -= 1;
            written -= item.batch.byte_len();
            self.count_written(&mut item, usize::MAX, shared);
            shared.balancer.written(self.member, item.batch.connection, item.batch.charge() as u64);
            if kept {
                item.batch.custody.hold();
                self.unacknowledged.push(item);
            } else {
                self.settle(item, shared);
            }
        }
        self.front_written = written;
    }

    /// No more of the write under way will be written.
    pub(super) fn give_up_write(&mut self) {
        self.in_write = 0;
    }

    /// The present stream ends with whole batches, and another begins: returns what waits for the FINISH of the present one.
    pub(super) fn end_stream(&mut self) -> Unacknowledged {
        debug_assert_eq!(self.front_written, 0);
        self.stream_written = 0;
        std::mem::take(&mut self.unacknowledged)
    }

    /// Counts the frames within the first `bytes` bytes of a batch as wholly written.
    fn count_written(&self, item: &mut Item, bytes: usize, shared: &Shared) {
        let kept = shared.config.keeps();
        let written = item.batch.written(bytes, kept);
        shared.account.resent(u64::from(written.again));
        if let Some(account) = &self.account {
            let first = written.first;
            account.sent(u64::from(first.frames), first.bytes as u64, u64::from(written.again));
            account.unacknowledged(if kept { i64::from(first.frames) } else { 0 });
        }
    }

    fn settle(&mut self, item: Item, shared: &mut Shared) {
        if let Some(account) = &self.account {
            self.delivered.push(item.batch.read_at());
            if shared.config.keeps() {
                account.acknowledged(u64::from(item.batch.frames().frames()));
            }
        }
        shared.settle(item.batch);
    }

    /// Settles all that a stream had, in order.
    pub(super) fn settle_all(&mut self, mut unacknowledged: Unacknowledged, shared: &mut Shared) {
        while let Some(item) = unacknowledged.pop() {
            self.settle(item, shared);
        }
    }

    /// Settles what has arrived, every byte before `position`, except the last `margin` bytes of it.
    pub(super) fn arrived(&mut self, position: u64, margin: u64, shared: &mut Shared) {
        self.unacknowledged.acknowledge(position.saturating_sub(margin));
        while let Some(item) = self.unacknowledged.pop_acknowledged() {
            self.settle(item, shared);
        }
        // A batch is charged with more than its bytes: a margin of short ones could fill the queue, and nothing would
        // ever take its place.
        let held_max = shared.config.held_max / shared.config.weights.len();
        while position >= self.stream_written && self.unacknowledged.charge() > held_max {
            let Some(item) = self.unacknowledged.pop() else { break };
            self.settle(item, shared);
        }
    }

    /// Gives back what the present stream has got and not acknowledged, and what was to be written to it. `by_peer`: the peer
    /// has ended it. `has_arrived`: whether the reader is known to have got so many bytes of the stream.
    pub(super) fn connection_lost(
        &mut self,
        shared: &mut Shared,
        by_peer: bool,
        has_arrived: impl Fn(u64) -> bool,
    ) {
        let kept = shared.config.keeps();
        // Where the first frame begins in the stream that is to be written again.
        let mut first_at = self.unacknowledged.start();
        let (mut items, mut acknowledged) = std::mem::take(&mut self.unacknowledged).into_parts();
        if let Some(mut front) = self.pending.pop_front() {
            let partly = std::mem::take(&mut self.front_written);
            self.count_written(&mut front, partly, shared);
            if !kept {
                acknowledged = partly;
                first_at = self.stream_written - partly as u64;
            }
            self.pending.push_front(front);
        }
        self.in_write = 0;
        let first = items.front_mut().or_else(|| self.pending.front_mut());
        if let Some(first) = first {
            let len = first.batch.byte_len();
            let (frames, forget) = first.batch.advance(acknowledged);
            shared.acknowledged.extend(forget);
            if frames > 0 {
                shared.frames_arrive();
            }
            first_at += (len - first.batch.byte_len()) as u64;
            if let Some(account) = self.account.as_ref().filter(|_| kept) {
                account.acknowledged(u64::from(frames));
            }
            let first_end = first_at + first.batch.first_len() as u64;
            if by_peer && self.stream_written > first_end {
                shared.unexplained_break();
            } else if by_peer {
                let got_a_part = self.stream_written > first_at;
                let sent = first.batch.sent_frames();
                refuse_after_breaks(first, got_a_part && !has_arrived(first_end), shared);
                if let Some(account) = &self.account {
                    account.unacknowledged(i64::from(first.batch.sent_frames()) - i64::from(sent));
                }
            }
        }
        if items
            .front()
            .or_else(|| self.pending.front())
            .is_some_and(|first| first.batch.frames().frames() == 0)
        {
            let emptied = items.pop_front().or_else(|| {
                let item = self.pending.pop_front()?;
                shared.balancer.written(self.member, item.batch.connection, item.batch.charge() as u64);
                Some(item)
            });
            if let Some(item) = emptied {
                self.settle(item, shared);
            }
        }
        self.give_back(items, shared);
        self.give_back_pending(shared);
        self.stream_written = 0;
    }

    /// Gives back what was to be written.
    pub(super) fn give_back_pending(&mut self, shared: &mut Shared) {
        let pending = std::mem::take(&mut self.pending);
        for item in &pending {
            shared.balancer.written(self.member, item.batch.connection, item.batch.charge() as u64);
        }
        self.give_back(pending, shared);
    }

    /// A stream is not acknowledged: gives back all that it had.
    pub(super) fn give_back_stream(&self, unacknowledged: Unacknowledged, shared: &mut Shared) {
        self.give_back(unacknowledged.into_parts().0, shared);
    }

    fn give_back(&self, items: VecDeque<Item>, shared: &mut Shared) {
        for item in items {
            if let Some(account) = &self.account {
                account.given_back(u64::from(item.batch.frames().frames()));
                account.unacknowledged(-i64::from(item.batch.sent_frames()));
            }
            shared.waiting.insert(item.number, item);
        }
    }
}

/// Notes that a reader ended its connection, which had got nothing behind the first frame of this batch. `may_be_why`: it got a
/// part of that frame at least, and has not taken all of it.
///
/// If that happens [`Shared::breaks_max`] times in a row at one frame, and the last connection stood as long as nothing was
/// written to it, the frame is left out: nothing behind it would ever move. Where a connection had got more, nobody knows
/// which frame it was; soon frames are written alone, and then it shows. A reader that ends every connection whatever it gets
/// costs no frame.
fn refuse_after_breaks(item: &mut Item, may_be_why: bool, shared: &mut Shared) {
    let left = item.batch.frames().frames();
    item.breaks = match may_be_why {
        false => 0,
        true if left == item.broke_with => item.breaks + 1,
        true => 1,
    };
    item.broke_with = left;
    if item.breaks >= shared.breaks_max && left > 0 {
        let (len, forget) = item.batch.refuse_first();
        shared.acknowledged.extend(forget);
        shared.leaves_out(RefusedFrame { len, breaks: item.breaks });
        item.breaks = 0;
    }
}

/// Most buffers of one write: the kernel's limit for one `sendmsg`.
const WRITE_BATCHES_MAX: usize = 1024;
