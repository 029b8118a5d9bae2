//! What an endpoint does by itself, at its time or as soon as it can: it connects, writes, probes, begins the next stream and stops.

use std::time::Instant;

use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::endpoint::Endpoint;
use crate::delivery::link::Link;
use crate::delivery::shared::Shared;
use crate::lifecycle::Phase;
use crate::observability::MemberState;

impl Endpoint {
    /// The time of the next thing that happens by itself.
    pub(in crate::delivery) fn timeout(&self, shared: &Shared) -> Option<Instant> {
        let by_link = match self.link {
            Link::Down { retry_at } => [Some(retry_at), None],
            Link::Connecting { deadline, .. } => [Some(deadline), None],
            Link::Up { .. } => {
                let brings_nothing = self.flight.stream_written() == 0 && !self.flight.is_writing();
                // What was held back may have become too old meanwhile.
                let holds = brings_nothing && self.flight.has_pending();
                [self.watch.timeout(holds), self.checkpoint_due(shared)]
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
    pub(in crate::delivery) fn drive(&mut self, shared: &mut Shared, now: Instant) {
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
    pub(super) fn is_not_needed(&self, shared: &Shared) -> bool {
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
}
