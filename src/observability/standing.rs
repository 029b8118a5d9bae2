//! How a relay stands, in one line of text for the service manager: `3 writers, 41 k/s, siem 12 MiB behind`.

use std::time::Instant;

use crate::observability::printable::printable;

/// How a relay stands now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Connections that are open on inputs.
    pub writers: u64,
    /// Frames taken since the start.
    pub frames: u64,
    /// In the order of the configuration.
    pub outputs: Vec<OutputStanding>,
}

/// How one output stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStanding {
    /// Its name.
    pub name: String,
    /// Whether a reader of its is away, or its file cannot be written.
    pub is_down: bool,
    /// Bytes that wait in memory and on disk.
    pub bytes_behind: u64,
}

/// Makes lines of it.
#[derive(Clone, Copy, Debug)]
pub struct StandingLine {
    seen_at: Instant,
    frames: u64,
}

impl StandingLine {
    /// Rates are counted from `now` on, when `frames` frames had been taken.
    pub fn new(now: Instant, frames: u64) -> Self {
        Self { seen_at: now, frames }
    }

    /// The line. It names every output that is down, or behind by 1 MiB or more; as many as a message has room for.
    pub fn text(&mut self, now: Instant, standing: &Standing) -> String {
        let seconds = now.saturating_duration_since(self.seen_at).as_secs_f64();
        let frames = standing.frames.saturating_sub(self.frames) as f64;
        (self.seen_at, self.frames) = (now, standing.frames);
        let plural = if standing.writers == 1 { "" } else { "s" };
        let rate = if seconds > 0.0 { frames / seconds } else { 0.0 };
        let mut text = format!("{} writer{plural}, {}", standing.writers, rate_text(rate));
        // Those that are down first: they have to find room.
        let (down, up): (Vec<_>, Vec<_>) = standing.outputs.iter().partition(|output| output.is_down);
        let mut left_out = 0;
        for output in down.into_iter().chain(up) {
            let behind = output.bytes_behind >= BEHIND_MIN;
            let name = printable(&output.name);
            let part = match (output.is_down, behind) {
                (true, true) => format!(", {name} down and {} behind", size_text(output.bytes_behind)),
                (true, false) => format!(", {name} down"),
                (false, true) => format!(", {name} {} behind", size_text(output.bytes_behind)),
                (false, false) => continue,
            };
            if text.len() + part.len() <= TEXT_MAX {
                text.push_str(&part);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            text.push_str(&format!(", {left_out} more outputs down or behind"));
        }
        text
    }
}

fn rate_text(rate: f64) -> String {
    match rate {
        ..999.5 => format!("{rate:.0}/s"),
        ..9_950.0 => format!("{:.1} k/s", rate / 1e3),
        ..999_500.0 => format!("{:.0} k/s", rate / 1e3),
        _ => format!("{:.1} M/s", rate / 1e6),
    }
}

fn size_text(bytes: u64) -> String {
    match bytes {
        ..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// Less is no reason for a word.
const BEHIND_MIN: u64 = 1 << 20;
/// systemd takes messages of 4 KiB.
const TEXT_MAX: usize = 3800;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn output(name: &str, is_down: bool, bytes_behind: u64) -> OutputStanding {
        OutputStanding { name: name.to_owned(), is_down, bytes_behind }
    }

    #[test]
    fn the_line_says_what_flows_and_names_who_is_down_or_behind() {
        let begin = Instant::now();
        let mut line = StandingLine::new(begin, 1000);
        let outputs =
            vec![output("archive", false, 1000), output("siem", false, 12 << 20), output("x\ny", true, 0)];
        let mut standing = Standing { writers: 3, frames: 411_000, outputs };
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(line.text(at(10), &standing), "3 writers, 41 k/s, x\\ny down, siem 12 MiB behind");
        standing.writers = 1;
        standing.outputs = vec![output("siem", true, 3 << 30)];
        assert_eq!(line.text(at(10), &standing), "1 writer, 0/s, siem down and 3.0 GiB behind");
        standing.frames += 2_000;
        assert_eq!(line.text(at(11), &standing), "1 writer, 2.0 k/s, siem down and 3.0 GiB behind");
    }

    #[test]
    fn outputs_that_find_no_room_are_counted_and_those_that_are_down_come_first() {
        let begin = Instant::now();
        let mut outputs: Vec<_> = (0..500).map(|_| output("behind", false, 5 << 20)).collect();
        outputs.push(output("last", true, 0));
        let standing = Standing { outputs, ..Standing::default() };
        let text = StandingLine::new(begin, 0).text(begin, &standing);
        assert!(text.starts_with("0 writers, 0/s, last down, behind 5 MiB behind"), "{text}");
        assert!(text.len() < 4000 && text.ends_with("more outputs down or behind"), "{text}");
    }
}
