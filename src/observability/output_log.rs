//! How many lines the log gets about one output, from all its lanes.
//!
//! Collectors and disks come and go as they like, and fail in turn for different reasons. So each kind of event has a window
//! of a minute, as at a listener: see [`event_limit`](crate::observability::event_limit). Who writes a line asks for it first.

use std::sync::Mutex;
use std::time::Instant;

use tracing::info;

use crate::observability::event_limit::EventLimit;

/// What can happen at an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputEvent {
    /// A connection was opened.
    Connected,
    /// A stream was acknowledged by FINISH.
    Finished,
    /// A connection ended without FINISH.
    Broken,
    /// No connection could be opened.
    Unreachable,
    /// The collector takes no connection that has a certain frame.
    FrameRefused,
    /// A file was opened.
    FileOpened,
    /// A file was closed.
    FileClosed,
    /// A file could not be opened, written or closed.
    FileFailed,
    /// The spool could not be opened, written or read.
    SpoolFailed,
    /// The spool can be used again.
    SpoolWorks,
    /// A file of the spool was set aside.
    SetAside,
}

impl OutputEvent {
    /// All events, in the order of their numbers.
    const ALL: [Self; 11] = [
        Self::Connected,
        Self::Finished,
        Self::Broken,
        Self::Unreachable,
        Self::FrameRefused,
        Self::FileOpened,
        Self::FileClosed,
        Self::FileFailed,
        Self::SpoolFailed,
        Self::SpoolWorks,
        Self::SetAside,
    ];

    /// What is said of events that got no line of their own.
    fn summary(self) -> &'static str {
        match self {
            Self::Connected => "connected more often, without a line each time",
            Self::Finished => "more streams were finished, without a line for each",
            Self::Broken => "more connections ended without FINISH, without a line for each",
            Self::Unreachable => "more attempts to connect failed, without a line for each",
            Self::FrameRefused => "more frames were refused by the collector, without a line for each",
            Self::FileOpened => "more files were opened, without a line for each",
            Self::FileClosed => "more files were closed, without a line for each",
            Self::FileFailed => "files failed more often, without a line each time",
            Self::SpoolFailed => "the spool failed more often, without a line each time",
            Self::SpoolWorks => "the spool could be used again more often, without a line each time",
            Self::SetAside => "more files of the spool were set aside, without a line for each",
        }
    }
}

/// Counts the lines about one output.
#[derive(Debug)]
pub(crate) struct OutputLog {
    output: String,
    limit: Mutex<EventLimit<String>>,
}

/// A line may be written. It says how many events before it got none; `None`: all had one.
pub(crate) type Admitted = Option<u64>;

impl OutputLog {
    pub(crate) fn new(output: &str) -> Self {
        let lines_max = OutputEvent::ALL.map(|_| LINES_MAX);
        Self { output: output.to_owned(), limit: Mutex::new(EventLimit::new(&lines_max)) }
    }

    /// Whether an event gets a line, at the member of a group with this address.
    pub(crate) fn admit(&self, event: OutputEvent, to: &str, now: Instant) -> Option<Admitted> {
        let left_out =
            self.limit.lock().expect(UNPOISONED).admit(event as usize, Some(to.to_owned()), now)?;
        Some((left_out > 0).then_some(left_out))
    }

    /// Tells what was left out in minutes that are over by `now`. `None`: of all minutes.
    pub(crate) fn tell_left_out(&self, now: Option<Instant>) {
        let left_out = self.limit.lock().expect(UNPOISONED).take_left_out(now);
        for (event, left_out) in left_out {
            let summary = OutputEvent::ALL[event].summary();
            info!(output = self.output, left_out, "{summary}");
        }
    }
}

/// Lines of one kind of event in a minute.
const LINES_MAX: u32 = 20;

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observability::logging::tests::lines_of;

    #[test]
    fn a_collector_that_comes_and_goes_all_day_has_few_lines_and_every_event_counts() {
        let (log, begin) = (OutputLog::new("siem"), Instant::now());
        let (mut lines, mut told) = (0, 0);
        let summaries = lines_of(|| {
            for second in 0..3600 {
                let now = begin + Duration::from_secs(second);
                for event in OutputEvent::ALL {
                    if let Some(left_out) = log.admit(event, "tcp://192.0.2.1:6000", now) {
                        lines += 1;
                        told += 1 + left_out.unwrap_or_default();
                    }
                }
                log.tell_left_out(Some(now));
            }
            log.tell_left_out(None);
        });
        let left_out = |line: &String| line.split_once("left_out=")?.1.split(' ').next()?.parse::<u64>().ok();
        told += summaries.iter().filter_map(left_out).sum::<u64>();
        assert_eq!(told, 3600 * OutputEvent::ALL.len() as u64);
        assert!(lines + summaries.len() <= 60 * 6 * OutputEvent::ALL.len(), "{lines} {}", summaries.len());
    }
}
