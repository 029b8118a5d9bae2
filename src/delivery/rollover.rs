//! The change from one stream to the next, for outputs whose frames FINISH acknowledges.
//!
//! A checkpoint opens the next connection while the present stream flows. Then the present stream gets STOP and waits for
//! FINISH, and the next one flows. One checkpoint is under way at a time.

use std::time::Instant;

use crate::delivery::action::StreamId;
use crate::delivery::checkpoint::CheckpointTimer;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Order;
use crate::delivery::unacknowledged::Unacknowledged;

/// The checkpoints of one endpoint.
#[derive(Debug)]
pub(super) struct Rollover {
    /// `None`: FINISH of the last stream is the only one.
    pub(super) timer: Option<CheckpointTimer>,
    /// Nothing is written between STOP and FINISH.
    pub(super) strict: bool,
    next: Option<Next>,
    ending: Option<Ending>,
}

/// The connection that is opened ahead.
#[derive(Debug)]
struct Next {
    stream: StreamId,
    deadline: Instant,
    connected: bool,
}

/// The stream before the present one, which waits for FINISH until the deadline.
#[derive(Debug)]
struct Ending {
    stream: StreamId,
    unacknowledged: Unacknowledged,
    deadline: Instant,
}

impl Rollover {
    pub(super) fn new(config: &DeliveryConfig) -> Self {
        let (timer, strict) = match config.acknowledge {
            Acknowledge::Finish { checkpoint, order } => {
                (Some(CheckpointTimer::new(checkpoint, config.member_max())), order == Order::Strict)
            }
            _ => (None, false),
        };
        Self { timer, strict, next: None, ending: None }
    }

    /// Whether the stream before the present one waits for FINISH.
    pub(super) fn waits_for_finish(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether a checkpoint is under way.
    fn is_under_way(&self) -> bool {
        self.next.is_some() || self.ending.is_some()
    }

    /// When the oldest batch was read that waits for FINISH.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.ending.as_ref()?.unacknowledged.oldest()
    }

    /// The time of the next thing that happens by itself.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().map(|ending| ending.deadline);
        let next = self.next.as_ref().filter(|next| !next.connected).map(|next| next.deadline);
        [ending, next].into_iter().flatten().min()
    }

    /// When a checkpoint is due, with `charge` bytes of the queue waiting for the FINISH of the present stream.
    pub(super) fn due(&self, charge: usize) -> Option<Instant> {
        self.timer.as_ref().filter(|_| !self.is_under_way())?.due(charge)
    }

    /// Whether a checkpoint begins now: [`Rollover::open`] is to follow.
    pub(super) fn is_due(&self, charge: usize, now: Instant) -> bool {
        !self.is_under_way() && self.timer.as_ref().is_some_and(|timer| timer.is_due(charge, now))
    }

    /// Whether the present stream has to end before the next can begin: see [`CheckpointTimer::stream_must_end`].
    pub(super) fn stream_must_end(&self, charge: usize, queue_max: usize) -> bool {
        let must_end = |timer: &CheckpointTimer| timer.stream_must_end(charge, queue_max);
        self.ending.is_none() && self.timer.as_ref().is_some_and(must_end)
    }

    /// The next connection is being opened.
    pub(super) fn open(&mut self, stream: StreamId, deadline: Instant) {
        self.next = Some(Next { stream, deadline, connected: false });
    }

    /// A connection is there. Returns whether it is the next one.
    pub(super) fn connected(&mut self, stream: StreamId) -> bool {
        let next = self.next.as_mut().filter(|next| next.stream == stream);
        next.map(|next| next.connected = true).is_some()
    }

    /// Takes the next connection, if it is there.
    pub(super) fn take_connected(&mut self) -> Option<StreamId> {
        self.next.take_if(|next| next.connected).map(|next| next.stream)
    }

    /// Gives up the next connection, if it is the one that `wanted` says, or has had its time.
    pub(super) fn take_next(&mut self, wanted: impl Fn(StreamId) -> bool) -> Option<StreamId> {
        self.next.take_if(|next| wanted(next.stream)).map(|next| next.stream)
    }

    /// Gives up the next connection, if it has had its time.
    pub(super) fn take_late_next(&mut self, now: Instant) -> Option<StreamId> {
        self.next.take_if(|next| !next.connected && next.deadline <= now).map(|next| next.stream)
    }

    /// A next connection cannot be opened while the present one is open.
    pub(super) fn refused(&mut self, now: Instant) {
        if let Some(timer) = &mut self.timer {
            timer.refused(now);
        }
    }

    /// The present stream has got STOP, and waits for FINISH.
    pub(super) fn end(&mut self, stream: StreamId, unacknowledged: Unacknowledged, deadline: Instant) {
        self.ending = Some(Ending { stream, unacknowledged, deadline });
    }

    /// Takes what waits for FINISH, if it is that of the stream that `wanted` says.
    pub(super) fn take_ending(
        &mut self,
        wanted: impl Fn(StreamId) -> bool,
    ) -> Option<(StreamId, Unacknowledged)> {
        let ending = self.ending.take_if(|ending| wanted(ending.stream))?;
        Some((ending.stream, ending.unacknowledged))
    }

    /// Whether the time for FINISH has passed.
    pub(super) fn finish_is_late(&self, now: Instant) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.deadline <= now)
    }

    /// A stream begins.
    pub(super) fn begin_stream(&mut self, now: Instant) {
        if let Some(timer) = &mut self.timer {
            timer.begin_stream(now);
        }
    }

    /// A stream was ended with STOP, and FINISH has come, or has not.
    pub(super) fn answered(&mut self, finished: bool, now: Instant) {
        if let Some(timer) = &mut self.timer {
            timer.answered(finished, now);
        }
    }
}
