//! The relay: inputs, outputs and workers put together, started and drained.

mod account_watch;
mod accounts;
mod assembly;
mod descriptors;
mod placement;
mod sockets;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tracing::warn;

use crate::batch::budget::Budget;
use crate::faults;
use crate::input::InputConfig;
use crate::lifecycle::Scope;
use crate::observability::Ledger;
use crate::output::ConfigError;
use crate::output::OutputConfig;
use crate::output::file::FileLane;
use crate::queue::block_limit::BlockLimit;
use crate::relay::account_watch::Watch;
use crate::relay::accounts::Accounts;
use crate::relay::accounts::OutputEntry;
use crate::relay::assembly::Assembly;
use crate::relay::assembly::WorkerParts;
use crate::relay::placement::Placement;
use crate::relay::sockets::Watched;
use crate::relay::worker::Beginning;
use crate::relay::worker::Worker;
use crate::spool::Folder;
use crate::spool::entrance::StandIn;
use crate::spool::stage::Stage;
use crate::spool::stage_loop;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::BackendChoice;
use crate::transport::backend;
use crate::transport::listener;
use crate::transport::listener::Bound;
use crate::transport::own_listeners::OwnListeners;

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
    /// An output cannot be as it was configured.
    #[error("output `{output}`: {}: {error}", error.key())]
    Output {
        /// Name of the output.
        output: String,
        /// What is wrong.
        error: ConfigError,
    },
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
    /// `backend = "uring"`, and this host does not allow it.
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
/// use tapster::output::Destination;
/// use tapster::output::Endpoints;
/// use tapster::output::OutputConfig;
/// use tapster::output::StreamsConfig;
/// use tapster::relay::Relay;
/// use tapster::relay::RelayConfig;
///
/// let input = InputConfig { listen: vec!["tcp://127.0.0.1:0".parse()?], ..InputConfig::default() };
/// let collector = StreamsConfig::new(Endpoints::One("unix:/run/collector.sock".parse()?));
/// let output = OutputConfig { to: Destination::Streams(collector), ..OutputConfig::default() };
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
    accounts: Arc<Accounts>,
    watch: Watch,
    scope: Scope,
    inputs: Scope,
    outputs: Scope,
    // The paths of unix sockets; they are free for others before inputs drain.
    sockets: Scope,
    // To every file output.
    reopen: watch::Sender<u64>,
    ended: bool,
}

impl Relay {
    /// Binds every input, starts the workers, and returns once everything listens.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left bound.
    pub fn start(config: RelayConfig) -> Result<Self, StartError> {
        for output in &config.outputs {
            output.validate().map_err(|error| StartError::Output { output: output.name.clone(), error })?;
        }
        let (backend, reason) = backend::choose(config.backend).map_err(StartError::Backend)?;
        if let Some(reason) = reason {
            tell_epoll(&reason);
        }
        let workers = placement::worker_count(config.workers);
        let bound = bind_inputs(&config.inputs, workers)?;
        let reserve = descriptors::reserve(&config.inputs, &config.outputs, workers);
        let scope = Scope::root("relay");
        let (inputs, outputs) = (scope.child("inputs"), scope.child("outputs"));
        let mut own = OwnListeners::default();
        for (input, bound) in &bound {
            own.add(&config.inputs[*input].name, bound);
        }
        let mut assembly = Assembly::new(workers, own, inputs.clone(), outputs.clone());
        for input in config.inputs {
            assembly.add_input(input);
        }
        for output in &config.outputs {
            assembly.add_output(output);
        }
        let mut listeners = Vec::new();
        let mut paths = Vec::new();
        for (input, bound) in bound {
            let name = &assembly.accounts.inputs[input].name;
            listeners.push((name.clone(), bound.address.clone()));
            paths.extend(bound.path.map(|path| Watched::new(name, path)));
            assembly.add_listeners(input, bound.listeners, &bound.address);
        }
        let accounts = Arc::new(assembly.accounts);
        let mut relay = Self {
            backend,
            drain_timeout: config.drain_timeout,
            listeners,
            watch: Watch::start(Arc::clone(&accounts)).map_err(StartError::Worker)?,
            accounts,
            sockets: scope.child("sockets"),
            scope,
            inputs,
            outputs,
            reopen: assembly.reopen,
            ended: false,
        };
        // From here on a failure drops the relay, which ends the threads that have begun.
        sockets::start(paths, &relay.sockets).map_err(StartError::Worker)?;
        start_stand_ins(assembly.stages.iter().map(|(stage, _)| stage.stand_in()).collect())
            .map_err(StartError::Worker)?;
        start_stages(assembly.stages).map_err(StartError::Worker)?;
        for (lane, scope) in assembly.files {
            start_file(lane, &scope).map_err(StartError::Worker)?;
        }
        relay.start_workers(config.backend, reserve, assembly.workers, assembly.budgets)?;
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

    /// Asks every file output to end its file with STOP, in order, and to begin a new one: for tools that have renamed the file.
    /// Does not wait for it. A file without frames goes on, unless it was renamed.
    pub fn reopen_files(&self) {
        self.reopen.send_modify(|asked| *asked += 1);
    }

    /// Ends the relay: takes what has arrived, stops accepting, answers STOP with FINISH, writes what waits, ends every output
    /// with STOP and waits for its FINISH. Blocks for `drain_timeout` and a second at most, whatever hangs; what is left then
    /// is counted as dropped, reason `shutdown`. Returns the final ledger.
    pub fn drain(mut self) -> Ledger {
        self.end(self.drain_timeout);
        self.accounts.ledger()
    }

    fn start_workers(
        &mut self,
        choice: BackendChoice,
        reserve: usize,
        parts: Vec<WorkerParts>,
        budgets: Vec<Arc<Budget>>,
    ) -> Result<(), StartError> {
        let count = parts.len();
        let processors = placement::processors(count);
        let placement = Placement::new(count);
        let block_limit = Arc::new(BlockLimit::new(count, budgets));
        let (mailboxes, receivers): (Vec<_>, Vec<_>) = parts.iter().map(|_| unbounded_channel()).unzip();
        let (ready, readiness) = mpsc::channel();
        let (built, buildings) = mpsc::channel();
        let mut agreements = Vec::new();
        for ((index, parts), mailbox) in parts.into_iter().enumerate().zip(receivers) {
            let worker = Worker {
                index,
                cpu: processors.get(index).copied(),
                backend: self.backend,
                inputs: parts.inputs,
                listeners: parts.listeners,
                inlets: parts.inlets,
                block_limit: Arc::clone(&block_limit),
                lanes: parts.lanes,
                placement: placement.clone(),
                mailbox,
                reserve,
                mailboxes: mailboxes.clone(),
                scope: self.inputs.clone(),
            };
            let (agreement, agreed) = mpsc::channel();
            agreements.push(agreement);
            let beginning = Beginning { built: built.clone(), agreed, ready: ready.clone() };
            let run = move || worker.run(beginning);
            self.scope
                .spawn_thread(&format!("tapster-{index}"), "worker", run)
                .map_err(StartError::Worker)?;
        }
        drop((built, ready));
        // A worker that fails before sends nothing.
        let failed = |_| Err(io::Error::other("a worker thread failed at its start"));
        let mut built = (0..count).map(|_| buildings.recv().unwrap_or_else(failed));
        self.backend = agree(self.backend, choice, count, built.find_map(Result::err))?;
        for agreement in agreements {
            // A worker that is gone is noticed next.
            let _ = agreement.send(self.backend);
        }
        for _ in 0..count {
            readiness.recv().unwrap_or_else(failed).map_err(StartError::Worker)?;
        }
        Ok(())
    }

    /// Brings the end about: by the deadline, and then by force.
    fn end(&mut self, timeout: Duration) {
        self.ended = true;
        let now = Instant::now();
        let deadline = now + timeout;
        // The next process may listen from now on. What waits in the backlog is taken.
        self.sockets.drain();
        self.sockets.wait_for_end(now + SOCKETS_TIME);
        // Outputs that are away are tried again from now on. An input that waits for an output that blocks leaves the others
        // time for their own end.
        self.outputs.drain();
        let inputs_deadline = now + timeout.mul_f64(INPUTS_PART);
        self.inputs.drain();
        if !self.inputs.wait_for_end(inputs_deadline) {
            self.inputs.end();
        }
        for output in &self.accounts.outputs {
            output.close();
        }
        self.inputs.wait_for_end(deadline.min(Instant::now() + INPUTS_FORCE));
        if !self.scope.wait_for_end(now + timeout.mul_f64(LANES_PART)) {
            self.accounts.outputs.iter().for_each(OutputEntry::end_lanes);
        }
        self.scope.wait_for_end(deadline);
        self.scope.end();
        self.scope.wait_for_end(Instant::now() + FORCE);
        for output in &self.accounts.outputs {
            output.abandon();
        }
        self.watch.end();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Duration::ZERO);
        }
    }
}

/// The backend for all workers, where the first of those that could not build their runtime says this.
fn agree(
    backend: Backend,
    choice: BackendChoice,
    workers: usize,
    fault: Option<io::Error>,
) -> Result<Backend, StartError> {
    match (fault, backend, choice) {
        (None, _, _) => Ok(backend),
        (Some(error), Backend::Epoll, _) => Err(StartError::Worker(error)),
        // One ring could be built, and one for each worker could not.
        (Some(error), Backend::Uring, choice) => {
            let reason = format!("{}, for {workers} workers", backend::why_not(&error));
            if choice == BackendChoice::Uring {
                return Err(StartError::Backend(reason));
            }
            tell_epoll(&reason);
            Ok(Backend::Epoll)
        }
    }
}

fn tell_epoll(reason: &str) {
    warn!("{reason}: using epoll; `tapster doctor` tells how to allow it");
}

/// Runs a spool's stage on a thread of its own.
fn start_stage(stage: Stage<Folder>, scope: &Scope, opens: mpsc::Sender<()>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let stage_scope = scope.clone();
    let run = move || runtime.block_on(stage_loop::run(stage, stage_scope, opens));
    scope.spawn_thread("tapster-spool", "spool", run)
}

/// Starts the stages, and waits until their spools are open: the first frames find them so. A disk that hangs holds up the start
/// for a moment only.
fn start_stages(stages: Vec<(Stage<Folder>, Scope)>) -> io::Result<()> {
    let (opens, all_open) = mpsc::channel();
    for (stage, scope) in stages {
        start_stage(stage, &scope, opens.clone())?;
    }
    drop(opens);
    // It ends with an error in either way: nobody sends, or the time is over.
    let _ = all_open.recv_timeout(OPEN_PATIENCE);
    Ok(())
}

/// Runs the stand-ins of all stages on one thread, which ends soon after the last stage.
fn start_stand_ins(stand_ins: Vec<StandIn>) -> io::Result<()> {
    if stand_ins.is_empty() {
        return Ok(());
    }
    thread::Builder::new()
        .name("tapster-stand-in".to_owned())
        .spawn(move || stage_loop::run_stand_ins(stand_ins))
        .map(drop)
}

/// Runs a lane into files on a thread of its own.
fn start_file(lane: FileLane, scope: &Scope) -> io::Result<()> {
    // With I/O: an output may write into a FIFO.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let lane_scope = scope.clone();
    scope.spawn_thread("tapster-file", "file", move || runtime.block_on(lane.run(lane_scope)))
}

/// How long the start waits for spools to be open. A disk that takes longer counts as one that hangs.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// The part of a drain that inputs may take where an output blocks.
const INPUTS_PART: f64 = 0.75;
/// The part of a drain that lanes with a spool may take: what they leave then, the spool stores in the rest.
const LANES_PART: f64 = 0.8;
/// How long removing socket files may hold up the end.
const SOCKETS_TIME: Duration = Duration::from_millis(200);
/// How long inputs that were stopped have for their end.
const INPUTS_FORCE: Duration = Duration::from_millis(200);
/// How long tasks that were stopped have for their end, before the process leaves them behind.
const FORCE: Duration = Duration::from_millis(500);

/// Binds every listener, or none.
fn bind_inputs(inputs: &[InputConfig], workers: usize) -> Result<Vec<(usize, Bound)>, StartError> {
    let addresses = inputs.iter().enumerate().flat_map(|(index, input)| {
        input.listen.iter().enumerate().map(move |(number, address)| ((index, number), input, address))
    });
    // Names first: a lookup may hang, and a process that is ended meanwhile leaves no socket file behind.
    let (names, paths): (Vec<_>, Vec<_>) =
        addresses.partition(|(_, _, address)| matches!(address, Address::Tcp { .. }));
    let mut all = Vec::new();
    for (place, input, address) in names.into_iter().chain(paths) {
        if faults::hit("start hangs", &input.name) {
            thread::sleep(Duration::from_secs(60));
        }
        let mut others = inputs.iter().flat_map(|input| &input.listen);
        let beside_ipv4 = others.any(|other| other.is_ipv4_beside(address));
        let bound = listener::bind(address, workers, &input.socket_file, beside_ipv4).map_err(|source| {
            StartError::Listen { input: input.name.clone(), address: address.clone(), source }
        })?;
        all.extend(bound.into_iter().map(|bound| (place, bound)));
    }
    all.sort_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|((index, _), bound)| (index, bound)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Destination;
    use crate::output::GroupConfig;

    #[test]
    fn an_output_that_cannot_be_is_refused_before_anything_is_bound() {
        let listen = vec![Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 }];
        let group = GroupConfig::new(["tcp://127.0.0.1:9".parse().unwrap()]);
        let output = OutputConfig { to: Destination::Streams(group.into()), ..OutputConfig::default() };
        let config = RelayConfig {
            inputs: vec![InputConfig { listen, ..InputConfig::default() }],
            outputs: vec![output],
            ..RelayConfig::default()
        };
        assert_eq!(
            Relay::start(config).unwrap_err().to_string(),
            "output `output`: to: a group has two members or more: write to = \"tcp://127.0.0.1:9\""
        );
    }
}
