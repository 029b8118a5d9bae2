//! The paths of unix sockets that inputs and outputs listen on, while the relay runs.
//!
//! A clean-up of `/run` or `/tmp` removes the file of a living socket: no writer can connect any more, and nothing else
//! shows it. So a thread looks at the paths, twice a second, and binds those that are gone again. It removes the files when
//! the relay drains: from then on the paths are free for the next process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use tokio::runtime::Builder;
use tracing::warn;

use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::transport::listener;
use crate::transport::listener::BoundListener;
use crate::transport::socket_path::AtPath;
use crate::transport::socket_path::SocketFileConfig;
use crate::transport::socket_path::SocketPath;

/// Who listens, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    Input(&'a str),
    Output(&'a str),
}

impl<'a> Owner<'a> {
    /// The name.
    pub(crate) fn name(self) -> &'a str {
        match self {
            Self::Input(name) | Self::Output(name) => name,
        }
    }
}

/// The path of one listener.
#[derive(Debug)]
pub(crate) struct Watched {
    name: String,
    is_output: bool,
    path: SocketPath,
    /// What keeps it from being bound again, when it was told, and when it is tried again.
    fault: Option<Fault>,
}

#[derive(Debug)]
struct Fault {
    words: String,
    told: Instant,
    again: Instant,
}

impl Watched {
    pub(crate) fn new(owner: Owner<'_>, path: SocketPath) -> Self {
        let mut watched = Self { name: String::new(), is_output: false, path, fault: None };
        watched.set_owner(owner);
        watched
    }

    fn set_owner(&mut self, owner: Owner<'_>) {
        owner.name().clone_into(&mut self.name);
        self.is_output = matches!(owner, Owner::Output(_));
    }

    fn look(&mut self, now: Instant) {
        let at_path = self.path.look();
        let (input, output) =
            if self.is_output { (None, Some(&self.name)) } else { (Some(&self.name), None) };
        let listener = format!("unix:{}", self.path.path().display());
        let tries = match at_path {
            AtPath::Ours | AtPath::Unknown => false,
            AtPath::Nothing => true,
            // Each attempt is a connection to its owner.
            AtPath::Another => self.fault.as_ref().is_none_or(|fault| fault.again <= now),
        };
        if !tries {
            return;
        }
        let words = match self.path.bind_again() {
            Ok(()) => {
                self.fault = None;
                warn!(
                    input,
                    output,
                    listener,
                    "the socket file was removed, and tapster has bound it again; connections that were open go on"
                );
                return;
            }
            Err(error) => error.to_string(),
        };
        let known = self.fault.as_ref().filter(|fault| fault.words == words).map(|fault| fault.told);
        let told = known.filter(|told| now.saturating_duration_since(*told) < TELL_AGAIN);
        if told.is_none() {
            warn!(
                input,
                output,
                listener,
                "the socket file was removed, nobody can connect, and tapster cannot bind it again: {words}; tapster tries on"
            );
        }
        self.fault = Some(Fault { words, told: told.unwrap_or(now), again: now + ANOTHER_LOOK });
    }
}

/// The paths of a relay, and the thread that looks after them while the scope runs. It removes the files when the scope drains.
#[derive(Debug)]
pub(crate) struct SocketPaths {
    paths: Arc<Mutex<Vec<Watched>>>,
    scope: Scope,
    is_watched: bool,
}

impl SocketPaths {
    /// No path yet.
    pub(crate) fn new(scope: Scope) -> Self {
        Self { paths: Arc::default(), scope, is_watched: false }
    }

    /// Looks after one more path.
    ///
    /// # Errors
    /// The system has no thread for it; the file is gone then.
    pub(crate) fn add(&mut self, path: Watched) -> io::Result<()> {
        if !self.is_watched {
            self.watch()?;
            self.is_watched = true;
        }
        self.paths.lock().expect(UNPOISONED).push(path);
        Ok(())
    }

    /// Listeners at this path for another input or output, in place of those that had it before; `None` if it is not bound.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn move_to(
        &self,
        path: &Path,
        owner: Owner<'_>,
        workers: usize,
    ) -> io::Result<Option<Vec<BoundListener>>> {
        let mut paths = self.paths.lock().expect(UNPOISONED);
        let Some(watched) = paths.iter_mut().find(|watched| watched.path.path() == path) else {
            return Ok(None);
        };
        let listeners = listener::of_path(&mut watched.path, workers)?;
        watched.set_owner(owner);
        Ok(Some(listeners))
    }

    /// What is bound at this path; `None` if it is not bound.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn socket_at(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let paths = self.paths.lock().expect(UNPOISONED);
        let watched = paths.iter().find(|watched| watched.path.path() == path);
        watched.map(|watched| watched.path.duplicate()).transpose()
    }

    /// The files are those of this process, from now on.
    pub(crate) fn own(&self) {
        self.paths.lock().expect(UNPOISONED).iter_mut().for_each(|watched| watched.path.own());
    }

    /// Leaves every file where it is: another process listens there.
    pub(crate) fn leave(&self) {
        self.paths.lock().expect(UNPOISONED).drain(..).for_each(|watched| watched.path.leave());
    }

    /// Gives the socket file at this path this owner and these permission bits.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn reconfigure(&self, path: &Path, config: &SocketFileConfig) -> io::Result<()> {
        let mut paths = self.paths.lock().expect(UNPOISONED);
        let watched = paths.iter_mut().find(|watched| watched.path.path() == path);
        watched.map_or(Ok(()), |watched| watched.path.reconfigure(config))
    }

    /// Removes the file at this path, if it is the one that was bound.
    pub(crate) fn remove(&self, path: &Path) {
        self.paths.lock().expect(UNPOISONED).retain(|watched| watched.path.path() != path);
    }

    fn watch(&self) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let (mut phases, paths) = (self.scope.phases(), Arc::clone(&self.paths));
        let watch = async move {
            loop {
                tokio::select! {
                    biased;
                    () = phases.reached(Phase::Draining) => return paths.lock().expect(UNPOISONED).clear(),
                    () = tokio::time::sleep(LOOK) => {}
                }
                for path in paths.lock().expect(UNPOISONED).iter_mut() {
                    path.look(Instant::now());
                }
            }
        };
        self.scope.spawn_thread("tapster-sockets", "socket files", move || runtime.block_on(watch))
    }
}

/// How often paths are looked at: what is gone is noticed within a second.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is tried to bind a path where somebody else has a file.
const ANOTHER_LOOK: Duration = Duration::from_secs(10);
/// How often the log says that a path cannot be bound.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";
