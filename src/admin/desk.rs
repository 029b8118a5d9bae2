//! Where the thread of the admin addresses and the one that controls the relay meet.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::relay::View;

/// What a process is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does not relay yet.
    Starting,
    /// It relays.
    Running,
    /// A new process is taking over.
    Upgrading,
    /// It ends.
    Draining,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Upgrading => "upgrading",
            Self::Draining => "draining",
        })
    }
}

/// What somebody asks the process for.
#[derive(Debug)]
pub enum Wish {
    /// Read the configuration again.
    Reload(Answer<Reloaded>),
    /// Let a new process take over.
    Upgrade {
        /// The program that it runs; `None`: the one that this process was started from.
        binary: Option<PathBuf>,
        /// Answered with the number of the new process in the chain of upgrades.
        answer: Answer<u64>,
    },
}

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// A line for each key that changed, and for each input and output that came or went.
    pub changes: Vec<String>,
    /// What is allowed and yet unlikely to be meant.
    pub warnings: Vec<String>,
}

/// Why a wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The configuration has these faults, or cannot be taken for these reasons; a line each. Nothing has changed.
    Faults(Vec<String>),
    /// Not in this phase.
    Phase(Phase),
    /// It was tried, and did not succeed.
    Failed(String),
}

/// To whoever waits for a wish to be fulfilled.
#[derive(Debug)]
pub struct Answer<T>(oneshot::Sender<Result<T, Refusal>>);

impl<T> Answer<T> {
    /// An answer to come, and where it arrives. An answer that is dropped is none: the process ends.
    pub fn new() -> (Self, oneshot::Receiver<Result<T, Refusal>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    /// Answers. Whoever asked may have gone.
    pub fn give(self, answer: Result<T, Refusal>) {
        let _ = self.0.send(answer);
    }

    /// Whether nobody waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// What the admin addresses know of the process, and where wishes go. Locked for moments only.
pub struct Desk {
    phase: Mutex<Phase>,
    view: OnceLock<View>,
    config: Mutex<Value>,
    deliver: Box<dyn Fn(Wish) + Send + Sync>,
}

impl Desk {
    /// Of a process that is starting. `deliver` takes wishes to the thread that controls the relay.
    pub fn new(deliver: impl Fn(Wish) + Send + Sync + 'static) -> Self {
        Self {
            phase: Mutex::new(Phase::Starting),
            view: OnceLock::new(),
            config: Mutex::default(),
            deliver: Box::new(deliver),
        }
    }

    /// Shows this relay. There is one in the life of a process.
    pub fn show(&self, view: View) {
        let _ = self.view.set(view);
    }

    /// Shows this configuration from now on.
    pub fn show_config(&self, config: Value) {
        *lock(&self.config) = config;
    }

    /// The process enters another phase. No wish is delivered from now on, unless it is running.
    pub fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// What the process is about.
    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// Delivers a wish, which is answered in any case.
    ///
    /// # Errors
    /// The phase, where it is one without wishes.
    pub(crate) fn ask(&self, wish: Wish) -> Result<(), Phase> {
        // Held meanwhile: whoever enters another phase then finds every wish that was delivered.
        let phase = lock(&self.phase);
        if *phase != Phase::Running {
            return Err(*phase);
        }
        (self.deliver)(wish);
        Ok(())
    }

    /// The relay, once it runs.
    pub(crate) fn view(&self) -> Option<&View> {
        self.view.get()
    }

    /// The configuration that is shown.
    pub(crate) fn config(&self) -> Value {
        lock(&self.config).clone()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
