//! The loop that runs a [`Stage`]: it reads the clock, and waits.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::lifecycle::Scope;
use crate::spool::Moment;
use crate::spool::Storage;
use crate::spool::entrance;
use crate::spool::entrance::StandIn;
use crate::spool::stage::Stage;

/// Runs a stage until the lane has ended. Blocks its thread on file work. If the stage panics, it begins again, and opens the
/// spool once more. Drops `opens` when it has tried to open the spool for the first time.
pub(crate) async fn run<S: Storage>(mut stage: Stage<S>, scope: Scope, opens: mpsc::Sender<()>) {
    let mut phases = scope.phases();
    let mut opens = Some(opens);
    while scope.guard("spool").supervise(run_until_end(&mut stage, opens.take())).await.is_none() {
        stage.begin_again();
        tokio::select! {
            () = tokio::time::sleep(FAILURE_PAUSE) => {}
            _ = phases.next() => {}
        }
    }
    stage.end(Moment::now);
}

async fn run_until_end<S: Storage>(stage: &mut Stage<S>, opens: Option<mpsc::Sender<()>>) {
    stage.open(Moment::now());
    drop(opens);
    while !stage.reports.lane_ended() {
        if !stage.turn(Moment::now) {
            wait(stage).await;
        }
    }
}

/// Stands in for stages whose disk hangs, until all stages have ended.
pub(crate) fn run_stand_ins(mut stand_ins: Vec<StandIn>) {
    while let Some(pause) = entrance::look(&mut stand_ins, Instant::now()) {
        thread::sleep(pause);
    }
}

/// Waits until something is to be done.
async fn wait<S: Storage>(stage: &mut Stage<S>) {
    let waits = stage.waits(Instant::now());
    tokio::select! {
        () = stage.front.news(waits.batch, waits.seen) => {}
        () = stage.back.room_for(waits.room_for.unwrap_or_default()), if waits.room_for.is_some() => {}
        () = stage.reports.news() => {}
        () = sleep_until(waits.due) => {}
    }
}

/// Sleeps; without end where there is no time.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Before a stage that failed begins again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
