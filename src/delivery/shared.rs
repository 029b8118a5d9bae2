//! What the members of one output have in common.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::batch::Acknowledgement;
use crate::batch::Batch;
use crate::delivery::action::Action;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balancer;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::item::Item;
use crate::lifecycle::Phase;
use crate::observability::account::OutputAccount;
use crate::observability::drop_reason::DropReason;

/// A frame that was left out because no reader takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFrame {
    /// Length of its payload, in bytes.
    pub(crate) len: usize,
    /// How many connections ended at it.
    pub(crate) breaks: u32,
}

/// The state that every member sees.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: DeliveryConfig,
    pub(super) account: Arc<OutputAccount>,
    pub(super) balancer: Balancer,
    /// Taken from the queue, and with no member: what came back, and a batch whose member has no room. By number.
    pub(super) waiting: BTreeMap<u64, Item>,
    pub(super) phase: Phase,
    /// Nothing comes from inputs any more; a spool may still have something.
    pub(super) inputs_ended: bool,
    /// Nothing will come out of the queue any more.
    pub(super) source_over: bool,
    pub(super) actions: VecDeque<Action>,
    pub(super) acknowledged: Vec<Acknowledgement>,
    pub(super) refused: Vec<RefusedFrame>,
    /// Connections in a row that ended before anything arrived, nobody knows at which frame.
    unexplained: u32,
    /// So many frames more are written alone, to see at which of them a connection ends.
    pub(super) alone: u32,
    /// So many connections that end at one frame make tapster leave it out.
    pub(super) breaks_max: u32,
    /// When the batches were read that have been delivered since the ages were told.
    pub(super) delivered: Vec<Instant>,
    next_serial: u64,
}

impl Shared {
    pub(super) fn new(config: DeliveryConfig, account: Arc<OutputAccount>) -> Self {
        let balancer = Balancer::new(config.balance, &config.weights, config.room(), config.slow_start);
        Self {
            config,
            account,
            balancer,
            waiting: BTreeMap::new(),
            phase: Phase::Running,
            inputs_ended: false,
            source_over: false,
            actions: VecDeque::new(),
            acknowledged: Vec::new(),
            refused: Vec::new(),
            unexplained: 0,
            alone: 0,
            breaks_max: BREAKS_MAX,
            delivered: Vec::new(),
            next_serial: 0,
        }
    }

    /// Whether everything is written, by whatever member, and nothing will come.
    pub(super) fn nothing_to_come(&self) -> bool {
        self.source_over && self.waiting.is_empty() && self.balancer.all_written()
    }

    /// A connection to this member that has no number yet.
    pub(super) fn new_stream(&mut self, member: usize) -> StreamId {
        self.next_serial += 1;
        StreamId { member, serial: self.next_serial }
    }

    pub(super) fn act(&mut self, action: Action) {
        if let Action::Close(stream, _) = action {
            // Nothing else is to be done with it any more: nothing at all if nobody has begun to open it.
            let unknown = self.actions.contains(&Action::Connect(stream));
            self.actions.retain(|earlier| earlier.stream() != stream);
            if unknown {
                return;
            }
        }
        self.actions.push_back(action);
    }

    /// Lets go of a batch for good: as far as this output wants to know, its frames have arrived.
    pub(super) fn settle(&mut self, batch: Batch) {
        if batch.frames().frames() > 0 {
            self.frames_arrive();
        }
        self.delivered.push(batch.read_at());
        self.acknowledged.extend(batch.delivered());
    }

    /// Whether a batch is too old to be sent.
    pub(super) fn is_too_old(&self, batch: &Batch, now: Instant) -> bool {
        self.too_old_at(batch).is_some_and(|at| at <= now)
    }

    fn too_old_at(&self, batch: &Batch) -> Option<Instant> {
        batch.read_at().checked_add(self.config.max_age?)
    }

    /// When the first of the batches that wait is too old.
    pub(super) fn first_too_old_at(&self) -> Option<Instant> {
        self.waiting.values().next().and_then(|first| self.too_old_at(&first.batch))
    }

    /// Drops a batch that is too old.
    pub(super) fn drop_old(&mut self, batch: Batch) {
        self.acknowledged.extend(batch.given_up(DropReason::SpoolAge));
    }

    /// Drops what has waited for too long.
    pub(super) fn drop_old_waiting(&mut self, now: Instant) {
        while self.first_too_old_at().is_some_and(|at| at <= now)
            && let Some((_, item)) = self.waiting.pop_first()
        {
            self.drop_old(item.batch);
        }
    }

    /// A reader takes frames: one that it does not take is soon left out.
    pub(super) fn frames_arrive(&mut self) {
        self.breaks_max = BREAKS_MAX;
        self.unexplained = 0;
    }

    /// A reader ended a connection, and any of several frames may be the reason.
    pub(super) fn unexplained_break(&mut self) {
        self.unexplained += 1;
        if self.unexplained >= UNEXPLAINED_MAX {
            (self.unexplained, self.alone) = (0, ALONE);
        }
    }

    /// A frame is left out. While nothing arrives, the next one has more chances: perhaps it is not the frames.
    pub(super) fn leaves_out(&mut self, frame: RefusedFrame) {
        self.refused.push(frame);
        self.breaks_max = self.breaks_max.saturating_mul(2);
        self.alone = 0;
    }
}

/// After so many connections that ended at one frame the frame is left out.
const BREAKS_MAX: u32 = 5;

/// After so many connections that ended and nobody knows why, frames are written alone.
const UNEXPLAINED_MAX: u32 = 5;

/// So many of them: those of one batch, and more.
const ALONE: u32 = 1000;
