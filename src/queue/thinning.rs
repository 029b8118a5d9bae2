//! Which batches [`WhenFull::Sample`](crate::queue::WhenFull::Sample) keeps: one in n, evenly.
//!
//! n is 1 until the queue is half full. There n doubles, and again each time that another quarter of the room that is left
//! is used up; so n grows until what comes is less than what leaves. n halves each time that the queue has fallen by an
//! eighth. While the queue is nearly empty, n halves each time that a quarter of the queue has come, and each time that 50 ms
//! have passed: a consumer that has caught up gets everything within a second, at every rate. A steady consumer that is too
//! slow therefore has a queue about half full and an n that goes between the two powers of two around what it would need.
//! What sockets take in one go has to be less than an eighth of the queue.

use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use crate::batch::connection::ConnectionId;

/// The state of one queue. Levels and batches are told as parts of it.
#[derive(Debug)]
pub(crate) struct Thinning {
    // n = 2^exponent
    exponent: AtomicU32,
    marks: Mutex<Marks>,
    // Batches that came while n was not 1. Connections that share a counter share its turns.
    counts: [AtomicU64; COUNTS],
}

/// Where n changes next.
#[derive(Debug)]
struct Marks {
    // To be reached from below: HIGH <= up
    up: f64,
    // To be reached from above: down < HIGH
    down: f64,
    // What came since n has changed.
    offered: f64,
    // Since when the queue is nearly empty, or n has changed since.
    idle_since: Option<Instant>,
}

impl Thinning {
    pub(crate) fn new() -> Self {
        Self {
            exponent: AtomicU32::new(0),
            marks: Mutex::new(Marks { up: HIGH, down: 0.0, offered: 0.0, idle_since: None }),
            counts: std::array::from_fn(|index| AtomicU64::new(index as u64)),
        }
    }

    /// Whether a batch of this connection is kept, which is so much of the queue and finds it filled to `level`.
    pub(crate) fn keeps(&self, connection: ConnectionId, batch: f64, level: f64, now: Instant) -> bool {
        let mut exponent = self.exponent.load(Relaxed);
        if exponent == 0 && level < HIGH {
            return true;
        }
        // Where another producer is at it, that one will do.
        if let Ok(mut marks) = self.marks.try_lock() {
            exponent = marks.adjust(exponent, batch, level, now);
            self.exponent.store(exponent, Relaxed);
        }
        let count = self.counts[connection.get() as usize % COUNTS].fetch_add(1, Relaxed);
        is_kept(count, exponent)
    }

    /// n.
    #[cfg(test)]
    pub(crate) fn one_in(&self) -> u64 {
        1 << self.exponent.load(Relaxed)
    }
}

impl Marks {
    fn adjust(&mut self, exponent: u32, batch: f64, level: f64, now: Instant) -> u32 {
        self.offered += batch;
        if level >= STEP {
            self.idle_since = None;
        }
        let idle_for = now.saturating_duration_since(*self.idle_since.get_or_insert(now));
        let halvings = u32::try_from(idle_for.as_millis() / IDLE_STEP.as_millis()).unwrap_or(u32::MAX);
        if level < STEP && halvings > 0 {
            *self = Self { up: HIGH, down: 0.0, offered: 0.0, idle_since: Some(now) };
            return exponent.saturating_sub(halvings);
        }
        let idle = level < STEP && self.offered >= OFFERED;
        let adjusted = if level >= self.up {
            (exponent + 1).min(EXPONENT_MAX)
        } else if level < HIGH && (level <= self.down || idle) {
            exponent.saturating_sub(1)
        } else {
            return exponent;
        };
        let (up, down) = (HIGH.max(level + (1.0 - level) / 4.0), level.min(HIGH) - STEP);
        *self = Self { up, down, offered: 0.0, idle_since: self.idle_since };
        adjusted
    }
}

/// Whether the batch of this number is one of those that are kept: one in 2^exponent, and with an exponent that is larger by
/// one, half of these.
///
/// By Fibonacci hashing, which spreads numbers evenly: fewer than 2 n are left out in a row, and whoever has every second or
/// third number gets as much as others. Were it every n-th number, that would be all or nothing.
fn is_kept(number: u64, exponent: u32) -> bool {
    exponent == 0 || number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - exponent) == 0
}

/// From here on batches are left out.
const HIGH: f64 = 0.5;
/// By so much the level falls until n halves.
const STEP: f64 = 0.125;
/// So long a queue is nearly empty until n halves: 20 times in a second, which is all that n can be.
const IDLE_STEP: Duration = Duration::from_millis(50);
/// So much comes to a queue that is nearly empty until n halves.
const OFFERED: f64 = 0.25;
const EXPONENT_MAX: u32 = 20;
const COUNTS: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A queue, a lane that writes in pieces, and a socket that says that it has room when three quarters of it are free,
    /// as unix sockets do. Its reader takes `rate` bytes for each that is offered.
    struct Model {
        thinning: Thinning,
        random: fastrand::Rng,
        queue: VecDeque<usize>,
        charged: usize,
        // Batches of the write that is under way, and what is left of the first.
        writing: VecDeque<usize>,
        written: usize,
        socket: f64,
        socket_full: bool,
        // By connection: batches offered, and the number of the last that was kept.
        offered: Vec<u64>,
        kept: Vec<u64>,
        gap_max: u64,
        frames_kept: u64,
        overflows: u64,
        n: Vec<u64>,
        now: Instant,
    }

    const QUEUE: usize = 1 << 20;
    const PIECE: usize = QUEUE / 64;
    const SOCKET: usize = QUEUE / 16;

    impl Model {
        fn new(connections: usize, seed: u64) -> Self {
            Self {
                thinning: Thinning::new(),
                random: fastrand::Rng::with_seed(seed),
                queue: VecDeque::new(),
                charged: 0,
                writing: VecDeque::new(),
                written: 0,
                socket: 0.0,
                socket_full: false,
                offered: vec![0; connections],
                kept: vec![0; connections],
                gap_max: 0,
                frames_kept: 0,
                overflows: 0,
                n: Vec::new(),
                now: Instant::now(),
            }
        }

        /// Offers so many queues full of batches, in turn or at random, and forgets what was before.
        fn run(&mut self, queues: usize, rate: f64, in_turn: bool) {
            (self.gap_max, self.frames_kept, self.overflows) = (0, 0, 0);
            self.n.clear();
            let mut bytes = 0;
            while bytes < queues * QUEUE {
                let batch = self.random.usize(PIECE / 2..=PIECE);
                bytes += batch;
                self.socket = (self.socket - rate * batch as f64).max(0.0);
                self.write();
                let connections = self.offered.len();
                let next = self.n.len() % connections;
                let connection = if in_turn { next } else { self.random.usize(0..connections) };
                self.offer(connection, batch);
            }
        }

        fn offer(&mut self, connection: usize, batch: usize) {
            self.offered[connection] += 1;
            let part = |bytes: usize| bytes as f64 / QUEUE as f64;
            let connection_id = ConnectionId::new(connection as u32);
            let keeps = self.thinning.keeps(connection_id, part(batch), part(self.charged), self.now);
            self.n.push(self.thinning.one_in());
            if !keeps {
                return;
            }
            if self.charged + batch > QUEUE {
                self.overflows += 1;
                return;
            }
            self.charged += batch;
            self.queue.push_back(batch);
            self.gap_max = self.gap_max.max(self.offered[connection] - self.kept[connection]);
            self.kept[connection] = self.offered[connection];
            self.frames_kept += 1;
        }

        fn write(&mut self) {
            loop {
                while self.writing.iter().sum::<usize>() < PIECE
                    && self.written == 0
                    && let Some(batch) = self.queue.pop_front()
                {
                    self.writing.push_back(batch);
                }
                let free = (SOCKET as f64 - self.socket).max(0.0) as usize;
                if self.writing.is_empty() || self.socket_full && free < SOCKET * 3 / 4 {
                    return;
                }
                let all: usize = self.writing.iter().sum::<usize>() - self.written;
                self.socket_full = free < all;
                self.socket += free.min(all) as f64;
                self.written += free.min(all);
                // On io_uring a write comes back when all of it is written.
                if self.socket_full {
                    return;
                }
                self.charged -= self.writing.drain(..).sum::<usize>();
                self.written = 0;
            }
        }

        fn share_with_n(&self, n: std::ops::RangeInclusive<u64>) -> f64 {
            self.n.iter().filter(|seen| n.contains(seen)).count() as f64 / self.n.len() as f64
        }
    }

    #[test]
    fn a_slow_reader_gets_an_evenly_thinned_stream_at_its_own_rate() {
        for (connections, seed) in [(1, 1), (8, 2), (50, 3)] {
            for (rate, n) in [(0.6, 1..=2), (0.4, 2..=4), (0.1, 8..=16), (0.03, 16..=64)] {
                let mut model = Model::new(connections, seed);
                model.run(20, rate, false);
                assert_eq!(model.overflows, 0, "{rate}: full already");
                model.run(200, rate, false);
                let case = format!("{rate} of what comes, from {connections}: gaps of {}", model.gap_max);
                assert_eq!(model.overflows, 0, "{case}");
                assert!(model.gap_max <= 2 * n.end(), "{case}");
                assert!(model.share_with_n(n.clone()) > 0.95, "{case}");
                let got = model.frames_kept as f64 / model.n.len() as f64;
                assert!((got / rate - 1.0).abs() < 0.1, "{case}: keeps {got}");
            }
        }
    }

    #[test]
    fn nothing_is_left_out_for_a_reader_that_keeps_up_or_once_it_does_again() {
        let mut model = Model::new(3, 4);
        model.run(100, 1.5, false);
        assert_eq!(model.frames_kept, model.n.len() as u64);
        for rate_before in [0.5, 0.1, 0.01, 0.0] {
            model.run(100, rate_before, false);
            assert!(model.thinning.one_in() > 1);
            // Less than what comes meanwhile.
            model.run(8, 1.5, false);
            model.run(100, 1.5, false);
            assert_eq!(model.frames_kept, model.n.len() as u64, "{rate_before} before");
        }
    }

    /// However little comes: time alone ends it, and not the bytes that come.
    #[test]
    fn a_reader_that_has_caught_up_gets_everything_within_a_second_at_every_rate() {
        for per_second in [1, 20, 900, 50_000] {
            let mut model = Model::new(1, 7);
            model.run(60, 0.0, true);
            let thinning = model.thinning;
            assert!(thinning.one_in() >= 512);
            let mut at = model.now;
            let mut left_out_at = at;
            for _ in 0..3 * per_second {
                // A batch is a millionth of the queue, which is empty.
                if !thinning.keeps(ConnectionId::new(0), 1e-6, 0.0, at) {
                    left_out_at = at;
                }
                at += Duration::from_secs(1) / per_second;
            }
            assert!(left_out_at - model.now <= Duration::from_secs(1), "{per_second} per second");
        }
    }

    /// It fills up slower and slower.
    #[test]
    fn a_stalled_reader_gets_less_and_less_and_the_queue_is_full_late() {
        let mut model = Model::new(1, 5);
        model.run(20, 0.0, false);
        assert_eq!(model.overflows, 0);
        assert!(model.charged > QUEUE * 9 / 10 && model.thinning.one_in() >= 512);
        model.run(100, 0.0, false);
        assert!(model.charged <= QUEUE && model.overflows < 10, "{}", model.overflows);
    }

    /// By turns is how the reads of many connections come that wait for the same beat.
    #[test]
    fn connections_that_come_in_turn_are_all_heard() {
        for connections in [2, 13, 16, 64, 128, 500] {
            let mut model = Model::new(connections, 6);
            model.run(20 * connections.max(10), 0.1, true);
            let silent = model.kept.iter().filter(|kept| **kept == 0).count();
            assert_eq!(silent, 0, "of {connections}");
            let gap_max = if connections <= COUNTS { 32 } else { 3 * 32 };
            assert!(model.gap_max <= gap_max, "{connections}: gaps of {}", model.gap_max);
        }
    }

    #[test]
    fn one_in_n_is_kept_with_gaps_of_less_than_two_n() {
        for exponent in 0..12 {
            let n = 1 << exponent;
            let kept: Vec<u64> = (0..1000 * n).filter(|number| is_kept(*number, exponent)).collect();
            assert!(kept.len().abs_diff(1000) <= 3, "{n}: {}", kept.len());
            let gap = kept.windows(2).map(|pair| pair[1] - pair[0]).max();
            assert!(gap.is_some_and(|gap| gap <= 2 * n), "{n}: {gap:?}");
            assert!(kept.iter().all(|number| exponent == 0 || is_kept(*number, exponent - 1)));
        }
    }
}
