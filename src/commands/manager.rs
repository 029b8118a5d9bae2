//! What `tapster run` tells the service manager. Where there is none, nothing is told; a manager that does not listen holds up
//! nothing.

use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::observability::StandingLine;
use tapster::relay::View;
use tapster::transport::ServiceManager;
use tapster::transport::monotonic_line;
use tapster::transport::watchdog_time;
use tracing::warn;

/// The service manager of this process. A thread tells it at intervals that the relay lives, and what flows.
#[derive(Debug)]
pub(crate) struct Manager(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    manager: ServiceManager,
    phase: Mutex<Phase>,
    changed: Condvar,
}

/// How far the relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// It drains, until then at most.
    Stopping(Instant),
}

impl Manager {
    /// The service manager that has started this process, if one has.
    pub(crate) fn of_environment() -> Self {
        let manager = ServiceManager::of_environment().unwrap_or_else(|error| {
            warn!("the service manager is not told how tapster is: {error}");
            None
        });
        let link = |manager| Link { manager, phase: Mutex::new(Phase::Running), changed: Condvar::new() };
        Self(manager.map(link).map(Arc::new))
    }

    /// Every listener is bound, and every spool is open. From now on the manager hears of the relay at intervals.
    pub(crate) fn ready(&self, view: View) {
        let Some(link) = self.0.clone() else { return };
        link.tell("READY=1\n");
        let run = move || link.run(&view);
        if let Err(error) = thread::Builder::new().name("manager".to_owned()).spawn(run) {
            warn!("the service manager is not told how tapster is: {error}");
        }
    }

    /// The configuration is read again.
    pub(crate) fn reloading(&self) {
        // Both in one message, or a manager that asks for them takes the reload for failed.
        self.tell(&format!("RELOADING=1\n{}", monotonic_line()));
    }

    /// The configuration was taken, or refused: in either way the relay runs.
    pub(crate) fn reloaded(&self) {
        self.tell("READY=1\n");
    }

    /// The relay ends, within `drain_timeout`. The manager waits as long.
    pub(crate) fn stopping(&self, drain_timeout: Duration) {
        let Some(link) = &self.0 else { return };
        let end = Instant::now() + drain_timeout + END_TIME;
        link.tell(&format!("STOPPING=1\nSTATUS=draining\n{}", extension(end)));
        *link.phase() = Phase::Stopping(end);
        link.changed.notify_all();
    }

    /// This process ends, and the one of this number goes on as the main process of the service.
    pub(crate) fn main_pid(&self, process: u32) {
        self.tell(&format!("MAINPID={process}\n"));
    }

    fn tell(&self, lines: &str) {
        self.0.iter().for_each(|link| link.tell(lines));
    }
}

impl Link {
    /// Tells what the manager waits for.
    fn tell(&self, lines: &str) {
        if let Err(error) = self.manager.tell(lines, PATIENCE) {
            let first = lines.lines().next().unwrap_or_default();
            warn!("the service manager does not take {first}: {error}");
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells at intervals how the relay is, until the process ends.
    fn run(&self, view: &View) {
        let begin = Instant::now();
        let watchdog = watchdog_time().map(|time| time / 2);
        let mut line = StandingLine::new(begin, view.standing().frames);
        let mut status = Interval::new(STATUS_INTERVAL, begin);
        let mut alive = watchdog.map(|interval| Interval::new(interval, begin));
        let mut extend = Interval::new(EXTEND_INTERVAL, begin + EXTEND_INTERVAL);
        loop {
            let (now, phase) = (Instant::now(), *self.phase());
            let mut lines = String::new();
            if alive.as_mut().is_some_and(|alive| alive.is_due(now)) {
                let silence_max = watchdog.unwrap_or_default().max(TICK_TIME);
                if view.ticks().oldest() <= silence_max {
                    lines.push_str("WATCHDOG=1\n");
                }
            }
            let (status_due, extend_due) = (status.is_due(now), extend.is_due(now));
            match phase {
                Phase::Running if status_due => {
                    lines.push_str(&format!("STATUS={}\n", line.text(now, &view.standing())));
                }
                // A drain that hangs beyond its end is not kept alive.
                Phase::Stopping(end) if extend_due && now < end => lines.push_str(&extension(end)),
                _ => {}
            }
            if !lines.is_empty() {
                // The next message comes soon.
                let _ = self.manager.tell(&lines, Duration::ZERO);
            }
            let next = alive.iter().fold(status.at.min(extend.at), |next, alive| next.min(alive.at));
            let pause = next.saturating_duration_since(Instant::now());
            let changed = |now: &mut Phase| *now == phase;
            let waited = self.changed.wait_timeout_while(self.phase(), pause, changed);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Something that is done at intervals.
#[derive(Debug)]
struct Interval {
    every: Duration,
    at: Instant,
}

impl Interval {
    fn new(every: Duration, at: Instant) -> Self {
        Self { every, at }
    }

    /// Whether it is to be done now. One that was missed is not made up for.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.at <= now;
        if due {
            self.at = now + self.every;
        }
        due
    }
}

/// The manager is to wait for longer than it would, and hears again in time.
fn extension(end: Instant) -> String {
    let time = end.saturating_duration_since(Instant::now()).min(EXTEND_TIME);
    format!("EXTEND_TIMEOUT_USEC={}\n", time.as_micros())
}

/// How long a message waits that must arrive, where the manager is busy.
const PATIENCE: Duration = Duration::from_secs(1);
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// A worker ticks about once a second. One that has not for so long hangs.
const TICK_TIME: Duration = Duration::from_secs(3);
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);
/// Three times as long as until the next message.
const EXTEND_TIME: Duration = Duration::from_secs(15);
/// What a process does after its drain.
const END_TIME: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_at_intervals_is_done_once_in_each() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut interval = Interval::new(Duration::from_secs(5), at(5));
        let due = [0, 5, 6, 9, 30, 31, 35].map(|second| interval.is_due(at(second)));
        assert_eq!(due, [false, true, false, false, true, false, true]);
    }

    #[test]
    fn a_drain_asks_for_what_is_left_of_it_and_not_for_more_than_until_the_next_message_but_two() {
        assert_eq!(extension(Instant::now()), "EXTEND_TIMEOUT_USEC=0\n");
        assert_eq!(extension(Instant::now() + Duration::from_secs(60)), "EXTEND_TIMEOUT_USEC=15000000\n");
    }
}
