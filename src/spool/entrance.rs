//! Where batches wait for the disk of a stage, and who passes them on while that disk hangs.
//!
//! A call of the disk may last without end (a frozen file system, a dead server): the thread of the stage sits in the kernel, and
//! what it has taken out of the front queue sits there with it. So these batches are in an [`Entrance`], which another thread
//! reaches too: that of the [`StandIn`]s.
//!
//! ```text
//! front queue ─► entrance ─► stage ─► spool          the disk answers
//!                   └─► stand-in ─► back queue       a call has lasted for a second
//! ```
//!
//! 1. Around each call of the disk, the stage notes when the call began, and whether the lane has everything that is older
//!    than what has arrived ([`Entrance::call`]).
//! 2. The stand-in looks now and then. If a call has lasted for a second, it tells so, and the spool is degraded. If the lane
//!    has everything older, the stand-in gives what has arrived to the lane, in order: the output goes on in memory alone.
//!    Otherwise frames wait, since they must not pass older ones.
//! 3. When the call returns, the stage learns how many of the batches that it was storing have gone by. The lane has these
//!    without a place in the spool. So their copies on disk, if there are any, count as delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use tracing::error;
use tracing::info;

use crate::batch::Batch;
use crate::observability::account::OutputAccount;
use crate::queue::Queue;

/// The way from the front queue of a stage to its spool.
#[derive(Debug)]
pub(super) struct Entrance {
    output: String,
    account: Arc<OutputAccount>,
    front: Arc<Queue>,
    back: Arc<Queue>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Out of the front queue, and nowhere else.
    arrived: VecDeque<Batch>,
    /// The call of the disk under way.
    call: Option<Call>,
}

/// A call of the disk.
#[derive(Debug)]
struct Call {
    began: Instant,
    /// The lane has everything that is older than what has arrived.
    lane_caught_up: bool,
    /// Batches that the stand-in has taken out of what had arrived.
    passed: usize,
    hangs: bool,
    /// The log says that it hangs.
    told: bool,
}

/// What has arrived, for whoever has the lock.
pub(super) struct Arrived<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Arrived<'_> {
    type Target = VecDeque<Batch>;

    fn deref(&self) -> &VecDeque<Batch> {
        &self.0.arrived
    }
}

impl std::ops::DerefMut for Arrived<'_> {
    fn deref_mut(&mut self) -> &mut VecDeque<Batch> {
        &mut self.0.arrived
    }
}

impl Entrance {
    /// An entrance between two queues, through which nothing has come.
    pub(super) fn new(
        output: String,
        account: Arc<OutputAccount>,
        (front, back): (Arc<Queue>, Arc<Queue>),
    ) -> Self {
        Self { output, account, front, back, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Batches are moved one at a time: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived and is neither with the lane nor on disk. Nobody waits for the disk with this lock.
    pub(super) fn arrived(&self) -> Arrived<'_> {
        Arrived(self.state())
    }

    /// Calls the disk, for as long as it takes. `lane_caught_up`: the lane has everything that is older than what has arrived.
    /// Returns how many of the first batches that had arrived have gone to the lane meanwhile.
    pub(super) fn call<T>(&self, now: Instant, lane_caught_up: bool, call: impl FnOnce() -> T) -> (T, usize) {
        self.state().call = Some(Call { began: now, lane_caught_up, passed: 0, hangs: false, told: false });
        let result = call();
        let call = self.state().call.take();
        if call.as_ref().is_some_and(|call| call.told) {
            info!(output = self.output, "the disk of the spool answers again");
        }
        (result, call.map_or(0, |call| call.passed))
    }

    /// The task of the stage has failed. Returns what had arrived.
    pub(super) fn begin_again(&self) -> VecDeque<Batch> {
        std::mem::take(&mut *self.state()).arrived
    }

    /// Looks whether the disk hangs, and then gives the lane what it may have. Returns whether it hangs.
    pub(super) fn stand_in(&self, now: Instant, tells: bool) -> bool {
        let mut state = self.state();
        let State { arrived, call } = &mut *state;
        let Some(call) =
            call.as_mut().filter(|call| now.saturating_duration_since(call.began) >= HANGS_AFTER)
        else {
            return false;
        };
        if !call.hangs {
            (call.hangs, call.told) = (true, tells);
            self.account.spool().degraded.store(true, Relaxed);
            if tells {
                let (output, way) = (&self.output, if call.lane_caught_up { GOES_ON } else { WAITS });
                error!(output, "the disk of the spool has not answered for {HANGS_AFTER:?}: {way}");
            }
        }
        if !call.lane_caught_up {
            return true;
        }
        while !self.back.is_closed() {
            let has_arrived = !arrived.is_empty();
            let Some(mut batch) = arrived.pop_front().or_else(|| self.front.pop()) else { break };
            let Some(permit) = self.back.reserve(batch.byte_len()) else {
                arrived.push_front(batch);
                break;
            };
            call.passed += usize::from(has_arrived);
            batch.custody.move_to(permit);
            self.back.send(batch);
        }
        if self.front.is_closed() {
            self.back.end_inputs();
            if self.front.is_empty() && arrived.is_empty() {
                self.back.close();
            }
        }
        true
    }
}

/// Stands in for a stage whose disk hangs. See the [module](self).
#[derive(Debug)]
pub(crate) struct StandIn {
    entrance: Weak<Entrance>,
    /// When the log had the last line about this disk.
    told_at: Option<Instant>,
}

impl StandIn {
    pub(super) fn new(entrance: &Arc<Entrance>) -> Self {
        Self { entrance: Arc::downgrade(entrance), told_at: None }
    }

    /// Looks once. Returns whether the disk hangs; `None`: the stage has ended.
    fn look(&mut self, now: Instant) -> Option<bool> {
        let entrance = self.entrance.upgrade()?;
        let tells = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        let hangs = entrance.stand_in(now, tells);
        if hangs && tells {
            self.told_at = Some(now);
        }
        Some(hangs)
    }
}

/// Looks at all of them once. Returns when to look again; `None`: all stages have ended.
pub(crate) fn look(stand_ins: &mut Vec<StandIn>, now: Instant) -> Option<Duration> {
    let mut hangs = false;
    stand_ins.retain_mut(|stand_in| stand_in.look(now).inspect(|disk_hangs| hangs |= disk_hangs).is_some());
    (!stand_ins.is_empty()).then_some(if hangs { PASS_EVERY } else { LOOK_EVERY })
}

/// A call that lasts so long hangs. A disk that is merely slow answers sooner.
const HANGS_AFTER: Duration = Duration::from_secs(1);
/// How often a stand-in looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it passes batches on: what arrives in this time fits into any queue.
const PASS_EVERY: Duration = Duration::from_millis(5);
/// How often the log has a line about a disk that hangs again and again.
const TELL_EVERY: Duration = Duration::from_secs(60);

const GOES_ON: &str = "frames go to the collector from memory alone until it does; look after the disk";
const WAITS: &str = "frames wait in memory behind those on disk, which come first; look after the disk";
