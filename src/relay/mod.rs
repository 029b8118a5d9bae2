//! The relay: inputs, outputs and workers put together, started, changed and drained.

mod account_watch;
mod accounts;
mod around;
mod binding;
mod certificates;
mod change;
mod config;
mod descriptors;
mod dials;
mod door;
mod error;
mod handover;
mod inherited;
mod input_entry;
mod inputs;
mod output_entry;
mod outputs;
mod placement;
mod reload;
mod removal;
mod serving;
mod sockets;
mod subscribers;
mod ticks;
mod view;
mod worker;
mod workers;

use std::io;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::sync::watch::Sender;

use crate::input::InputConfig;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::observability::Ledger;
use crate::output::Destination;
use crate::output::OutputConfig;
use crate::queue::block_limit::BlockLimit;
use crate::relay::account_watch::Watch;
use crate::relay::accounts::Accounts;
use crate::relay::around::Surroundings;
use crate::relay::binding::AllBound;
use crate::relay::binding::take_and_bind;
use crate::relay::certificates::CertificateOwner;
use crate::relay::certificates::Certificates;
pub use crate::relay::config::RelayConfig;
pub use crate::relay::error::ChangeError;
pub use crate::relay::error::StartError;
use crate::relay::handover::Adoption;
use crate::relay::handover::Estate;
pub use crate::relay::handover::HandoverError;
pub use crate::relay::handover::Predecessor;
pub use crate::relay::handover::Successor;
use crate::relay::handover::TakingOver;
#[doc(hidden)]
pub use crate::relay::handover::message_again;
use crate::relay::handover::store::Left;
use crate::relay::handover::store::Store;
pub use crate::relay::inherited::Inherited;
use crate::relay::inputs::RunningInput;
use crate::relay::inputs::RunningListener;
use crate::relay::outputs::RunningOutput;
pub use crate::relay::reload::Plan;
pub use crate::relay::reload::Planner;
use crate::relay::sockets::SocketPaths;
pub use crate::relay::ticks::Ticks;
pub use crate::relay::view::View;
use crate::relay::workers::Workers;
use crate::relay::workers::tell_epoll;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::BackendChoice;
use crate::transport::backend;
use crate::transport::descriptors::Reserve;
use crate::transport::passed::PassedListeners;

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
    asked_workers: usize,
    asked_backend: BackendChoice,
    asked_store: usize,
    listeners: Vec<(String, Address)>,
    output_listeners: Vec<(String, Address)>,
    inputs: Vec<RunningInput>,
    outputs: Vec<RunningOutput>,
    inputs_begun: u64,
    workers: Arc<Workers>,
    accounts: Arc<Accounts>,
    around: Surroundings,
    // How many processes there were in the chain, and when the first began, in milliseconds of the Unix time.
    generation: u64,
    started_at: u64,
    // Takes over from another process.
    taking_over: Option<JoinHandle<()>>,
    block_limit: Arc<BlockLimit>,
    reserve: Reserve,
    // From the service manager, whether they are listened on or not.
    passed: Arc<PassedListeners>,
    // Where listeners and connections outlive the process.
    store: Option<Store>,
    // The paths of unix sockets; they are free for others before inputs drain.
    sockets: SocketPaths,
    scopes: Scopes,
    _watch: Watch,
    ended: bool,
}

/// The scopes of a relay, from its root on.
#[derive(Debug)]
struct Scopes {
    relay: Scope,
    inputs: Scope,
    outputs: Scope,
    sockets: Scope,
}

impl Relay {
    /// Binds every input, starts the workers, and returns once everything listens.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left bound.
    pub fn start(config: RelayConfig) -> Result<Self, StartError> {
        Self::start_with(config, Inherited::default())
    }

    /// As [`Relay::start`], with what the service manager passes: `systemd:NAME` listens there.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left bound.
    pub fn start_with(config: RelayConfig, inherited: Inherited) -> Result<Self, StartError> {
        Self::begin_with(config, inherited, None)
    }

    /// Starts in place of another process, and takes over its listeners, its connections, its ledger, and its outputs one after the
    /// other. Returns once it listens; the rest goes on beside.
    ///
    /// # Errors
    /// [`StartError`]. The other process has been told, and goes on.
    pub fn take_over(config: RelayConfig, predecessor: Predecessor) -> Result<Self, StartError> {
        Self::begin_with(config, Inherited::default(), Some(predecessor))
    }

    fn begin_with(
        config: RelayConfig,
        inherited: Inherited,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, StartError> {
        for output in &config.outputs {
            output.validate().map_err(|error| StartError::Output { output: output.name.clone(), error })?;
        }
        let certificates = Arc::<Certificates>::default();
        let _read = read_certificates(&config, &certificates)?;
        let (backend, reason) = backend::choose(config.backend).map_err(StartError::Backend)?;
        if let Some(reason) = reason {
            tell_epoll(&reason);
        }
        let count = placement::worker_count(config.workers);
        let relay = Scope::root("relay");
        let scopes = Scopes {
            inputs: relay.child("inputs"),
            outputs: relay.child("outputs"),
            sockets: relay.child("sockets"),
            relay,
        };
        let accounts = Arc::<Accounts>::default();
        let watch = Watch::start(Arc::clone(&accounts)).map_err(StartError::Worker)?;
        let (block_limit, reserve) = (Arc::new(BlockLimit::new(count)), Reserve::default());
        let loops = Loops::new();
        let first_input = config.inputs.first().map_or("", |input| &input.name);
        // From here on a failure ends the threads that have begun.
        let workers = Workers::start(
            count,
            (backend, config.backend),
            (&block_limit, &loops),
            &reserve,
            (&scopes.relay, &scopes.inputs),
            first_input,
        );
        let workers = workers.inspect_err(|error| {
            scopes.relay.end();
            predecessor.iter().for_each(|predecessor| predecessor.refuse(false, &error.to_string()));
        })?;
        let estate = match predecessor {
            Some(predecessor) => predecessor.take().map_err(StartError::TakeOver),
            None => Ok(Estate::left(Left::new(inherited.left), inherited.listeners)),
        };
        let mut estate = estate.inspect_err(|_| scopes.relay.end())?;
        let passed = std::mem::take(&mut estate.passed);
        let bound = take_and_bind(&config, &mut estate, &passed, count);
        let bound = bound.inspect_err(|error| estate.refuse(true, &error.to_string()));
        let bound = bound.inspect_err(|_| scopes.relay.end())?;
        let around = Surroundings {
            workers: count,
            scope: scopes.outputs.clone(),
            drain_timeout: config.drain_timeout,
            reopen: Sender::new(0),
            own: Arc::default(),
            loops,
            certificates,
        };
        let mut relay = Self {
            asked_workers: config.workers,
            asked_backend: config.backend,
            asked_store: config.descriptor_store,
            listeners: Vec::new(),
            output_listeners: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            inputs_begun: 0,
            workers: Arc::new(workers),
            _watch: watch,
            accounts,
            around,
            block_limit,
            reserve,
            passed: Arc::new(passed),
            store: Store::of_environment(config.descriptor_store),
            sockets: SocketPaths::new(scopes.sockets.clone()),
            generation: estate.generation + 1,
            started_at: if estate.generation == 0 { unix_millis() } else { estate.started_at },
            taking_over: None,
            scopes,
            ended: false,
        };
        relay.begin(config, bound, estate).map_err(StartError::Worker)?;
        Ok(relay)
    }

    fn begin(
        &mut self,
        config: RelayConfig,
        AllBound { inputs: bound, outputs: doors }: AllBound,
        estate: Estate,
    ) -> io::Result<()> {
        for input in config.inputs {
            self.begin_input(input)?;
        }
        // No output may lead to a listener of ours, and the first frame finds every output.
        for (input, listener) in &bound {
            self.around.own.add(input, listener.bound());
        }
        let Estate { predecessor, ledger, connections, is_left, .. } = estate;
        self.accounts.set_former(ledger);
        let Some(predecessor) = predecessor else {
            self.begin_outputs(config.outputs)?;
            self.begin_output_listeners(doors)?;
            self.begin_listeners(bound)?;
            self.sockets.own();
            self.keep_listeners();
            self.go_on_with(connections, is_left);
            return Ok(());
        };
        let held = self.hold_outputs(config.outputs)?;
        self.begin_output_listeners(doors)?;
        self.begin_listeners(bound)?;
        let (adoption, accounts) = (self.adoption(), Arc::clone(&self.accounts));
        predecessor.say_accepting()?;
        self.sockets.own();
        let taking_over = TakingOver { predecessor, accounts, adoption, held };
        let run =
            thread::Builder::new().name("tapster-take-over".to_owned()).spawn(move || taking_over.run())?;
        self.taking_over = Some(run);
        Ok(())
    }

    /// What takes over connections of another process, and dials then.
    fn adoption(&mut self) -> Adoption {
        let own = &self.around.own;
        let dials = self.inputs.iter_mut().flat_map(|input| {
            let name = input.config.name.clone();
            let new = input.take_new_dials(own).into_iter();
            new.map(move |dial| ((name.clone(), dial.to().to_string()), dial))
        });
        let dials = dials.collect();
        let inputs = self.inputs.iter().filter_map(|input| {
            Some((input.config.name.clone(), (input.id, input.listeners.first()?.way())))
        });
        Adoption { workers: Arc::clone(&self.workers), inputs: inputs.collect(), dials }
    }

    /// How many processes there were in the chain of upgrades, this one included.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the workers run on.
    pub fn backend(&self) -> Backend {
        self.workers.backend
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.count()
    }

    /// When each worker ticked last: what a watchdog asks. It can be read from any thread.
    pub fn ticks(&self) -> Ticks {
        self.workers.ticks.clone()
    }

    /// Name of the input and the address bound (port 0 replaced by the kernel's choice), in order of configuration.
    pub fn listeners(&self) -> &[(String, Address)] {
        &self.listeners
    }

    /// The same for outputs: where subscribers connect.
    pub fn output_listeners(&self) -> &[(String, Address)] {
        &self.output_listeners
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> Ledger {
        self.accounts.ledger()
    }

    /// A view of the relay for other threads.
    pub fn view(&self) -> View {
        View::new(Arc::clone(&self.accounts), self.ticks(), self.generation)
    }

    /// Asks every file output to end its file with STOP, in order, and to begin a new one: for tools that have renamed the file.
    /// Does not wait for it. A file without frames goes on, unless it was renamed.
    pub fn reopen_files(&self) {
        self.around.reopen.send_modify(|asked| *asked += 1);
    }

    /// Ends the relay: takes what has arrived, stops accepting, answers STOP with FINISH, writes what waits, ends every output
    /// with STOP and waits for its FINISH. Blocks for `drain_timeout` and a second at most, whatever hangs; what is left then
    /// is counted as dropped, reason `shutdown`. Returns the final ledger.
    pub fn drain(mut self) -> Ledger {
        let (began, timeout) = (Instant::now(), self.around.drain_timeout);
        let leaving = self.leave_connections();
        self.end(timeout.saturating_sub(began.elapsed()));
        let ledger = self.accounts.ledger();
        if let Some(leaving) = leaving {
            leaving.finish(&ledger, self.generation, self.started_at);
        }
        ledger
    }

    /// Waits until another process has handed over everything, for `timeout` at most.
    /// Whether another process still hands over to this one: it drains its outputs, which begin here one after the other.
    pub fn is_taking_over(&self) -> bool {
        self.taking_over.as_ref().is_some_and(|taking_over| !taking_over.is_finished())
    }

    /// Returns whether everything was taken over within this time, or there was nothing.
    fn wait_until_taken_over(&mut self, timeout: Duration) -> bool {
        let Some(taking_over) = &self.taking_over else { return true };
        let by = Instant::now() + timeout;
        while !taking_over.is_finished() && Instant::now() < by {
            thread::sleep(TAKE_OVER_LOOK);
        }
        taking_over.is_finished()
    }

    /// Brings the end about: by the deadline, and then by force.
    fn end(&mut self, timeout: Duration) {
        self.ended = true;
        // What another process is handing over is taken first.
        self.wait_until_taken_over(timeout);
        let now = Instant::now();
        let deadline = now + timeout;
        let Scopes { relay, inputs, outputs, sockets } = &self.scopes;
        // The next process may listen from now on. What waits in the backlog is taken.
        sockets.drain();
        sockets.wait_for_end(now + SOCKETS_TIME);
        // Outputs that are away are tried again from now on. An input that waits for an output that blocks leaves the others
        // time for their own end.
        outputs.drain();
        self.outputs
            .iter_mut()
            .flat_map(|output| &mut output.listeners)
            .for_each(RunningListener::close_spare);
        let inputs_deadline = now + timeout.mul_f64(INPUTS_PART);
        self.inputs.iter_mut().flat_map(|input| &mut input.listeners).for_each(RunningListener::close_spare);
        inputs.drain();
        if !inputs.wait_for_end(inputs_deadline) {
            inputs.end();
        }
        // Those that are being removed, too.
        let entries = self.accounts.outputs();
        entries.iter().for_each(|output| output.close());
        inputs.wait_for_end(deadline.min(Instant::now() + INPUTS_FORCE));
        if !relay.wait_for_end(now + timeout.mul_f64(LANES_PART)) {
            entries.iter().for_each(|output| output.end_lanes());
        }
        relay.wait_for_end(deadline);
        relay.end();
        relay.wait_for_end(Instant::now() + FORCE);
        self.accounts.outputs().iter().for_each(|output| output.abandon());
        self.inputs.iter().flat_map(RunningInput::ways).for_each(|way| way.log.end());
        let of_outputs = self.outputs.iter().flat_map(|output| &output.listeners);
        of_outputs.for_each(|listener| listener.log.end());
        self.accounts.tell_end();
    }
}

/// Reads every certificate. What is returned keeps them until inputs and outputs have them.
fn read_certificates(
    config: &RelayConfig,
    certificates: &Certificates,
) -> Result<impl Sized + use<>, StartError> {
    let of_input = |input: &InputConfig| {
        certificates.of_input(input).map_err(|faults| StartError::Tls {
            owner: CertificateOwner::Input(input.name.clone()).to_string(),
            faults,
        })
    };
    let of_output = |output: &OutputConfig| match &output.to {
        Destination::File(_) | Destination::Subscribers(_) => Ok(None),
        Destination::Streams(streams) => certificates.of_output(&output.name, streams).map_err(|faults| {
            StartError::Tls { owner: CertificateOwner::Output(output.name.clone()).to_string(), faults }
        }),
    };
    let inputs = config.inputs.iter().map(of_input).collect::<Result<Vec<_>, _>>()?;
    let outputs = config.outputs.iter().map(of_output).collect::<Result<Vec<_>, _>>()?;
    Ok((inputs, outputs))
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Duration::ZERO);
        }
    }
}

/// The part of a drain that inputs may take where an output blocks.
pub(crate) const INPUTS_PART: f64 = 0.75;
/// The part of a drain that lanes with a spool may take: what they leave then, the spool stores in the rest.
pub(crate) const LANES_PART: f64 = 0.8;
/// How often it is looked whether another process has handed over everything.
const TAKE_OVER_LOOK: Duration = Duration::from_millis(5);
/// How long removing socket files may hold up the end.
const SOCKETS_TIME: Duration = Duration::from_millis(200);
/// How long inputs that were stopped have for their end.
const INPUTS_FORCE: Duration = Duration::from_millis(200);
/// How long tasks that were stopped have for their end, before the process leaves them behind.
pub(crate) const FORCE: Duration = Duration::from_millis(500);

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
