//! The end of one run of tapster in a storm, and what must hold then.

use std::cell::Cell;
use std::pin::pin;
use std::task::Context;
use std::task::Waker;
use std::time::Duration;

use crate::batch::tests::ledger;
use crate::spool::reports::Report;
use crate::spool::stage::tests::Life;
use crate::spool::stage::tests::OPENED;
use crate::spool::stage::tests::Storm;
use crate::spool::stage::tests::frames::numbers;

impl Storm {
    pub(super) fn end_life(&mut self, mut life: Life, opened: u64, failures: u64) {
        life.front.close();
        if let Some((frames, connection)) = life.blocked.take() {
            let push = pin!(life.front.push(frames, connection));
            assert!(push.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        }
        self.folder.meanwhile(None);
        let reports = life.reports.take().expect("the lane is there");
        let mut sent = 0;
        let mut left = Vec::new();
        for batch in life.held.drain(..).chain(std::iter::from_fn(|| life.back.pop())) {
            sent += u64::from(batch.sent_frames());
            if batch.log_position.is_none() {
                left.extend(numbers(batch.frames()).into_iter().map(|(frame, _)| frame));
            }
            reports.send(Report::Left(batch));
        }
        drop(reports);
        self.displace(&left);
        sent += self.settle_prefix(&mut life);
        let failures_before_end = self.folder.failures();
        if self.happens(self.weather.disk_fails) {
            self.folder.fail_after(self.random.u64(0..6), self.random.u64(1..6));
        }
        let now = Cell::new(self.now);
        life.stage.end(|| {
            let mut moment = now.get();
            moment.instant += Duration::from_millis(1);
            moment.unix += 1_000_000;
            now.set(moment);
            moment
        });
        self.now = now.get();
        let end = ledger(&life.account);
        assert!(end.balances() && end.frames_queued == 0, "{end:?}");
        assert_eq!(
            (life.front.budget().charged(), life.back.budget().charged()),
            (0, 0),
            "memory is given back"
        );
        assert!(life.has_failed || !end.frames_dropped.contains_key("internal"), "{end:?}");
        self.dropped += end.frames_dropped.values().sum::<u64>();
        for (reason, frames) in &end.frames_dropped {
            self.totals.count(reason, *frames);
        }
        let was_opened = OPENED.get() > opened;
        let failed_at_all = self.folder.failures() > failures;
        self.disk_has_failed |= failed_at_all;
        self.exact &= !failed_at_all && !self.weather.keeps && self.weather.in_order;
        let failed_at_end = self.folder.failures() > failures_before_end;
        if failed_at_all {
            self.settled.clear();
        }
        self.totals.count("failures_at_end", u64::from(failed_at_end));
        self.totals.count("spooled", end.frames_spooled);
        self.spooled = match (was_opened, failed_at_all) {
            (true, false) => Some((end.frames_spooled, sent)),
            (true, true) => None,
            (false, _) => self.spooled,
        };
    }
}
