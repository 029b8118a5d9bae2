//! Outputs with several members: every frame goes to one of them, and to another if that one dies or stalls.
//!
//! ```text
//! front queue ─► waiting ─► member's share ─► its lane (backlog, connection)
//!                   ▲                            │ dies or stalls
//!                   └────────────────────────────┘ what it has not settled, the oldest first
//! ```
//!
//! A batch stays charged to the front queue until a member settles it: its limit bounds the whole group. All lanes of a
//! group run on one worker, and the lock is never contended.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::task::spawn_local;
use tracing::warn;

use crate::drain::DrainSignal;
use crate::observability::MemberState;
use crate::observability::metrics::LaneMetrics;
use crate::output::backlog::Backlog;
use crate::output::backlog::leave;
use crate::output::balance::Balancer;
use crate::output::frame_stream;
use crate::output::lane::LaneConfig;
use crate::output::streams::GroupConfig;
use crate::output::window::Taken;
use crate::queue::Queue;
use crate::queue::receipts::ReceiptSender;
use crate::transport::Backend;

/// What the members of a group have in common.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) front: Arc<Queue>,
    // Where a spool stands before the front queue.
    pub(crate) receipts: Option<ReceiptSender>,
    metrics: Arc<LaneMetrics>,
    state: Mutex<State>,
    // The dispatcher sleeps until there is room, a member, or something that came back.
    changed: Notify,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    metrics: Arc<LaneMetrics>,
    // Its lane sleeps until it has something to write, or nothing will come.
    woken: Notify,
}

#[derive(Debug)]
struct State {
    balancer: Balancer,
    // Number of the next batch out of the front queue: the order in which all are written.
    next: u64,
    // Out of the front queue and with no member: what came back, and a batch whose member has no room.
    waiting: BTreeMap<u64, Taken>,
    // Given to a member and not taken by its lane.
    shares: Vec<VecDeque<Taken>>,
    stuck: bool,
}

/// The part of a group that one lane sees.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) group: Arc<Group>,
    pub(crate) member: usize,
}

impl Group {
    /// A group of which nobody is there as yet; `metrics` are those of the whole and of each member.
    pub(crate) fn new(
        config: &GroupConfig,
        front: Arc<Queue>,
        receipts: Option<ReceiptSender>,
        metrics: Arc<LaneMetrics>,
        members: Vec<Arc<LaneMetrics>>,
    ) -> Self {
        let weights: Vec<u32> = config.members.iter().map(|member| member.weight).collect();
        let part = (front.max() / (2 * members.len())).max(1);
        // Where a connection has one member, others wait when that has no room: it gets more of it.
        let room = if config.balance.keeps_order() { part } else { part.min(ROOM_MAX) };
        let balancer = Balancer::new(config.balance, &weights, room as u64, config.slow_start);
        let shares = members.iter().map(|_| VecDeque::new()).collect();
        let state = State { balancer, next: 0, waiting: BTreeMap::new(), shares, stuck: false };
        let member = |metrics| Member { metrics, woken: Notify::new() };
        let members = members.into_iter().map(member).collect();
        Self { front, receipts, metrics, state: Mutex::new(state), changed: Notify::new(), members }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    /// Deals out what waits, as far as there is room.
    fn deal(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        state.stuck = false;
        while state.balancer.has_room() {
            let (number, taken) = match state.waiting.pop_first() {
                Some(first) => first,
                None => {
                    let Some(queued) = self.front.pop() else { break };
                    state.next += 1;
                    (state.next, Taken::new(queued, state.next))
                }
            };
            let Some(member) = state.balancer.give(taken.upstream, taken.charge as u64, now) else {
                state.waiting.insert(number, taken);
                state.stuck = true;
                break;
            };
            let metrics = &self.members[member].metrics;
            metrics.take_over_unacknowledged(u64::from(taken.sent.frames));
            let share = &mut state.shares[member];
            // What came back goes before what is younger.
            let place = share.partition_point(|other| other.number < number);
            share.insert(place, taken);
            self.members[member].woken.notify_one();
        }
        state.stuck |= !state.balancer.has_room();
        self.tell_oldest(state);
        if self.is_over_in(state) {
            self.members.iter().for_each(|member| member.woken.notify_one());
        }
    }

    /// Tells how old the oldest is that no lane has taken.
    fn tell_oldest(&self, state: &State) {
        let waiting = state.waiting.values().next();
        let firsts = state.shares.iter().filter_map(VecDeque::front).chain(waiting);
        self.metrics.ages.oldest.set(firsts.map(|taken| taken.batch.read_at()).min());
    }

    /// Deals out for as long as the group lives.
    async fn run(&self) {
        loop {
            self.deal();
            let waits_for_members = self.state().stuck || self.front.is_closed();
            tokio::select! {
                () = self.front.ready(), if !waits_for_members => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Whether everything is written and nothing will come.
    fn is_over_in(&self, state: &State) -> bool {
        self.front.is_closed()
            && self.front.is_empty()
            && state.waiting.is_empty()
            && state.balancer.all_written()
    }

    /// The end, after that of all members.
    fn abandon(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        leave(waiting.into_values(), &self.front, self.receipts.as_ref(), &self.metrics);
        self.tell_oldest(&self.state());
    }
}

impl Share {
    /// The next batch for this member.
    pub(crate) fn pop(&self) -> Option<Taken> {
        let mut state = self.group.state();
        let taken = state.shares[self.member].pop_front();
        self.group.tell_oldest(&state);
        taken
    }

    /// Waits until there is a next batch, or nothing will come. Cancel-safe. For the one lane.
    pub(crate) async fn ready(&self) {
        loop {
            {
                let state = self.group.state();
                if !state.shares[self.member].is_empty() || self.group.is_over_in(&state) {
                    return;
                }
            }
            self.woken().await;
        }
    }

    /// Waits until everything is written, by whatever member, and nothing will come. Cancel-safe.
    pub(crate) async fn over(&self) {
        while !self.is_over() {
            self.woken().await;
        }
    }

    async fn woken(&self) {
        self.group.members[self.member].woken.notified().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.group.is_over_in(&self.group.state())
    }

    /// The member has written a batch.
    pub(crate) fn written(&self, taken: &Taken) {
        let mut state = self.group.state();
        state.balancer.written(self.member, taken.upstream, taken.charge as u64);
        if state.stuck {
            self.group.changed.notify_one();
        }
        if self.group.is_over_in(&state) {
            self.group.members.iter().for_each(|member| member.woken.notify_one());
        }
    }

    /// The member is to write a batch again.
    pub(crate) fn write_again(&self, taken: &Taken) {
        self.group.state().balancer.unwritten(self.member, taken.upstream, taken.charge as u64);
    }

    /// A connection is there: the member takes batches from now on.
    pub(crate) fn up(&self) {
        let mut state = self.group.state();
        let metrics = &self.group.members[self.member].metrics;
        let returns = metrics.member_state() != MemberState::Connecting;
        state.balancer.up(self.member, Instant::now(), returns);
        metrics.set_member_state(MemberState::Up);
        self.group.changed.notify_one();
    }

    /// The member takes nothing more, and gives back what it had not written, or not had acknowledged.
    pub(crate) fn down(&self, state: MemberState, given_back: impl IntoIterator<Item = Taken>) {
        let metrics = &self.group.members[self.member].metrics;
        metrics.set_member_state(state);
        let mut state = self.group.state();
        state.balancer.down(self.member);
        let share = std::mem::take(&mut state.shares[self.member]);
        for taken in given_back.into_iter().chain(share) {
            state.balancer.written(self.member, taken.upstream, taken.charge as u64);
            metrics.give_back(u64::from(taken.batch.frames()), u64::from(taken.sent.frames));
            state.waiting.insert(taken.number, taken);
        }
        self.group.tell_oldest(&state);
        self.group.changed.notify_one();
    }

    /// Bytes of the front queue that are this member's part.
    pub(crate) fn max(&self) -> usize {
        self.group.front.max() / self.group.members.len()
    }

    /// Its part of what may be held.
    pub(crate) fn held_max(&self) -> usize {
        self.group.front.held_max() / self.group.members.len()
    }
}

/// Runs the lanes of a group until everything is written, or the relay is over. For the worker that owns it.
pub(crate) async fn run(
    group: Arc<Group>,
    configs: Vec<Arc<LaneConfig>>,
    backend: Backend,
    drain: DrainSignal,
) {
    let name = configs.first().map(|config| config.name.clone());
    let lane = |(member, config): (usize, Arc<LaneConfig>)| {
        let share = Share { group: Arc::clone(&group), member };
        let metrics = Arc::clone(&group.members[member].metrics);
        let backlog = Backlog::of_member(share, metrics, config.streams.mode.keeps_unacknowledged());
        spawn_local(frame_stream::run(config, backlog, backend, drain.clone()))
    };
    let lanes: Vec<JoinHandle<()>> = configs.into_iter().enumerate().map(lane).collect();
    let ended = async {
        for lane in lanes {
            if let Err(error) = lane.await {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = group.run() => {}
    }
    group.abandon();
    let frames_unacknowledged = group.metrics.unacknowledged_now();
    if frames_unacknowledged > 0 {
        warn!(output = name, frames_unacknowledged, "ended, and nobody has acknowledged these frames");
    }
}

/// Most bytes that wait for one member while others could take them.
const ROOM_MAX: usize = 2 << 20;
