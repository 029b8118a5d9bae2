//! A relay in this process, configured so that a test reads like its scenario.

use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::input::Access;
use tapster::input::ContentTypes;
use tapster::input::InputConfig;
use tapster::input::Oversize;
use tapster::observability::InputLedger;
use tapster::observability::Ledger;
use tapster::observability::OutputLedger;
use tapster::output::Ack;
use tapster::output::Balance;
use tapster::output::Buffer;
use tapster::output::Checkpoint;
use tapster::output::Delivery;
use tapster::output::Destination;
use tapster::output::Endpoints;
use tapster::output::FileConfig;
use tapster::output::GroupConfig;
use tapster::output::Keep;
use tapster::output::Lanes;
use tapster::output::Mode;
use tapster::output::Order;
use tapster::output::OutputConfig;
use tapster::output::Reconnect;
use tapster::output::StreamsConfig;
use tapster::output::SubscribersConfig;
use tapster::protocol::ContentType;
use tapster::queue::WhenFull;
use tapster::relay::Predecessor;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tapster::relay::Successor;
use tapster::spool::SpoolConfig;
use tapster::spool::SpoolSettings;
use tapster::transport::Address;
use tapster::transport::Backend;
use tapster::transport::BackendChoice;
use tapster::transport::ProxyVersion;
use tapster::transport::tls::ClientTls;
use tapster::transport::tls::ServerTls;

use super::collector::Collected;
use super::collector::CollectingReader;
use super::peer::Peer;
use super::peer::PeerListener;
use super::stream::Transport;
use super::wait::eventually;

/// No drain with readers that read comes near it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A relay to be, with two workers, so that batches may have to change threads.
pub(crate) fn relay(backend: Backend) -> RelayBuilder {
    let choice = match backend {
        Backend::Uring => BackendChoice::Uring,
        Backend::Epoll => BackendChoice::Epoll,
    };
    RelayBuilder {
        backend,
        prefix: String::new(),
        config: RelayConfig {
            workers: 2,
            backend: choice,
            drain_timeout: DRAIN_TIMEOUT,
            descriptor_store: 0,
            inputs: Vec::new(),
            outputs: Vec::new(),
        },
    }
}

#[derive(Debug)]
pub(crate) struct RelayBuilder {
    backend: Backend,
    prefix: String,
    config: RelayConfig,
}

impl RelayBuilder {
    /// The names of the inputs and outputs that are added from now on begin like this: faults go by these names.
    pub(crate) fn named(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    pub(crate) fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.config.drain_timeout = timeout;
        self
    }

    pub(crate) fn input(mut self, input: InputBuilder) -> Self {
        let mut config = input.0;
        config.name = format!("{}input{}", self.prefix, self.config.inputs.len());
        self.config.inputs.push(config);
        self
    }

    pub(crate) fn output(mut self, output: OutputBuilder) -> Self {
        let mut config = output.0;
        config.name = format!("{}output{}", self.prefix, self.config.outputs.len());
        self.config.outputs.push(config);
        self
    }

    /// Starts it, with an input on a free TCP port if none was named.
    #[track_caller]
    pub(crate) fn start(mut self) -> TestRelay {
        if self.config.inputs.is_empty() {
            self = self.input(tcp());
        }
        let relay =
            Relay::start(self.config).unwrap_or_else(|error| panic!("the relay does not start: {error}"));
        assert_eq!(relay.backend(), self.backend);
        TestRelay { relay }
    }

    pub(crate) fn config(self) -> RelayConfig {
        self.config
    }
}

/// A running relay.
#[derive(Debug)]
pub(crate) struct TestRelay {
    relay: Relay,
}

impl TestRelay {
    /// The address of the first listener.
    pub(crate) fn address(&self) -> Address {
        self.relay.listeners()[0].1.clone()
    }

    pub(crate) fn listeners(&self) -> &[(String, Address)] {
        self.relay.listeners()
    }

    /// A writer in the data phase.
    #[track_caller]
    pub(crate) fn writer(&self) -> Peer {
        Peer::writer(&self.address())
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.relay.ledger()
    }

    pub(crate) fn reopen_files(&self) {
        self.relay.reopen_files();
    }

    pub(crate) fn output_listeners(&self) -> &[(String, Address)] {
        self.relay.output_listeners()
    }

    /// Where subscribers connect, at the first address of the outputs.
    pub(crate) fn subscribe_at(&self) -> Address {
        self.relay.output_listeners()[0].1.clone()
    }

    /// A subscriber in the data phase.
    #[track_caller]
    pub(crate) fn subscriber(&self) -> Peer {
        let mut peer = Peer::connect(&self.subscribe_at());
        peer.open_as_reader();
        peer
    }

    /// Adds an input of this name, and returns where it listens.
    #[track_caller]
    pub(crate) fn add_input(&mut self, name: &str, input: InputBuilder) -> Address {
        let config = InputConfig { name: name.to_owned(), ..input.0 };
        self.relay.add_input(config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (_, address) =
            self.relay.listeners().iter().find(|(input, _)| input == name).expect("it listens");
        address.clone()
    }

    /// Adds an input of this name that need not listen.
    #[track_caller]
    pub(crate) fn add_input_that_dials(&mut self, name: &str, input: InputBuilder) {
        self.relay.add_input(input.config(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    #[track_caller]
    pub(crate) fn remove_input(&mut self, name: &str) {
        self.relay.remove_input(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    #[track_caller]
    pub(crate) fn add_output(&mut self, name: &str, output: OutputBuilder) {
        let config = OutputConfig { name: name.to_owned(), ..output.0 };
        self.relay.add_output(config).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    #[track_caller]
    pub(crate) fn remove_output(&mut self, name: &str) {
        self.relay.remove_output(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Another relay takes over from this one, which serves no more.
    #[track_caller]
    pub(crate) fn upgrade(mut self, config: RelayConfig) -> Self {
        let (successor, inherited) = Successor::new().expect("a socket");
        let new = thread::spawn(move || Relay::take_over(config, Predecessor::inherited(inherited).unwrap()));
        let handed_over = self.relay.hand_over(&successor);
        let relay = new.join().unwrap().unwrap_or_else(|error| panic!("the new relay: {error}"));
        handed_over.unwrap_or_else(|error| panic!("the hand-over: {error}"));
        self.relay.let_go(&successor).unwrap_or_else(|error| panic!("the end of the old relay: {error}"));
        Self { relay }
    }

    /// The relay itself.
    pub(crate) fn inner(&mut self) -> &mut Relay {
        &mut self.relay
    }

    /// The configuration that it runs with.
    pub(crate) fn config(&self) -> RelayConfig {
        self.relay.config()
    }

    /// Goes on with another configuration, or tells all that keeps it from being taken.
    pub(crate) fn try_reload(&mut self, config: RelayConfig) -> Result<bool, Vec<String>> {
        self.relay.reload(config).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut RelayConfig)) {
        let mut config = self.config();
        change(&mut config);
        assert_eq!(self.try_reload(config), Ok(true), "something has changed");
    }

    /// The output of this name in the ledger.
    #[track_caller]
    pub(crate) fn output_named(&self, name: &str) -> OutputLedger {
        let mut outputs = self.ledger().outputs;
        let place = outputs.iter().position(|output| output.name == name);
        outputs.swap_remove(place.unwrap_or_else(|| panic!("no output {name}: {outputs:?}")))
    }

    /// The input of this name in the ledger.
    #[track_caller]
    pub(crate) fn input_named(&self, name: &str) -> InputLedger {
        let input = self.ledger().inputs.into_iter().find(|input| input.name == name);
        input.unwrap_or_else(|| panic!("no input {name}"))
    }

    pub(crate) fn input(&self) -> InputLedger {
        self.ledger().inputs.swap_remove(0)
    }

    pub(crate) fn output(&self, index: usize) -> OutputLedger {
        self.ledger().outputs.swap_remove(index)
    }

    /// Waits until the first input has taken so many frames.
    #[track_caller]
    pub(crate) fn wait_for_frames(&self, frames: u64) {
        eventually(&format!("{frames} frames taken"), || self.input().frames >= frames);
    }

    /// Waits until no connection of an input is open.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        eventually("every connection ended", || {
            self.ledger().inputs.iter().all(|input| input.connections_open == 0)
        });
    }

    /// Waits until every output has written all it has.
    #[track_caller]
    pub(crate) fn wait_until_written(&self) {
        eventually("everything written", || {
            self.ledger().outputs.iter().all(|output| output.frames_queued + output.frames_spooled == 0)
        });
    }

    /// Waits until this output has written all it has.
    #[track_caller]
    pub(crate) fn wait_until_written_to(&self, output: usize) {
        eventually("everything written", || self.output(output).frames_queued == 0);
    }

    /// Drains, and fails unless the ledger accounts for every frame with nothing left waiting.
    #[track_caller]
    pub(crate) fn drain(self) -> Ledger {
        let ledger = self.drain_to_disk();
        for output in &ledger.outputs {
            assert_eq!(output.frames_spooled, 0, "nothing waits: {output:?}");
        }
        ledger
    }

    /// Drains, and fails unless the ledger accounts for every frame with nothing left waiting but on disk.
    #[track_caller]
    pub(crate) fn drain_to_disk(self) -> Ledger {
        let began = Instant::now();
        let ledger = self.relay.drain();
        // A test that expects less of its outputs sets a shorter limit.
        let took = began.elapsed();
        assert!(took < DRAIN_TIMEOUT * 3 / 4, "the drain ran into its limit, {took:?}: {ledger:?}");
        for input in &ledger.inputs {
            assert_eq!(input.connections_open, 0, "{input:?}");
            let ended: u64 = input.sessions_ended.values().sum();
            assert_eq!(ended, input.connections, "every connection ended in some way: {input:?}");
        }
        for output in &ledger.outputs {
            assert!(output.balances(), "{output:?}");
            let kept = output.frames_acknowledged + output.frames_unacknowledged;
            assert!(kept == 0 || kept == output.frames_sent, "sent, and neither: {output:?}");
            assert_eq!(output.frames_queued, 0, "nothing waits in memory: {output:?}");
        }
        ledger
    }

    /// Drains, ends the collector of the first output, and fails unless it has what the ledger says was sent.
    #[track_caller]
    pub(crate) fn drain_into(self, reader: CollectingReader) -> (Ledger, Collected) {
        let ledger = self.drain();
        let collected = reader.close();
        assert_sent(&ledger.outputs[0], &collected);
        (ledger, collected)
    }
}

/// Fails unless the collector counted what the ledger says was sent, and every session ended with STOP.
#[track_caller]
pub(crate) fn assert_sent(output: &OutputLedger, collected: &Collected) {
    assert_eq!(output.frames_sent, collected.frames(), "{output:?}");
    assert_eq!(output.bytes_sent, collected.bytes(), "{output:?}");
    assert_eq!(output.connections, collected.sessions.len() as u64, "{output:?}");
    let stopped = collected.sessions.iter().filter(|session| session.stopped).count();
    assert_eq!(output.sessions_finished, stopped as u64, "{output:?}");
}

/// Frames lost, whatever the reason.
pub(crate) fn dropped(output: &OutputLedger) -> u64 {
    output.frames_dropped.values().sum()
}

/// Frames lost for this reason.
pub(crate) fn dropped_for(output: &OutputLedger, reason: &str) -> u64 {
    output.frames_dropped.get(reason).copied().unwrap_or_default()
}

/// Sessions of an input that ended in this way.
pub(crate) fn ended(input: &InputLedger, how: &str) -> u64 {
    input.sessions_ended.get(how).copied().unwrap_or_default()
}

/// Connections of an input that were refused for this reason.
pub(crate) fn rejected(input: &InputLedger, reason: &str) -> u64 {
    input.connections_rejected.get(reason).copied().unwrap_or_default()
}

/// An input on a free TCP port of the IPv4 loopback.
pub(crate) fn tcp() -> InputBuilder {
    listening(Transport::Tcp, Path::new("unused"))
}

/// An input on a fresh address.
pub(crate) fn listening(transport: Transport, folder: &Path) -> InputBuilder {
    listening_on(vec![transport.fresh_address(folder)])
}

pub(crate) fn listening_on(listen: Vec<Address>) -> InputBuilder {
    InputBuilder(InputConfig { listen, ..InputConfig::default() })
}

/// An input that listens nowhere and dials these addresses, again after some milliseconds.
pub(crate) fn dialling(dial: &[Address]) -> InputBuilder {
    let reconnect = Reconnect { min: Duration::from_millis(5), max: Duration::from_millis(50) };
    InputBuilder(InputConfig { listen: Vec::new(), dial: dial.to_vec(), reconnect, ..InputConfig::default() })
}

#[derive(Clone, Debug)]
pub(crate) struct InputBuilder(InputConfig);

impl InputBuilder {
    pub(crate) fn config(self, name: &str) -> InputConfig {
        InputConfig { name: name.to_owned(), ..self.0 }
    }
}

impl InputBuilder {
    pub(crate) fn content_types(mut self, types: &[&[u8]]) -> Self {
        self.0.content_types = ContentTypes::Only(types.iter().map(|bytes| content_type(bytes)).collect());
        self
    }

    pub(crate) fn any_content_type(mut self) -> Self {
        self.0.content_types = ContentTypes::Any;
        self
    }

    pub(crate) fn bidirectional_only(mut self) -> Self {
        self.0.unidirectional = false;
        self
    }

    /// Dials these addresses, too.
    pub(crate) fn and_dialling(mut self, dial: &[Address]) -> Self {
        self.0.dial = dial.to_vec();
        self
    }

    pub(crate) fn frame_len_max(mut self, len: u32) -> Self {
        self.0.frame_len_max = len;
        self
    }

    pub(crate) fn skip_oversize(mut self) -> Self {
        self.0.oversize = Oversize::Skip;
        self
    }

    pub(crate) fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.0.handshake_timeout = timeout;
        self
    }

    pub(crate) fn connections_max(mut self, connections: usize) -> Self {
        self.0.connections_max = connections;
        self
    }

    pub(crate) fn access(mut self, change: impl FnOnce(&mut Access)) -> Self {
        change(&mut self.0.access);
        self
    }

    pub(crate) fn tls(mut self, tls: ServerTls) -> Self {
        self.0.tls = Some(tls);
        self
    }

    pub(crate) fn tls_handshakes_max(mut self, max: usize) -> Self {
        self.0.tls_handshakes_max = max;
        self
    }

    pub(crate) fn max_connection_age(mut self, age: Duration) -> Self {
        self.0.max_connection_age = Some(age);
        self
    }

    pub(crate) fn socket_mode(mut self, mode: u32) -> Self {
        self.0.socket_file.mode = Some(mode);
        self
    }
}

/// An output to a collector.
pub(crate) fn to(reader: &CollectingReader) -> OutputBuilder {
    to_address(reader.address()).content_type(reader.content_type())
}

/// An output to a reader that is played by hand.
pub(crate) fn to_peer(listener: &PeerListener) -> OutputBuilder {
    to_address(listener.address())
}

/// A group.
pub(crate) fn to_group(members: impl IntoIterator<Item = Address>, balance: Balance) -> OutputBuilder {
    let group = GroupConfig { balance, ..GroupConfig::new(members) };
    to_destination(Destination::Streams(StreamsConfig { reconnect: SOON, ..group.into() }))
}

/// An output to a file.
pub(crate) fn to_file(pattern: impl AsRef<Path>) -> OutputBuilder {
    let pattern = pattern.as_ref().to_str().expect("UTF-8");
    to_destination(Destination::File(FileConfig { reconnect: SOON, ..FileConfig::new(pattern) }))
}

/// An output to one reader.
pub(crate) fn to_address(to: Address) -> OutputBuilder {
    to_destination(Destination::Streams(StreamsConfig { reconnect: SOON, ..to.into() }))
}

/// An output that subscribers connect to, at a fresh address.
pub(crate) fn for_subscribers(transport: Transport, folder: &Path) -> OutputBuilder {
    for_subscribers_at(vec![transport.fresh_address(folder)])
}

pub(crate) fn for_subscribers_at(listen: Vec<Address>) -> OutputBuilder {
    to_destination(Destination::Subscribers(SubscribersConfig::new(listen)))
}

fn to_destination(to: Destination) -> OutputBuilder {
    OutputBuilder(OutputConfig { to, ..OutputConfig::default() })
}

/// So that no test waits long.
const SOON: Reconnect = Reconnect { min: Duration::from_millis(10), max: Duration::from_millis(200) };

#[derive(Clone, Debug)]
pub(crate) struct OutputBuilder(OutputConfig);

impl OutputBuilder {
    pub(crate) fn config(self, name: &str) -> OutputConfig {
        OutputConfig { name: name.to_owned(), ..self.0 }
    }
}

impl OutputBuilder {
    pub(crate) fn when_full(mut self, policy: WhenFull) -> Self {
        match &mut self.0.buffer {
            Buffer::Memory { when_full, .. } => *when_full = policy,
            other => panic!("{other:?} has no `when_full`"),
        }
        self
    }

    /// Room of the queue in bytes.
    pub(crate) fn queue(mut self, bytes: usize) -> Self {
        match &mut self.0.buffer {
            Buffer::Memory { max, .. } => *max = bytes,
            Buffer::Spill { memory, .. } | Buffer::Disk { memory, .. } => *memory = bytes,
        }
        self
    }

    /// What memory has no room for goes to disk.
    pub(crate) fn spills_to(mut self, folder: &Path) -> Self {
        self.0.buffer = Buffer::Spill { memory: self.0.buffer.memory(), spool: spool(folder) };
        self
    }

    /// Everything goes to disk.
    pub(crate) fn on_disk(mut self, folder: &Path) -> Self {
        self.0.buffer = Buffer::Disk { memory: self.0.buffer.memory(), spool: spool(folder) };
        self
    }

    pub(crate) fn spool_config(mut self, change: impl FnOnce(&mut SpoolConfig)) -> Self {
        match &mut self.0.buffer {
            Buffer::Spill { spool, .. } | Buffer::Disk { spool, .. } => change(&mut spool.config),
            Buffer::Memory { .. } => panic!("an output without a spool"),
        }
        self
    }

    pub(crate) fn one_connection_per_worker(mut self) -> Self {
        match &mut self.0.buffer {
            Buffer::Memory { lanes, .. } => *lanes = Lanes::PerWorker,
            other => panic!("{other:?} has one connection"),
        }
        self
    }

    fn streams(&mut self) -> &mut StreamsConfig {
        match &mut self.0.to {
            Destination::Streams(streams) => streams,
            other => panic!("{other} does not connect"),
        }
    }

    pub(crate) fn subscribers(mut self, change: impl FnOnce(&mut SubscribersConfig)) -> Self {
        match &mut self.0.to {
            Destination::Subscribers(subscribers) => change(subscribers),
            other => panic!("{other} does not listen"),
        }
        self
    }

    pub(crate) fn unidirectional(mut self) -> Self {
        let mode = &mut self.streams().mode;
        let Mode::Bidirectional { finish_timeout, delivery: Delivery::Acked(ack) } = *mode else {
            panic!("{mode:?} needs FINISH");
        };
        *mode = Mode::Unidirectional { finish_timeout, ack };
        self
    }

    pub(crate) fn content_type(mut self, bytes: &[u8]) -> Self {
        self.0.content_type = content_type(bytes);
        self
    }

    pub(crate) fn frame_len_max(mut self, len: u32) -> Self {
        self.0.frame_len_max = len;
        self
    }

    pub(crate) fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.streams().handshake_timeout = timeout;
        self
    }

    pub(crate) fn send_proxy(mut self, version: ProxyVersion) -> Self {
        self.streams().send_proxy = Some(version);
        self
    }

    pub(crate) fn user_timeout(mut self, timeout: Duration) -> Self {
        self.streams().user_timeout = timeout;
        self
    }

    pub(crate) fn finish_timeout(mut self, timeout: Duration) -> Self {
        match &mut self.streams().mode {
            Mode::Bidirectional { finish_timeout, .. } | Mode::Unidirectional { finish_timeout, .. } => {
                *finish_timeout = timeout;
            }
        }
        self
    }

    fn ack(mut self, new: Ack) -> Self {
        match &mut self.streams().mode {
            Mode::Bidirectional { delivery: Delivery::Acked(ack), .. } | Mode::Unidirectional { ack, .. } => {
                *ack = new;
            }
            other => panic!("{other:?} has its frames acknowledged by FINISH"),
        }
        self
    }

    pub(crate) fn ack_received(self) -> Self {
        self.ack(Ack::Received { margin: 0 })
    }

    pub(crate) fn replay_margin(self, bytes: usize) -> Self {
        self.ack(Ack::Received { margin: bytes })
    }

    pub(crate) fn checkpoint(mut self, checkpoint: Checkpoint) -> Self {
        match &mut self.streams().mode {
            Mode::Bidirectional { delivery, .. } => {
                *delivery = Delivery::Finish { every: checkpoint, order: Order::PerConnection };
            }
            other => panic!("{other:?} has no FINISH"),
        }
        self
    }

    fn group(&mut self) -> &mut GroupConfig {
        match &mut self.streams().endpoints {
            Endpoints::Group(group) => group,
            Endpoints::One(address) => panic!("{address} is no group"),
        }
    }

    pub(crate) fn weights(mut self, weights: &[u32]) -> Self {
        for (member, weight) in self.group().members.iter_mut().zip(weights) {
            member.weight = *weight;
        }
        self
    }

    pub(crate) fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.group().stall_timeout = timeout;
        self
    }

    pub(crate) fn slow_start(mut self, duration: Duration) -> Self {
        self.group().slow_start = duration;
        self
    }

    pub(crate) fn strict_order(mut self) -> Self {
        match &mut self.streams().mode {
            Mode::Bidirectional { delivery: Delivery::Finish { order, .. }, .. } => *order = Order::Strict,
            other => panic!("{other:?} has no checkpoints"),
        }
        self
    }

    pub(crate) fn reconnect(mut self, min: Duration, max: Duration) -> Self {
        match &mut self.0.to {
            Destination::File(file) => file.reconnect = Reconnect { min, max },
            Destination::Streams(streams) => streams.reconnect = Reconnect { min, max },
            Destination::Subscribers(_) => panic!("{} does not connect", self.0.to),
        }
        self
    }

    pub(crate) fn tls(mut self, tls: ClientTls) -> Self {
        self.streams().tls = tls;
        self
    }

    fn file(&mut self) -> &mut FileConfig {
        match &mut self.0.to {
            Destination::File(file) => file,
            other => panic!("{other} is no file"),
        }
    }

    pub(crate) fn rotate(mut self, size: Option<u64>, every: Option<Duration>) -> Self {
        let rotate = &mut self.file().rotate;
        (rotate.size, rotate.every) = (size, every);
        self
    }

    pub(crate) fn partial_suffix(mut self, suffix: &str) -> Self {
        self.file().rotate.partial_suffix = Some(suffix.to_owned());
        self
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.file().mode = mode;
        self
    }

    pub(crate) fn keep(mut self, keep: Keep) -> Self {
        self.file().keep = Some(keep);
        self
    }
}

fn spool(folder: &Path) -> SpoolSettings {
    SpoolSettings { folder: folder.to_owned(), config: SpoolConfig { min_free: 0, ..SpoolConfig::default() } }
}

/// A content type of any bytes.
fn content_type(bytes: &[u8]) -> ContentType {
    ContentType::try_from(bytes).expect("at most 256 bytes")
}
