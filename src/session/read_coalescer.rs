//! Read later, read larger.
//!
//! Many writers that write a frame or two at a time (Unbound does) cost an eager reader a system call, a wake-up and a
//! send for every frame, and the writers' processors the wake-ups. So connections of one worker whose last read was
//! small wait for the next tick of a common clock while the worker's rate of frames is high. Then all of them are asked at
//! once, on io_uring by one system call; each finds what gathered in its socket, all of it goes into one block, and one
//! send carries it. A worker with a low rate reads at once: a lone frame never waits. Waiting likewise before large reads
//! does not pay (1.44 of the byte copy's CPU with 0.1 or 0.2 ms, 1.16 without): a socket holds no more than its writer's
//! send buffer, and a wake-up costs more than the larger read saves.

use std::cell::Cell;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Notify;

use crate::transport::timer::Timer;

/// The clock of one worker.
pub(crate) struct ReadCoalescer {
    since: Cell<Instant>,
    frames: Cell<u32>,
    busy: Cell<bool>,
    waiting: Cell<bool>,
    wanted: Notify,
    tick: Notify,
}

impl ReadCoalescer {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: Cell::new(now),
            frames: Cell::new(0),
            busy: Cell::new(false),
            waiting: Cell::new(false),
            wanted: Notify::new(),
            tick: Notify::new(),
        }
    }

    /// Tells that a read took so many frames.
    pub(crate) fn took(&self, now: Instant, frames: u32) {
        let frames = self.frames.get() + frames;
        let elapsed = now.duration_since(self.since.get());
        if elapsed < WINDOW {
            return self.frames.set(frames);
        }
        self.busy.set(f64::from(frames) >= BUSY_FRAMES_PER_SECOND * elapsed.as_secs_f64());
        self.frames.set(0);
        self.since.set(now);
    }

    /// Waits for the next tick if the worker is busy. Cancel-safe.
    pub(crate) async fn wait(&self) {
        if !self.busy.get() {
            return;
        }
        if !self.waiting.replace(true) {
            self.wanted.notify_one();
        }
        self.tick.notified().await;
    }

    /// Gives the ticks. Runs as a task of the worker, without end; a timer that fails ticks at once.
    pub(crate) async fn run(&self, timer: Timer) {
        loop {
            self.wanted.notified().await;
            let _ = timer.sleep(TICK).await;
            self.waiting.set(false);
            self.tick.notify_waiters();
        }
    }
}

/// The rate is taken over at least this time.
const WINDOW: Duration = Duration::from_millis(2);
/// From this rate on reads are gathered.
const BUSY_FRAMES_PER_SECOND: f64 = 20_000.0;
/// How long input gathers.
const TICK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Backend;
    use crate::transport::backend::Runtime;

    #[test]
    fn a_worker_is_busy_above_a_rate_and_not_below() {
        let mut now = Instant::now();
        let coalescer = ReadCoalescer::new(now);
        let mut take = |frames, pause| {
            now += pause;
            coalescer.took(now, frames);
            coalescer.busy.get()
        };
        // 25 frames a millisecond, over a whole window.
        assert!(!take(25, Duration::from_millis(1)));
        assert!(take(25, Duration::from_millis(1)));
        // The first frame after a silence ends it.
        assert!(!take(1, Duration::from_secs(60)));
        for _ in 0..100 {
            assert!(!take(1, Duration::from_millis(1)));
        }
    }

    #[test]
    fn connections_of_a_busy_worker_wait_for_the_same_beat() {
        Runtime::new(Backend::Epoll).unwrap().block_on(async {
            let coalescer = std::rc::Rc::new(ReadCoalescer::new(Instant::now()));
            let clock = std::rc::Rc::clone(&coalescer);
            tokio::task::spawn_local(async move { clock.run(Timer::new().unwrap()).await });
            let begin = Instant::now();
            coalescer.wait().await;
            coalescer.busy.set(true);
            tokio::join!(coalescer.wait(), coalescer.wait(), coalescer.wait());
            assert!(begin.elapsed() >= TICK);
            assert!(!coalescer.waiting.get());
        });
    }
}
