//! One endpoint of an output: its connection, what is to be written to it, and what it has not acknowledged.
//!
//! ```text
//! pending ─► unacknowledged ─► ending ─► delivered
//!   to be      written, kept    its stream waits
//!   written                     for FINISH
//! ```
//!
//! A connection that dies gives everything back that it has not acknowledged: the batches go to whoever is there next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::backoff::Backoff;
use crate::delivery::checkpoint::CheckpointTimer;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::Order;
use crate::delivery::item::Item;
use crate::delivery::probe::AckProbe;
use crate::delivery::shared::RefusedFrame;
use crate::delivery::shared::Shared;
use crate::delivery::stall::Stall;
use crate::delivery::unacknowledged::Unacknowledged;
use crate::lifecycle::Phase;
use crate::observability::MemberState;
use crate::observability::member_account::MemberAccount;

#[derive(Debug)]
pub(super) struct Endpoint {
    index: usize,
    // Of a group.
    account: Option<Arc<MemberAccount>>,
    link: Link,
    backoff: Backoff,
    pending: VecDeque<Item>,
    // The first batches of `pending` that the write under way covers; 0: no write is under way.
    in_write: usize,
    // Bytes of the first of `pending` that the present stream has got: less than its length.
    front_written: usize,
    // Bytes of data frames that the present stream has got.
    stream_written: u64,
    interrupted: bool,
    unacknowledged: Unacknowledged,
    // The stream before the present one.
    ending: Option<Ending>,
    // The connection that is opened ahead, for a checkpoint.
    next: Option<Next>,
    checkpoint: Option<CheckpointTimer>,
    probe: Option<AckProbe>,
    stall: Option<Stall>,
    // The last stream was not a good one: the share of this member grows from a small one.
    returns: bool,
    // While the relay ends, a stream has broken, or has ended without FINISH: another one is tried, once.
    last_chance_used: bool,
    rotates: bool,
    // When the batches were read that this member of a group has delivered since the ages were told.
    delivered: Vec<Instant>,
}

/// What there is of a connection.
#[derive(Clone, Copy, Debug)]
enum Link {
    /// The next attempt comes at this time.
    Down { retry_at: Instant },
    /// Until the deadline.
    Connecting { stream: StreamId, deadline: Instant },
    /// Past the handshake.
    Up { stream: StreamId, since: Instant },
    /// STOP was asked for; until the deadline. `last`: nothing is left to write.
    Stopping { stream: StreamId, since: Instant, deadline: Instant, last: bool, arriving: bool },
    /// No connection is wanted. `gave_up`: not even for what others give back.
    Ended { gave_up: bool },
}

#[derive(Debug)]
struct Ending {
    stream: StreamId,
    unacknowledged: Unacknowledged,
    deadline: Instant,
}

#[derive(Debug)]
struct Next {
    stream: StreamId,
    deadline: Instant,
    connected: bool,
}

impl Endpoint {
    pub(super) fn new(
        index: usize,
        account: Option<Arc<MemberAccount>>,
        shared: &Shared,
        now: Instant,
    ) -> Self {
        let config = &shared.config;
        let checkpoint = match config.acknowledge {
            Acknowledge::Finish { checkpoint, .. } => {
                Some(CheckpointTimer::new(checkpoint, config.member_max()))
            }
            _ => None,
        };
        Self {
            index,
            account,
            link: Link::Down { retry_at: now },
            backoff: Backoff::new(config.reconnect, config.seed.wrapping_add(index as u64)),
            pending: VecDeque::new(),
            in_write: 0,
            front_written: 0,
            stream_written: 0,
            interrupted: false,
            unacknowledged: Unacknowledged::default(),
            ending: None,
            next: None,
            checkpoint,
            probe: None,
            stall: None,
            returns: false,
            last_chance_used: false,
            rotates: false,
            delivered: Vec::new(),
        }
    }

    /// Takes a batch, to be written in the order of numbers.
    pub(super) fn take(&mut self, item: Item, now: Instant) {
        if let Some(account) = &self.account {
            account.unacknowledged(i64::from(item.batch.sent_frames()));
        }
        // What came back goes before what is younger, but not into the write under way.
        let place = self.pending.partition_point(|other| other.number < item.number);
        self.pending.insert(place.max(self.in_write), item);
        if let Some(stall) = &mut self.stall {
            stall.set_work(true, now);
        }
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.in_write > 0
    }

    /// Whether no connection is there, or wanted.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.link, Link::Ended { .. }) && self.ending.is_none()
    }

    /// The bytes of the write that begins now.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Bytes> {
        debug_assert_eq!(self.front_written, 0);
        self.pending.iter().take(self.in_write).map(|item| item.batch.frames().bytes().clone())
    }

    /// When the oldest batch was read that this member has.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().and_then(|ending| ending.unacknowledged.items().next());
        let firsts = [ending, self.unacknowledged.items().next(), self.pending.front()];
        firsts.into_iter().flatten().map(|item| item.batch.read_at()).min()
    }

    /// Tells the ages of this member of a group.
    pub(super) fn tell_ages(&mut self, now: Instant) {
        if let Some(account) = &self.account {
            account.ages.oldest.set(self.oldest());
            if !self.delivered.is_empty() {
                account.ages.delivered(self.delivered.drain(..), now);
            }
        }
    }

    /// The time of the next thing that happens by itself.
    pub(super) fn timeout(&self, shared: &Shared) -> Option<Instant> {
        let by_link = match self.link {
            Link::Down { retry_at } => [Some(retry_at), None, None],
            Link::Connecting { deadline, .. } => [Some(deadline), None, None],
            Link::Up { .. } => {
                let probe = self.probe.as_ref().and_then(AckProbe::look_at);
                let stall = self.stall.as_ref().and_then(Stall::look_at);
                [probe, stall, self.checkpoint_due(shared)]
            }
            Link::Stopping { deadline, arriving, .. } => {
                let probe = self.probe.as_ref().filter(|_| arriving).and_then(AckProbe::look_at);
                [Some(deadline), probe, None]
            }
            Link::Ended { .. } => [None; 3],
        };
        let ending = self.ending.as_ref().map(|ending| ending.deadline);
        let next = self.next.as_ref().filter(|next| !next.connected).map(|next| next.deadline);
        by_link.into_iter().chain([ending, next]).flatten().min()
    }

    /// When the connection for the next stream is wanted.
    fn checkpoint_due(&self, shared: &Shared) -> Option<Instant> {
        let may_roll = self.in_write == 0 && self.may_open_next(shared);
        self.checkpoint.as_ref().filter(|_| may_roll)?.due(self.unacknowledged.charge())
    }

    /// Whether a checkpoint may begin: at the end the last STOP serves as one.
    fn may_open_next(&self, shared: &Shared) -> bool {
        self.ending.is_none() && self.next.is_none() && !shared.inputs_ended
    }

    /// Does what is due by time, and whatever can be done now.
    pub(super) fn drive(&mut self, shared: &mut Shared, now: Instant) {
        if shared.phase == Phase::Over {
            return self.end(shared, now);
        }
        if self.ending.as_ref().is_some_and(|ending| ending.deadline <= now) {
            self.ending_lost(shared, now, CloseReason::FinishTimeout);
        }
        if let Some(next) = self.next.take_if(|next| !next.connected && next.deadline <= now) {
            shared.act(Action::Close(next.stream, CloseReason::ConnectTimeout));
            self.next_refused(now);
        }
        match self.link {
            Link::Down { retry_at } => {
                if self.is_not_needed(shared) {
                    self.link = Link::Ended { gave_up: false };
                } else if retry_at <= now {
                    self.connect(shared, now);
                }
            }
            Link::Connecting { stream, deadline } => {
                if self.is_not_needed(shared) {
                    shared.act(Action::Close(stream, CloseReason::Ended));
                    self.link = Link::Ended { gave_up: false };
                } else if deadline <= now {
                    shared.act(Action::Close(stream, CloseReason::ConnectTimeout));
                    self.attempt_failed(shared, now);
                }
            }
            Link::Up { stream, .. } => self.drive_stream(stream, shared, now),
            Link::Stopping { stream, deadline, arriving, .. } => {
                if arriving && self.probe.as_ref().is_none_or(|probe| probe.has_arrived(self.stream_written))
                {
                    self.stopped(shared, true, now, CloseReason::Ended);
                } else if deadline <= now {
                    self.stopped(shared, false, now, CloseReason::FinishTimeout);
                } else if arriving {
                    self.probe_if_due(stream, shared, now);
                }
            }
            Link::Ended { gave_up } => {
                // Another member of the group has left something.
                if !gave_up && !shared.waiting.is_empty() {
                    self.link = Link::Down { retry_at: now + self.backoff.pause() };
                }
            }
        }
    }

    /// Whether everything is written, by whatever member, and no stream of this one may bring anything back.
    fn is_not_needed(&self, shared: &Shared) -> bool {
        shared.nothing_to_come() && self.ending.is_none()
    }

    fn connect(&mut self, shared: &mut Shared, now: Instant) {
        let stream = shared.new_stream(self.index);
        self.link = Link::Connecting { stream, deadline: now + shared.config.connect_timeout };
        shared.act(Action::Connect(stream));
    }

    /// Goes on with a stream that is past its handshake.
    fn drive_stream(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        self.look_for_stall(stream, shared, now);
        self.probe_if_due(stream, shared, now);
        if self.in_write > 0 {
            return;
        }
        if self.checkpoint.is_some() && self.roll_over(stream, shared, now) {
            return;
        }
        let Link::Up { stream, .. } = self.link else { return };
        let strict = matches!(shared.config.acknowledge, Acknowledge::Finish { order: Order::Strict, .. });
        if self.rotates {
            self.stop(stream, shared, false, now);
        } else if strict && self.ending.is_some() {
            // Nothing is written between STOP and FINISH: the reader has nothing to take.
            if let Some(stall) = &mut self.stall {
                stall.set_work(false, now);
            }
        } else if !self.pending.is_empty() {
            self.write(stream, shared, now);
        } else if self.is_not_needed(shared) {
            self.stop(stream, shared, true, now);
        }
    }

    /// Begins a write of as many batches as one write takes.
    fn write(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        let mut len = 0;
        let fits = |item: &&Item| {
            let first = len == 0;
            len += item.batch.byte_len();
            first || len <= shared.config.write_len_max
        };
        self.in_write = self.pending.iter().take(WRITE_BATCHES_MAX).take_while(fits).count();
        if let Some(stall) = &mut self.stall {
            stall.set_work(true, now);
        }
        shared.act(Action::Write(stream));
    }

    /// Asks for a look at the reader of a group's member, and ends the write under way for it: only then is it known how much
    /// of it was written.
    fn look_for_stall(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if !self.stall.as_mut().is_some_and(|stall| stall.wants_look(now)) {
            return;
        }
        if self.in_write == 0 {
            shared.act(Action::Probe(stream));
        } else if !std::mem::replace(&mut self.interrupted, true) {
            shared.act(Action::Interrupt(stream));
        }
    }

    fn probe_if_due(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if self.probe.as_ref().and_then(AckProbe::look_at).is_some_and(|look_at| look_at <= now) {
            shared.act(Action::Probe(stream));
        }
    }

    /// Goes on with a checkpoint as far as that can be done now. Returns whether the present stream has to end first: no second
    /// connection can be had, and much waits for FINISH.
    fn roll_over(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) -> bool {
        if let Some(next) = self.next.take_if(|next| next.connected) {
            let unacknowledged = std::mem::take(&mut self.unacknowledged);
            let deadline = now + shared.config.finish_timeout;
            self.ending = Some(Ending { stream, unacknowledged, deadline });
            shared.act(Action::Stop(stream));
            self.begin_stream(next.stream, shared, now);
            return false;
        }
        let charge = self.unacknowledged.charge();
        let Some(checkpoint) = &self.checkpoint else { return false };
        if self.may_open_next(shared) && checkpoint.is_due(charge, now) {
            let stream = shared.new_stream(self.index);
            let deadline = now + shared.config.connect_timeout;
            self.next = Some(Next { stream, deadline, connected: false });
            shared.act(Action::Connect(stream));
        }
        if self.ending.is_none() && checkpoint.stream_must_end(charge, shared.config.member_max()) {
            self.stop(stream, shared, false, now);
            return true;
        }
        false
    }

    /// A stream begins: it has got nothing yet.
    fn begin_stream(&mut self, stream: StreamId, shared: &Shared, now: Instant) {
        self.link = Link::Up { stream, since: now };
        self.stream_written = 0;
        self.probe = match shared.config.acknowledge {
            Acknowledge::Progress { probe_len, .. } => Some(AckProbe::new(probe_len)),
            _ => None,
        };
        self.stall = shared.config.stall_timeout.map(|timeout| {
            let mut stall = Stall::new(timeout, now);
            stall.set_work(!self.pending.is_empty(), now);
            stall
        });
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.begin_stream(now);
        }
    }

    /// Ends the present stream with STOP.
    fn stop(&mut self, stream: StreamId, shared: &mut Shared, last: bool, now: Instant) {
        let Link::Up { since, .. } = self.link else { return };
        self.close_next(shared);
        // Whatever others give back from now on is not for this connection.
        self.leave(shared, if last { MemberState::Finished } else { MemberState::Connecting });
        let deadline = now + shared.config.finish_timeout;
        self.link = Link::Stopping { stream, since, deadline, last, arriving: false };
        self.rotates = false;
        shared.act(Action::Stop(stream));
    }

    /// The connection is there, past its handshake.
    pub(super) fn connected(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        match (self.link, &mut self.next) {
            (Link::Connecting { stream: wanted, .. }, _) if wanted == stream => {
                self.begin_stream(stream, shared, now);
                shared.balancer.up(self.index, now, std::mem::take(&mut self.returns));
                self.set_state(MemberState::Up);
            }
            (_, Some(next)) if next.stream == stream => next.connected = true,
            _ => return,
        }
        shared.account.connected();
        if let Some(account) = &self.account {
            account.connected();
        }
    }

    /// No connection can be had.
    pub(super) fn refused(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        match self.link {
            Link::Connecting { stream: wanted, .. } if wanted == stream => self.attempt_failed(shared, now),
            _ if self.next.take_if(|next| next.stream == stream).is_some() => self.next_refused(now),
            _ => {}
        }
    }

    fn next_refused(&mut self, now: Instant) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.refused(now);
        }
    }

    fn attempt_failed(&mut self, shared: &mut Shared, now: Instant) {
        self.returns = true;
        self.leave(shared, MemberState::Down);
        self.give_back_pending(shared);
        self.retry(shared, now);
    }

    /// Plans the next attempt, if there is to be one.
    fn retry(&mut self, shared: &Shared, now: Instant) {
        if shared.inputs_ended && !shared.config.tries_to_the_end {
            // A collector that is away when the relay ends gets one more attempt, which this was.
            self.link = Link::Ended { gave_up: true };
        } else {
            self.plan_attempt(shared, now);
        }
    }

    fn plan_attempt(&mut self, shared: &Shared, now: Instant) {
        let pause = self.backoff.pause();
        let pause = if shared.phase == Phase::Running { pause } else { pause.min(DRAIN_PAUSE_MAX) };
        self.link = Link::Down { retry_at: now + pause };
    }

    /// The end was asked for: a collector that is away is tried again at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Link::Down { retry_at } = &mut self.link {
            *retry_at = now;
        }
    }

    /// A new stream is to begin, as soon as the write under way has ended.
    pub(super) fn rotate(&mut self) {
        self.rotates = matches!(self.link, Link::Up { .. });
    }

    /// The present stream has got `count` more bytes.
    pub(super) fn written(&mut self, stream: StreamId, count: usize, shared: &mut Shared, now: Instant) {
        if !matches!(self.link, Link::Up { stream: present, .. } if present == stream) {
            return;
        }
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
            shared.balancer.written(self.index, item.batch.connection, item.batch.charge() as u64);
            if kept {
                item.batch.custody.hold();
                self.unacknowledged.push(item);
            } else {
                self.settle(item, shared);
            }
        }
        self.front_written = written;
        let interrupted = std::mem::take(&mut self.interrupted);
        if self.probe.as_mut().is_some_and(|probe| probe.written(self.stream_written, now)) || interrupted {
            shared.act(Action::Probe(stream));
        }
        if self.in_write > 0 && shared.phase != Phase::Over {
            shared.act(Action::Write(stream));
        }
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

    fn settle_all(&mut self, mut unacknowledged: Unacknowledged, shared: &mut Shared) {
        while let Some(item) = unacknowledged.pop() {
            self.settle(item, shared);
        }
    }

    /// The peer has everything before `arrived` of the present stream; `None`: it cannot be told.
    pub(super) fn progress(
        &mut self,
        stream: StreamId,
        arrived: Option<u64>,
        shared: &mut Shared,
        now: Instant,
    ) {
        let up = match self.link {
            Link::Up { stream: present, .. } if present == stream => true,
            Link::Stopping { stream: present, .. } if present == stream => false,
            _ => return,
        };
        if let Acknowledge::Progress { margin, .. } = shared.config.acknowledge {
            if let Some(arrived) = arrived {
                self.arrived(arrived, margin, shared);
            }
            if let Some(probe) = &mut self.probe {
                probe.looked(arrived, self.stream_written, now);
            }
        }
        let Some(stall) = self.stall.as_mut().filter(|_| up) else { return };
        // What cannot be told apart counts as taken. A reader that has gone ends its stream by that.
        let taken = arrived.unwrap_or(self.stream_written);
        stall.set_work(!self.pending.is_empty() || taken < self.stream_written, now);
        if stall.is_over(taken, now) {
            // Its reader will not send FINISH either: others get that stream too.
            self.ending_lost(shared, now, CloseReason::Stalled);
            shared.act(Action::Close(stream, CloseReason::Stalled));
            self.close_next(shared);
            self.connection_lost(shared, false);
            self.leave(shared, MemberState::Stalled);
            self.returns = true;
            self.retry(shared, now);
        }
    }

    /// Settles what has arrived, every byte before `position`, except the last `margin` bytes of it.
    fn arrived(&mut self, position: u64, margin: u64, shared: &mut Shared) {
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

    /// STOP was sent, and FINISH has come, or will not.
    pub(super) fn finished(&mut self, stream: StreamId, finished: bool, shared: &mut Shared, now: Instant) {
        if self.ending.as_ref().is_some_and(|ending| ending.stream == stream) {
            if !finished {
                return self.ending_lost(shared, now, CloseReason::Ended);
            }
            let Some(ending) = self.ending.take() else { return };
            shared.act(Action::Close(stream, CloseReason::Ended));
            self.settle_all(ending.unacknowledged, shared);
            self.count_finished(shared);
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.answered(true, now);
            }
            return;
        }
        let Link::Stopping { stream: present, since, last, .. } = self.link else { return };
        if present != stream {
            return;
        }
        if finished && !shared.config.answers && self.probe.is_some() {
            // No FINISH will tell: the stream itself has to, in the time that FINISH would have.
            let deadline = now + shared.config.finish_timeout;
            self.link = Link::Stopping { stream, since, deadline, last, arriving: true };
            shared.act(Action::Probe(stream));
            return;
        }
        self.stopped(shared, finished, now, CloseReason::Ended);
    }

    fn count_finished(&self, shared: &Shared) {
        shared.account.finished();
        if let Some(account) = &self.account {
            account.finished();
        }
    }

    /// The stream has ended with STOP. `acknowledged`: everything has arrived.
    fn stopped(&mut self, shared: &mut Shared, acknowledged: bool, now: Instant, reason: CloseReason) {
        let Link::Stopping { stream, since, last, arriving, .. } = self.link else { return };
        shared.act(Action::Close(stream, reason));
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.answered(acknowledged, now);
        }
        if acknowledged || arriving {
            self.count_finished(shared);
        }
        if acknowledged {
            let unacknowledged = std::mem::take(&mut self.unacknowledged);
            self.settle_all(unacknowledged, shared);
        } else {
            self.connection_lost(shared, false);
            self.set_state(MemberState::Down);
        }
        if self.is_not_needed(shared) {
            self.link = Link::Ended { gave_up: false };
        } else if acknowledged {
            // The next stream begins at once.
            self.link = Link::Down { retry_at: now };
        } else if last && std::mem::replace(&mut self.last_chance_used, true) {
            // What is not acknowledged has been sent again, once.
            self.link = Link::Ended { gave_up: true };
        } else {
            self.returns = true;
            self.backoff.session_lasted(since, now);
            self.retry(shared, now);
        }
    }

    /// The connection has ended, by the peer or the network.
    pub(super) fn lost(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if self.ending.as_ref().is_some_and(|ending| ending.stream == stream) {
            return self.ending_lost(shared, now, CloseReason::Ended);
        }
        if self.next.take_if(|next| next.stream == stream).is_some() {
            shared.act(Action::Close(stream, CloseReason::Ended));
            return self.next_refused(now);
        }
        match self.link {
            Link::Up { stream: present, since } if present == stream => {
                shared.act(Action::Close(stream, CloseReason::Ended));
                self.close_next(shared);
                self.connection_lost(shared, true);
                self.leave(shared, MemberState::Down);
                self.returns = true;
                self.backoff.session_lasted(since, now);
                if shared.inputs_ended && !std::mem::replace(&mut self.last_chance_used, true) {
                    // A collector that closes while the relay ends gets one more attempt, as one does that is away.
                    self.plan_attempt(shared, now);
                } else {
                    self.retry(shared, now);
                }
            }
            Link::Stopping { stream: present, arriving, .. } if present == stream => {
                let has_arrived = |probe: &AckProbe| probe.has_arrived(self.stream_written);
                let arrived = arriving && self.probe.as_ref().is_some_and(has_arrived);
                self.stopped(shared, arrived, now, CloseReason::Ended);
            }
            Link::Connecting { stream: present, .. } if present == stream => self.attempt_failed(shared, now),
            _ => {}
        }
    }

    /// The stream before the present one is not acknowledged: all of it is written again.
    fn ending_lost(&mut self, shared: &mut Shared, now: Instant, reason: CloseReason) {
        let Some(ending) = self.ending.take() else { return };
        shared.act(Action::Close(ending.stream, reason));
        let (items, _) = ending.unacknowledged.into_parts();
        self.give_back(items, shared);
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.answered(false, now);
        }
    }

    /// Gives back what the present stream has got and not acknowledged, and what was to be written to it. `by_peer`: the peer
    /// has ended it.
    fn connection_lost(&mut self, shared: &mut Shared, by_peer: bool) {
        let kept = shared.config.keeps();
        let (mut items, mut acknowledged) = std::mem::take(&mut self.unacknowledged).into_parts();
        if let Some(mut front) = self.pending.pop_front() {
            let partly = std::mem::take(&mut self.front_written);
            self.count_written(&mut front, partly, shared);
            if !kept {
                acknowledged = partly;
            }
            self.pending.push_front(front);
        }
        self.in_write = 0;
        self.interrupted = false;
        let first = items.front_mut().or_else(|| self.pending.front_mut());
        if let Some(first) = first {
            let (frames, forget) = first.batch.advance(acknowledged, kept);
            shared.acknowledged.extend(forget);
            if let Some(account) = self.account.as_ref().filter(|_| kept) {
                account.acknowledged(u64::from(frames));
            }
            if by_peer && self.stream_written > 0 {
                refuse_after_breaks(first, shared);
            }
        }
        if items
            .front()
            .or_else(|| self.pending.front())
            .is_some_and(|first| first.batch.frames().frames() == 0)
        {
            let emptied = items.pop_front().or_else(|| {
                let item = self.pending.pop_front()?;
                shared.balancer.written(self.index, item.batch.connection, item.batch.charge() as u64);
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

    fn give_back_pending(&mut self, shared: &mut Shared) {
        let pending = std::mem::take(&mut self.pending);
        for item in &pending {
            shared.balancer.written(self.index, item.batch.connection, item.batch.charge() as u64);
        }
        self.give_back(pending, shared);
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

    /// The member takes no batches any more.
    fn leave(&mut self, shared: &mut Shared, state: MemberState) {
        shared.balancer.down(self.index);
        self.set_state(state);
    }

    fn set_state(&self, state: MemberState) {
        if let Some(account) = &self.account {
            account.set_state(state);
        }
    }

    fn close_next(&mut self, shared: &mut Shared) {
        if let Some(next) = self.next.take() {
            shared.act(Action::Close(next.stream, CloseReason::Ended));
        }
    }

    /// The output is over: everything is closed, once it is known what the write under way has written.
    fn end(&mut self, shared: &mut Shared, now: Instant) {
        match self.link {
            Link::Up { stream, .. } if self.in_write > 0 => {
                if !std::mem::replace(&mut self.interrupted, true) {
                    shared.act(Action::Interrupt(stream));
                }
                return;
            }
            Link::Up { stream, .. } | Link::Stopping { stream, .. } | Link::Connecting { stream, .. } => {
                shared.act(Action::Close(stream, CloseReason::Over));
            }
            Link::Down { .. } | Link::Ended { .. } => {}
        }
        self.close_next(shared);
        self.ending_lost(shared, now, CloseReason::Over);
        self.connection_lost(shared, false);
        self.leave(shared, MemberState::Down);
        self.link = Link::Ended { gave_up: true };
    }

    /// A write that was interrupted for the end has come back.
    pub(super) fn write_ended(&mut self, shared: &Shared) {
        if shared.phase == Phase::Over {
            self.in_write = 0;
        }
    }
}

/// Notes that a connection broke with this batch as the first that is to be written again. Where every attempt breaks at the
/// same frame, the frame is left out: nothing behind it would ever move.
fn refuse_after_breaks(item: &mut Item, shared: &mut Shared) {
    let left = item.batch.frames().frames();
    item.breaks = if left == item.broke_with { item.breaks + 1 } else { 1 };
    item.broke_with = left;
    if item.breaks >= BREAKS_MAX && left > 0 {
        let (len, forget) = item.batch.refuse_first();
        shared.acknowledged.extend(forget);
        shared.refused.push(RefusedFrame { len, breaks: item.breaks });
        item.breaks = 0;
    }
}

/// Most buffers of one write: the kernel's limit for one `sendmsg`.
const WRITE_BATCHES_MAX: usize = 1024;

/// Longest pause between attempts while the relay ends.
const DRAIN_PAUSE_MAX: std::time::Duration = std::time::Duration::from_millis(500);

/// After so many connections that ended at one frame the frame is left out.
const BREAKS_MAX: u32 = 5;
