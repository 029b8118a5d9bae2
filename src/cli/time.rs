//! Stretches of time on the command line, written as people do for `journalctl` and its like.

use std::time::Duration;

use clap::Args;
use jiff::Span;
use jiff::Timestamp;
use jiff::Zoned;
use jiff::civil;

/// From one moment on, and before another.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct TimeRange {
    /// Only frames from this time on: `2026-03-01T08:00:00Z`; in local time `2026-03-01`, `"2026-03-01 08:00"`, `08:00`,
    /// `today`, `yesterday`; or so long ago: `2h`, `"1 day ago"`
    #[arg(long, value_parser = time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) from: Option<Timestamp>,
    /// Only frames before this time
    #[arg(long, value_parser = time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
}

impl TimeRange {
    /// Whether every time lies in it.
    pub(crate) fn is_everything(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }

    /// Whether no time lies in it.
    pub(crate) fn is_nothing(&self) -> bool {
        self.from.zip(self.until).is_some_and(|(from, until)| from >= until)
    }

    /// Whether a time since the Unix epoch lies in it. A time that no calendar has is later than any.
    pub(crate) fn contains(&self, time: Duration) -> bool {
        let time = jiff::SignedDuration::try_from(time).and_then(Timestamp::from_duration);
        let time = time.unwrap_or(Timestamp::MAX);
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }
}

/// A moment as it stands on the command line.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    parse(text.trim(), &Zoned::now()).ok_or_else(|| {
        "write a time as in 2026-03-01T08:00:00Z, `2026-03-01 08:00` (local time), 08:00, today or yesterday, or how \
         long ago it was, as in 2h, 90s or `1 day ago`"
            .to_owned()
    })
}

fn parse(text: &str, now: &Zoned) -> Option<Timestamp> {
    let local = |time: civil::DateTime| Some(time.to_zoned(now.time_zone().clone()).ok()?.timestamp());
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return local(now.date().into()),
        "yesterday" => return local(now.date().yesterday().ok()?.into()),
        _ => {}
    }
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(time) = text.parse() {
        return local(time);
    }
    if let Some(time) = text.parse::<civil::Time>().ok().filter(|_| text.contains(':')) {
        return local(now.date().to_datetime(time));
    }
    let ago: Span = text.strip_prefix('-').unwrap_or(text).parse().ok()?;
    // A sign in front, or `ago` behind it: it is the past anyway.
    let ago = if text.starts_with('+') { return None } else { ago.abs() };
    Some(now.checked_sub(ago).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        // Winter in Berlin: an hour ahead of UTC.
        let now: Zoned = "2026-03-01T12:30:00+01:00[Europe/Berlin]".parse().unwrap();
        parse(text, &now).map(|time| time.to_string())
    }

    #[test]
    fn a_moment_is_written_in_full_in_local_time_or_by_how_long_ago_it_was() {
        for (text, time) in [
            ("2026-02-28T08:00:00Z", "2026-02-28T08:00:00Z"),
            ("2026-02-28T08:00:00.25+02:00", "2026-02-28T06:00:00.25Z"),
            ("2026-02-28 08:00:00", "2026-02-28T07:00:00Z"),
            ("2026-02-28 08:00", "2026-02-28T07:00:00Z"),
            ("2026-02-28", "2026-02-27T23:00:00Z"),
            ("08:00", "2026-03-01T07:00:00Z"),
            ("now", "2026-03-01T11:30:00Z"),
            ("today", "2026-02-28T23:00:00Z"),
            ("yesterday", "2026-02-27T23:00:00Z"),
            ("2h", "2026-03-01T09:30:00Z"),
            ("-2h", "2026-03-01T09:30:00Z"),
            ("2h ago", "2026-03-01T09:30:00Z"),
            ("5m", "2026-03-01T11:25:00Z"),
            ("90s", "2026-03-01T11:28:30Z"),
            ("1500ms", "2026-03-01T11:29:58.5Z"),
            ("1 day ago", "2026-02-28T11:30:00Z"),
            ("7d", "2026-02-22T11:30:00Z"),
            ("1h30m", "2026-03-01T10:00:00Z"),
        ] {
            assert_eq!(parsed(text).as_deref(), Some(time), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "soon", "2h from now", "+2h", "10", "2026", "2026-13-01", "25:00", "-"] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert!(time("soon").unwrap_err().contains("1 day ago"));
    }

    #[test]
    fn a_range_begins_with_its_first_moment_and_ends_before_its_last() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let range = TimeRange { from: Some(at(10)), until: Some(at(20)) };
        let within = [9, 10, 19, 20].map(|second| range.contains(Duration::from_secs(second)));
        assert_eq!(within, [false, true, true, false]);
        assert!(!range.contains(Duration::MAX) && !range.is_everything() && !range.is_nothing());
        assert!(TimeRange::default().contains(Duration::MAX) && TimeRange::default().is_everything());
        assert!(TimeRange { until: Some(at(10)), ..range }.is_nothing());
    }
}
