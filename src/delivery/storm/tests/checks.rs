//! What must hold in a storm: at every moment, for every frame that arrives, and at the end.

use crate::batch::tests::ledger;
use crate::delivery::action::StreamId;
use crate::delivery::storm::FRAME_LEN;
use crate::delivery::storm::Storm;
use crate::delivery::storm::totals::Totals;
use crate::observability::drop_reason::DropReason;

impl Storm {
    /// A deadline is set while anything but a write is awaited.
    pub(super) fn check_waits(&self) {
        let stopping = self.streams.values().any(|state| state.stopped && !state.closed);
        let nobody = self.streams.values().all(|state| state.closed);
        if (stopping || nobody || !self.connecting.is_empty()) && !self.delivery.is_over() {
            assert!(self.delivery.poll_timeout().is_some(), "waits without a deadline: {:?}", self.delivery);
        }
    }

    /// Whoever gets a frame again had lost the stream before.
    pub(super) fn arrives(&mut self, stream: StreamId, frame: u64) {
        let streams = self.got.entry(frame).or_default();
        for earlier in &*streams {
            assert!(self.streams[earlier].broke, "frame {frame} is sent twice without a break");
        }
        self.totals.frames_twice += u64::from(!streams.is_empty());
        streams.push(stream);
        self.totals.frames += 1;
        assert!(!self.settled.contains(&frame), "frame {frame} is sent after its end");
        self.check_order(stream, frame);
    }

    /// On each stream, and by each connection where the balance keeps that, frames are in order, except those that come again.
    fn check_order(&self, stream: StreamId, frame: u64) {
        let ordered = self.config.weights.len() == 1 || self.config.balance.keeps_order();
        let first_time = self.got[&frame].len() == 1;
        if !ordered || !first_time {
            return;
        }
        let origin = |frame: u64| self.origins[usize::try_from(frame).unwrap()].0;
        let later = self
            .got
            .range(frame + 1..)
            .find(|(later, streams)| origin(**later) == origin(frame) && streams.last() == Some(&stream));
        assert!(later.is_none(), "frame {frame} comes behind {later:?}");
    }

    /// Frames that the members of a group have sent, and that wait there for their acknowledgement.
    pub(super) fn unacknowledged_by_members(&self) -> u64 {
        let ledgers = self.accounts.iter().map(|account| account.ledger(String::new(), self.now));
        ledgers.map(|ledger| ledger.frames_unacknowledged).sum()
    }

    /// Nobody gets frames that are too old.
    pub(super) fn check_ages(&self, written: &[u8]) {
        let Some(max_age) = self.config.max_age else { return };
        for frame in written.chunks(FRAME_LEN) {
            let number: usize = std::str::from_utf8(&frame[4..]).unwrap().parse().unwrap();
            let age = self.now - self.origins[number].1;
            assert!(age < max_age, "frame {number} is sent when it is {age:?} old");
        }
    }

    /// Every frame has ended in exactly one way.
    pub(super) fn check_end(mut self) -> Totals {
        let ended_at = self.now - self.begin;
        assert!(self.streams.values().all(|state| state.closed), "a connection is left open");
        assert!(self.connecting.is_empty(), "an attempt is left");
        assert!(self.delivery.poll_timeout().is_none() || self.config.max_age.is_some());
        let mut left = 0;
        let mut last = None;
        assert!(
            self.delivery.shared.balancer.all_written(),
            "a member has something to write behind its end"
        );
        let members = self.unacknowledged_by_members();
        for batch in self.delivery.into_remaining().chain(self.queue.drain(..)) {
            let from = batch.log_position.unwrap().frame_seq();
            for frame in from..from + u64::from(batch.frames().frames()) {
                assert!(self.settled.insert(frame), "frame {frame} is settled, and left");
                assert!(last < Some(frame), "left out of order");
                last = Some(frame);
            }
            left += u64::from(batch.frames().frames());
            batch.dropped(DropReason::Shutdown);
        }
        assert_eq!(self.settled.len() as u64, self.frames, "a frame has no end");
        let end = ledger(&self.account);
        assert!(end.balances() && end.frames_queued == 0, "{end:?}");
        assert_eq!(end.frames_dropped.get("internal"), None);
        assert_eq!((self.budget.charged(), self.budget.held()), (0, 0), "memory is not given back");
        if self.config.keeps() {
            let known = end.frames_acknowledged + end.frames_unacknowledged;
            // Nobody waits for the acknowledgement of frames that got too old.
            assert!(
                end.frames_sent == known || end.frames_sent > known && self.config.max_age.is_some(),
                "{end:?}"
            );
        }
        self.totals.frames_too_old = end.frames_dropped.get("spool_age").copied().unwrap_or(0);
        assert!(self.config.max_age.is_some() || self.totals.frames_too_old == 0, "{end:?}");
        assert_eq!(members, 0, "a member has frames behind its end");
        if self.weather.is_fair() && self.weather.refuses_frame.is_none() && !self.over {
            assert_eq!(left, 0, "left although every reader reads: after {ended_at:?}, {:?}", self.config);
        }
        let refusable = u64::from(self.weather.refuses_frame.is_some());
        assert!(self.totals.frames_refused <= refusable, "a good frame is left out");
        self.totals.frames_left = left;
        self.totals
    }
}
