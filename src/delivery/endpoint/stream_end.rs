//! How a stream of an endpoint ends: with FINISH, by the peer, by the network, or given up. What the stream has not acknowledged goes
//! back.

use std::time::Instant;

use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::endpoint::Endpoint;
use crate::delivery::link::Link;
use crate::delivery::shared::Shared;
use crate::observability::MemberState;

impl Endpoint {
    /// STOP was sent, and FINISH has come, or will not.
    pub(in crate::delivery) fn finished(
        &mut self,
        stream: StreamId,
        finished: bool,
        shared: &mut Shared,
        now: Instant,
    ) {
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
    pub(super) fn stopped(
        &mut self,
        shared: &mut Shared,
        acknowledged: bool,
        now: Instant,
        reason: CloseReason,
    ) {
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
    pub(in crate::delivery) fn lost(&mut self, stream: StreamId, shared: &mut Shared, now: Instant) {
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
    pub(in crate::delivery) fn given_up(
        &mut self,
        stream: StreamId,
        at_once: bool,
        shared: &mut Shared,
        now: Instant,
    ) {
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
    pub(super) fn ending_lost(&mut self, shared: &mut Shared, now: Instant, reason: CloseReason) {
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
    pub(super) fn connection_lost(&mut self, shared: &mut Shared, by_peer: bool) {
        self.interrupted = false;
        let watch = &self.watch;
        self.flight.connection_lost(shared, by_peer, |position| watch.has_arrived(position));
    }

    /// The member takes no batches any more.
    pub(super) fn leave(&mut self, shared: &mut Shared, state: MemberState) {
        shared.balancer.down(self.index);
        self.set_state(state);
    }

    pub(super) fn close_next(&mut self, shared: &mut Shared) {
        if let Some(next) = self.rollover.take_next(|_| true) {
            shared.act(Action::Close(next, CloseReason::Ended));
        }
    }

    /// The output is over: everything is closed, once it is known what the write under way has written.
    pub(super) fn end(&mut self, shared: &mut Shared, now: Instant) {
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
}
