//! Every worker shows that it lives.

use std::time::Duration;

use crate::support::collector::CollectingReader;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::wait::eventually;

on_both_backends! {
    fn every_worker_ticks_until_it_has_ended_in_order(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = relay(backend).workers(3).output(to(&reader)).start();
        let ticks = relay.inner().ticks();
        assert_eq!(ticks.ages().count(), 3);
        // Whoever ticks no more grows older all the time.
        for _ in 0..2 {
            let before: Vec<_> = ticks.ages().collect();
            for (worker, mut before) in before.into_iter().enumerate() {
                eventually(&format!("worker {worker} ticks"), || {
                    let age = ticks.ages().nth(worker).unwrap();
                    let ticked = age < before;
                    before = age;
                    ticked
                });
            }
        }
        relay.drain();
        eventually("every worker has ended", || ticks.ages().all(|age| age.is_none()));
        assert_eq!(ticks.oldest(), Duration::ZERO);
    }
}
