//! What the commands say to people, on stderr, above the progress bar if there is one.

use std::fmt;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::sync::Mutex;
use std::sync::PoisonError;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tapster::observability::printable_lines;

/// Says `message` on stderr, with whatever came from outside escaped. A stderr that cannot be written stops nothing.
pub(crate) fn tell(message: &impl fmt::Display) {
    let line = format!("tapster: {}\n", printable_lines(message));
    let write = || drop(io::stderr().write_all(line.as_bytes()));
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner);
    match &*bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A progress bar, if stderr is a terminal. It is taken away when this is dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar for a file of `len` bytes; `None`: nobody knows.
    pub(crate) fn new(len: Option<u64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let (bar, style) = match len {
                Some(len) => (
                    ProgressBar::new(len),
                    "{wide_bar} {percent} %, {bytes} of {total_bytes}, {msg}, {eta} left",
                ),
                None => (ProgressBar::no_length(), "{spinner} {bytes}, {msg}, {elapsed}"),
            };
            bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            bar
        });
        Self { bar }
    }

    /// `taken` bytes were read, `frames` frames were sent.
    pub(crate) fn show(&self, taken: u64, frames: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(taken);
            bar.set_message(format!("{frames} frames"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        }
    }
}

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
