//! The log on stderr, and the status line beneath it.
//!
//! Workers never wait for a terminal or a pipe that nobody reads: an event becomes a line in a bounded queue, and
//! one thread writes them all. The same thread draws the status line, so the two never tear each other. Lines
//! that found the queue full are counted, and the count is logged.
//!
//! Where stderr is the journal of systemd, which knows the time, a line begins with its priority instead.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use crossbeam_channel::bounded;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;
use tracing::Level;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object per line.
    Json,
}

/// The log of this process; clones write to the same.
#[derive(Clone, Debug)]
pub struct Log {
    sender: Sender<Message>,
    lines_lost: Arc<AtomicU64>,
    terminal: bool,
    style: Style,
}

/// How lines are written. Whoever names a file or sends a frame chooses what the log holds, but not what it does: characters
/// that a terminal, or a reader of lines, would take for a command are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Escaped as Rust does.
    Text,
    /// The same, with colours of ours.
    Coloured,
    /// The same behind the priority, `<4>`, and without the time. Source: sd-daemon(3).
    Journal,
    /// Escaped as JSON does.
    Json,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// An empty text takes the status line away.
    Status(String),
    /// Answered when everything before it is written.
    Flush(Sender<()>),
}

impl Log {
    /// Starts the thread that owns stderr, and makes it the log of this process.
    ///
    /// # Errors
    /// The thread cannot be started, or this process has a log already.
    pub fn start(format: LogFormat, level: LevelFilter) -> io::Result<Self> {
        let (sender, receiver) = bounded(LINES_WAITING_MAX);
        let lines_lost = Arc::new(AtomicU64::new(0));
        let terminal = io::stderr().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let style = match format {
            LogFormat::Json => Style::Json,
            LogFormat::Text if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), io::stderr()) => {
                Style::Journal
            }
            LogFormat::Text if colours => Style::Coloured,
            LogFormat::Text => Style::Text,
        };
        let log = Self { sender, lines_lost: Arc::clone(&lines_lost), terminal, style };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&receiver, &lines_lost, style))?;

        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_target(false)
            .with_ansi(false)
            .with_writer(log.clone());
        match style {
            Style::Journal => subscriber.without_time().with_level(false).try_init(),
            Style::Text | Style::Coloured => subscriber.try_init(),
            Style::Json => subscriber.json().flatten_event(true).try_init(),
        }
        .map_err(io::Error::other)?;
        Ok(log)
    }

    /// Whether stderr is a terminal, which is where a status line belongs.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows `text` as the status line, beneath everything that is logged; an empty text takes it away.
    pub fn show_status(&self, text: String) {
        // The next one comes soon.
        let _ = self.sender.try_send(Message::Status(text));
    }

    /// Waits until everything logged so far is written, at most a second: nobody may be reading.
    pub fn flush(&self) {
        let (written, done) = bounded(1);
        if self.sender.send_timeout(Message::Flush(written), FLUSH_TIMEOUT).is_ok() {
            let _ = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { log: self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter<'a> {
        LineWriter { log: self, level: *metadata.level() }
    }
}

impl Style {
    /// The line of one event, with one newline at its end.
    fn line(self, line: &[u8], level: Level) -> String {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut escaped = String::with_capacity(text.len() + 1);
        for character in text.chars() {
            match self {
                _ if !is_command(character) => escaped.push(character),
                Self::Text | Self::Coloured | Self::Journal => escaped.extend(character.escape_default()),
                // Every one of them is below U+FFFF.
                Self::Json => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            }
        }
        match self {
            Self::Coloured => escaped = coloured(&escaped, level),
            Self::Journal => escaped = format!("<{}>{escaped}", priority(level)),
            Self::Text | Self::Json => {}
        }
        escaped.push('\n');
        escaped
    }
}

/// Whether this is the stream that `JOURNAL_STREAM` names, by device and inode. Source: systemd.exec(5).
fn is_journal(variable: Option<&str>, stream: impl AsFd) -> bool {
    let named = variable.and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    let stat = named.and_then(|named: (u64, u64)| Some((named, rustix::fs::fstat(stream).ok()?)));
    stat.is_some_and(|(named, stat)| named == (stat.st_dev, stat.st_ino))
}

/// As syslog numbers it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Colours the time and the level, which come first.
fn coloured(line: &str, level: Level) -> String {
    let number = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    let word = level.as_str();
    match line.split_once(word) {
        Some((time, rest)) => format!("\x1b[2m{time}\x1b[0m\x1b[{number}m{word}\x1b[0m{rest}"),
        None => line.to_owned(),
    }
}

/// Control characters, those that end a line, and those that turn the direction of a text.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Takes the line of one event.
#[derive(Debug)]
pub struct LineWriter<'a> {
    log: &'a Log,
    level: Level,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = self.log.style.line(line, self.level);
        if self.log.sender.try_send(Message::Line(text.into_bytes())).is_err() {
            self.log.lines_lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(receiver: &Receiver<Message>, lines_lost: &AtomicU64, style: Style) {
    let warning = if style == Style::Journal { "<4>" } else { "" };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
    // There is nowhere to report that stderr cannot be written.
    let print = |line: &[u8]| bar.suspend(|| drop(io::stderr().write_all(line)));
    for message in receiver {
        match message {
            Message::Line(line) => print(&line),
            Message::Status(text) if text.is_empty() => {
                bar.finish_and_clear();
                bar.set_draw_target(ProgressDrawTarget::hidden());
            }
            Message::Status(text) => {
                if bar.is_hidden() {
                    bar.reset();
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_message(text);
                bar.tick();
            }
            Message::Flush(written) => drop(written.try_send(())),
        }
        let lost = lines_lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            print(
                format!("{warning}tapster: {lost} log lines were lost: stderr was not read fast enough\n")
                    .as_bytes(),
            );
        }
    }
}

const LINES_WAITING_MAX: usize = 4096;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What is logged while `act` runs, on this thread: a line for each event.
    pub(crate) fn lines_of(act: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);

        impl Write for Lines {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(line)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_log_that_nobody_reads_holds_up_nobody_and_counts_what_is_lost() {
        let (sender, receiver) = bounded(2);
        let log = Log { sender, lines_lost: Arc::default(), terminal: false, style: Style::Text };
        for _ in 0..5 {
            log.make_writer().write_all(b"line\n").unwrap();
        }
        log.show_status("status".to_owned());
        assert_eq!(log.lines_lost.load(Ordering::Relaxed), 3);
        assert_eq!(receiver.len(), 2);
    }

    #[test]
    fn stderr_is_the_journal_if_the_variable_names_it() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let named = |device: u64, inode: u64| is_journal(Some(&format!("{device}:{inode}")), &file);
        assert!(named(stat.st_dev, stat.st_ino));
        assert!(!named(stat.st_dev, stat.st_ino + 1) && !named(stat.st_dev + 1, stat.st_ino));
        assert!(!is_journal(None, &file) && !is_journal(Some("8"), &file) && !is_journal(Some("a:b"), &file));
    }

    #[test]
    fn nothing_in_a_line_is_a_command_to_a_terminal_or_begins_another_line() {
        let line = "0s  WARN caf\u{e9} a\nb\r\x1b[2J\u{9b}2J\x7f\u{202e}\n";
        let text = "0s  WARN caf\u{e9} a\\nb\\r\\u{1b}[2J\\u{9b}2J\\u{7f}\\u{202e}\n";
        let written = |style: Style| style.line(line.as_bytes(), Level::WARN);
        assert_eq!(written(Style::Text), text);
        let colours = text.replace("0s  WARN", "\x1b[2m0s  \x1b[0m\x1b[33mWARN\x1b[0m");
        assert_eq!(written(Style::Coloured), colours);
        assert_eq!(written(Style::Journal), format!("<4>{text}"));
        let json: String = serde_json::from_str(&format!("\"{}\"", written(Style::Json).trim_end())).unwrap();
        assert_eq!(format!("{json}\n"), line);
        assert_eq!(Style::Text.line(b"\xff\n", Level::INFO), "\u{fffd}\n");
    }
}
