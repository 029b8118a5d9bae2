//! How old frames are: while they wait, and when an output lets go of them.
//!
//! A lane tells once for each write or acknowledgement what is the oldest that it has not delivered, and how long the
//! batches stayed that it has.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::observability::Residence;

/// The ages of one lane.
#[derive(Debug)]
pub(crate) struct Ages {
    /// What the lane has and has not delivered.
    pub(crate) oldest: Oldest,
    stays: Arc<Stays>,
}

/// How long batches stayed that were delivered, in microseconds: since somebody looked, and before. The lane locks the
/// first alone, which whoever looks holds no longer than it takes to put another in its place.
#[derive(Debug)]
struct Stays {
    fresh: Mutex<Histogram<u64>>,
    seen: Mutex<Histogram<u64>>,
}

impl Default for Ages {
    fn default() -> Self {
        let (fresh, seen) = (Mutex::new(empty()), Mutex::new(empty()));
        Self { oldest: Oldest::default(), stays: Arc::new(Stays { fresh, seen }) }
    }
}

impl Ages {
    /// The ages of a lane beside this one: what is delivered counts here.
    pub(crate) fn beside(&self) -> Self {
        Self { oldest: Oldest::default(), stays: Arc::clone(&self.stays) }
    }

    /// Tells of batches, by the times when they were read, that are delivered now.
    pub(crate) fn delivered(&self, read_at: impl Iterator<Item = Instant>, now: Instant) {
        let now = stamp(now);
        let mut fresh = self.stays.fresh.lock().expect(UNPOISONED);
        read_at.for_each(|read_at| fresh.saturating_record(micros(now - stamp(read_at))));
    }
}

/// When the oldest batch of some was read: a time stamp, or `NOTHING`.
#[derive(Debug)]
pub(crate) struct Oldest(AtomicI64);

impl Default for Oldest {
    fn default() -> Self {
        Self(AtomicI64::new(NOTHING))
    }
}

impl Oldest {
    pub(crate) fn set(&self, read_at: Option<Instant>) {
        self.0.store(read_at.map_or(NOTHING, stamp), Relaxed);
    }
}

/// The oldest of several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OldestOf(i64);

impl OldestOf {
    pub(crate) fn new() -> Self {
        Self(NOTHING)
    }

    pub(crate) fn add(&mut self, oldest: &Oldest) {
        self.0 = self.0.min(oldest.0.load(Relaxed));
    }

    /// Adds what was read at this time.
    pub(crate) fn add_read_at(&mut self, read_at: Instant) {
        self.0 = self.0.min(stamp(read_at));
    }

    /// Since the oldest was read; `None` where there is none.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        (self.0 != NOTHING).then(|| Duration::from_micros(micros(stamp(now) - self.0)))
    }
}

/// The ages of several lanes.
#[derive(Debug)]
pub(crate) struct AgeSum {
    oldest: OldestOf,
    residence: Histogram<u64>,
}

impl AgeSum {
    pub(crate) fn new() -> Self {
        Self { oldest: OldestOf::new(), residence: empty() }
    }

    /// Adds a lane.
    pub(crate) fn add(&mut self, ages: &Ages) {
        self.add_oldest(&ages.oldest);
        let mut seen = ages.stays.seen.lock().expect(UNPOISONED);
        let mut fresh = empty();
        std::mem::swap(&mut fresh, &mut *ages.stays.fresh.lock().expect(UNPOISONED));
        seen.add(&fresh).expect(SAME_BOUNDS);
        self.residence.add(&*seen).expect(SAME_BOUNDS);
    }

    /// Adds what waits beside a lane.
    pub(crate) fn add_oldest(&mut self, oldest: &Oldest) {
        self.oldest.add(oldest);
    }

    /// Adds what waits before it.
    pub(crate) fn add_waiting(&mut self, read_at: Instant) {
        self.oldest.add_read_at(read_at);
    }

    /// Microseconds since the oldest was read that is not delivered; `None` where all are.
    pub(crate) fn oldest_age_us(&self, now: Instant) -> Option<u64> {
        self.oldest.age(now).map(|age| age.as_micros() as u64)
    }

    /// How long those stayed that were delivered.
    pub(crate) fn residence(&self) -> Residence {
        let at = |quantile| self.residence.value_at_quantile(quantile);
        Residence {
            batches: self.residence.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: self.residence.max(),
        }
    }
}

/// Nanoseconds from some moment of this process to `at`, which may lie before it: small enough for an atomic.
pub(crate) fn stamp(at: Instant) -> i64 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    match at.checked_duration_since(*EPOCH) {
        Some(after) => after.as_nanos() as i64,
        None => -(EPOCH.duration_since(at).as_nanos() as i64),
    }
}

/// Microseconds between two stamps; 0 if they are in the wrong order.
fn micros(nanos: i64) -> u64 {
    u64::try_from(nanos / 1000).unwrap_or_default()
}

/// Later than anything.
const NOTHING: i64 = i64::MAX;

const UNPOISONED: &str = "no panic while it is held";
const SAME_BOUNDS: &str = "all have the same bounds";

/// A histogram of microseconds, exact to two digits.
fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, RESIDENCE_MAX_US, 2).expect("the bounds are valid")
}

/// What stays longer counts as this: 30 days.
const RESIDENCE_MAX_US: u64 = 30 * 86_400_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(lanes: &[Ages]) -> AgeSum {
        let mut sum = AgeSum::new();
        lanes.iter().for_each(|ages| sum.add(ages));
        sum
    }

    #[test]
    fn the_oldest_of_all_lanes_counts_wherever_it_waits_and_where_nothing_does_there_is_no_age() {
        let now = Instant::now();
        let before = |seconds| now - Duration::from_secs(seconds);
        let lanes = [Ages::default(), Ages::default()];
        assert_eq!(sum(&lanes).oldest_age_us(now), None);
        lanes[0].oldest.set(Some(before(2)));
        lanes[1].oldest.set(Some(before(3)));
        assert_eq!(sum(&lanes).oldest_age_us(now), Some(3_000_000));
        assert_eq!(sum(&lanes).oldest_age_us(now + Duration::from_secs(60)), Some(63_000_000));
        let mut with_queue = sum(&lanes);
        with_queue.add_waiting(before(7200));
        assert_eq!(with_queue.oldest_age_us(now), Some(7_200_000_000));
        lanes[1].oldest.set(None);
        assert_eq!(sum(&lanes).oldest_age_us(now), Some(2_000_000));
        // Clocks of threads may differ by a little.
        assert_eq!(sum(&lanes).oldest_age_us(before(5)), Some(0));
    }

    #[test]
    fn each_batch_counts_once_with_the_time_from_read_to_delivery_however_often_it_is_looked_at() {
        let begin = Instant::now();
        let lanes = [Ages::default(), Ages::default()];
        for number in 1..=500 {
            // 1 ms to 1 s in all.
            for (lane, ages) in lanes.iter().enumerate() {
                let took = Duration::from_millis(2 * number - lane as u64);
                ages.delivered([begin].into_iter(), begin + took);
            }
            if number % 100 == 1 {
                assert_eq!(sum(&lanes).residence().batches, 2 * number);
            }
        }
        let residence = sum(&lanes).residence();
        assert_eq!(residence.batches, 1000);
        let about = |us: u64, millis: u64| us.abs_diff(1000 * millis) <= 10 * millis;
        assert!(about(residence.p50_us, 500) && about(residence.p90_us, 900), "{residence:?}");
        assert!(about(residence.p99_us, 990) && about(residence.p99_9_us, 999), "{residence:?}");
        assert!(about(residence.max_us, 1000), "{residence:?}");
        assert_eq!(sum(&[]).residence(), Residence::default());
    }

    /// A spool gives batches back that were read before this process began.
    #[test]
    fn stamps_go_back_before_the_epoch_and_keep_the_order() {
        let now = Instant::now();
        let day = Duration::from_secs(86_400);
        assert_eq!(stamp(now) - stamp(now - day), day.as_nanos() as i64);
        assert_eq!(stamp(now + day) - stamp(now), day.as_nanos() as i64);
    }

    #[test]
    fn no_residence_is_too_long_to_be_recorded() {
        let ages = Ages::default();
        let now = Instant::now();
        ages.delivered([now - Duration::from_secs(90 * 86_400)].into_iter(), now);
        let residence = sum(&[ages]).residence();
        assert_eq!(residence.batches, 1);
        assert!(residence.max_us >= RESIDENCE_MAX_US);
    }
}
