//! The delivery under a storm, in virtual time: connections that are refused, break at any byte, stall, answer STOP early, late
//! or never; sources that are full, empty or closed; the end at any moment. A run is decided by its seed, which a failure
//! prints. `TAPSTER_STORM_RUNS` asks for more runs.

#[path = "tests/checks.rs"]
mod checks;
#[path = "tests/peers.rs"]
mod peers;
#[path = "tests/totals.rs"]
mod totals;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::batch::Batch;
use crate::batch::budget::Budget;
use crate::batch::budget::charge;
use crate::batch::connection::ConnectionId;
use crate::batch::custody::Custody;
use crate::batch::position::LogPosition;
use crate::batch::tests::ledger;
use crate::delivery::DeliveryMachine;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balance;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::Checkpoint;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Order;
use crate::delivery::config::Reconnect;
use crate::delivery::storm::peers::Stream;
use crate::delivery::storm::totals::Totals;
use crate::lifecycle::Phase;
use crate::observability::account::OutputAccount;
use crate::observability::member_account::MemberAccount;
use crate::protocol::FrameBatch;

/// Bytes of a frame: a length word and eight digits.
const FRAME_LEN: usize = 12;

/// Runs where a test does not ask for others: some seconds in a debug build.
const RUNS: u64 = 5_000;
/// Seeds beyond them that have found a fault, and run each time: a batch that came back during a write, behind a younger one;
/// a frame that was held back until it was too old.
const FOUND: [u64; 4] = [1_077_439, 1_122_478, 2_113_319, 2_159_867];

#[test]
fn every_frame_ends_once_whatever_connections_do() {
    let runs = std::env::var("TAPSTER_STORM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let first = std::env::var("TAPSTER_STORM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let began = Instant::now();
    let mut totals = Totals::default();
    for seed in (first..first + runs).chain(FOUND) {
        let run = std::panic::AssertUnwindSafe(|| Storm::new(seed).run());
        match std::panic::catch_unwind(run) {
            Ok(run) => totals.add(run),
            Err(panic) => {
                eprintln!("seed {seed}: TAPSTER_STORM_SEED={seed} TAPSTER_STORM_RUNS=1 runs it again");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{runs} runs from seed {first} on in {:?}: {totals:?}", began.elapsed());
    // A storm in which nothing of a kind happens proves nothing about it.
    if runs >= RUNS {
        assert!(totals.kinds().into_iter().all(|count| count > runs / 100), "{totals:?}");
    }
}

/// What a storm sees if the delivery, or whoever runs it, errs: at the batch of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    CountTwice(u64),
    Forget(u64),
    Lose(u64),
}

#[test]
#[should_panic(expected = "frames_received: 1, frames_sent: 2")]
fn a_frame_that_is_counted_twice_is_seen() {
    storm_with(Fault::CountTwice(0));
}

#[test]
#[should_panic(expected = "a frame has no end")]
fn a_batch_that_is_forgotten_is_seen() {
    storm_with(Fault::Forget(0));
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "frames of a batch have no end"))]
#[cfg_attr(not(debug_assertions), should_panic(expected = "a frame has no end"))]
fn a_batch_that_is_lost_is_seen() {
    storm_with(Fault::Lose(0));
}

/// The first storm that has a batch, in fair weather.
fn storm_with(fault: Fault) {
    for seed in 0.. {
        let mut storm = Storm::new(seed);
        if storm.weather.is_fair() {
            storm.fault = Some(fault);
            if storm.run().frames > 0 {
                return;
            }
        }
    }
}

/// What happens, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Batch,
    CloseSource,
    Over,
    Connected(StreamId),
    Refused(StreamId),
    Written(StreamId),
    Lost(StreamId),
    Finished(StreamId),
}

/// How likely it is, in percent, that a thing goes wrong.
#[derive(Clone, Copy, Debug)]
struct Weather {
    refuses: u32,
    never_connects: u32,
    breaks: u32,
    stalls: u32,
    no_finish: u32,
    refuses_frame: Option<u64>,
}

impl Weather {
    /// Whether every reader does what it should.
    fn is_fair(&self) -> bool {
        self.refuses + self.never_connects + self.breaks + self.stalls + self.no_finish == 0
    }
}

struct Storm {
    random: fastrand::Rng,
    weather: Weather,
    config: DeliveryConfig,
    begin: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    serial: u64,
    delivery: DeliveryMachine,
    account: Arc<OutputAccount>,
    /// Of the members of a group.
    accounts: Vec<Arc<MemberAccount>>,
    budget: Arc<Budget>,
    queue: VecDeque<Batch>,
    source_closed: bool,
    over: bool,
    streams: BTreeMap<StreamId, Stream>,
    connecting: BTreeSet<StreamId>,
    frames: u64,
    /// Of each frame: the connection that it came from, and when.
    origins: Vec<(u32, Instant)>,
    /// The streams that have wholly got a frame, in this order.
    got: BTreeMap<u64, Vec<StreamId>>,
    /// What the spool may forget.
    settled: BTreeSet<u64>,
    fault: Option<Fault>,
    batches: u64,
    totals: Totals,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let members = random.choice([1, 1, 1, 2, 3]).unwrap_or(1);
        let balances = [Balance::RoundRobin, Balance::LeastBacklog, Balance::Failover, Balance::Sticky];
        let keeps_order = random.bool();
        let acknowledge = match random.u32(0..4) {
            0 => Acknowledge::Written,
            1 => Acknowledge::Progress {
                margin: random.u64(0..60),
                probe_len: random.u64(1..200),
                probe_pause: Duration::from_millis(1),
            },
            _ => Acknowledge::Finish {
                checkpoint: if random.bool() {
                    Checkpoint::Every(Duration::from_millis(random.u64(1..300)))
                } else {
                    Checkpoint::Bytes(random.usize(1..3000))
                },
                order: if keeps_order { Order::Strict } else { Order::PerConnection },
            },
        };
        let answers = matches!(acknowledge, Acknowledge::Finish { .. }) || random.bool();
        let queue_max = 20_000;
        let config = DeliveryConfig {
            weights: (0..members).map(|_| random.u32(1..4)).collect(),
            balance: if members == 1 {
                Balance::RoundRobin
            } else {
                random.choice(balances).unwrap_or_default()
            },
            acknowledge,
            answers,
            connect_timeout: Duration::from_millis(500),
            finish_timeout: Duration::from_millis(500),
            stall_timeout: (members > 1 || random.bool()).then(|| Duration::from_millis(300)),
            slow_start: Duration::from_secs(1),
            reconnect: Reconnect { min: Duration::from_millis(10), max: Duration::from_millis(200) },
            tries_to_the_end: random.bool(),
            queue_max,
            held_max: queue_max / 2,
            write_len_max: random.usize(1..400),
            max_age: (random.u32(0..3) == 0).then(|| Duration::from_millis(random.u64(20..1500))),
            seed,
        };
        let fair = random.u32(0..4) == 0;
        let mut percent = |max| if fair { 0 } else { random.u32(0..=max) };
        let mut weather = Weather {
            refuses: percent(60),
            never_connects: percent(20),
            breaks: percent(40),
            stalls: percent(20),
            no_finish: percent(40),
            refuses_frame: None,
        };
        if !fair && random.u32(0..10) == 0 {
            weather.refuses_frame = Some(random.u64(0..10));
        }
        let (account, budget) = (Arc::<OutputAccount>::default(), Arc::new(Budget::new(queue_max)));
        let accounts: Vec<_> =
            (0..if members == 1 { 0 } else { members }).map(|_| Arc::<MemberAccount>::default()).collect();
        let begin = Instant::now();
        let delivery = DeliveryMachine::new(config.clone(), Arc::clone(&account), &accounts, begin);
        Self {
            random,
            weather,
            config,
            begin,
            now: begin,
            events: BinaryHeap::new(),
            serial: 0,
            delivery,
            account,
            accounts,
            budget,
            queue: VecDeque::new(),
            source_closed: false,
            over: false,
            streams: BTreeMap::new(),
            connecting: BTreeSet::new(),
            frames: 0,
            origins: Vec::new(),
            got: BTreeMap::new(),
            settled: BTreeSet::new(),
            fault: None,
            batches: 0,
            totals: Totals::default(),
        }
    }

    fn plan(&mut self, after_ms: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + Duration::from_millis(after_ms), self.serial, event)));
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    fn run(mut self) -> Totals {
        for _ in 0..self.random.u64(0..12) {
            let at = self.random.u64(0..400);
            self.plan(at, Event::Batch);
        }
        let end = self.random.u64(0..800);
        self.plan(end, Event::CloseSource);
        let drain = if self.happens(70) { 6000 } else { self.random.u64(0..1000) };
        self.plan(end + drain, Event::Over);
        let mut turns = 0;
        self.turn();
        while !self.delivery.is_over() {
            turns += 1;
            assert!(turns < 20_000, "no end in sight: {:?}", self.delivery);
            let due = self.delivery.poll_timeout();
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            assert!(next.is_some() || due.is_some(), "nothing will ever happen: {:?}", self.delivery);
            match (due, next) {
                (Some(due), next) if next.is_none_or(|next| due <= next) => {
                    assert!(due > self.now || turns < 19_000, "time stands still: {:?}", self.delivery);
                    self.now = self.now.max(due);
                    self.delivery.handle_timeout(self.now);
                }
                _ => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else { continue };
                    self.now = self.now.max(at);
                    self.happen(event);
                }
            }
            self.turn();
        }
        self.check_end()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Batch if !self.source_closed => self.add_batch(),
            Event::Batch => {}
            Event::CloseSource => {
                self.source_closed = true;
                self.delivery.handle_phase(Phase::Draining, self.now);
            }
            Event::Over => {
                self.over = true;
                self.delivery.handle_phase(Phase::Over, self.now);
            }
            Event::Connected(stream) if self.connecting.remove(&stream) => {
                self.totals.connected += 1;
                self.open(stream);
                self.delivery.handle_connected(stream, self.now);
            }
            Event::Refused(stream) if self.connecting.remove(&stream) => {
                self.totals.refused += 1;
                self.delivery.handle_refused(stream, self.now);
            }
            Event::Written(stream) => self.write_on(stream),
            Event::Lost(stream) => self.lose(stream),
            Event::Finished(stream) => {
                if let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.closed) {
                    state.taken = state.written;
                    self.totals.finished += 1;
                    self.delivery.handle_finish(stream, true, self.now);
                }
            }
            Event::Connected(_) | Event::Refused(_) => {}
        }
    }

    fn add_batch(&mut self) {
        let count = self.random.u64(1..6);
        let payloads = (self.frames..self.frames + count).map(|number| format!("{number:08}"));
        let frames = FrameBatch::from_payloads(payloads, self.now).unwrap();
        let position = LogPosition { segment: 1, offset: self.frames, frame_seq: self.frames };
        let connection = self.random.u32(0..3);
        self.origins.extend((0..count).map(|_| (connection, self.now)));
        self.frames += count;
        let permit = self.budget.reserve_anyway(charge(frames.byte_len()));
        let custody = Custody::admit(Arc::clone(&self.account), permit, frames.frames());
        self.queue.push_back(Batch::new(frames, ConnectionId::new(connection), Some(position), custody));
    }

    /// One turn of the loop that drives the machine.
    fn turn(&mut self) {
        while self.delivery.wants_batch()
            && let Some(batch) = self.queue.pop_front()
        {
            let fault = self.fault.filter(|fault| {
                let (Fault::CountTwice(number) | Fault::Forget(number) | Fault::Lose(number)) = *fault;
                number == self.batches
            });
            self.batches += 1;
            match fault {
                Some(Fault::Forget(_)) => {
                    std::mem::forget(batch);
                    continue;
                }
                Some(Fault::Lose(_)) => {
                    drop(batch);
                    continue;
                }
                Some(Fault::CountTwice(_)) => self.account.sent(1, FRAME_LEN as u64),
                None => {}
            }
            self.delivery.handle_batch(batch, self.now);
        }
        let over = self.source_closed && self.queue.is_empty();
        self.delivery.handle_source(self.source_closed, over, self.now);
        while let Some(action) = self.delivery.poll_action() {
            self.act(action);
        }
        self.delivery.tell_ages(self.now);
        self.totals.frames_refused += self.delivery.poll_refused().count() as u64;
        for acknowledged in self.delivery.poll_acknowledged() {
            for frame in
                acknowledged.from.frame_seq()..acknowledged.from.frame_seq() + u64::from(acknowledged.frames)
            {
                assert!(self.settled.insert(frame), "frame {frame} has ended twice");
            }
        }
        let now = ledger(&self.account);
        assert!(now.balances(), "{now:?}");
        assert!(self.unacknowledged_by_members() <= now.frames_unacknowledged, "{now:?}");
        self.check_waits();
    }
}
