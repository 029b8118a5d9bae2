//! A connection in its data phase, as seen from outside.

use std::cell::Cell;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use crate::lifecycle::Phase;
use crate::transport::stream::Stream;

/// What the worker of a connection tells it, and asks it.
pub(crate) struct ReadHandle {
    pub(super) stream: Stream,
    pub(super) phase: Cell<Phase>,
    // When the frames were read that outputs are taking.
    pub(super) delivering: Cell<Option<Instant>>,
    pub(super) last_read: Cell<Option<Instant>>,
    // Whether another process is to go on with the connection, and its place among those that are offered at a time.
    pub(super) hands_over: Cell<bool>,
    pub(super) offered: Cell<Option<OwnedSemaphorePermit>>,
    // When it ends, at the next quiet moment.
    pub(super) retires_at: Option<Instant>,
    pub(super) retires: Cell<bool>,
}

impl ReadHandle {
    /// A connection that ends soon after `retires_at`.
    pub(crate) fn new(stream: Stream, retires_at: Option<Instant>) -> Self {
        Self {
            stream,
            phase: Cell::new(Phase::Running),
            delivering: Cell::new(None),
            last_read: Cell::new(None),
            hands_over: Cell::new(false),
            offered: Cell::new(None),
            retires_at,
            retires: Cell::new(false),
        }
    }

    /// Tells the session if it is as old as it may become. Called at regular intervals.
    pub(crate) fn look_at_age(&self, now: Instant) {
        if self.retires_at.is_some_and(|at| at <= now) && !self.retires.replace(true) {
            self.stream.cancel();
        }
    }

    /// When the frames were read for which the session waits, because an output has no room for them.
    pub(crate) fn held_since(&self) -> Option<Instant> {
        self.delivering.get()
    }

    /// When frames were read last; `None`: never.
    pub(crate) fn last_read(&self) -> Option<Instant> {
        self.last_read.get()
    }

    /// Another process is to go on with the connection, once every frame that was read is with its lanes. The permit is free again
    /// when it does, or does not.
    pub(crate) fn hand_over(&self, permit: Option<OwnedSemaphorePermit>) {
        self.hands_over.set(true);
        self.offered.set(permit);
        self.stream.cancel();
    }

    /// Tells the session of the phase of its input. Draining, it takes what has arrived and ends. Over, it ends.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.stream.cancel();
    }
}
