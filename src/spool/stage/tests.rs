//! A stage in a storm, in virtual time: arrivals, a lane that writes, acknowledges, fails, stalls or ends, a disk that fails,
//! fills up and comes back, and one run of tapster after the other on the same folder. A storm is decided by its seed, which
//! a failure prints. `TAPSTER_STORM_RUNS` asks for more storms.

mod disk;
mod end;
mod frames;
mod lane;
mod situations;
mod totals;

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::batch::budget::charge;
use crate::batch::connection::ConnectionId;
use crate::batch::tests::ledger;
use crate::observability::OutputLedger;
use crate::observability::account::OutputAccount;
use crate::protocol::FrameBatch;
use crate::queue::Queue;
use crate::queue::WhenFull;
use crate::spool::Moment;
use crate::spool::OnFull;
use crate::spool::RecoveryReport;
use crate::spool::SimFolder;
use crate::spool::Spool;
use crate::spool::SpoolConfig;
use crate::spool::SpoolError;
use crate::spool::SpoolSettings;
use crate::spool::SyncPolicy;
use crate::spool::reports::ReportSender;
use crate::spool::reports::reports;
use crate::spool::stage::Stage;
use crate::spool::stage::StageConfig;
use crate::spool::stage::Waits;
use crate::spool::stage::tests::disk::StoodIn;
use crate::spool::stage::tests::frames::FRAMES_MAX;
use crate::spool::stage::tests::frames::NUMBER_LEN;
use crate::spool::stage::tests::frames::PAYLOAD_MAX;
use crate::spool::stage::tests::frames::frames_of;
use crate::spool::stage::tests::totals::KINDS;
use crate::spool::stage::tests::totals::Totals;

/// Storms where a test does not ask for others: some seconds in a debug build.
const RUNS: u64 = 3000;
/// Seeds beyond them that have found a fault, and run each time: frames that a lane had sent before its end, and that count as
/// stored; frames that the disk dropped while the lane that failed had them; numbers of frames that were used twice; frames that
/// were taken back from a failing disk, and read from memory all the same.
const FOUND: [u64; 5] = [139_860, 52_649, 57_900, 417_304, 440_330];

thread_local! {
    /// The disk of the storm on this thread.
    static FOLDER: RefCell<SimFolder> = RefCell::default();
    /// How often a spool was opened on it.
    static OPENED: Cell<u64> = const { Cell::new(0) };
    /// How often it cannot be opened from now on.
    static OPEN_FAILS: Cell<u32> = const { Cell::new(0) };
}

fn open_sim(config: &StageConfig, now: Moment) -> Result<(Spool<SimFolder>, RecoveryReport), SpoolError> {
    let folder = FOLDER.with_borrow(SimFolder::clone);
    if OPEN_FAILS.get() > 0 {
        OPEN_FAILS.set(OPEN_FAILS.get() - 1);
        folder.fail_after(0, 3);
    }
    let opened = Spool::open_in(folder, config.settings.config.clone(), None, now)?;
    OPENED.set(OPENED.get() + 1);
    Ok(opened)
}

#[test]
fn every_frame_ends_once_whatever_the_lane_and_the_disk_do() {
    let asked = |name: &str| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let runs = asked("TAPSTER_STORM_RUNS").unwrap_or(RUNS);
    let first = asked("TAPSTER_STORM_SEED").unwrap_or(0);
    let began = Instant::now();
    let mut totals = Totals::default();
    for seed in (first..first + runs).chain(FOUND) {
        match catch_unwind(|| Storm::new(seed).run()) {
            Ok(run) => totals.add(&run),
            Err(panic) => {
                eprintln!("seed {seed}: TAPSTER_STORM_SEED={seed} TAPSTER_STORM_RUNS=1 runs it again");
                resume_unwind(panic);
            }
        }
    }
    println!("{runs} storms from seed {first} on in {:?}: {totals:?}", began.elapsed());
    // A storm in which nothing of a kind happens proves nothing about it.
    if runs >= RUNS {
        let rare = totals.0.iter().find(|(_, count)| **count <= runs / 100);
        assert!(rare.is_none() && totals.0.len() == KINDS, "{rare:?}: {totals:?}");
    }
}

/// What a storm is like, from its first run to its last.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// Frames are kept until they are acknowledged.
    keeps: bool,
    /// Batches are written, and acknowledged, in order.
    in_order: bool,
    /// Percent of the steps in which a thing happens.
    disk_fails: u32,
    disk_fills: u32,
    /// A disk that is full shows room all the same.
    quota: bool,
    disk_hangs: u32,
    lane_fails: u32,
    lane_refuses: u32,
    /// Percent of the steps in which the lane does nothing.
    lane_stalls: u32,
    arrives: u32,
    payload_len_max: usize,
}

/// One storm.
struct Storm {
    random: fastrand::Rng,
    weather: Weather,
    config: SpoolConfig,
    folder: SimFolder,
    stood_in: Arc<Mutex<StoodIn>>,
    /// Frames that the disk may have beside those that it has in order: a store failed, or went wrong in another way.
    copied: BTreeSet<u64>,
    now: Moment,
    /// Number of the next frame.
    next: u64,
    delivered: BTreeMap<u64, u32>,
    /// Frames that a lane had.
    taken: BTreeSet<u64>,
    /// Frames that ended for good, on disk too.
    settled: BTreeSet<u64>,
    /// Frames that were in memory alone at an end, or when the lane failed: they come behind what was on disk. Which times that
    /// were: only frames with the same history are in order, and those without one are the rest.
    displaced: BTreeMap<u64, Vec<u64>>,
    displacements: u64,
    dropped: u64,
    /// Frames that the last run left in the spool, and how many of them it may have sent; `None` where a disk failed.
    spooled: Option<(u64, u64)>,
    disk_has_failed: bool,
    /// No run had anything that would let a frame be sent twice.
    exact: bool,
    totals: Totals,
}

/// One run of tapster.
struct Life {
    stage: Stage<SimFolder>,
    front: Arc<Queue>,
    back: Arc<Queue>,
    account: Arc<OutputAccount>,
    frame_len_max: u32,
    /// What the stage waits for; `None` while it does not.
    waits: Option<Waits>,
    /// A producer that waits for room, with its batch.
    blocked: Option<(FrameBatch, ConnectionId)>,
    reports: Option<ReportSender>,
    /// What the lane has.
    held: VecDeque<Batch>,
    /// The lane has failed, and waits.
    failed: Option<oneshot::Receiver<()>>,
    /// The lane failed, and the stage was woken.
    woken: bool,
    /// Of what the lane has or had, and is on disk: each number in the spool, its frame, and whether it has ended.
    handed: BTreeMap<u64, (u64, bool)>,
    /// The last frame that the lane got, by connection and how often, and when, it was displaced.
    last: BTreeMap<(u64, Vec<u64>), u64>,
    has_failed: bool,
    /// The spool could not be opened at first: what is in it comes behind what came meanwhile.
    opened_late: bool,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let fair = random.u32(0..3) == 0;
        let mut percent = |max: u32| if fair { 0 } else { random.u32(0..=max) * random.u32(0..2) };
        let (disk_fails, disk_fills, disk_hangs) = (percent(10), percent(10), percent(40));
        let (lane_fails, lane_refuses) = (percent(12), percent(4));
        let weather = Weather {
            keeps: random.bool(),
            in_order: random.bool(),
            disk_fails,
            disk_fills,
            quota: seed % 8 == 7, // the storms that have found faults are as they were
            disk_hangs,
            lane_fails,
            lane_refuses,
            lane_stalls: random.choice([0, 30, 80, 100]).unwrap_or(0),
            arrives: random.u32(10..90),
            payload_len_max: random.choice([40, 1000, PAYLOAD_MAX]).unwrap_or(40),
        };
        let syncs = [SyncPolicy::None, SyncPolicy::Batch, SyncPolicy::Interval(Duration::from_millis(20))];
        let on_full = [OnFull::DropOldest, OnFull::DropNewest, OnFull::Block];
        let config = SpoolConfig {
            max: 256 << 10,
            max_age: if random.u32(0..4) == 0 { Duration::from_secs(2) } else { Duration::from_secs(3600) },
            min_free: 0,
            sync: random.choice(syncs).unwrap_or(SyncPolicy::Batch),
            on_full: random.choice(on_full).unwrap_or_default(),
        };
        let folder = SimFolder::new();
        FOLDER.set(folder.clone());
        let now = Moment { instant: Instant::now(), unix: 1_700_000_000_000_000_000 };
        Self {
            random,
            weather,
            config,
            folder,
            stood_in: Arc::default(),
            copied: BTreeSet::new(),
            now,
            next: 0,
            delivered: BTreeMap::new(),
            taken: BTreeSet::new(),
            settled: BTreeSet::new(),
            displaced: BTreeMap::new(),
            displacements: 0,
            dropped: 0,
            spooled: Some((0, 0)),
            disk_has_failed: false,
            exact: true,
            totals: Totals::default(),
        }
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    fn run(mut self) -> Totals {
        let stores_all = self.random.bool();
        for _ in 0..self.random.u32(0..3) {
            self.live(stores_all, false);
        }
        self.live(stores_all, true);
        assert_eq!(self.spooled.map(|(frames, _)| frames), Some(0), "the last run delivers everything");
        let missing = self.next - self.delivered.len() as u64;
        assert!(
            missing <= self.dropped,
            "{missing} frames are lost, and {} counted; {:?} {:?}",
            self.dropped,
            self.config,
            self.weather
        );
        if self.exact {
            assert_eq!(missing, self.dropped, "lost, and counted as lost");
            assert!(self.delivered.values().all(|times| *times == 1), "delivered twice");
            self.totals.count("exact", 1);
        }
        self.totals.count("storms", 1);
        let hung = self.stood_in().passed;
        self.totals.count("hung", hung);
        let twice = self.delivered.values().filter(|times| **times > 1).count();
        self.totals.count("twice", twice as u64);
        self.totals.count("delivered", self.delivered.len() as u64);
        self.totals
    }

    /// One run of tapster on the folder; the last one has a sound disk and a lane that takes everything.
    fn live(&mut self, stores_all: bool, last: bool) {
        let failures = self.folder.heal();
        self.limit_disk(None);
        self.folder.meanwhile(None);
        OPEN_FAILS.set(0);
        if last {
            self.weather =
                Weather { disk_fails: 0, disk_fills: 0, lane_fails: 0, lane_stalls: 0, ..self.weather };
            self.config.on_full = OnFull::Block;
        } else if self.happens(self.weather.disk_fails) {
            OPEN_FAILS.set(self.random.u32(1..5));
        }
        let mut life = self.begin_life(stores_all);
        let opened = OPENED.get();
        life.stage.open(self.now);
        if OPENED.get() > opened {
            self.check_recovered(&life, failures);
        }
        for _ in 0..self.random.u32(0..60) {
            self.step(&mut life);
            if life.reports.is_none() {
                break;
            }
        }
        life.front.close();
        let patience = if last { 20_000 } else { self.random.u32(0..60) };
        for turn in 0..patience {
            self.step(&mut life);
            if life.back.is_closed() && life.back.is_empty() && life.held.is_empty() && life.failed.is_none()
            {
                break;
            }
            assert!(!last || turn + 1 < patience, "no end in sight: {:?} {:?}", self.config, self.weather);
        }
        self.end_life(life, opened, failures);
    }

    fn begin_life(&mut self, stores_all: bool) -> Life {
        let account = Arc::<OutputAccount>::default();
        let policy = match self.config.on_full {
            OnFull::DropOldest => WhenFull::DropOldest,
            OnFull::DropNewest => WhenFull::DropNewest,
            OnFull::Block => WhenFull::Block,
        };
        let max = 2 * (charge(0) + FRAMES_MAX * (4 + self.weather.payload_len_max));
        let mut queue =
            |policy| Arc::new(Queue::new(max * self.random.usize(1..4), policy, Arc::clone(&account)));
        let (front, back) = (queue(policy), queue(WhenFull::Block));
        let frame_len_max = match self.random.u32(0..3) {
            0 => self.weather.payload_len_max / 2,
            _ => self.weather.payload_len_max,
        };
        let config = StageConfig {
            output: "storm".to_owned(),
            content_type: None,
            frame_len_max: frame_len_max.max(NUMBER_LEN) as u32,
            settings: SpoolSettings { folder: PathBuf::new(), config: self.config.clone() },
            stores_all,
        };
        let (sender, receiver) = reports();
        let frame_len_max = config.frame_len_max;
        let queues = (Arc::clone(&front), Arc::clone(&back));
        Life {
            stage: Stage::new(config, open_sim, queues, receiver, Arc::clone(&account)),
            front,
            back,
            account,
            frame_len_max,
            waits: None,
            blocked: None,
            reports: Some(sender),
            held: VecDeque::new(),
            failed: None,
            woken: false,
            handed: BTreeMap::new(),
            last: BTreeMap::new(),
            has_failed: false,
            opened_late: false,
        }
    }

    /// What the last run left is there.
    fn check_recovered(&mut self, life: &Life, failures: u64) {
        let recovered = ledger(&life.account).spool.unwrap_or_default().frames_recovered;
        self.totals.count("recovered", recovered);
        if let Some((spooled, sent)) = self.spooled.filter(|_| self.folder.failures() == failures) {
            // Numbers of batches that a disk refused are missed, and counted as damaged, in each run until they are passed.
            let more = if self.disk_has_failed { u64::MAX } else { spooled + sent };
            assert!(
                (spooled..=more).contains(&recovered),
                "{recovered} frames recovered, {spooled} were spooled, {sent} more may have been sent; {:?} {:?}",
                self.config,
                self.weather
            );
        }
    }

    /// One moment: something arrives, the lane does something, the disk does something, the stage has its turn.
    fn step(&mut self, life: &mut Life) {
        let jump = match self.random.u32(0..200) {
            0 => 2500,
            1..10 => 300,
            _ => self.random.u64(0..10),
        };
        self.now.instant += Duration::from_millis(jump);
        self.now.unix += jump * 1_000_000;
        self.toss_disk();
        self.let_disk_hang(life);
        self.arrive(life);
        for _ in 0..self.random.u32(0..4) {
            self.lane_acts(life);
        }
        let (mut turns, mut turns_due) = (0, 0);
        while life.stage_is_awake(self.now.instant) {
            turns += 1;
            assert!(turns < 10_000, "the stage never rests");
            // One thing that fails may put off another to the next turn, and files are removed in steps.
            let is_due = |waits: Waits| waits.due.is_some_and(|due| due <= self.now.instant);
            turns_due = if life.waits.is_some_and(is_due) { turns_due + 1 } else { 0 };
            assert!(turns_due < 8, "the stage does not do what is due");
            life.woken = false;
            let opened = OPENED.get();
            let (now, retry_at) = (self.now, life.stage.retry_at);
            life.waits =
                if life.stage.turn(|| now) { None } else { Some(life.stage.waits(self.now.instant)) };
            if life.stage.retry_at.is_some_and(|at| Some(at) != retry_at) {
                // What a failing disk refused may be there all the same, and is stored once more.
                self.copied.extend(frames_of(&life.stage.entrance.arrived()));
            }
            if OPENED.get() > opened {
                // What came meanwhile has passed what is on disk.
                life.opened_late = true;
            }
            life.check();
            if self.random.u32(0..3) == 0 {
                break;
            }
        }
    }

    // The lane.

    // The end.
}

impl Life {
    /// Whether something has happened that the stage waits for.
    fn stage_is_awake(&self, now: Instant) -> bool {
        let Some(waits) = self.waits else { return true };
        let has_room = |len| {
            self.back.budget().is_low() && self.back.budget().has_room(charge(len)) || self.back.is_closed()
        };
        waits.due.is_some_and(|due| due <= now)
            || waits.batch && !self.front.is_empty()
            || self.front.end() > waits.seen
            || waits.room_for.is_some_and(has_room)
            || self.woken
    }

    fn check(&self) {
        let now: OutputLedger = ledger(&self.account);
        assert!(now.balances(), "{now:?}");
        let back = self.back.budget();
        assert!(back.charged() <= back.max(), "{} of {} bytes", back.charged(), back.max());
    }
}

#[test]
fn a_stage_that_fails_counts_what_was_on_its_way_to_the_disk() {
    let mut storm = Storm::new(1);
    storm.config.on_full = OnFull::Block;
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    storm.folder.limit(Some(0));
    // The lane takes nothing, and the disk is full.
    while life.stage.entrance.arrived().is_empty() {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let arrived: u64 =
        life.stage.entrance.arrived().iter().map(|batch| u64::from(batch.frames().frames())).sum();
    life.stage.begin_again();
    let ledger = ledger(&life.account);
    assert_eq!(ledger.frames_dropped.get("internal"), Some(&arrived));
    assert!(ledger.balances(), "{ledger:?}");
    life.front.abandon();
    life.back.abandon();
}

/// A quota is reached, or the rest of the disk is for root: statvfs says nothing of it.
#[test]
fn a_disk_that_takes_no_more_although_it_shows_room_is_told_and_asked_again() {
    for on_full in [OnFull::Block, OnFull::DropNewest, OnFull::DropOldest] {
        let mut storm = Storm::new(1);
        (storm.config.on_full, storm.config.sync) = (on_full, SyncPolicy::Batch);
        (storm.config.max_age, storm.weather.arrives) = (Duration::from_secs(3600), 100);
        let mut life = storm.begin_life(true);
        life.stage.open(storm.now);
        storm.folder.quota(Some(storm.folder.bytes() + 80_000));
        // The lane takes nothing.
        let arrive = |storm: &mut Storm, life: &mut Life| {
            for _ in 0..2000 {
                storm.now.instant += Duration::from_millis(1);
                storm.arrive(life);
                life.stage.turn(|| storm.now);
            }
            ledger(&life.account)
        };
        let full = arrive(&mut storm, &mut life);
        let spool = full.spool.clone().unwrap_or_default();
        assert!(spool.degraded && spool.bytes > 10_000, "{on_full:?}: {full:?}");
        assert_eq!(full.frames_dropped.contains_key("spool_full"), on_full != OnFull::Block, "{full:?}");
        storm.folder.quota(None);
        storm.now.instant += Duration::from_secs(3);
        while life.stage.turn(|| storm.now) {}
        storm.now.instant += Duration::from_secs(3);
        while life.stage.turn(|| storm.now) {}
        let after = ledger(&life.account);
        assert!(!after.spool.clone().unwrap_or_default().degraded, "{on_full:?}: {after:?}");
        assert!(after.balances() && after.frames_spooled >= full.frames_spooled, "{on_full:?}: {after:?}");
        life.stage.begin_again();
        life.front.abandon();
        life.back.abandon();
    }
}
