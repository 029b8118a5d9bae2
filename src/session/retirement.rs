//! The end of a connection that is as old as it may become.
//!
//! tapster closes at a moment when the writer says nothing, and between two frames. It ends its own direction first: a writer
//! that looks at its socket closes in answer, and everything that it has written by then is taken. A writer that does not look
//! finds the connection closed when it writes again, as when a reader is started anew.

use std::time::Duration;
use std::time::Instant;

use crate::transport::stream::Stream;

/// A connection on its way to its end.
pub(crate) struct Retirement {
    began: Instant,
    // When our direction was ended.
    half_closed: Option<Instant>,
}

impl Retirement {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { began: now, half_closed: None }
    }

    /// Waits a moment for bytes, and takes the next step if there are none and the last frame is whole. Returns whether the
    /// session reads on.
    pub(crate) async fn goes_on(&mut self, stream: &Stream, frame_is_whole: bool) -> bool {
        let is_quiet = match self.half_closed.unwrap_or(self.began).elapsed() {
            // A writer that never pauses is cut off between two frames.
            waited if waited >= self.patience() => stream.readable_bytes() == 0,
            _ => match stream.readable_within(QUIET).await {
                Ok(readable) => !readable,
                // The end of the relay, or a fault that the next read finds.
                Err(_) => return true,
            },
        };
        if !is_quiet {
            return true;
        }
        if !frame_is_whole {
            let _ = stream.readable().await;
            return true;
        }
        match self.half_closed {
            None => {
                stream.shutdown_write();
                self.half_closed = Some(Instant::now());
                true
            }
            Some(since) => since.elapsed() < ANSWER_TIME,
        }
    }

    /// Whether the writer knows by now, if it looks.
    pub(crate) fn is_told(&self) -> bool {
        self.half_closed.is_some()
    }

    fn patience(&self) -> Duration {
        if self.half_closed.is_some() { ANSWER_TIME } else { PATIENCE }
    }
}

/// A writer that says nothing for so long says nothing now.
const QUIET: Duration = Duration::from_millis(100);
/// How long a quiet moment is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a writer has to close in answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);
