//! The lines about those who hold up frames: readers that are away, outputs that take nothing, inputs that wait for an output
//! that blocks. The log names each of them every minute, with the age of its oldest frame, for as long as it lasts.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use tracing::info;
use tracing::warn;

use crate::observability::absence::Absence;

/// How an output stands.
#[derive(Debug, Default)]
pub(crate) struct OutputWait {
    /// Readers, or files, that are away, by address.
    pub(crate) absent: BTreeMap<String, Absence>,
    /// Age of the oldest frame that is not delivered.
    pub(crate) oldest: Option<Duration>,
    /// Frames written or acknowledged since the start.
    pub(crate) progress: u64,
}

/// How an input stands.
#[derive(Debug, Default)]
pub(crate) struct InputWait {
    /// Age of the oldest frame that an output keeps from going on; `None` where nothing is held up.
    pub(crate) oldest: Option<Duration>,
    /// The outputs that block.
    pub(crate) blocked_by: Vec<String>,
}

/// The lines about one output.
#[derive(Debug)]
pub(crate) struct OutputWaitLog {
    output: String,
    absent: BTreeMap<String, Repeat>,
    // Frames written or acknowledged at the last look, and since when there were as many while others waited.
    progress: u64,
    still: Option<(Instant, Repeat)>,
}

/// The lines about one input.
#[derive(Debug)]
pub(crate) struct InputWaitLog {
    input: String,
    held: Repeat,
}

/// When something was told last.
#[derive(Clone, Copy, Debug, Default)]
struct Repeat(Option<Instant>);

impl Repeat {
    /// Whether a line is due: a minute after the last one.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|told_at| now.saturating_duration_since(told_at) >= TELL_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

impl OutputWaitLog {
    pub(crate) fn new(output: &str) -> Self {
        Self { output: output.to_owned(), absent: BTreeMap::new(), progress: 0, still: None }
    }

    /// Writes the lines that are due.
    pub(crate) fn look(&mut self, wait: &OutputWait, now: Instant) {
        self.look_for_absent(wait, now);
        self.look_for_progress(wait, now);
        self.progress = wait.progress;
    }

    fn look_for_absent(&mut self, wait: &OutputWait, now: Instant) {
        self.absent.retain(|to, _| wait.absent.contains_key(to));
        let mut untold = wait.absent.len().saturating_sub(ABSENT_TOLD_MAX);
        for (to, Absence { since, reason }) in wait.absent.iter().take(ABSENT_TOLD_MAX) {
            // The first line is that of the attempt that failed.
            let repeat = self.absent.entry(to.clone()).or_insert(Repeat(Some(*since)));
            if !repeat.is_due(now) {
                continue;
            }
            let (output, away_s) = (&self.output, now.saturating_duration_since(*since).as_secs());
            let (oldest_age_s, others_away) = (wait.oldest.map(|age| age.as_secs()), non_zero(&mut untold));
            warn!(
                output,
                to,
                away_s,
                oldest_age_s,
                others_away,
                "still away: {reason}; tapster tries again; find out why it does not take frames"
            );
        }
    }

    fn look_for_progress(&mut self, wait: &OutputWait, now: Instant) {
        // The log names who is away already.
        let waits = wait.oldest.is_some_and(|age| age >= STILL_AFTER) && wait.absent.is_empty();
        if !waits || wait.progress != self.progress {
            if let Some((_, Repeat(Some(_)))) = self.still.take() {
                info!(output = self.output, "frames are taken again, or none waits");
            }
            return;
        }
        let (since, repeat) = self.still.get_or_insert((now, Repeat::default()));
        let still = now.saturating_duration_since(*since);
        if still >= STILL_AFTER && repeat.is_due(now) {
            let (output, still_s) = (&self.output, still.as_secs());
            let oldest_age_s = wait.oldest.map(|age| age.as_secs());
            warn!(
                output,
                still_s,
                oldest_age_s,
                "frames wait, and none is taken or acknowledged; find out what the collector, or the disk, waits for"
            );
        }
    }
}

impl InputWaitLog {
    pub(crate) fn new(input: &str) -> Self {
        Self { input: input.to_owned(), held: Repeat::default() }
    }

    /// Writes the line that is due.
    pub(crate) fn look(&mut self, wait: &InputWait, now: Instant) {
        let Some(age) = wait.oldest.filter(|age| *age >= HELD_AFTER) else {
            if self.held.0.take().is_some() {
                info!(input = self.input, "no output holds this input up any more");
            }
            return;
        };
        if self.held.is_due(now) {
            let (input, oldest_age_s, blocked_by) = (&self.input, age.as_secs(), wait.blocked_by.join(", "));
            warn!(
                input,
                oldest_age_s,
                blocked_by,
                "this input is not read from, because an output is full and when_full = \"block\"; \
                 find out why the output does not take frames, raise its `queue`, or set when_full = \"spill\""
            );
        }
    }
}

/// The number, the first time that somebody asks for it.
fn non_zero(count: &mut usize) -> Option<usize> {
    Some(std::mem::take(count)).filter(|count| *count > 0)
}

/// How often the log has a line about something that lasts.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Frames that wait for less are no reason for a line.
const STILL_AFTER: Duration = Duration::from_secs(60);
/// An output that blocks holds inputs up for a moment now and then.
const HELD_AFTER: Duration = Duration::from_secs(10);
/// Readers of one output that are told every minute. Others are counted.
const ABSENT_TOLD_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observability::logging::tests::lines_of;

    const SECOND: Duration = Duration::from_secs(1);

    fn absent(to: &[&str], since: Instant) -> BTreeMap<String, Absence> {
        let absence = Absence { since, reason: "connection refused".to_owned() };
        to.iter().map(|to| ((*to).to_owned(), absence.clone())).collect()
    }

    #[test]
    fn an_output_that_is_away_is_told_every_minute_with_the_age_of_its_oldest_frame() {
        let begin = Instant::now();
        let lines = lines_of(|| {
            let mut log = OutputWaitLog::new("siem");
            for second in 0..=300_u32 {
                let age = second.checked_sub(100).map(|age| SECOND * age);
                let wait = OutputWait { absent: absent(&["tcp://a"], begin), oldest: age, progress: 0 };
                log.look(&wait, begin + SECOND * second);
            }
            log.look(&OutputWait::default(), begin + SECOND * 301);
        });
        // That nothing is taken either needs no line of its own.
        assert!(lines.iter().all(|line| line.contains("still away")), "{lines:?}");
        let [first, second, third, _, _] = &lines[..] else { panic!("{lines:?}") };
        assert!(first.contains("WARN") && first.contains("still away: connection refused"), "{first}");
        assert!(
            first.contains("output=\"siem\" to=\"tcp://a\" away_s=60") && !first.contains("oldest"),
            "{first}"
        );
        assert!(second.contains("away_s=120 oldest_age_s=20"), "{second}");
        assert!(third.contains("away_s=180 oldest_age_s=80"), "{third}");
    }

    #[test]
    fn of_a_large_group_that_is_away_a_few_members_are_told() {
        let begin = Instant::now();
        let lines = lines_of(|| {
            let names: Vec<_> = (0..40).map(|number| format!("tcp://{number}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let wait = OutputWait { absent: absent(&names, begin), ..OutputWait::default() };
            let mut log = OutputWaitLog::new("siem");
            (0..=120).for_each(|second| log.look(&wait, begin + SECOND * second));
        });
        assert_eq!(lines.len(), 2 * ABSENT_TOLD_MAX);
        assert_eq!(lines.iter().filter(|line| line.contains("others_away=35")).count(), 2, "{lines:?}");
    }

    #[test]
    fn an_output_that_takes_nothing_is_told_every_minute_until_it_goes_on() {
        let begin = Instant::now();
        let lines = lines_of(|| {
            let mut log = OutputWaitLog::new("siem");
            for second in 0..=200 {
                // A batch is taken in second 10, and then none.
                let progress = u64::from(second >= 10);
                let wait = OutputWait { oldest: Some(SECOND * second), progress, ..OutputWait::default() };
                log.look(&wait, begin + SECOND * second);
            }
            let wait = OutputWait { oldest: Some(SECOND * 200), progress: 2, ..OutputWait::default() };
            log.look(&wait, begin + SECOND * 201);
        });
        let [first, second, end] = &lines[..] else { panic!("{lines:?}") };
        assert!(first.contains("WARN") && first.contains("still_s=60 oldest_age_s=120"), "{first}");
        assert!(second.contains("still_s=120 oldest_age_s=180"), "{second}");
        assert!(end.contains("INFO") && end.contains("taken again"), "{end}");
    }

    #[test]
    fn an_output_that_is_slow_or_idle_is_not_told() {
        let begin = Instant::now();
        let lines = lines_of(|| {
            let (mut slow, mut idle) = (OutputWaitLog::new("slow"), OutputWaitLog::new("idle"));
            for second in 0..1000 {
                let now = begin + SECOND * second;
                let (oldest, progress) = (Some(SECOND * 500), u64::from(second / 50));
                slow.look(&OutputWait { oldest, progress, ..OutputWait::default() }, now);
                idle.look(&OutputWait::default(), now);
            }
        });
        assert!(lines.is_empty(), "{lines:?}");
    }

    #[test]
    fn an_input_that_is_held_up_is_told_every_minute_with_age_and_culprit_and_when_it_goes_on() {
        let begin = Instant::now();
        let lines = lines_of(|| {
            let mut log = InputWaitLog::new("dns");
            let wait = |age| InputWait { oldest: Some(SECOND * age), blocked_by: vec!["siem".to_owned()] };
            for second in 0..100 {
                log.look(&wait(second), begin + SECOND * second);
            }
            log.look(&InputWait::default(), begin + SECOND * 100);
            log.look(&wait(9), begin + SECOND * 101);
        });
        let [first, second, end] = &lines[..] else { panic!("{lines:?}") };
        assert!(
            first.contains("WARN") && first.contains("input=\"dns\" oldest_age_s=10 blocked_by=\"siem\""),
            "{first}"
        );
        assert!(second.contains("oldest_age_s=70"), "{second}");
        assert!(end.contains("INFO"), "{end}");
    }
}
