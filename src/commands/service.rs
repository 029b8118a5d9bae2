//! A relay that runs: it does one thing after the other that signals and admin addresses ask for, until the end.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;

use tapster::admin::Answer;
use tapster::admin::Desk;
use tapster::admin::Phase;
use tapster::admin::Refusal;
use tapster::admin::Reloaded;
use tapster::admin::Server;
use tapster::admin::Wish;
use tapster::observability::Ledger;
use tapster::observability::Log;
use tapster::observability::StatusLine;
use tapster::relay::HandoverError;
use tapster::relay::Relay;
use tracing::info;
use tracing::warn;

use crate::cli::RelayArgs;
use crate::commands::events::Event;
use crate::commands::reloading;
use crate::commands::reloading::Prepared;
use crate::commands::stages::Stages;
use crate::commands::start::refuse;
use crate::commands::successor;

/// How the service ended.
pub(crate) enum Ended {
    /// The relay has drained, with this ledger.
    Drained(Ledger),
    /// Another process has taken over: it tells where every frame went.
    HandedOver,
}

/// The relay, and everything that controls it.
pub(crate) struct Service<'a> {
    pub(crate) relay: Relay,
    pub(crate) server: Server,
    pub(crate) desk: Arc<Desk>,
    pub(crate) stages: Stages,
    pub(crate) args: &'a RelayArgs,
    pub(crate) sender: Sender<Event>,
    pub(crate) events: Receiver<Event>,
    /// What is to be done, in order.
    pub(crate) tasks: VecDeque<Task>,
    /// Who asked for the reload that is being prepared.
    pub(crate) reloading: Option<Asker<Reloaded>>,
}

/// Something that one does not do beside another.
pub(crate) enum Task {
    Reload(Asker<Reloaded>),
    Upgrade { by: Asker<u64>, binary: Option<PathBuf> },
}

/// Who asks for something, and has to be answered.
pub(crate) enum Asker<T> {
    Signal(&'static str),
    Request(&'static str, Answer<T>),
}

impl<T> Asker<T> {
    fn answer(self, answer: Result<T, Refusal>) {
        if let Self::Request(_, waits) = self {
            waits.give(answer);
        }
    }

    /// Whether nobody waits for it any more.
    fn has_gone(&self) -> bool {
        matches!(self, Self::Request(_, answer) if answer.is_abandoned())
    }
}

impl<T> fmt::Display for Asker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) | Self::Request(name, _) => f.write_str(name),
        }
    }
}

impl Service<'_> {
    /// Serves until a signal asks for the end, or another process has taken over. `end`: a signal that has asked for it already.
    /// Meanwhile keeps the status line up to date, if there is one.
    pub(crate) fn run(mut self, end: Option<&'static str>, terminal: Option<&Log>) -> Ended {
        self.stages.ready(self.relay.view());
        let mut status = StatusLine::new(Instant::now());
        let mut end = end;
        while end.is_none() {
            let event = match terminal {
                None => self.events.recv().map_err(RecvTimeoutError::from),
                Some(_) => self.events.recv_timeout(STATUS_INTERVAL),
            };
            match (event, terminal) {
                (Ok(event), _) => end = self.handle(event),
                (Err(RecvTimeoutError::Timeout), Some(log)) => {
                    log.show_status(status.text(Instant::now(), &self.relay.ledger()));
                }
                (Err(_), _) => unreachable!("this thread has a sender, too"),
            }
            if end.is_none() && self.work() {
                self.server.leave();
                self.server.end();
                return Ended::HandedOver;
            }
        }
        terminal.inspect(|log| log.show_status(String::new()));
        self.drain(end.unwrap_or_default())
    }

    /// Returns the signal that asks for the end.
    fn handle(&mut self, event: Event) -> Option<&'static str> {
        match event {
            Event::End(name) => return Some(name),
            Event::Reopen(name) => self.reopen(name),
            Event::Reload(name) => {
                self.reopen(name);
                self.tasks.push_back(Task::Reload(Asker::Signal(name)));
            }
            Event::Upgrade(name) => {
                self.tasks.push_back(Task::Upgrade { by: Asker::Signal(name), binary: None });
            }
            Event::Wish(Wish::Reload(answer)) => {
                self.tasks.push_back(Task::Reload(Asker::Request("tapster reload", answer)));
            }
            Event::Wish(Wish::Upgrade { binary, answer }) => {
                let by = Asker::Request("tapster upgrade", answer);
                self.tasks.push_back(Task::Upgrade { by, binary });
            }
            Event::Prepared(prepared) => self.end_reload(*prepared),
            Event::Started(_) => {}
        }
        None
    }

    /// Begins what is next, unless something is under way. Returns whether another process has taken over.
    fn work(&mut self) -> bool {
        while self.reloading.is_none()
            && let Some(task) = self.tasks.pop_front()
        {
            match task {
                Task::Reload(by) => self.begin_reload(by),
                // Whoever asked for a new process has been told meanwhile that there is none.
                Task::Upgrade { by, .. } if by.has_gone() => {}
                Task::Upgrade { by, binary } => {
                    if self.upgrade(by, binary.as_deref()) {
                        return true;
                    }
                }
            }
        }
        false
    }

    fn begin_reload(&mut self, by: Asker<Reloaded>) {
        self.stages.reload_begins();
        self.reloading = Some(by);
        if self.relay.is_taking_over() {
            return self.end_reload(Err(Refusal::Phase(Phase::Upgrading)));
        }
        let sender = self.sender.clone();
        // Where nobody hears it any more, the process is about to end.
        let deliver = move |prepared| drop(sender.send(Event::Prepared(Box::new(prepared))));
        if let Err(error) = reloading::begin(self.args, &self.relay, &self.server, deliver) {
            self.end_reload(Err(Refusal::Failed(format!("no thread for it: {error}"))));
        }
    }

    fn end_reload(&mut self, prepared: Result<Prepared, Refusal>) {
        let Some(by) = self.reloading.take() else { return };
        let outcome = prepared.and_then(|prepared| {
            self.desk.show_config(prepared.shown.clone());
            prepared.carry_out(&mut self.relay, &mut self.server)
        });
        for warning in outcome.iter().flat_map(|reloaded| &reloaded.warnings) {
            warn!("{warning}");
        }
        self.stages.reload_ends(&by.to_string(), &outcome);
        by.answer(outcome);
    }

    /// Lets a new process take over. Returns whether it has, and this one is to end.
    fn upgrade(&mut self, by: Asker<u64>, binary: Option<&Path>) -> bool {
        self.stages.upgrade_begins(&by.to_string());
        let (successor, process) = match successor::hand_over(&mut self.relay, binary, &self.server) {
            Ok(begun) => begun,
            Err(error) => {
                self.stages.upgrade_fails(&error.to_string());
                by.answer(Err(refusal(error)));
                return false;
            }
        };
        self.server.pause();
        self.stages.new_process_reads();
        by.answer(Ok(self.relay.generation() + 1));
        if let Err(error) = self.relay.let_go(&successor) {
            self.stages.upgrade_fails(&error.to_string());
            if let Err(error) = self.server.resume() {
                warn!("the admin addresses accept nothing: {error}");
            }
            return false;
        }
        self.stages.handed_over(process);
        true
    }

    /// Lets every file output begin a new file, for a program that has moved the present one away.
    fn reopen(&self, signal: &str) {
        self.relay.reopen_files();
        info!("{signal}: file outputs begin a new file");
    }

    /// Ends everything in order, and tells those who wait for something that it does not come.
    fn drain(mut self, signal: &str) -> Ended {
        self.stages.drain_begins(signal, self.relay.config().drain_timeout);
        let draining = Refusal::Phase(Phase::Draining);
        for by in self.reloading.take().into_iter() {
            by.answer(Err(draining.clone()));
        }
        for task in self.tasks.drain(..) {
            match task {
                Task::Reload(by) => by.answer(Err(draining.clone())),
                Task::Upgrade { by, .. } => by.answer(Err(draining.clone())),
            }
        }
        for event in self.events.try_iter() {
            if let Event::Wish(wish) = event {
                refuse(wish, Phase::Draining);
            }
        }
        let ledger = self.relay.drain();
        self.server.end();
        Ended::Drained(ledger)
    }
}

/// Why a new process has not taken over.
fn refusal(error: HandoverError) -> Refusal {
    match error {
        HandoverError::Refused { usage: true, reason } => {
            Refusal::Faults(reason.lines().map(|line| line.trim().to_owned()).collect())
        }
        error => Refusal::Failed(error.to_string()),
    }
}

const STATUS_INTERVAL: Duration = Duration::from_millis(500);
