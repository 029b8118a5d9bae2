//! The end of a relay: asked for once, seen everywhere, over by a deadline.

use std::pin::Pin;

use tokio::sync::oneshot;
use tokio::sync::watch;

/// How far the end has come. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Frames flow.
    Running,
    /// Inputs take what has arrived and answer FINISH.
    Inputs,
    /// Nothing comes any more; outputs write what waits and send STOP.
    Outputs,
    /// What is left is lost, and counted.
    Over,
}

impl Phase {
    /// Whether nothing comes in any more.
    pub(crate) fn inputs_ended(&self) -> bool {
        matches!(self, Self::Outputs | Self::Over)
    }
}

/// Announces phases.
#[derive(Debug)]
pub(crate) struct Drain(watch::Sender<Phase>);

/// Sees phases; one for each task that cares.
#[derive(Clone, Debug)]
pub(crate) struct DrainSignal(watch::Receiver<Phase>);

impl Drain {
    pub(crate) fn new() -> (Self, DrainSignal) {
        let (sender, receiver) = watch::channel(Phase::Running);
        (Self(sender), DrainSignal(receiver))
    }

    /// Announces a phase; an earlier one than the present is ignored.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }
}

impl DrainSignal {
    /// The phase now.
    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether the end has been asked for.
    pub(crate) fn requested(&self) -> bool {
        self.phase() != Phase::Running
    }

    /// Waits for a phase that satisfies `wanted`, and returns it. Cancel-safe. A relay whose handle is gone is over.
    pub(crate) async fn wait(&mut self, wanted: impl FnMut(&Phase) -> bool) -> Phase {
        self.0.wait_for(wanted).await.map_or(Phase::Over, |phase| *phase)
    }

    /// Waits for the next change of phase after the last one seen. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Phase {
        let _ = self.0.changed().await;
        *self.0.borrow_and_update()
    }
}

/// The end of the last phase, for loops that look at it with every write: cheap to ask again and again.
pub(crate) struct Over {
    future: Option<Pin<Box<dyn Future<Output = Phase>>>>,
}

impl Over {
    pub(crate) fn new(mut signal: DrainSignal) -> Self {
        let future = Box::pin(async move { signal.wait(|phase| *phase == Phase::Over).await });
        Self { future: Some(future) }
    }

    /// As [`Over::new`], or sooner: when the other end of `patience` is dropped.
    pub(crate) fn sooner(mut signal: DrainSignal, patience: oneshot::Receiver<()>) -> Self {
        let future = Box::pin(async move {
            tokio::select! {
                phase = signal.wait(|phase| *phase == Phase::Over) => phase,
                _ = patience => Phase::Over,
            }
        });
        Self { future: Some(future) }
    }

    /// Waits until the relay is over. Cancel-safe; may be asked again afterwards.
    pub(crate) async fn reached(&mut self) {
        if let Some(future) = &mut self.future {
            future.await;
            self.future = None;
        }
    }
}
