//! The stages in the life of `tapster run`. Each is told here, and nowhere else: in the log, and to the admin addresses.

use std::sync::Arc;
use std::time::Duration;

use tapster::admin::Desk;
use tapster::admin::Phase;
use tapster::admin::Refusal;
use tapster::admin::Reloaded;
use tapster::config::units::format_duration;
use tracing::info;
use tracing::warn;

/// Whoever has to learn of the stages.
#[derive(Debug)]
pub(crate) struct Stages {
    desk: Arc<Desk>,
}

impl Stages {
    pub(crate) fn new(desk: Arc<Desk>) -> Self {
        Self { desk }
    }

    /// Everything listens.
    pub(crate) fn ready(&self) {
        self.desk.enter(Phase::Running);
    }

    /// The configuration is about to be read again.
    pub(crate) fn reload_begins(&self) {}

    /// It was read again: the relay runs as before, or with what has changed.
    pub(crate) fn reload_ends(&self, by: &str, outcome: &Result<Reloaded, Refusal>) {
        match outcome {
            Ok(Reloaded { changes, .. }) if changes.is_empty() => {
                info!("{by}: the configuration was read again, and nothing has changed");
            }
            Ok(Reloaded { changes, .. }) => {
                info!("{by}: the configuration was read again: {}", changes.join("; "));
            }
            Err(Refusal::Faults(faults)) => {
                warn!("{by}: the configuration has faults, and nothing has changed: {}", faults.join("; "));
            }
            Err(Refusal::Phase(phase)) => warn!("{by}: tapster is {phase}, and reads no configuration"),
            Err(Refusal::Failed(error)) => warn!("{by}: the configuration was not taken: {error}"),
        }
    }

    /// The relay ends.
    pub(crate) fn drain_begins(&self, by: &str, timeout: Duration) {
        self.desk.enter(Phase::Draining);
        let timeout = format_duration(timeout);
        info!("{by}: draining, at most {timeout}; a signal that comes a second later or more ends at once");
    }

    /// A new process is started, and is to take over.
    pub(crate) fn upgrade_begins(&self, by: &str) {
        self.desk.enter(Phase::Upgrading);
        info!("{by}: a new process of the program takes over");
    }

    /// The new process reads, and this one ends its outputs.
    pub(crate) fn new_process_reads(&self) {
        info!("the new process reads every connection that can pass; this one ends its outputs");
    }

    /// This process has nothing any more.
    pub(crate) fn handed_over(&self) {
        info!("the new process has taken over everything; this one ends");
    }

    /// The new process has not taken over: this one goes on.
    pub(crate) fn upgrade_fails(&self, error: &str) {
        // A new process may have found several faults.
        let error: Vec<_> = error.lines().map(str::trim).collect();
        warn!("no upgrade: {}; this process goes on", error.join("; "));
        self.desk.enter(Phase::Running);
    }
}
