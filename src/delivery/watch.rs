//! What an endpoint watches of its present stream: how far the reader is, whether it stalls, and the pauses around a frame that
//! may be left out.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::probe::AckProbe;
use crate::delivery::stall::Stall;

/// The watch over one stream. It begins with the stream.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// `None`: frames are not acknowledged by what the reader has.
    probe: Option<AckProbe>,
    /// `None`: a reader may take nothing for as long as it wants.
    stall: Option<Stall>,
    /// Until then nothing is written, to see whether the reader ends a connection that brings nothing. `None`: no such look.
    hold_until: Option<Instant>,
    /// A frame was written alone, and gets its STOP then.
    stop_at: Option<Instant>,
}

impl Watch {
    /// For a stream that begins now.
    pub(super) fn new(config: &DeliveryConfig, has_work: bool, now: Instant) -> Self {
        let probe = match config.acknowledge {
            Acknowledge::Progress { probe_len, probe_pause, .. } => {
                Some(AckProbe::new(probe_len, probe_pause))
            }
            Acknowledge::Written | Acknowledge::Finish { .. } => None,
        };
        let mut watch = Self {
            probe,
            stall: config.stall_timeout.map(|timeout| Stall::new(timeout, now)),
            ..Self::default()
        };
        watch.set_work(has_work, now);
        watch
    }

    /// Whether the reader is looked at to acknowledge frames.
    pub(super) fn probes(&self) -> bool {
        self.probe.is_some()
    }

    /// Tells whether there is something for the reader to take.
    pub(super) fn set_work(&mut self, has_work: bool, now: Instant) {
        if let Some(stall) = &mut self.stall {
            stall.set_work(has_work, now);
        }
    }

    /// The time of the next look at the reader for an acknowledgement.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.probe.as_ref().and_then(AckProbe::look_at)
    }

    /// The time of the next thing that is due while the stream is written to. `holds`: the first frame of the stream waits, and
    /// no byte was written.
    pub(super) fn timeout(&self, holds: bool) -> Option<Instant> {
        let stall = self.stall.as_ref().and_then(Stall::look_at);
        let hold = self.hold_until.filter(|_| holds);
        [self.probe_at(), stall, hold, self.stop_at].into_iter().flatten().min()
    }

    /// Whether it is time to look whether the reader stalls. The look is under way from now on.
    pub(super) fn wants_stall_look(&mut self, now: Instant) -> bool {
        self.stall.as_mut().is_some_and(|stall| stall.wants_look(now))
    }

    /// The stream was written to, up to `position`. Returns whether to look at the reader now.
    pub(super) fn written(&mut self, position: u64, now: Instant) -> bool {
        self.probe.as_mut().is_some_and(|probe| probe.written(position, now))
    }

    /// A look has shown that everything before `arrived` has arrived, of what was written up to `written`; `None`: it cannot be
    /// told.
    pub(super) fn looked(&mut self, arrived: Option<u64>, written: u64, now: Instant) {
        if let Some(probe) = &mut self.probe {
            probe.looked(arrived, written, now);
        }
    }

    /// The same for a stream that is written to. Returns whether the reader has taken nothing for too long.
    pub(super) fn is_stalled(
        &mut self,
        arrived: Option<u64>,
        written: u64,
        has_pending: bool,
        now: Instant,
    ) -> bool {
        let Some(stall) = &mut self.stall else { return false };
        // What cannot be told counts as taken. A reader that has gone ends its stream by that.
        let taken = arrived.unwrap_or(written);
        stall.set_work(has_pending || taken < written, now);
        stall.is_over(taken, now)
    }

    /// Whether the reader is known to have every byte before `position`.
    pub(super) fn has_arrived(&self, position: u64) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.has_arrived(position))
    }

    /// Whether the reader has every byte before `position`, as far as anybody looks.
    pub(super) fn may_have_arrived(&self, position: u64) -> bool {
        self.probe.as_ref().is_none_or(|probe| probe.has_arrived(position))
    }

    /// Whether a stream that has brought nothing is to bring nothing for a moment longer.
    pub(super) fn holds(&mut self, now: Instant) -> bool {
        *self.hold_until.get_or_insert(now + HOLD) > now
    }

    /// Whether a frame that was written alone has waited long enough for its STOP.
    pub(super) fn alone_is_over(&mut self, now: Instant) -> bool {
        *self.stop_at.get_or_insert(now + ALONE_PAUSE) <= now
    }
}

/// How long a connection has to stand without a byte before it gets a frame that may be left out. Shorter than a session after
/// which the next attempt comes soon.
const HOLD: Duration = Duration::from_millis(500);

/// How long a frame that was written alone waits for its STOP.
const ALONE_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// With nothing left to write, too: what was written has to arrive.
    #[test]
    fn a_reader_that_does_not_take_what_was_written_stalls() {
        let (begin, timeout) = (Instant::now(), Duration::from_millis(800));
        let mut watch = Watch { stall: Some(Stall::new(timeout, begin)), ..Watch::default() };
        watch.set_work(true, begin);
        assert!(!watch.is_stalled(Some(0), 100, false, begin));
        let before = begin + timeout - Duration::from_millis(1);
        assert!(!watch.is_stalled(Some(0), 100, false, before));
        assert!(watch.is_stalled(Some(0), 100, false, begin + timeout));
        // What cannot be told counts as taken, and a reader that has everything has no work.
        assert!(!watch.is_stalled(None, 100, false, begin + timeout));
        assert_eq!(watch.timeout(false), None);
    }
}
