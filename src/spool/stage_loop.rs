//! The loop that runs a [`Stage`]: it reads the clock, and waits.

use std::time::Instant;

use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::stage::Stage;

/// Runs a stage until the lane has ended. Blocks its thread on file work.
pub(crate) async fn run<S: Storage>(mut stage: Stage<S>) {
    stage.open(Moment::now());
    while !stage.reports.lane_ended() {
        if !stage.turn(Moment::now()) {
            wait(&mut stage).await;
        }
    }
    stage.end(Moment::now);
}

/// Waits until something is to be done.
async fn wait<S: Storage>(stage: &mut Stage<S>) {
    let waits = stage.waits(Instant::now());
    tokio::select! {
        () = stage.front.news(waits.batch, waits.seen) => {}
        () = stage.back.room_for(waits.room_for.unwrap_or_default()), if waits.room_for.is_some() => {}
        () = stage.reports.wait_for_end() => {}
        () = sleep_until(waits.due) => {}
    }
}

/// Sleeps; for ever where there is no time.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
