//! One endpoint of an output: its connection, what is to be written to it, and what it has not acknowledged.
//!
//! ```text
//! pending ─► unacknowledged ─► ending ─► delivered
//!   to be      written, kept    its stream waits
//!   written                     for FINISH
//! ```
//!
//! A connection that dies gives everything back that it has not acknowledged: the batches go to whoever is there next.
//!
//! This file has what happens to an endpoint. What the endpoint does by itself is in `drive`, and how its streams end in
//! `stream_end`.

mod drive;
mod stream_end;

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
        self.watch.reconfigure(&shared.config);
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

    /// A stream begins: it has got nothing yet.
    fn begin_stream(&mut self, stream: StreamId, shared: &Shared, now: Instant) {
        self.link = Link::Up { stream, since: now };
        self.watch = Watch::new(&shared.config, self.flight.has_pending(), now);
        self.rollover.begin_stream(now);
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

    fn set_state(&self, state: MemberState) {
        if let Some(account) = &self.account {
            account.set_state(state);
        }
    }

    /// A write that was interrupted for the end has come back.
    pub(super) fn write_ended(&mut self, shared: &Shared) {
        if shared.phase == Phase::Over {
            self.flight.give_up_write();
        }
    }
}
