//! What an operator decides about delivery.

use std::time::Duration;

use crate::delivery::balance::Balance;

/// Doubling, jittered pause between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// First pause, above zero.
    pub min: Duration,
    /// Longest pause, not shorter than the first.
    pub max: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { min: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

/// When a stream is ended, to have its FINISH, and the next one begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// So long after the stream has begun.
    Every(Duration),
    /// Once its frames take so many bytes of the queue.
    Bytes(usize),
}

/// In which order a reader gets the frames around a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In order on each connection. The next stream flows while FINISH of the last is awaited: a reader may take the first
    /// frames of the next stream before the last ones of the other.
    #[default]
    PerConnection,
    /// In order altogether: nothing is written between STOP and FINISH.
    Strict,
}

/// What must have happened to a frame before the output lets go of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    /// It is written.
    Written,
    /// The stream tells that the peer has it; the last `margin` bytes are kept all the same.
    Progress {
        /// In bytes.
        margin: u64,
        /// The driver looks at the progress after so many bytes written.
        probe_len: u64,
        /// And so long after the first byte that was written since the last look, at the latest.
        probe_pause: Duration,
    },
    /// FINISH has come.
    Finish {
        /// When a stream is ended.
        checkpoint: Checkpoint,
        /// What that does to the order.
        order: Order,
    },
}

/// How often a reader is connected to again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Never: the delivery ends with its first connection.
    Never,
    /// While frames come, and once more when the output drains.
    WhileRunning,
    /// Until the deadline of a drain.
    ToTheEnd,
}

/// What one output delivers with.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryConfig {
    /// The weight of each member; one for an output that is no group.
    pub(crate) weights: Vec<u32>,
    /// Which frame goes to which member.
    pub(crate) balance: Balance,
    /// What must have happened to a frame.
    pub(crate) acknowledge: Acknowledge,
    /// Whether readers answer STOP with FINISH.
    pub(crate) answers: bool,
    /// From connect to START.
    pub(crate) connect_timeout: Duration,
    /// From STOP to FINISH.
    pub(crate) finish_timeout: Duration,
    /// A reader that has something to take, and takes nothing for so long, is given up; `None`: never.
    pub(crate) stall_timeout: Option<Duration>,
    /// How long the share of a member that returns grows until it is the full one.
    pub(crate) slow_start: Duration,
    /// Pauses between attempts.
    pub(crate) reconnect: Reconnect,
    /// How often it is connected again.
    pub(crate) retry: Retry,
    /// Bytes of the queue.
    pub(crate) queue_max: usize,
    /// Bytes of the queue that may be held for any batch to pass.
    pub(crate) held_max: usize,
    /// Bytes that one write takes.
    pub(crate) write_len_max: usize,
    /// Batches that were read so long ago are dropped; `None`: they never grow too old.
    pub(crate) max_age: Option<Duration>,
    /// Decides jitter.
    pub(crate) seed: u64,
}

impl DeliveryConfig {
    /// Whether batches are kept after they are written.
    pub(crate) fn keeps(&self) -> bool {
        self.acknowledge != Acknowledge::Written
    }

    /// Bytes of the queue that one member may count on.
    pub(super) fn member_max(&self) -> usize {
        self.queue_max / self.weights.len()
    }

    /// Bytes that wait for one member while others could take them.
    pub(super) fn room(&self) -> u64 {
        let part = (self.queue_max / (2 * self.weights.len())).max(1);
        let room = match self.weights.len() {
            1 => self.write_len_max,
            // Where a connection has one member, others wait when that has no room: it gets more of it.
            _ if self.balance.keeps_order() => part,
            _ => part.min(ROOM_MAX),
        };
        room as u64
    }
}

/// Most bytes that wait for one member while others could take them.
const ROOM_MAX: usize = 2 << 20;
