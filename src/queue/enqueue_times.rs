//! When the oldest batch of a queue was read, which the channel does not tell.
//!
//! Every batch is numbered as it comes, and now and then it is noted when one was read: the number of the oldest that
//! waits leads to the note before it. That tells its age to 10 ms or, where that takes more notes than are kept, to 2 % of
//! what the age has lately been.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;
use std::time::Instant;

use crate::observability::age::stamp;

/// The notes of one queue.
#[derive(Debug)]
pub(crate) struct EnqueueTimes {
    // Batches that have come.
    count: AtomicU64,
    // The time stamp from which on a batch is worth a note.
    due: AtomicI64,
    notes: Mutex<Notes>,
}

#[derive(Debug)]
struct Notes {
    // Numbers and times, both rising.
    notes: VecDeque<(u64, Instant)>,
    step: Duration,
}

impl EnqueueTimes {
    pub(crate) fn new() -> Self {
        let notes = Notes { notes: VecDeque::new(), step: STEP_MIN };
        Self { count: AtomicU64::new(0), due: AtomicI64::new(i64::MIN), notes: Mutex::new(notes) }
    }

    /// A batch that was read at `read_at` is the last of those that wait.
    pub(crate) fn add(&self, read_at: Instant, waiting: impl FnOnce() -> usize) {
        let number = self.count.fetch_add(1, Release);
        if stamp(read_at) >= self.due.load(Relaxed) {
            self.note(number, read_at, waiting());
        }
    }

    #[cold]
    fn note(&self, number: u64, read_at: Instant, waiting: usize) {
        // Held for a moment, and asked for seldom.
        let mut notes = self.notes.lock().expect("no panic while it is held");
        // Another producer may have come before.
        if stamp(read_at) >= self.due.load(Relaxed) {
            notes.forget_before((number + 1).saturating_sub(waiting as u64));
            notes.add(number, read_at);
            self.due.store(stamp(read_at + notes.step), Relaxed);
        }
    }

    /// When the oldest of those that wait was read, or a little before.
    pub(crate) fn oldest(&self, waiting: impl FnOnce() -> usize) -> Option<Instant> {
        // In this order: what comes or goes in between makes it no younger than it is.
        let count = self.count.load(Acquire);
        let waiting = waiting();
        if waiting == 0 {
            return None;
        }
        let notes = self.notes.lock().expect("no panic while it is held");
        notes.before(count.saturating_sub(waiting as u64))
    }
}

impl Notes {
    /// The time of the last note up to this number.
    fn before(&self, number: u64) -> Option<Instant> {
        let index = self.notes.partition_point(|note| note.0 <= number).saturating_sub(1);
        self.notes.get(index).map(|note| note.1)
    }

    fn forget_before(&mut self, number: u64) {
        while self.notes.get(1).is_some_and(|next| next.0 <= number) {
            self.notes.pop_front();
        }
    }

    /// Adds a note. Too many are thinned out, and the next are made less often, until few are left.
    fn add(&mut self, number: u64, read_at: Instant) {
        if self.notes.len() < NOTES_MAX / 4 {
            self.step = (self.step / 2).max(STEP_MIN);
        }
        if self.notes.len() == NOTES_MAX {
            while self.notes.len() > NOTES_MAX / 2 {
                self.step *= 2;
                self.thin_out();
            }
        }
        self.notes.push_back((number, read_at));
    }

    /// Drops notes between others that are no more than a step apart: a pause stays one.
    fn thin_out(&mut self) {
        let mut kept = VecDeque::new();
        let mut notes = std::mem::take(&mut self.notes).into_iter().peekable();
        while let Some(note) = notes.next() {
            let last: Option<&(u64, Instant)> = kept.back();
            let spared = last.zip(notes.peek()).is_some_and(|(last, next)| next.1 - last.1 <= self.step);
            if !spared {
                kept.push_back(note);
            }
        }
        self.notes = kept;
    }
}

/// Least time between two notes.
const STEP_MIN: Duration = Duration::from_millis(10);
const NOTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that remembers everything, and the notes that are to say as much.
    struct Model {
        enqueue_times: EnqueueTimes,
        waiting: VecDeque<Instant>,
        now: Instant,
        // The most that the age has lately been.
        age_max: Duration,
    }

    impl Model {
        fn new() -> Self {
            Self {
                enqueue_times: EnqueueTimes::new(),
                waiting: VecDeque::new(),
                now: Instant::now(),
                age_max: Duration::ZERO,
            }
        }

        fn push(&mut self) {
            let pause = self.waiting.back().map_or(Duration::ZERO, |last| self.now - *last);
            self.age_max = self.age_max.saturating_sub(25 * pause);
            self.waiting.push_back(self.now);
            self.enqueue_times.add(self.now, || self.waiting.len());
            self.check();
        }

        fn pop(&mut self) {
            self.waiting.pop_front();
            self.check();
        }

        fn check(&mut self) {
            let told = self.enqueue_times.oldest(|| self.waiting.len());
            let Some(oldest) = self.waiting.front() else { return assert_eq!(told, None) };
            let (age, told) = (self.now - *oldest, self.now - told.expect("something waits"));
            self.age_max = self.age_max.max(age);
            let error_max = STEP_MIN.max(self.age_max / 50);
            assert!(age <= told && told <= age + error_max, "{age:?}, not {told:?}");
        }
    }

    #[test]
    fn the_age_of_the_oldest_is_known_however_batches_come_and_go() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut model = Model::new();
            for _ in 0..20_000 {
                let pause = match random.u32(0..1000) {
                    0 => Duration::from_secs(random.u64(0..3600)),
                    _ => Duration::from_micros(random.u64(0..20_000)),
                };
                model.now += pause;
                model.check();
                // Grows for a while, then shrinks.
                if random.u32(0..100) < if model.waiting.len() % 2000 < 1000 { 60 } else { 40 } {
                    model.push();
                } else {
                    model.pop();
                }
            }
        }
    }

    #[test]
    fn a_long_absence_takes_no_more_than_its_notes() {
        let mut model = Model::new();
        for _ in 0..100_000 {
            model.now += Duration::from_millis(100);
            model.push();
        }
        assert!(model.enqueue_times.notes.lock().unwrap().notes.len() <= NOTES_MAX);
        while !model.waiting.is_empty() {
            model.pop();
        }
        // A while later the notes are as close as before.
        for _ in 0..200 {
            model.now += Duration::from_secs(1);
            model.push();
            model.pop();
        }
        assert_eq!(model.enqueue_times.notes.lock().unwrap().step, STEP_MIN);
    }
}
