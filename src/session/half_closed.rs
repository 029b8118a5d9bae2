//! A reader that has ended its own direction, where it does not answer anyway: does it read on?
//!
//! A unix socket knows. A TCP peer that has closed altogether looks the same, until it answers the next bytes with a reset. So the
//! first write counts only when the peer's kernel has acknowledged it: frames that a collector left behind at its end are not
//! lost with it.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::Sleep;

use crate::protocol::ProtocolError;
use crate::transport::stream::Progress;
use crate::transport::stream::Stream;

/// What is known of such a reader.
pub(crate) struct HalfClosed {
    // Looks after the connection, as a read does.
    watch: Pin<Box<dyn Future<Output = ()>>>,
    doubt: Option<Doubt>,
}

/// Nobody knows yet whether it reads on.
struct Doubt {
    // Bytes of the write that shows it.
    written: usize,
    pause: Duration,
    look_at: Pin<Box<Sleep>>,
}

impl HalfClosed {
    /// The reader of this stream has ended its direction.
    ///
    /// # Errors
    /// It has closed.
    pub(crate) fn new(stream: &Stream) -> Result<Self, ProtocolError> {
        if stream.has_ended() {
            return Err(CLOSED);
        }
        let watched = stream.clone();
        let doubt = matches!(stream.progress(), Progress::Acknowledged(_)).then(|| Doubt {
            written: 0,
            pause: PAUSE_MIN,
            look_at: Box::pin(tokio::time::sleep(Duration::ZERO)),
        });
        Ok(Self { watch: Box::pin(async move { watched.look_after().await }), doubt })
    }

    /// A write has given the stream `count` bytes. Returns whether these count at once.
    pub(crate) fn written(&mut self, count: usize) -> bool {
        match &mut self.doubt {
            None => true,
            Some(doubt) => {
                doubt.written += count;
                false
            }
        }
    }

    /// Bytes that were written and do not count.
    pub(crate) fn doubtful_bytes(&self) -> usize {
        self.doubt.as_ref().map_or(0, |doubt| doubt.written)
    }

    /// What was written counts, whatever becomes of it.
    pub(crate) fn give_up_doubt(&mut self) -> Option<usize> {
        self.doubt.take().map(|doubt| doubt.written).filter(|written| *written > 0)
    }

    /// How many bytes count now.
    ///
    /// # Errors
    /// The reader has closed: none of them count.
    pub(crate) fn poll_written(
        &mut self,
        stream: &Stream,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, ProtocolError>> {
        // Never ready.
        let _ = self.watch.as_mut().poll(context);
        let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.written > 0) else { return Poll::Pending };
        loop {
            if matches!(stream.progress(), Progress::Acknowledged(acked) if acked >= stream.written_bytes()) {
                return Poll::Ready(Ok(self.give_up_doubt().unwrap_or_default()));
            }
            if stream.has_ended() {
                return Poll::Ready(Err(CLOSED));
            }
            if doubt.look_at.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            doubt.look_at.as_mut().reset(Instant::now() + doubt.pause);
            doubt.pause = (2 * doubt.pause).min(PAUSE_MAX);
        }
    }
}

const CLOSED: ProtocolError = ProtocolError::ClosedByReader { during: "before STOP" };
/// An acknowledgement takes as long as the way there and back, and is no event: looks come after pauses that double.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
