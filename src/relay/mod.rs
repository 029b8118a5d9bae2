//! The relay: inputs, outputs and workers put together, started and drained.

mod assembly;
mod placement;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::sync::mpsc::unbounded_channel;
use tracing::warn;

use crate::drain::Drain;
use crate::drain::DrainSignal;
use crate::drain::Phase;
use crate::input::InputConfig;
use crate::observability::Ledger;
use crate::output::OutputConfig;
use crate::output::file;
use crate::queue::Queue;
use crate::queue::keeper::Keeper;
use crate::relay::assembly::Accounts;
use crate::relay::assembly::Assembly;
use crate::relay::assembly::FileLane;
use crate::relay::assembly::WorkerParts;
use crate::relay::placement::Placement;
use crate::relay::worker::Worker;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::BackendChoice;
use crate::transport::backend;
use crate::transport::listener;
use crate::transport::listener::Bound;
use crate::transport::listener::SocketFile;

/// Everything that a relay needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Worker threads; 0: one per core that the process may use.
    pub workers: usize,
    /// What the workers run on.
    pub backend: BackendChoice,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// At least one.
    pub inputs: Vec<InputConfig>,
    /// At least one; every output gets every frame of its content type.
    pub outputs: Vec<OutputConfig>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            backend: BackendChoice::Auto,
            drain_timeout: Duration::from_secs(10),
            inputs: vec![InputConfig::default()],
            outputs: vec![OutputConfig::default()],
        }
    }
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("input `{input}` cannot listen on {address}: {source}")]
    Listen {
        /// Name of the input.
        input: String,
        /// The address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// `backend = "uring"`, and it is not to be had.
    #[error("backend `uring` cannot be used here: {0}; `tapster doctor` tells how to allow it")]
    Backend(String),
    /// A thread could not be started.
    #[error("a worker could not be started: {0}")]
    Worker(io::Error),
}

/// A running relay. Dropping it ends it at once; [`Relay::drain`] ends it well.
///
/// ```no_run
/// use tapster::input::InputConfig;
/// use tapster::output::OutputConfig;
/// use tapster::relay::Relay;
/// use tapster::relay::RelayConfig;
///
/// let input = InputConfig { listen: vec!["tcp://127.0.0.1:0".parse()?], ..InputConfig::default() };
/// let output = OutputConfig { to: "unix:/run/collector.sock".parse()?, ..OutputConfig::default() };
/// let relay = Relay::start(RelayConfig { inputs: vec![input], outputs: vec![output], ..RelayConfig::default() })?;
/// for (input, address) in relay.listeners() {
///     println!("{input} listens on {address}");
/// }
/// let ledger = relay.drain();
/// assert!(ledger.outputs[0].balances());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Relay {
    backend: Backend,
    drain_timeout: Duration,
    listeners: Vec<(String, Address)>,
    accounts: Accounts,
    queues: Vec<Arc<Queue>>,
    drain: Drain,
    inputs_ended: mpsc::Receiver<()>,
    threads: Vec<JoinHandle<()>>,
    // Removed from the file system when the relay has stopped listening.
    socket_files: Vec<SocketFile>,
}

impl Relay {
    /// Binds every input, starts the workers, and returns once everything listens.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left bound.
    pub fn start(config: RelayConfig) -> Result<Self, StartError> {
        let (backend, reason) = backend::choose(config.backend).map_err(StartError::Backend)?;
        if let Some(reason) = reason {
            warn!("{reason}: using epoll; `tapster doctor` tells how to allow it");
        }
        let workers = placement::worker_count(config.workers);
        let bound = bind_inputs(&config.inputs, workers)?;
        let (drain, signal) = Drain::new();
        let mut assembly = Assembly::new(workers);
        for input in config.inputs {
            assembly.add_input(input);
        }
        for output in config.outputs {
            assembly.add_output(output);
        }
        let mut listeners = Vec::new();
        let mut socket_files = Vec::new();
        for (input, bound) in bound {
            listeners.push((assembly.accounts.inputs[input].name.clone(), bound.address.clone()));
            socket_files.extend(bound.file);
            assembly.add_listeners(input, bound.listeners, &bound.address);
        }
        let (ended_sender, inputs_ended) = mpsc::channel();
        let mut relay = Self {
            backend,
            drain_timeout: config.drain_timeout,
            listeners,
            accounts: assembly.accounts,
            queues: assembly.queues,
            drain,
            inputs_ended,
            threads: Vec::new(),
            socket_files,
        };
        // From here on a failure drops the relay, which ends the threads that have begun.
        relay.start_keepers(assembly.keepers)?;
        relay.start_files(assembly.files, &signal)?;
        relay.start_workers(assembly.workers, &signal, &ended_sender)?;
        Ok(relay)
    }

    /// What the workers run on.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.accounts.workers
    }

    /// Name of the input and the address bound (port 0 replaced by the kernel's choice), in order of configuration.
    pub fn listeners(&self) -> &[(String, Address)] {
        &self.listeners
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> Ledger {
        self.accounts.ledger()
    }

    /// Ends the relay: stops accepting, takes what has arrived, answers FINISH, writes what waits, ends every output
    /// with STOP and waits for its FINISH. Blocks for `drain_timeout` at most; what is left then is counted as dropped,
    /// reason `shutdown`. Returns the final ledger.
    pub fn drain(mut self) -> Ledger {
        self.end(self.drain_timeout);
        self.accounts.ledger()
    }

    fn start_keepers(&mut self, keepers: Vec<Keeper>) -> Result<(), StartError> {
        for keeper in keepers {
            let runtime = Builder::new_current_thread().enable_time().build().map_err(StartError::Worker)?;
            let thread = thread::Builder::new().name("tapster-spool".to_owned());
            let run = move || runtime.block_on(keeper.run());
            self.threads.push(thread.spawn(run).map_err(StartError::Worker)?);
        }
        Ok(())
    }

    fn start_files(&mut self, files: Vec<FileLane>, signal: &DrainSignal) -> Result<(), StartError> {
        for FileLane { config, pattern, backlog } in files {
            let signal = signal.clone();
            let runtime = Builder::new_current_thread().enable_time().build().map_err(StartError::Worker)?;
            let thread = thread::Builder::new().name("tapster-file".to_owned());
            let run = move || runtime.block_on(file::run(config, pattern, backlog, signal));
            self.threads.push(thread.spawn(run).map_err(StartError::Worker)?);
        }
        Ok(())
    }

    fn start_workers(
        &mut self,
        parts: Vec<WorkerParts>,
        signal: &DrainSignal,
        inputs_ended: &mpsc::Sender<()>,
    ) -> Result<(), StartError> {
        let processors = placement::processors(parts.len());
        let placement = Placement::new(parts.len());
        let (mailboxes, receivers): (Vec<_>, Vec<_>) = parts.iter().map(|_| unbounded_channel()).unzip();
        let (ready, readiness) = mpsc::channel();
        for ((index, parts), mailbox) in parts.into_iter().enumerate().zip(receivers) {
            let worker = Worker {
                index,
                cpu: processors.get(index).copied(),
                backend: self.backend,
                inputs: parts.inputs,
                listeners: parts.listeners,
                inlets: parts.inlets,
                lanes: parts.lanes,
                groups: parts.groups,
                placement: placement.clone(),
                mailbox,
                mailboxes: mailboxes.clone(),
                drain: signal.clone(),
                inputs_ended: inputs_ended.clone(),
            };
            let ready = ready.clone();
            let thread = thread::Builder::new().name(format!("tapster-{index}"));
            let thread = thread.spawn(move || worker.run(ready)).map_err(StartError::Worker)?;
            self.threads.push(thread);
        }
        drop(ready);
        for result in readiness {
            result.map_err(StartError::Worker)?;
        }
        Ok(())
    }

    fn end(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.drain.enter(Phase::Inputs);
        // The sender is never used: the channel ends when the last worker has no connection any more.
        let _ = self.inputs_ended.recv_timeout(timeout);
        self.drain.enter(Phase::Outputs);
        for queue in &self.queues {
            queue.close();
        }
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            thread::sleep(END_LOOK);
        }
        self.drain.enter(Phase::Over);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
        // A batch that was pushed after its lane had gone.
        for queue in &self.queues {
            queue.abandon();
        }
        self.socket_files.clear();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Duration::ZERO);
        }
    }
}

/// How often the end of the threads is looked at.
const END_LOOK: Duration = Duration::from_millis(2);

/// Binds every listener, or none.
fn bind_inputs(inputs: &[InputConfig], workers: usize) -> Result<Vec<(usize, Bound)>, StartError> {
    let mut all = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        for address in &input.listen {
            let bound = listener::bind(address, workers, input.socket_mode).map_err(|source| {
                StartError::Listen { input: input.name.clone(), address: address.clone(), source }
            })?;
            all.extend(bound.into_iter().map(|bound| (index, bound)));
        }
    }
    Ok(all)
}
