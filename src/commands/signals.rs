//! The signals of `tapster run`.
//!
//! Every signal has a handler, those that mean nothing to tapster too: a program that tapster starts would inherit an ignored
//! signal, and gets the default of a signal that was handled.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::admin::Desk;
use tapster::admin::Phase;
use tapster::observability::Log;
use tokio::runtime;
use tokio::runtime::Runtime;
use tokio::select;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tracing::error;
use tracing::info;

use crate::commands::events::Event;

/// The handlers of this process.
#[derive(Debug)]
pub(crate) struct Signals {
    runtime: Runtime,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    // Nobody waits for these: a timer that the parent of tapster had set, and a file that reached RLIMIT_FSIZE, whose write
    // fails as well.
    _unheard: [Signal; 2],
    // From the moment that tapster reads its configuration on.
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    /// Handles what must never end the relay. SIGPIPE is ignored by the runtime of the language, which restores it for
    /// children.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn handle_stray() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let context = runtime.enter();
        let hangup = signal(SignalKind::hangup())?;
        let user1 = signal(SignalKind::user_defined1())?;
        let user2 = signal(SignalKind::user_defined2())?;
        let alarm = signal(SignalKind::alarm())?;
        let file_size = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        drop(context);
        let _unheard = [alarm, file_size];
        Ok(Self { runtime, hangup, user1, user2, _unheard, terminate: None, interrupt: None })
    }

    /// Handles SIGTERM and SIGINT: until now they end the process at once, which costs nothing.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn handle_end(&mut self) -> io::Result<()> {
        let _context = self.runtime.enter();
        self.terminate = Some(signal(SignalKind::terminate())?);
        self.interrupt = Some(signal(SignalKind::interrupt())?);
        Ok(())
    }

    /// Turns signals into events, on a thread of its own, so that a signal is heard whatever the others do. A second signal
    /// for the end ends the process there.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn watch(self, events: Sender<Event>, desk: Arc<Desk>, log: Log) -> io::Result<()> {
        let Self { runtime, mut hangup, mut user1, mut user2, _unheard, terminate, interrupt } = self;
        let watch = async move {
            let _unheard = _unheard;
            let mut ending = Ending::default();
            let (mut terminate, mut interrupt) = (terminate, interrupt);
            loop {
                let (name, asks) = select! {
                    () = next(&mut terminate) => ("SIGTERM", Asks::End),
                    () = next(&mut interrupt) => ("SIGINT", Asks::End),
                    _ = hangup.recv() => ("SIGHUP", Asks::Reload),
                    _ = user1.recv() => ("SIGUSR1", Asks::Reopen),
                    _ = user2.recv() => ("SIGUSR2", Asks::Upgrade),
                };
                // Where nobody hears the event any more, the process is about to end.
                match asks {
                    Asks::End => match ending.handle(Instant::now()) {
                        Step::Drain => drop(events.send(Event::End(name))),
                        Step::Repeated => {}
                        Step::AtOnce => {
                            error!("{name} again: ending at once, what waits in memory is lost");
                            log.flush();
                            process::exit(1);
                        }
                    },
                    Asks::Reopen if ending.began() => {
                        info!("{name}: tapster is draining and begins no new output files");
                    }
                    Asks::Reopen => drop(events.send(Event::Reopen(name))),
                    Asks::Reload if ending.began() => {
                        info!(
                            "{name}: tapster is draining, reads no configuration and begins no new output files"
                        );
                    }
                    Asks::Reload | Asks::Upgrade if desk.phase() == Phase::Upgrading => {
                        info!(
                            "{name}: a new process is taking over, and tapster does nothing else meanwhile"
                        );
                    }
                    Asks::Reload => drop(events.send(Event::Reload(name))),
                    Asks::Upgrade if ending.began() => {
                        info!("{name}: tapster is draining, and no new process takes over");
                    }
                    Asks::Upgrade => drop(events.send(Event::Upgrade(name))),
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(watch))?;
        Ok(())
    }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// What a signal asks for.
enum Asks {
    End,
    Reopen,
    Reload,
    Upgrade,
}

/// The signals for the end that have come.
#[derive(Debug, Default)]
struct Ending {
    first: Option<Instant>,
}

/// What a signal for the end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The first.
    Drain,
    /// The first once more: `timeout` and a terminal signal both a process and its group.
    Repeated,
    /// Somebody does not want to wait.
    AtOnce,
}

impl Ending {
    fn began(&self) -> bool {
        self.first.is_some()
    }

    fn handle(&mut self, now: Instant) -> Step {
        match self.first {
            None => {
                self.first = Some(now);
                Step::Drain
            }
            Some(first) if now.saturating_duration_since(first) < SAME_SIGNAL => Step::Repeated,
            Some(_) => Step::AtOnce,
        }
    }
}

/// Signals for the end within this time count as one.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_within_a_second_of_the_first_count_as_one_and_a_later_one_ends_at_once() {
        let (mut ending, begin) = (Ending::default(), Instant::now());
        assert!(!ending.began());
        let mut at = |millis| ending.handle(begin + Duration::from_millis(millis));
        assert_eq!(
            [0, 0, 1, 999].map(&mut at),
            [Step::Drain, Step::Repeated, Step::Repeated, Step::Repeated]
        );
        assert_eq!([1000, 1001, 5000].map(&mut at), [Step::AtOnce; 3]);
        assert!(ending.began());
    }
}
