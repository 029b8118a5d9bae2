//! What has arrived at a reader, seen without its help: the acknowledgements of outputs that ask for no FINISH.

use std::time::Duration;

use crate::output::backlog::Backlog;
use crate::session::write::WriteSession;

/// Looks at what has arrived, for outputs whose frames are acknowledged by that.
pub(crate) struct Watch {
    margin: u64,
    // A look for so many bytes written at least.
    bytes: u64,
    looked_at: u64,
    arrived: u64,
    pause: Duration,
}

impl Watch {
    /// For a new connection; `None` where acknowledgements come in another way, or are not asked for.
    pub(crate) fn new(margin: Option<usize>, backlog: &Backlog) -> Option<Self> {
        margin.map(|margin| Self {
            margin: margin as u64,
            // Where little is written at once, little is to be let go of at once.
            bytes: (backlog.queue_max() / 8).min(backlog.queue.write_len_max()).min(LOOK_BYTES) as u64,
            looked_at: 0,
            arrived: 0,
            pause: LOOK_PAUSE_MIN,
        })
    }

    /// Looks after writes, now and then. One look costs a system call.
    pub(crate) fn look_if_much_was_written(&mut self, session: &mut WriteSession, backlog: &mut Backlog) {
        if backlog.position() - self.looked_at >= self.bytes {
            self.look(session, backlog);
        }
        self.pause = LOOK_PAUSE_MIN;
    }

    /// Looks now. Returns after which time to look again; `None` if everything has arrived.
    pub(crate) fn look(&mut self, session: &mut WriteSession, backlog: &mut Backlog) -> Option<Duration> {
        self.looked_at = backlog.position();
        if let Some(arrived) = session.arrived_bytes() {
            self.arrived = arrived;
            backlog.arrived(arrived, self.margin);
        }
        if self.arrived >= self.looked_at {
            return None;
        }
        let pause = self.pause;
        self.pause = (2 * pause).min(LOOK_PAUSE_MAX);
        Some(pause)
    }
}

/// How often what has arrived is looked at: after so many bytes, and, while some have not and nothing is written, after
/// pauses that double.
const LOOK_BYTES: usize = 256 << 10;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(10);
