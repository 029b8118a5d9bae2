//! One endpoint of an output: its connection, what is to be written to it, and what it has not acknowledged.
//!
//! ```text
//! pending ─► unacknowledged ─► ending ─► delivered
//!   to be      written, kept    its stream waits
//!   written                     for FINISH
//! ```
//!
//! A connection that dies gives everything back that it has not acknowledged: the batches go to whoever is there next.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::attempts::Attempts;
use crate::delivery::config::Acknowledge;
use crate::delivery::in_flight::InFlight;
use crate::delivery::item::Item;
use crate::delivery::link::Link;
use crate::delivery::rollover::Rollover;
use crate::delivery::shared::Shared;
use crate::delivery::watch::Watch;
use crate::lifecycle::Phase;
use crate::observability::MemberState;
use crate::observability::member_account::MemberAccount;

#[derive(Debug)]
pub(super) struct Endpoint {
    index: usize,
    // Of a group.
    account: Option<Arc<MemberAccount>>,
    link: Link,
    attempts: Attempts,
    flight: InFlight,
    // The write under way was asked to end.
    interrupted: bool,
    rollover: Rollover,
    watch: Watch,
    // The last stream was not a good one: the share of this member grows from a small one.
    returns: bool,
    rotates: bool,
}

impl Endpoint {
    pub(super) fn new(
        index: usize,
        account: Option<Arc<MemberAccount>>,
        shared: &Shared,
        now: Instant,
    ) -> Self {
        let config = &shared.config;
        if let Some(account) = &account {
            account.begin();
        }
        Self {
            index,
            flight: InFlight::new(index, account.clone()),
            account,
            link: Link::Down { retry_at: now },
            attempts: Attempts::new(config.reconnect, config.seed.wrapping_add(index as u64)),
            interrupted: false,
            rollover: Rollover::new(config),
            watch: Watch::default(),
            returns: false,
            rotates: false,
        }
    }

    /// Waits from now on as the configuration of all members says.
    pub(super) fn reconfigure(&mut self, shared: &Shared, now: Instant) {
        self.attempts.reconfigure(shared.config.reconnect);
        // A pause of the former configuration may be long.
        if let Link::Down { retry_at } = &mut self.link {
            *retry_at = (*retry_at).min(now + shared.config.reconnect.max);
        }
    }

    /// Takes a batch, to be written in the order of numbers.
    pub(super) fn take(&mut self, item: Item, now: Instant) {
        self.flight.take(item);
        self.watch.set_work(true, now);
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.flight.is_writing()
    }

    /// Bytes at the end of the present stream that are a part of a frame.
    pub(super) fn cut_len(&self) -> usize {
        self.flight.cut_len()
    }

    /// The bytes of the write that begins now.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Bytes> {
        self.flight.buffers()
    }

    /// When the oldest batch was read that this endpoint has.
    pub(super) fn oldest(&self) -> Option<Instant> {
        [self.rollover.oldest(), self.flight.oldest()].into_iter().flatten().min()
    }

    /// Tells the ages of this member of a group.
    pub(super) fn tell_ages(&mut self, now: Instant) {
        if let Some(account) = &self.account {
            account.ages.oldest.set(self.oldest());
            self.flight.tell_delivered(now);
        }
    }

    /// Whether no connection is there, or wanted.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.link, Link::Ended { .. }) && !self.rollover.waits_for_finish()
    }

    /// The time of the next thing that happens by itself.
    pub(super) fn timeout(&self, shared: &Shared) -> Option<Instant> {
        let by_link = match self.link {
            Link::Down { retry_at } => [Some(retry_at), None],
            Link::Connecting { deadline, .. } => [Some(deadline), None],
            Link::Up { .. } => {
                let brings_nothing = self.flight.stream_written() == 0 && !self.flight.is_writing();
                [self.watch.timeout(brings_nothing), self.checkpoint_due(shared)]
            }
            Link::Stopping { deadline, arriving, .. } => {
                [Some(deadline), self.watch.probe_at().filter(|_| arriving)]
            }
            Link::Ended { .. } => [None; 2],
        };
        by_link.into_iter().chain([self.rollover.timeout()]).flatten().min()
    }

    /// When the connection for the next stream is wanted: not at the end, where the last STOP serves as a checkpoint.
    fn checkpoint_due(&self, shared: &Shared) -> Option<Instant> {
        let may_roll = !self.flight.is_writing() && !shared.inputs_ended;
        if may_roll { self.rollover.due(self.flight.unacknowledged_charge()) } else { None }
    }

    /// Does what is due by time, and whatever can be done now.
    pub(super) fn drive(&mut self, shared: &mut Shared, now: Instant) {
        if shared.phase == Phase::Over {
            return self.end(shared, now);
        }
        self.flight.drop_old(shared, now);
        if self.rollover.finish_is_late(now) {
            self.ending_lost(shared, now, CloseReason::FinishTimeout);
        }
        if let Some(next) = self.rollover.take_late_next(now) {
            shared.act(Action::Close(next, CloseReason::ConnectTimeout));
            self.rollover.refused(now);
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
                if arriving && self.watch.may_have_arrived(self.flight.stream_written()) {
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
                    self.link = Link::Down { retry_at: self.attempts.next(shared, now) };
                }
            }
        }
    }

    /// Whether everything is written, by whatever member, and no stream of this one may bring anything back.
    fn is_not_needed(&self, shared: &Shared) -> bool {
        shared.nothing_to_come() && !self.rollover.waits_for_finish()
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
        if self.flight.is_writing() {
            return;
        }
        if self.rollover.timer.is_some() && self.roll_over(stream, shared, now) {
            return;
        }
        let Link::Up { stream, .. } = self.link else { return };
        if self.rotates {
            self.stop(stream, shared, false, now);
        } else if (self.rollover.strict && self.rollover.waits_for_finish()) || self.holds_back(shared, now) {
            // Nothing is written for now: the reader has nothing to take.
            self.watch.set_work(false, now);
        } else if self.waits_for_frame_alone() {
            // A reader that does not take the frame ends the stream before STOP.
            if self.rollover.timer.is_some() && self.watch.alone_is_over(now) {
                self.stop(stream, shared, false, now);
            }
        } else if self.flight.has_pending() {
            self.write(stream, shared, now);
        } else if self.is_not_needed(shared) {
            self.stop(stream, shared, true, now);
        }
    }

    /// Whether nothing is written for a moment: the next frame would be left out if the reader ended this connection at it
    /// too. One that ends it now does so whatever comes.
    fn holds_back(&mut self, shared: &Shared, now: Instant) -> bool {
        self.flight.begins_with_last_chance(shared) && self.watch.holds(now)
    }

    /// Whether a frame that was written alone has not arrived.
    fn waits_for_frame_alone(&self) -> bool {
        self.flight.last_is_alone() && !self.watch.has_arrived(self.flight.stream_written())
    }

    /// Begins a write of as many batches as one write takes.
    fn write(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        self.flight.begin_write(shared);
        self.watch.set_work(true, now);
        shared.act(Action::Write(stream));
    }

    /// Asks for a look at the reader of a group's member, and ends the write under way for it: only then is it known how much
    /// of it was written.
    fn look_for_stall(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if !self.watch.wants_stall_look(now) {
            return;
        }
        if !self.flight.is_writing() {
            shared.act(Action::Probe(stream));
        } else if !std::mem::replace(&mut self.interrupted, true) {
            shared.act(Action::Interrupt(stream));
        }
    }

    fn probe_if_due(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if self.watch.probe_at().is_some_and(|probe_at| probe_at <= now) {
            shared.act(Action::Probe(stream));
        }
    }

    /// Goes on with a checkpoint as far as that can be done now. Returns whether the present stream has to end first: no second
    /// connection can be opened, and much waits for FINISH.
    fn roll_over(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) -> bool {
        if let Some(next) = self.rollover.take_connected() {
            let deadline = now + shared.config.finish_timeout;
            self.rollover.end(stream, self.flight.end_stream(), deadline);
            shared.act(Action::Stop(stream));
            self.begin_stream(next, shared, now);
            return false;
        }
        let charge = self.flight.unacknowledged_charge();
        if !shared.inputs_ended && self.rollover.is_due(charge, now) {
            let next = shared.new_stream(self.index);
            self.rollover.open(next, now + shared.config.connect_timeout);
            shared.act(Action::Connect(next));
        }
        let must_end = self.rollover.stream_must_end(charge, shared.config.member_max());
        if must_end {
            self.stop(stream, shared, false, now);
        }
        must_end
    }

    /// A stream begins: it has got nothing yet.
    fn begin_stream(&mut self, stream: StreamId, shared: &Shared, now: Instant) {
        self.link = Link::Up { stream, since: now };
        self.watch = Watch::new(&shared.config, self.flight.has_pending(), now);
        self.rollover.begin_stream(now);
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
        match self.link {
            Link::Connecting { stream: wanted, .. } if wanted == stream => {
                self.begin_stream(stream, shared, now);
                shared.balancer.up(self.index, now, std::mem::take(&mut self.returns));
                self.set_state(MemberState::Up);
            }
            _ if self.rollover.connected(stream) => {}
            _ => return,
        }
        shared.account.connected();
        if let Some(account) = &self.account {
            account.connected();
        }
    }

    /// No connection can be opened.
    pub(super) fn refused(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        match self.link {
            Link::Connecting { stream: wanted, .. } if wanted == stream => self.attempt_failed(shared, now),
            _ if self.rollover.take_next(|next| next == stream).is_some() => self.rollover.refused(now),
            _ => {}
        }
    }

    fn attempt_failed(&mut self, shared: &mut Shared, now: Instant) {
        self.returns = true;
        self.leave(shared, MemberState::Down);
        self.flight.give_back_pending(shared);
        self.link = Link::planned(self.attempts.after_failure(shared, now));
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
        self.flight.written(count, shared);
        let interrupted = std::mem::take(&mut self.interrupted);
        if self.watch.written(self.flight.stream_written(), now) || interrupted {
            shared.act(Action::Probe(stream));
        }
        if self.flight.is_writing() && shared.phase != Phase::Over {
            shared.act(Action::Write(stream));
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
        if let (Acknowledge::Progress { margin, .. }, Some(arrived)) = (shared.config.acknowledge, arrived) {
            self.flight.arrived(arrived, margin, shared);
        }
        let written = self.flight.stream_written();
        self.watch.looked(arrived, written, now);
        if up && self.watch.is_stalled(arrived, written, self.flight.has_pending(), now) {
            // Its reader will not send FINISH either: others get that stream too.
            self.ending_lost(shared, now, CloseReason::Stalled);
            shared.act(Action::Close(stream, CloseReason::Stalled));
            self.close_next(shared);
            self.connection_lost(shared, false);
            self.leave(shared, MemberState::Stalled);
            self.returns = true;
            self.link = Link::planned(self.attempts.after_failure(shared, now));
        }
    }

    /// STOP was sent, and FINISH has come, or will not.
    pub(super) fn finished(&mut self, stream: StreamId, finished: bool, shared: &mut Shared, now: Instant) {
        if !finished && self.ending_lost_if(|ending| ending == stream, shared, now, CloseReason::Ended) {
            return;
        }
        if let Some((_, unacknowledged)) = self.rollover.take_ending(|ending| ending == stream) {
            shared.act(Action::Close(stream, CloseReason::Ended));
            self.flight.settle_all(unacknowledged, shared);
            self.count_finished(shared);
            self.rollover.answered(true, now);
            return;
        }
        let Link::Stopping { stream: present, since, last, .. } = self.link else { return };
        if present != stream {
            return;
        }
        if finished && !shared.config.answers && self.watch.probes() {
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
        self.rollover.answered(acknowledged, now);
        if acknowledged || arriving {
            self.count_finished(shared);
        }
        if acknowledged {
            let unacknowledged = self.flight.end_stream();
            self.flight.settle_all(unacknowledged, shared);
        } else {
            self.connection_lost(shared, false);
            self.set_state(MemberState::Down);
        }
        if self.is_not_needed(shared) {
            self.link = Link::Ended { gave_up: false };
        } else if acknowledged {
            // The next stream begins at once.
            self.link = Link::Down { retry_at: now };
        } else {
            self.returns = true;
            self.link = Link::planned(if last {
                self.attempts.after_last_stream(since, shared, now)
            } else {
                self.attempts.after_break(since, shared, now)
            });
        }
    }

    /// The connection has ended, by the peer or the network.
    pub(super) fn lost(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
        if self.ending_lost_if(|ending| ending == stream, shared, now, CloseReason::Ended) {
            return;
        }
        if self.rollover.take_next(|next| next == stream).is_some() {
            shared.act(Action::Close(stream, CloseReason::Ended));
            return self.rollover.refused(now);
        }
        match self.link {
            Link::Up { stream: present, since } if present == stream => {
                shared.act(Action::Close(stream, CloseReason::Ended));
                self.close_next(shared);
                self.connection_lost(shared, true);
                self.leave(shared, MemberState::Down);
                self.returns = true;
                self.link = Link::planned(self.attempts.after_break(since, shared, now));
            }
            Link::Stopping { stream: present, arriving, .. } if present == stream => {
                let arrived = arriving && self.watch.has_arrived(self.flight.stream_written());
                self.stopped(shared, arrived, now, CloseReason::Ended);
            }
            Link::Connecting { stream: present, .. } if present == stream => self.attempt_failed(shared, now),
            _ => {}
        }
    }

    /// This side has given up the present stream, by no fault of what was written to it.
    pub(super) fn given_up(&mut self, stream: StreamId, at_once: bool, shared: &mut Shared, now: Instant) {
        let Link::Up { stream: present, since } = self.link else { return };
        if present != stream {
            return;
        }
        shared.act(Action::Close(stream, CloseReason::Ended));
        self.close_next(shared);
        self.connection_lost(shared, false);
        self.leave(shared, MemberState::Down);
        self.rotates = false;
        self.link = if at_once {
            Link::Down { retry_at: now }
        } else {
            Link::planned(self.attempts.after_break(since, shared, now))
        };
    }

    /// The stream before the present one is not acknowledged: all of it is written again.
    fn ending_lost(&mut self, shared: &mut Shared, now: Instant, reason: CloseReason) {
        self.ending_lost_if(|_| true, shared, now, reason);
    }

    /// The same, if it is the stream that `wanted` says. Returns whether it is.
    fn ending_lost_if(
        &mut self,
        wanted: impl Fn(StreamId) -> bool,
        shared: &mut Shared,
        now: Instant,
        reason: CloseReason,
    ) -> bool {
        let Some((stream, unacknowledged)) = self.rollover.take_ending(wanted) else { return false };
        shared.act(Action::Close(stream, reason));
        self.flight.give_back_stream(unacknowledged, shared);
        self.rollover.answered(false, now);
        true
    }

    /// The present stream is gone: others get what it has not acknowledged, and what was to be written to it. `by_peer`: the peer
    /// has ended it.
    fn connection_lost(&mut self, shared: &mut Shared, by_peer: bool) {
        self.interrupted = false;
        let watch = &self.watch;
        self.flight.connection_lost(shared, by_peer, |position| watch.has_arrived(position));
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
        if let Some(next) = self.rollover.take_next(|_| true) {
            shared.act(Action::Close(next, CloseReason::Ended));
        }
    }

    /// The output is over: everything is closed, once it is known what the write under way has written.
    fn end(&mut self, shared: &mut Shared, now: Instant) {
        match self.link {
            Link::Up { stream, .. } if self.flight.is_writing() => {
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
            self.flight.give_up_write();
        }
    }
}
