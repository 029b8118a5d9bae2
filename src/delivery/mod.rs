//! What becomes of the batches that an output has taken from its queue: a state machine without I/O, clock or log.
//!
//! ```text
//! queue ─► waiting ─► member's pending ─► unacknowledged ─► ending ─► delivered
//!             ▲                │                │              │
//!             └────────────────┴────────────────┴──────────────┘ the connection died, stalled, or did not send FINISH
//! ```
//!
//! An output has one member for each address that it may write to: one, or the several of a group. Every frame goes to one of
//! them. Events and the time come in, [`Action`]s and a deadline come out; one loop in `output` has the connections and runs
//! the machine. So every reconnect, checkpoint, stall and group decision is tested in virtual time (`storm`).

pub(crate) mod action;
#[cfg(test)]
#[path = "age/tests.rs"]
mod age;
mod attempts;
pub(crate) mod backoff;
pub(crate) mod balance;
mod checkpoint;
pub(crate) mod config;
mod endpoint;
mod in_flight;
mod item;
mod link;
mod probe;
#[cfg(test)]
#[path = "refuse/tests.rs"]
mod refuse;
mod rollover;
mod shared;
mod stall;
#[cfg(test)]
#[path = "storm/tests.rs"]
mod storm;
mod unacknowledged;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::delivery::action::Action;
use crate::delivery::action::StreamId;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::endpoint::Endpoint;
use crate::delivery::item::Item;
pub(crate) use crate::delivery::shared::RefusedFrame;
use crate::delivery::shared::Shared;
use crate::lifecycle::Phase;
use crate::observability::account::OutputAccount;
use crate::observability::member_account::MemberAccount;

/// The delivery of one output. See the [module](self).
///
/// After each event the caller takes [`poll_action`](Self::poll_action) until there is none, and calls
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come.
#[derive(Debug)]
pub(crate) struct DeliveryMachine {
    shared: Shared,
    members: Vec<Endpoint>,
    next_number: u64,
}

impl DeliveryMachine {
    /// A delivery without any connection. `members` are the accounts of a group's members; none for an output that is no
    /// group.
    pub(crate) fn new(
        config: DeliveryConfig,
        account: Arc<OutputAccount>,
        members: &[Arc<MemberAccount>],
        now: Instant,
    ) -> Self {
        let count = config.weights.len();
        let shared = Shared::new(config, account);
        let member = |index: usize| Endpoint::new(index, members.get(index).cloned(), &shared, now);
        let members = (0..count).map(member).collect();
        let mut delivery = Self { shared, members, next_number: 0 };
        delivery.drive(now);
        delivery
    }

    /// Whether a batch would find somebody to write it. Otherwise batches are better off in the queue, whose policy decides
    /// about them.
    pub(crate) fn wants_batch(&self) -> bool {
        let alone_and_writing = || self.members.len() == 1 && self.members.iter().any(Endpoint::is_writing);
        self.shared.phase != Phase::Over
            && self.shared.waiting.is_empty()
            && self.shared.balancer.has_room()
            && !alone_and_writing()
    }

    /// Takes the next batch of the queue. Call [`DeliveryMachine::handle_source`] behind the last one.
    pub(crate) fn handle_batch(&mut self, batch: Batch, now: Instant) {
        if self.shared.is_too_old(&batch, now) {
            return self.shared.drop_old(batch);
        }
        self.next_number += 1;
        let item = Item::new(batch, self.next_number);
        self.assign(item, now);
    }

    /// Tells how the queue stands: whether nothing comes from inputs any more, and whether nothing will come out of it any
    /// more.
    pub(crate) fn handle_source(&mut self, inputs_ended: bool, over: bool, now: Instant) {
        let ends = inputs_ended && !self.shared.inputs_ended;
        (self.shared.inputs_ended, self.shared.source_over) = (inputs_ended, over);
        if ends {
            self.members.iter_mut().for_each(|member| member.hurry(now));
        }
        self.drive(now);
    }

    /// Deals out, waits and tries again as `config` says from now on. It has as many members as before, and the same
    /// acknowledgement.
    pub(crate) fn reconfigure(&mut self, config: DeliveryConfig, now: Instant) {
        debug_assert_eq!(config.weights.len(), self.members.len());
        let (room, seed) = (config.room(), self.shared.config.seed);
        self.shared.balancer.reconfigure(config.balance, &config.weights, room, config.slow_start);
        self.shared.config = DeliveryConfig { seed, ..config };
        self.members.iter_mut().for_each(|member| member.reconfigure(&self.shared, now));
        self.drive(now);
    }

    /// A connection is there, past its handshake.
    pub(crate) fn handle_connected(&mut self, stream: StreamId, now: Instant) {
        self.on_member(stream, now, |member, shared| member.connected(stream, shared, now));
    }

    /// No connection can be opened.
    pub(crate) fn handle_refused(&mut self, stream: StreamId, now: Instant) {
        self.on_member(stream, now, |member, shared| member.refused(stream, shared, now));
    }

    /// A write, or a part of it, has given the stream `count` more bytes.
    pub(crate) fn handle_written(&mut self, stream: StreamId, count: usize, now: Instant) {
        self.on_member(stream, now, |member, shared| {
            member.written(stream, count, shared, now);
            member.write_ended(shared);
        });
    }

    /// The peer has everything before `arrived`, in bytes of data frames since the stream began; `None`: it cannot be told.
    pub(crate) fn handle_progress(&mut self, stream: StreamId, arrived: Option<u64>, now: Instant) {
        self.on_member(stream, now, |member, shared| member.progress(stream, arrived, shared, now));
    }

    /// STOP was sent, and FINISH has come (without answers: STOP alone), or will not.
    pub(crate) fn handle_finish(&mut self, stream: StreamId, finished: bool, now: Instant) {
        self.on_member(stream, now, |member, shared| member.finished(stream, finished, shared, now));
    }

    /// The connection has ended, by the peer or the network. A write that was under way has been told of before.
    pub(crate) fn handle_lost(&mut self, stream: StreamId, now: Instant) {
        self.on_member(stream, now, |member, shared| member.lost(stream, shared, now));
    }

    /// This side has given up the present stream, by no fault of what was written to it. Whatever it has not acknowledged goes to
    /// the next stream, which begins at once, or after the pause of a failure.
    pub(crate) fn handle_given_up(&mut self, stream: StreamId, at_once: bool, now: Instant) {
        self.on_member(stream, now, |member, shared| member.given_up(stream, at_once, shared, now));
    }

    /// The present stream is to give way to another, as soon as the write under way has ended: a file is full.
    pub(crate) fn handle_rotate(&mut self, stream: StreamId, now: Instant) {
        self.on_member(stream, now, |member, _| member.rotate());
    }

    /// The output has come to this phase.
    pub(crate) fn handle_phase(&mut self, phase: Phase, now: Instant) {
        self.shared.phase = self.shared.phase.max(phase);
        if phase == Phase::Draining {
            self.members.iter_mut().for_each(|member| member.hurry(now));
        }
        self.drive(now);
    }

    /// The time of [`DeliveryMachine::poll_timeout`] has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.drive(now);
    }

    /// What is to be done next.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.shared.actions.pop_front()
    }

    /// When to call [`DeliveryMachine::handle_timeout`]; `None` while only events are awaited.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let by_members = self.members.iter().filter_map(|member| member.timeout(&self.shared));
        by_members.chain(self.shared.first_too_old_at()).min()
    }

    /// Frames that the spool need not keep any more.
    pub(crate) fn poll_acknowledged(&mut self) -> impl Iterator<Item = Acknowledgement> {
        self.shared.acknowledged.drain(..)
    }

    /// Frames that were left out because no reader takes them.
    pub(crate) fn poll_refused(&mut self) -> impl Iterator<Item = RefusedFrame> {
        self.shared.refused.drain(..)
    }

    /// The bytes of a write that begins.
    pub(crate) fn buffers(&self, stream: StreamId) -> impl Iterator<Item = Bytes> {
        self.members.get(stream.member).into_iter().flat_map(Endpoint::buffers)
    }

    /// Bytes at the end of a member's present stream that are a part of a frame: of none that counts as sent.
    pub(crate) fn cut_len(&self, stream: StreamId) -> usize {
        self.members.get(stream.member).map_or(0, Endpoint::cut_len)
    }

    /// Tells how old the oldest batch is that this output has taken, and how long those stayed that were delivered. For once in
    /// a turn of the loop.
    pub(crate) fn tell_ages(&mut self, now: Instant) {
        let waiting = self.shared.waiting.values().next().map(|item| item.batch.read_at());
        let oldest = self.members.iter().filter_map(Endpoint::oldest).chain(waiting).min();
        let ages = &self.shared.account.ages;
        ages.oldest.set(oldest);
        if !self.shared.delivered.is_empty() {
            ages.delivered(self.shared.delivered.drain(..), now);
        }
        self.members.iter_mut().for_each(|member| member.tell_ages(now));
    }

    /// Whether the delivery has come to its end: no connection is there, and none will be.
    pub(crate) fn is_over(&self) -> bool {
        self.members.iter().all(Endpoint::has_ended)
    }

    /// The batches that nobody got, or that nobody acknowledged, in order. For the end.
    pub(crate) fn into_remaining(mut self) -> impl Iterator<Item = Batch> {
        self.shared.account.ages.oldest.set(None);
        std::mem::take(&mut self.shared.waiting).into_values().map(|item| item.batch)
    }

    fn on_member(&mut self, stream: StreamId, now: Instant, act: impl FnOnce(&mut Endpoint, &mut Shared)) {
        if let Some(member) = self.members.get_mut(stream.member) {
            act(member, &mut self.shared);
        }
        self.drive(now);
    }

    /// Gives a batch to a member, if whoever may have it has room; otherwise it waits. Returns whether a member has it.
    fn assign(&mut self, item: Item, now: Instant) -> bool {
        let (connection, charge) = (item.batch.connection, item.batch.charge() as u64);
        let member = self.shared.balancer.give(connection, charge, now);
        match member.and_then(|member| self.members.get_mut(member)) {
            Some(member) => {
                member.take(item, now);
                true
            }
            None => {
                self.shared.waiting.insert(item.number, item);
                false
            }
        }
    }

    /// Deals out what waits, and lets every member do what it can, until nothing changes any more.
    fn drive(&mut self, now: Instant) {
        self.shared.drop_old_waiting(now);
        loop {
            while self.shared.phase != Phase::Over
                && self.shared.balancer.has_room()
                && let Some((_, item)) = self.shared.waiting.pop_first()
                && self.assign(item, now)
            {}
            let waiting = self.shared.waiting.len();
            let ended = self.members.iter().filter(|member| member.has_ended()).count();
            for member in &mut self.members {
                member.drive(&mut self.shared, now);
            }
            let now_ended = self.members.iter().filter(|member| member.has_ended()).count();
            // A member that gave something back, or has ended, is news for the others.
            if waiting == self.shared.waiting.len() && ended == now_ended {
                break;
            }
        }
    }
}
