//! The new process: it takes what the old one gives, and goes on alone where that has ended.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Resource;
use rustix::process::getrlimit;
use tracing::info;
use tracing::warn;

use crate::input::connection::Arrival;
use crate::input::handing::HandedConnection;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::observability::peer_name::PeerName;
use crate::relay::accounts::Accounts;
use crate::relay::dials::RunningDial;
use crate::relay::dials::WayIn;
use crate::relay::handover::ANSWER_TIME;
use crate::relay::handover::HandoverError;
use crate::relay::handover::hear;
use crate::relay::handover::message::HandedListener;
use crate::relay::handover::message::Message;
use crate::relay::handover::say;
use crate::relay::handover::store::Left;
use crate::relay::handover::store::Stored;
use crate::relay::handover::unexpected;
use crate::relay::input_entry::InputId;
use crate::relay::inputs::ListenAt;
use crate::relay::inputs::NewListener;
use crate::relay::outputs;
use crate::relay::outputs::OutputParts;
use crate::relay::serving::peer_name;
use crate::relay::workers::Workers;
use crate::transport::Address;
use crate::transport::dial::Site;
use crate::transport::passed::PassedListeners;
use crate::transport::passing::Passing;
use crate::transport::socket::Socket;

/// The process that this one is to take over from.
#[derive(Debug)]
pub struct Predecessor {
    passing: Passing,
}

/// What the old process gives at first, or has left.
#[derive(Default)]
pub(crate) struct Estate {
    /// The old process; `None`: it has ended.
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) generation: u64,
    pub(crate) started_at: u64,
    pub(crate) ledger: Ledger,
    listeners: Vec<(HandedListener, OwnedFd)>,
    /// What the service manager had passed to the first process.
    pub(crate) passed: PassedListeners,
    /// Connections that an old process has left which has ended.
    pub(crate) connections: Vec<Stored<HandedConnection>>,
    /// Whether it has left anything.
    pub(crate) is_left: bool,
}

impl Predecessor {
    /// The old process at the other end of a descriptor that was inherited.
    ///
    /// # Errors
    /// The descriptor is none of a [`Successor`](crate::relay::Successor).
    pub fn inherited(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { passing: Passing::inherited(fd)? })
    }

    /// The descriptors of the program that the old process has [lent](crate::relay::Successor::lend): the first thing that it does.
    ///
    /// # Errors
    /// The old process is gone, or has lent nothing.
    pub fn lent(&self) -> Result<Vec<(String, OwnedFd)>, HandoverError> {
        let heard = hear(&self.passing, ANSWER_TIME)?;
        match heard.message {
            Message::Lent { names } if names.len() == heard.descriptors.len() => {
                Ok(names.into_iter().zip(heard.descriptors).collect())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Tells the old process that this one does not take over, and why. `usage`: for a fault of the command line or of the
    /// configuration.
    pub fn refuse(&self, usage: bool, reason: &str) {
        // An old process that is gone need not know.
        let _ = say(&self.passing, &Message::Refused { usage, reason: reason.to_owned() });
    }

    /// Says that this process accepts connections.
    ///
    /// # Errors
    /// The old process is gone.
    pub(crate) fn say_accepting(&self) -> io::Result<()> {
        say(&self.passing, &Message::Accepting).map_err(io::Error::other)
    }

    /// Says that this process is ready, and takes the listeners and the counts.
    ///
    /// # Errors
    /// The old process is gone, or speaks otherwise; this process may open too few files for what the other has.
    pub(crate) fn take(self) -> Result<Estate, HandoverError> {
        say(&self.passing, &Message::Hello)?;
        let heard = hear(&self.passing, ANSWER_TIME)?;
        let Message::Offer { connections, listeners, generation, started_at, ledger } = heard.message else {
            return Err(unexpected(&heard.message));
        };
        let needs = connections + listeners + DESCRIPTORS_BESIDE;
        if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needs) {
            let reason = format!(
                "it may open {limit} files, and needs {needs} for the {connections} connections of the old process; raise the limit of open files"
            );
            self.refuse(false, &reason);
            return Err(HandoverError::Refused { usage: false, reason });
        }
        let (mut all, mut passed) = (Vec::new(), Vec::new());
        loop {
            let heard = hear(&self.passing, ANSWER_TIME)?;
            match heard.message {
                Message::Listed => break,
                Message::Listeners { listeners } if listeners.len() == heard.descriptors.len() => {
                    all.extend(listeners.into_iter().zip(heard.descriptors));
                }
                Message::Passed { names } if names.len() == heard.descriptors.len() => {
                    passed.extend(names.into_iter().zip(heard.descriptors));
                }
                other => return Err(unexpected(&other)),
            }
        }
        let (predecessor, ledger, passed) = (Some(self), *ledger, PassedListeners::new(passed));
        let (connections, is_left) = (Vec::new(), false);
        Ok(Estate {
            predecessor,
            is_left,
            generation,
            started_at,
            ledger,
            listeners: all,
            passed,
            connections,
        })
    }
}

impl Estate {
    /// What a process has left that has ended; `None`: nothing.
    pub(crate) fn left(left: Left, passed: PassedListeners) -> Self {
        let estate = Self {
            listeners: left.listeners,
            connections: left.connections,
            is_left: left.is_any,
            passed,
            ..Self::default()
        };
        match left.counts {
            Some(Message::StoredConnections { generation, started_at, mut ledger, .. }) => {
                // The outputs of this process find on disk what those of the old one have left there.
                ledger.outputs.iter_mut().for_each(OutputLedger::leave_spooled);
                Self { generation, started_at, ledger: *ledger, ..estate }
            }
            _ => estate,
        }
    }

    /// Tells the old process that this one does not take over. One that has ended need not know.
    pub(crate) fn refuse(&self, usage: bool, reason: &str) {
        self.predecessor.iter().for_each(|predecessor| predecessor.refuse(usage, reason));
    }

    /// The sockets of the old process at this address, for an input or output of this process; none where it had no such listener.
    pub(crate) fn take_listeners(
        &mut self,
        at: &ListenAt<'_>,
        workers: usize,
    ) -> io::Result<Vec<NewListener>> {
        let (configured, text) = (at.address, at.address.to_string());
        // Ports that the kernel chose are told apart by who listens.
        let is_it = |record: &HandedListener| {
            record.configured == text && (record.of_output == at.is_of_output() || !configured.has_any_port())
        };
        let mut bound = BTreeMap::<String, (Vec<OwnedFd>, bool)>::new();
        for (record, socket) in self.listeners.extract_if(.., |(record, _)| is_it(record)) {
            let at = bound.entry(record.address).or_insert_with(|| (Vec::new(), record.dual_stack));
            at.0.push(socket);
        }
        let adopt = |(address, sockets): (String, _)| {
            let address: Address =
                address.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            NewListener::adopt(configured.clone(), address, sockets, workers, at.file)
        };
        let adopted: io::Result<Vec<_>> = bound.into_iter().map(adopt).collect();
        match adopted {
            // The file of a unix socket has gone with its folder, for one.
            Err(error) if self.predecessor.is_none() => {
                warn!(
                    owner = at.owner.name(),
                    "{configured} is bound anew: the former socket cannot be used: {error}"
                );
                Ok(Vec::new())
            }
            adopted => adopted,
        }
    }
}

/// What takes over connections, each for the input of its name.
pub(crate) struct Adoption {
    pub(crate) workers: Arc<Workers>,
    /// Of each input the number, and the first of its listeners.
    pub(crate) inputs: BTreeMap<String, (InputId, WayIn)>,
    /// Of each input, by its name, each address that it dials: from when the connections of the old process are there.
    pub(crate) dials: BTreeMap<(String, String), RunningDial>,
}

/// What takes over connections and outputs while the relay runs already.
pub(crate) struct TakingOver {
    pub(crate) predecessor: Predecessor,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) adoption: Adoption,
    /// Outputs whose frames wait until the old process has let go of them.
    pub(crate) held: BTreeMap<String, OutputParts>,
}

impl TakingOver {
    /// Takes over until the old process has ended, in whatever way. Every output has begun then.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.take() {
            warn!("the old process ended before everything was handed over: {error}");
        }
        self.adoption.dial();
        for (name, parts) in std::mem::take(&mut self.held) {
            self.begin(&name, parts);
        }
    }

    fn take(&mut self) -> Result<(), HandoverError> {
        let mut taken = 0;
        loop {
            let mut heard = hear(&self.predecessor.passing, OLD_TIME)?;
            match heard.message {
                Message::Connections { connections } if connections.len() == heard.descriptors.len() => {
                    for (record, socket) in connections.into_iter().zip(heard.descriptors) {
                        self.adoption.serve(socket, record.take(&mut heard.behind)?);
                        taken += 1;
                    }
                    say(&self.predecessor.passing, &Message::Reading)?;
                }
                Message::AllConnections => {
                    self.adoption.dial();
                    info!(connections = taken, "this process reads the connections of the old one");
                }
                Message::OutputFree { ledger } => {
                    let name = ledger.name.clone();
                    self.accounts.set_former_output(*ledger);
                    if let Some(parts) = self.held.remove(&name) {
                        self.begin(&name, parts);
                    }
                }
                Message::Ended { inputs } => {
                    self.accounts.set_former_inputs(inputs);
                    return Ok(());
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    fn begin(&self, output: &str, parts: OutputParts) {
        if let Err(error) = outputs::start(std::iter::once(parts), &self.adoption.workers) {
            warn!(output, "the output cannot begin: {error}");
        }
    }
}

impl Adoption {
    /// Goes on with a connection that another process has had.
    pub(crate) fn serve(&self, socket: OwnedFd, connection: HandedConnection) {
        let name = connection.input.clone();
        // The peer may have gone meanwhile.
        let (socket, peer) = match Socket::adopt(socket) {
            Ok(adopted) => adopted,
            Err(error) => return info!(input = name, "a connection ended in the hand-over: {error}"),
        };
        let peer = connection.peer.map_or_else(|| peer_name(peer), PeerName::Tcp);
        let way = match &connection.dial {
            None => self.inputs.get(&name).map(|(id, way)| (*id, way.clone(), None)),
            Some(to) => self.dials.get(&(name.clone(), to.clone())).and_then(|dial| {
                let dialled = dial.adopt(site(dial.to(), &peer)?);
                Some((dial.input(), dial.way(), Some(dialled)))
            }),
        };
        let Some((id, WayIn { scope, log }, dialled)) = way else {
            let dial = connection.dial;
            warn!(
                input = name,
                dial,
                "a connection of the old process is closed: the way that it came in is not configured any more"
            );
            return;
        };
        let arrival = Arrival { peer, dialled, handshake: None, handed: Some(Box::new(connection)) };
        self.workers.serve(id, socket, (&log, &scope), arrival);
    }

    /// Dials what the old process does not dial any more, and what it had no connection to.
    pub(crate) fn dial(&mut self) {
        for ((input, to), dial) in std::mem::take(&mut self.dials) {
            if let Err(error) = dial.begin(&self.workers) {
                warn!(input, dial = to, "the input cannot dial: {error}");
            }
        }
    }
}

/// Where a connection leads that was opened to this address.
fn site(to: &Address, peer: &PeerName) -> Option<Site> {
    match (to, peer) {
        (Address::Unix(path), _) => Some(Site::Unix(path.clone())),
        (Address::Tcp { .. } | Address::Tls { .. }, PeerName::Tcp(peer)) => Some(Site::Tcp(*peer)),
        (Address::Tcp { .. } | Address::Tls { .. }, PeerName::Unix(_)) | (Address::Systemd(_), _) => None,
    }
}

/// Descriptors that a process needs for other things.
const DESCRIPTORS_BESIDE: u64 = 64;
/// The old process says nothing while it drains its outputs.
const OLD_TIME: Duration = Duration::from_secs(3600);
