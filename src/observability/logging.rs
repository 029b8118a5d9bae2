//! The log on stderr, and the status line beneath it.
//!
//! Workers never wait for a terminal or a pipe that nobody reads: an event becomes a line in a bounded queue, and
//! one thread writes them all. The same thread draws the status line, so the two never tear each other. Lines
//! that found the queue full are counted, and the count is logged.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
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
        let log = Self { sender, lines_lost: Arc::clone(&lines_lost), terminal };
        thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&receiver, &lines_lost))?;

        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_target(false)
            .with_ansi(colours)
            .with_writer(log.clone());
        match format {
            LogFormat::Text => subscriber.try_init(),
            LogFormat::Json => subscriber.json().flatten_event(true).with_ansi(false).try_init(),
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
        LineWriter { log: self }
    }
}

/// Takes the line of one event.
#[derive(Debug)]
pub struct LineWriter<'a> {
    log: &'a Log,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.log.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.log.lines_lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(receiver: &Receiver<Message>, lines_lost: &AtomicU64) {
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
                format!("tapster: {lost} log lines were lost: stderr was not read fast enough\n").as_bytes(),
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
        let log = Log { sender, lines_lost: Arc::default(), terminal: false };
        for _ in 0..5 {
            log.make_writer().write_all(b"line\n").unwrap();
        }
        log.show_status("status".to_owned());
        assert_eq!(log.lines_lost.load(Ordering::Relaxed), 3);
        assert_eq!(receiver.len(), 2);
    }
}
