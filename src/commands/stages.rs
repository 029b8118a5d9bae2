//! The stages in the life of `tapster run`. Each is told here, and nowhere else: in the log, to the admin addresses, and
//! to the service manager.

use std::sync::Arc;
use std::time::Duration;

use tapster::admin::Desk;
use tapster::admin::Phase;
use tapster::admin::Refusal;
use tapster::admin::Reloaded;
use tapster::config::units::format_duration;
use tapster::relay::View;
use tracing::info;
use tracing::warn;

use crate::commands::manager::Manager;

/// Whoever has to learn of the stages.
#[derive(Debug)]
pub(crate) struct Stages {
    desk: Arc<Desk>,
    manager: Manager,
}

impl Stages {
    pub(crate) fn new(desk: Arc<Desk>, manager: Manager) -> Self {
        Self { desk, manager }
    }

    /// Everything listens.
    pub(crate) fn ready(&self, view: View) {
        self.desk.enter(Phase::Running);
        self.manager.ready(view);
    }

    /// The configuration is about to be read again.
    pub(crate) fn reload_begins(&self) {
        self.manager.reloading();
    }

    /// It was read again: the relay runs as before, or with what has changed.
    pub(crate) fn reload_ends(&self, by: &str, outcome: &Result<Reloaded, Refusal>) {
        self.manager.reloaded();
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
        self.manager.stopping(timeout);
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

    /// This process has nothing any more, and the one of this number goes on.
    pub(crate) fn handed_over(&self, process: u32) {
        self.manager.main_pid(process);
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
