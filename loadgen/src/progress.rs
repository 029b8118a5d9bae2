//! The progress line on a terminal.

use std::fmt;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressState;
use indicatif::ProgressStyle;

use crate::report::thousands;

/// Frames so far and per second; draws nothing where nobody looks.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar up to `frames` where they are known in advance.
    pub(crate) fn new(visible: bool, frames: Option<u64>) -> Self {
        let bar = match frames {
            Some(frames) => ProgressBar::new(frames)
                .with_style(style("{spinner} {human_pos} of {human_len} frames {wide_bar} {rate} {eta}")),
            None => ProgressBar::no_length()
                .with_style(style("{spinner} {human_pos} frames in {elapsed}, {rate}")),
        };
        Self::shown(bar, visible)
    }

    /// A bar over the runs of a benchmark.
    pub(crate) fn runs(visible: bool, runs: u64) -> Self {
        let bar = ProgressBar::new(runs).with_style(style("{spinner} run {pos} of {len} {wide_bar} {eta}"));
        Self::shown(bar, visible)
    }

    fn shown(bar: ProgressBar, visible: bool) -> Self {
        if visible {
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar }
    }

    /// One run more.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// Draws the line anew, now and then.
    pub(crate) fn update(&self, frames: u64) {
        if !self.bar.is_hidden() {
            self.bar.set_position(frames);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    style.with_key("rate", |state: &ProgressState, text: &mut dyn fmt::Write| {
        // A terminal that takes no text is no reason to fail.
        let _ = write!(text, "{} frames/s", thousands(state.per_sec() as u64));
    })
}
