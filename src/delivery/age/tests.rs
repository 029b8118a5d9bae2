//! Batches that grow too old while nobody takes them.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::batch::Acknowledgement;
use crate::batch::budget::Budget;
use crate::batch::position::LogPosition;
use crate::batch::tests::batch;
use crate::batch::tests::frames;
use crate::batch::tests::ledger;
use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balance;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Reconnect;
use crate::delivery::config::Retry;
use crate::observability::account::OutputAccount;

const MAX_AGE: Duration = Duration::from_secs(10);
/// Frames of a batch, of 14 bytes each.
const FRAMES: usize = 5;

/// An output whose collector was there, took 14 bytes and a half of another 14, and is away since.
struct Away {
    delivery: DeliveryMachine,
    account: Arc<OutputAccount>,
    now: Instant,
    acknowledged: Vec<Acknowledgement>,
}

impl Away {
    /// With so many batches that are also on disk.
    fn with_batches(acknowledge: Acknowledge, batches: usize, now: Instant) -> Self {
        let config = DeliveryConfig {
            weights: vec![1],
            balance: Balance::default(),
            acknowledge,
            answers: true,
            connect_timeout: Duration::from_secs(5),
            finish_timeout: Duration::from_secs(5),
            stall_timeout: None,
            slow_start: Duration::ZERO,
            reconnect: Reconnect::default(),
            retry: Retry::WhileRunning,
            queue_max: 1 << 20,
            held_max: 1 << 19,
            write_len_max: 1 << 10,
            max_age: Some(MAX_AGE),
            seed: 7,
        };
        let (account, budget) = (Arc::<OutputAccount>::default(), Arc::new(Budget::new(1 << 20)));
        let delivery = DeliveryMachine::new(config, Arc::clone(&account), &[], now);
        let mut away = Self { delivery, account, now, acknowledged: Vec::new() };
        let stream = away.connects().expect("at once");
        away.delivery.handle_connected(stream, now);
        for index in 0..batches {
            let mut batch = batch(&away.account, &budget, frames(index * FRAMES, FRAMES));
            let frame_seq = (index * FRAMES) as u64;
            batch.log_position = Some(LogPosition { segment: 1, offset: 4096, frame_seq });
            away.delivery.handle_batch(batch, now);
        }
        away.delivery.handle_source(false, false, now);
        away.delivery.handle_written(stream, 21, now);
        away.delivery.handle_lost(stream, now);
        away
    }

    /// The stream that is to be connected, if one is.
    fn connects(&mut self) -> Option<StreamId> {
        let mut connects = None;
        while let Some(action) = self.delivery.poll_action() {
            if let Action::Connect(stream) = action {
                connects = Some(stream);
            }
        }
        connects
    }

    /// Every attempt to connect fails until then.
    fn wait_until(&mut self, end: Instant) {
        for turn in 0.. {
            assert!(turn < 10_000, "what is due is done");
            while let Some(stream) = self.connects() {
                self.delivery.handle_refused(stream, self.now);
            }
            self.acknowledged.extend(self.delivery.poll_acknowledged());
            let Some(due) = self.delivery.poll_timeout().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.delivery.handle_timeout(self.now);
        }
        self.now = end;
    }
}

/// They hold addresses of clients, and nobody keeps these for longer than was asked for: neither memory nor the spool.
#[test]
fn what_is_held_while_the_collector_is_away_is_dropped_at_its_age() {
    let progress = Acknowledge::Progress { margin: 0, probe_len: 1, probe_pause: Duration::from_secs(1) };
    for acknowledge in [Acknowledge::Written, progress] {
        let began = Instant::now();
        let mut away = Away::with_batches(acknowledge, 4, began);
        // The batches were read between these moments.
        let read_by = Instant::now();
        away.wait_until(began + MAX_AGE - Duration::from_millis(1));
        let all = 4 * FRAMES as u64;
        let before = ledger(&away.account);
        assert_eq!((before.frames_queued, before.frames_sent), (all - 1, 1), "{acknowledge:?}");
        away.wait_until(read_by + MAX_AGE + Duration::from_millis(1));
        let after = ledger(&away.account);
        assert_eq!(after.frames_dropped.get("spool_age"), Some(&(all - 1)), "{acknowledge:?}: {after:?}");
        assert!(
            after.balances() && after.frames_queued == 0 && after.frames_unacknowledged == 0,
            "{after:?}"
        );
        let forgotten: u32 = away.acknowledged.iter().map(|acknowledged| acknowledged.frames).sum();
        assert_eq!(u64::from(forgotten), all, "{acknowledge:?}");
        away.delivery.tell_ages(away.now);
        assert_eq!(away.delivery.into_remaining().count(), 0);
    }
}
