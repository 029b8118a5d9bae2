//! A stage in a storm, in virtual time: arrivals, a lane that writes, acknowledges, fails, stalls or ends, a disk that fails,
//! fills up and comes back, and one run of tapster after the other on the same folder. A storm is decided by its seed, which
//! a failure prints. `TAPSTER_STORM_RUNS` asks for more storms.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::task::Context;
use std::task::Waker;

use tokio::sync::oneshot;

use super::*;
use crate::batch::budget::charge;
use crate::batch::connection::ConnectionId;
use crate::batch::tests::ledger;
use crate::observability::OutputLedger;
use crate::protocol::FrameBatch;
use crate::queue::WhenFull;
use crate::spool::OnFull;
use crate::spool::SimFolder;
use crate::spool::SpoolConfig;
use crate::spool::SyncPolicy;
use crate::spool::reports::ReportSender;
use crate::spool::reports::reports;
use crate::spool::storage::Standing;

/// Storms where a test does not ask for others: some seconds in a debug build.
const RUNS: u64 = 3000;
/// Seeds beyond them that have found a fault, and run each time: frames that a lane had sent before its end, and that count as
/// stored; frames that the disk dropped while the lane that failed had them; numbers of frames that were used twice.
const FOUND: [u64; 3] = [139_860, 52_649, 57_900];

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

/// How often what happened.
#[derive(Clone, Debug, Default)]
struct Totals(BTreeMap<String, u64>);

/// What must happen in many storms.
const KINDS: usize = 19;

impl Totals {
    fn count(&mut self, kind: &str, count: u64) {
        if count > 0 {
            *self.0.entry(kind.to_owned()).or_default() += count;
        }
    }

    fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(kind, count)| self.count(kind, *count));
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

/// What the stand-in has done.
#[derive(Debug, Default)]
struct StoodIn {
    /// How often it passed something on.
    passed: u64,
    /// Frames that the stage was storing meanwhile. A disk that fails keeps this copy of them, and they are stored once more.
    copied: BTreeSet<u64>,
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

/// Connections: a frame tells which it came from.
const CONNECTIONS: u64 = 3;

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
        self.folder.limit(None);
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

    fn toss_disk(&mut self) {
        if self.happens(self.weather.disk_fails) {
            self.folder.fail_after(self.random.u64(0..4), self.random.u64(1..12));
        } else if self.happens(30) {
            self.folder.heal();
        }
        if self.happens(self.weather.disk_fills) {
            self.folder.limit(Some(self.folder.bytes() + self.random.u64(0..20_000)));
            self.totals.count("disk_full", 1);
        } else if self.happens(10) {
            self.folder.limit(None);
        }
    }

    /// During each operation of the disk the stand-in looks, as if much time had passed.
    fn let_disk_hang(&mut self, life: &Life) {
        let hangs = self.happens(self.weather.disk_hangs);
        let (entrance, later) =
            (Arc::clone(&life.stage.entrance), self.now.instant + Duration::from_secs(3600));
        let back = Arc::clone(&life.back);
        let stood_in = Arc::clone(&self.stood_in);
        self.folder.meanwhile(hangs.then_some(Arc::new(move || {
            let (before, arrived) = (back.budget().charged(), frames_of(&entrance.arrived()));
            entrance.stand_in(later, true);
            if back.budget().charged() > before {
                let mut stood_in = stood_in.lock().unwrap();
                stood_in.passed += 1;
                stood_in.copied.extend(arrived);
            }
        })));
    }

    fn stood_in(&self) -> MutexGuard<'_, StoodIn> {
        self.stood_in.lock().unwrap()
    }

    fn arrive(&mut self, life: &mut Life) {
        if life.blocked.is_none() && !life.front.is_closed() && self.happens(self.weather.arrives) {
            let connection = self.random.u64(0..CONNECTIONS);
            let frames = self.frames(connection, life.frame_len_max as usize);
            let connection = ConnectionId::new(u32::try_from(connection).unwrap());
            life.blocked = Some((frames, connection));
        }
        if let Some((frames, connection)) = life.blocked.take() {
            let push = pin!(life.front.push(frames.clone(), connection));
            if push.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.totals.count("blocked", 1);
                life.blocked = Some((frames, connection));
            }
        }
    }

    fn frames(&mut self, connection: u64, payload_len_max: usize) -> FrameBatch {
        let count = self.random.usize(1..=FRAMES_MAX);
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let mut payload = [self.next, connection].map(u64::to_be_bytes).concat();
                self.next += 1;
                let len = self.random.usize(NUMBER_LEN..=payload_len_max);
                payload.extend_from_slice(&PADDING[..len - NUMBER_LEN]);
                payload
            })
            .collect();
        FrameBatch::from_payloads(payloads, self.now.instant).unwrap()
    }

    // The lane.

    fn lane_acts(&mut self, life: &mut Life) {
        if let Some(answer) = &mut life.failed {
            match answer.try_recv() {
                Ok(()) => life.failed = None,
                Err(_) => return,
            }
        }
        if self.happens(self.weather.lane_stalls) {
            return;
        }
        if self.random.u32(0..1000) < self.weather.lane_fails {
            return self.fail_lane(life);
        }
        if life.held.len() < 6
            && let Some(batch) = life.back.pop()
        {
            self.take(life, batch);
        }
        if life.held.is_empty() {
            return;
        }
        let index = if self.weather.in_order { 0 } else { self.random.usize(0..life.held.len()) };
        if self.weather.keeps {
            self.write_and_keep(life);
            self.acknowledge_some(life, index);
        } else {
            self.write_some(life, index);
        }
        if self.happens(self.weather.lane_refuses) {
            self.refuse(life);
        }
    }

    fn take(&mut self, life: &mut Life, batch: Batch) {
        assert!(batch.frames().payload_len_max() <= life.frame_len_max, "longer than the lane takes");
        if batch.log_position.is_some() && std::mem::take(&mut life.opened_late) {
            life.last.clear();
        }
        for (index, (frame, connection)) in numbers(batch.frames()).into_iter().enumerate() {
            // What a failing disk was to take may be there all the same, and come twice, and out of order.
            let copied = self.copied.contains(&frame) || self.stood_in().copied.contains(&frame);
            let copied = copied && self.disk_has_failed;
            assert!(
                copied || !self.settled.contains(&frame),
                "frame {frame} comes again although it had ended"
            );
            let key = (connection, self.displaced.get(&frame).cloned().unwrap_or_default());
            let twice = !self.taken.insert(frame) && self.disk_has_failed || copied;
            let before = if twice { None } else { life.last.insert(key, frame) };
            assert!(before < Some(frame), "frame {frame} of connection {connection} comes behind {before:?}");
            if let Some(position) = batch.log_position {
                life.handed.insert(position.frame_seq() + index as u64, (frame, false));
            }
        }
        life.held.push_back(batch);
    }

    /// Writes any part of a batch, which is delivered by that.
    fn write_some(&mut self, life: &mut Life, index: usize) {
        let Some(mut batch) = life.held.remove(index) else { return };
        let bytes = self.part_of(&batch);
        self.write(&mut batch, bytes, false);
        if bytes >= batch.byte_len() {
            self.delivered(life, batch);
        } else {
            let (_, forget) = batch.advance(bytes);
            self.forget(life, forget);
            life.held.insert(index, batch);
        }
    }

    /// Writes the first batches that are not wholly written.
    fn write_and_keep(&mut self, life: &mut Life) {
        let Some(index) = life.held.iter().position(|batch| batch.custody.open() > 0) else { return };
        let Some(mut batch) = life.held.remove(index) else { return };
        let bytes = self.part_of(&batch);
        self.write(&mut batch, bytes, true);
        if batch.custody.open() == 0 {
            batch.custody.hold();
        }
        life.held.insert(index, batch);
    }

    fn acknowledge_some(&mut self, life: &mut Life, index: usize) {
        if self.happens(50) {
            return;
        }
        let Some(mut batch) = life.held.remove(index) else { return };
        if batch.custody.open() == 0 && self.random.bool() {
            return self.delivered(life, batch);
        }
        let (_, forget) = batch.advance(self.random.usize(0..=batch.byte_len()));
        self.forget(life, forget);
        if batch.frames().frames() == 0 {
            return self.delivered(life, batch);
        }
        life.held.insert(index, batch);
    }

    fn delivered(&mut self, life: &mut Life, batch: Batch) {
        if batch.log_position.is_none() {
            self.settled.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
        }
        let forget = batch.delivered();
        self.forget(life, forget);
    }

    /// No reader takes the first frame of what was left of the first batch.
    fn refuse(&mut self, life: &mut Life) {
        let Some(first) = life.held.front_mut() else { return };
        // One that counts as sent is no loss to this storm.
        if first.sent_frames() > 0 {
            return;
        }
        self.totals.count("refused", 1);
        let (_, forget) = first.refuse_first();
        if first.frames().frames() == 0
            && let Some(batch) = life.held.pop_front()
        {
            self.delivered(life, batch);
        }
        self.forget(life, forget);
    }

    fn forget(&mut self, life: &mut Life, forget: Option<Acknowledgement>) {
        let Some(forget) = forget else { return };
        let from = forget.from.frame_seq();
        for seq in from..from + u64::from(forget.frames) {
            let (_, ended) = life.handed.get_mut(&seq).expect("what the lane has");
            assert!(!std::mem::replace(ended, true), "ended twice");
        }
        let reports = life.reports.as_ref().expect("the lane is there");
        reports.send(Report::Acknowledged(forget));
    }

    fn part_of(&mut self, batch: &Batch) -> usize {
        let len = batch.byte_len();
        if self.random.bool() { len } else { self.random.usize(0..=len) }
    }

    fn write(&mut self, batch: &mut Batch, bytes: usize, kept: bool) {
        let before = batch.sent_frames() as usize;
        let written = batch.written(bytes, kept).first.frames as usize;
        for (frame, _) in numbers(batch.frames()).into_iter().skip(before).take(written) {
            *self.delivered.entry(frame).or_default() += 1;
        }
    }

    fn fail_lane(&mut self, life: &mut Life) {
        self.totals.count("lane_failed", 1);
        let held = std::mem::take(&mut life.held);
        let failed = catch_unwind(AssertUnwindSafe(move || {
            let _held = held;
            resume_unwind(Box::new("on purpose"));
        }));
        assert!(failed.is_err());
        // What was only in memory goes behind what is on disk.
        self.displace_waiting(life);
        self.settle_prefix(life);
        life.last.clear();
        life.has_failed = true;
        self.exact = false;
        life.failed = Some(life.reports.as_ref().expect("the lane is there").fail());
        life.woken = true;
    }

    /// What waits behind the stage is taken out of its order, where it is not on disk.
    fn displace_waiting(&mut self, life: &mut Life) {
        let waits: Vec<Batch> = std::iter::from_fn(|| life.back.pop()).collect();
        let mut displaced = Vec::new();
        for batch in waits {
            if batch.log_position.is_none() {
                displaced.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
            }
            life.back.send(batch);
        }
        self.displace(&displaced);
    }

    fn displace(&mut self, frames: &[u64]) {
        self.displacements += 1;
        for frame in frames {
            self.displaced.entry(*frame).or_default().push(self.displacements);
        }
    }

    /// What has ended, with everything before it, never comes again.
    fn settle_prefix(&mut self, life: &mut Life) -> u64 {
        let handed = std::mem::take(&mut life.handed);
        let mut out_of_order = 0;
        let mut all = true;
        for (frame, ended) in handed.into_values() {
            all &= ended;
            if all {
                self.settled.insert(frame);
            } else {
                out_of_order += u64::from(ended);
            }
        }
        out_of_order
    }

    // The end.

    fn end_life(&mut self, mut life: Life, opened: u64, failures: u64) {
        life.front.close();
        if let Some((frames, connection)) = life.blocked.take() {
            let push = pin!(life.front.push(frames, connection));
            assert!(push.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        }
        self.folder.meanwhile(None);
        let reports = life.reports.take().expect("the lane is there");
        let mut sent = 0;
        let mut left = Vec::new();
        for batch in life.held.drain(..).chain(std::iter::from_fn(|| life.back.pop())) {
            sent += u64::from(batch.sent_frames());
            if batch.log_position.is_none() {
                left.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
            }
            reports.send(Report::Left(batch));
        }
        drop(reports);
        self.displace(&left);
        sent += self.settle_prefix(&mut life);
        let failures_before_end = self.folder.failures();
        if self.happens(self.weather.disk_fails) {
            self.folder.fail_after(self.random.u64(0..6), self.random.u64(1..6));
        }
        let now = Cell::new(self.now);
        life.stage.end(|| {
            let mut moment = now.get();
            moment.instant += Duration::from_millis(1);
            moment.unix += 1_000_000;
            now.set(moment);
            moment
        });
        self.now = now.get();
        let end = ledger(&life.account);
        assert!(end.balances() && end.frames_queued == 0, "{end:?}");
        assert_eq!(
            (life.front.budget().charged(), life.back.budget().charged()),
            (0, 0),
            "memory is given back"
        );
        assert!(life.has_failed || !end.frames_dropped.contains_key("internal"), "{end:?}");
        self.dropped += end.frames_dropped.values().sum::<u64>();
        for (reason, frames) in &end.frames_dropped {
            self.totals.count(reason, *frames);
        }
        let was_opened = OPENED.get() > opened;
        let failed_at_all = self.folder.failures() > failures;
        self.disk_has_failed |= failed_at_all;
        self.exact &= !failed_at_all && !self.weather.keeps && self.weather.in_order;
        let failed_at_end = self.folder.failures() > failures_before_end;
        if failed_at_all {
            self.settled.clear();
        }
        self.totals.count("failures_at_end", u64::from(failed_at_end));
        self.totals.count("spooled", end.frames_spooled);
        self.spooled = match (was_opened, failed_at_all) {
            (true, false) => Some((end.frames_spooled, sent)),
            (true, true) => None,
            (false, _) => self.spooled,
        };
    }
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

fn frames_of(batches: &VecDeque<Batch>) -> Vec<u64> {
    batches.iter().flat_map(|batch| numbers(batch.frames())).map(|(frame, _)| frame).collect()
}

/// The frames of a batch: number and connection.
fn numbers(frames: &FrameBatch) -> Vec<(u64, u64)> {
    let number = |payload: bytes::Bytes| {
        let (number, rest) = payload.split_first_chunk().unwrap();
        (u64::from_be_bytes(*number), u64::from_be_bytes(*rest.first_chunk().unwrap()))
    };
    frames.payloads().map(number).collect()
}

/// Frames of a batch, at most.
const FRAMES_MAX: usize = 4;
/// Bytes of a payload that tell its number and connection.
const NUMBER_LEN: usize = 16;
/// Bytes of a payload, at most.
const PAYLOAD_MAX: usize = 8000;
const PADDING: [u8; PAYLOAD_MAX] = [0; PAYLOAD_MAX];

/// A sync may take as long for much as for little.
#[test]
fn what_has_arrived_is_synced_at_once() {
    const BATCHES: u64 = 3000;
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { max: 64 << 20, sync: SyncPolicy::Batch, ..storm.config };
    storm.weather.payload_len_max = 1 << 20;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    for _ in 0..BATCHES {
        push(&life, FrameBatch::from_payloads([[0; 1000]], storm.now.instant).unwrap());
    }
    life.stage.turn(|| storm.now);
    assert_eq!(life.stage.spool.as_ref().map(Spool::frames), Some(BATCHES));
    life.front.abandon();
    life.back.abandon();
}

/// Otherwise a disk whose syncs take longer than the time between them is synced for every batch.
#[test]
fn the_time_that_a_sync_has_taken_counts() {
    const OPERATION: u64 = 600;
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { sync: SyncPolicy::Interval(Duration::from_secs(1)), ..storm.config };
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    let (passed, begin) = (Arc::new(AtomicU64::new(0)), storm.now);
    let passes = Arc::clone(&passed);
    storm.folder.meanwhile(Some(Arc::new(move || {
        passes.fetch_add(OPERATION, Relaxed);
    })));
    let clock = || {
        let millis = passed.load(Relaxed);
        Moment {
            instant: begin.instant + Duration::from_millis(millis),
            unix: begin.unix + millis * 1_000_000,
        }
    };
    let unsynced = [0; 20].map(|_| {
        push(&life, FrameBatch::from_payloads([[0; 100]], begin.instant).unwrap());
        life.stage.turn(clock);
        life.stage.spool.as_ref().map_or(0, Spool::unsynced_frames)
    });
    assert!(unsynced[10..].contains(&2), "{unsynced:?}");
    life.front.abandon();
    life.back.abandon();
}

fn push(life: &Life, frames: FrameBatch) {
    let push = pin!(life.front.push(frames, ConnectionId::new(0)));
    assert!(push.poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

#[test]
fn what_waits_for_a_full_disk_is_dropped_at_its_age() {
    let max_age = Duration::from_secs(10);
    let mut storm = Storm::new(1);
    storm.config = SpoolConfig { on_full: OnFull::Block, max_age, ..storm.config };
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    storm.folder.limit(Some(0));
    while life.blocked.is_none() {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let mut with_lane = 0;
    while let Some(batch) = life.back.pop() {
        with_lane += u64::from(batch.frames().frames());
        batch.dropped(DropReason::Shutdown);
    }
    let received = ledger(&life.account).frames_received;
    storm.now.instant += max_age + Duration::from_millis(1);
    life.stage.turn(|| storm.now);
    assert!(life.stage.entrance.arrived().is_empty() && life.front.is_empty());
    let ledger = ledger(&life.account);
    assert_eq!(ledger.frames_dropped.get("spool_age"), Some(&(received - with_lane)));
}

/// The folder goes when nobody looks at it any more.
#[test]
fn what_is_in_a_folder_that_is_gone_at_the_end_counts_as_lost() {
    let mut storm = Storm::new(1);
    storm.config.on_full = OnFull::Block;
    storm.weather.arrives = 100;
    let mut life = storm.begin_life(true);
    life.stage.open(storm.now);
    for _ in 0..10 {
        storm.arrive(&mut life);
        life.stage.turn(|| storm.now);
    }
    let arrived = ledger(&life.account).frames_received;
    storm.folder.stand(Standing::Gone);
    life.front.close();
    drop(life.reports.take());
    life.stage.end(|| storm.now);
    let ledger = ledger(&life.account);
    assert_eq!((ledger.frames_spooled, ledger.frames_dropped.get("spool_damaged")), (0, Some(&arrived)));
    assert!(ledger.balances(), "{ledger:?}");
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
