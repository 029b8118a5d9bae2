//! The timer of a loop that asks for another time at every turn.

use std::pin::Pin;
use std::time::Instant;

use tokio::time::Sleep;

/// One timer, set anew only when the time has changed.
#[derive(Default)]
pub(crate) struct Deadline {
    sleep: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Deadline {
    /// Waits until `at`; without end where there is no time. Cancel-safe.
    pub(crate) async fn reached(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        let (set_to, sleep) =
            self.sleep.get_or_insert_with(|| (at, Box::pin(tokio::time::sleep_until(at.into()))));
        if *set_to != at {
            *set_to = at;
            sleep.as_mut().reset(at.into());
        }
        sleep.as_mut().await;
    }
}
