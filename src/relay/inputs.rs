//! The inputs of a relay: bound, started, and found again by name.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::admission::gate::Gate;
use crate::faults;
use crate::input::InputConfig;
use crate::input::connection::WorkerInput;
use crate::input::handshake_limit::HandshakeLimit;
use crate::lifecycle::Scope;
use crate::observability::input_account::InputAccount;
use crate::observability::listener_log::ListenerLog;
use crate::output::Destination;
use crate::output::OutputConfig;
use crate::protocol::Oversize;
use crate::relay::dials::RunningDial;
use crate::relay::dials::WayIn;
use crate::relay::door::Door;
use crate::relay::error::StartError;
use crate::relay::handover::message::HandedListener;
use crate::relay::input_entry::InputEntry;
use crate::relay::input_entry::InputId;
use crate::relay::sockets::Owner;
use crate::relay::sockets::SocketPaths;
use crate::relay::sockets::Watched;
use crate::relay::worker::Order;
use crate::relay::worker::WorkerListener;
use crate::relay::workers::Workers;
use crate::transport::Address;
use crate::transport::listener;
use crate::transport::listener::Beside;
use crate::transport::listener::Bound;
use crate::transport::listener::BoundListener;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::passed::PassedListeners;
use crate::transport::socket_path::SocketFileConfig;
use crate::transport::tls::ReloadableServer;

/// One input at work.
#[derive(Debug)]
pub(crate) struct RunningInput {
    pub(crate) id: InputId,
    pub(crate) config: InputConfig,
    pub(crate) entry: Arc<InputEntry>,
    accounts: Vec<Arc<InputAccount>>,
    gate: Arc<Gate>,
    tls: Option<Arc<ReloadableServer>>,
    // One for each worker.
    handshakes: Vec<Arc<HandshakeLimit>>,
    pub(crate) listeners: Vec<RunningListener>,
    pub(crate) dials: Vec<RunningDial>,
}

/// One address of it.
#[derive(Debug)]
pub(crate) struct RunningListener {
    /// As it was configured.
    pub(crate) configured: Address,
    /// What is bound, for another input that listens there.
    bound: Bound,
    /// Of the listeners of all workers, and of the connections that they accept.
    pub(crate) scope: Scope,
    /// Below it: of whoever accepts.
    accepting: Scope,
    pub(crate) log: Arc<ListenerLog>,
    door: Door,
}

/// A listener that is bound, and not started.
#[derive(Debug)]
pub(crate) struct NewListener {
    configured: Address,
    bound: Bound,
}

impl RunningListener {
    /// What its connections have in common.
    pub(crate) fn way(&self) -> WayIn {
        WayIn { scope: self.scope.clone(), log: Arc::clone(&self.log) }
    }

    /// Accepts connections, for the input or output that has this door and this scope. Returns the listener, and whether every
    /// worker accepts.
    ///
    /// # Errors
    /// No descriptor is left; the system has no thread to look after a path.
    pub(crate) fn begin(
        new: NewListener,
        owner: Owner<'_>,
        (door, parent): (Door, &Scope),
        doors: &mut Doors<'_>,
    ) -> io::Result<(Self, io::Result<()>)> {
        let NewListener { configured, bound } = new;
        let spare = bound.again()?;
        let Bound { address, listeners, path, .. } = bound;
        if let Some(path) = path {
            doors.sockets.add(Watched::new(owner, path))?;
        }
        let scope = parent.child(&address.to_string());
        let accepting = scope.child("listener");
        let log = match owner {
            Owner::Input(name) => ListenerLog::new(name, &address.to_string()),
            Owner::Output(name) => ListenerLog::of_output(name, &address.to_string()),
        };
        let listener = Self { configured, bound: spare, scope, accepting, log: Arc::new(log), door };
        let accepts = listener.accept(listeners, doors.workers);
        Ok((listener, accepts))
    }

    /// Accepts again, where it has [stopped](RunningListener::stop_accepting).
    ///
    /// # Errors
    /// A worker cannot listen.
    pub(crate) fn accept_again(
        &mut self,
        owner: Owner<'_>,
        sockets: &SocketPaths,
        workers: &Workers,
    ) -> io::Result<()> {
        let bound = self.move_to(owner, sockets, workers.count())?.bound;
        self.accepting = self.scope.child("listener");
        self.accept(bound.listeners, workers)
    }

    /// Lets workers accept, one or more listeners each.
    fn accept(&self, listeners: Vec<BoundListener>, workers: &Workers) -> io::Result<()> {
        let orders = listeners.into_iter().map(|listener| {
            let (log, scope, accepting) = (Arc::clone(&self.log), self.scope.clone(), self.accepting.clone());
            let (door, is_tls) = (self.door.clone(), self.address().is_tls());
            Order::Listen(WorkerListener { door, listener, is_tls, log, scope, accepting })
        });
        let count = workers.count();
        workers.order(orders.enumerate().map(|(index, order)| (index % count, order)))
    }

    /// Accepts nothing any more but what waits in the backlog. Connections go on, and the sockets stay open.
    pub(crate) fn stop_accepting(&self) {
        self.accepting.drain();
    }

    /// Whether nobody accepts any more.
    pub(crate) fn has_stopped_accepting(&self) -> bool {
        self.accepting.has_ended()
    }

    /// The listening sockets, one or more.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn sockets(&self, sockets: &SocketPaths) -> io::Result<Vec<OwnedFd>> {
        match self.address() {
            Address::Unix(path) => Ok(sockets.socket_at(path)?.into_iter().collect()),
            Address::Tcp { .. } | Address::Tls { .. } => self.bound.sockets(),
            Address::Systemd(_) => Ok(Vec::new()),
        }
    }

    /// What another process has to know of it.
    pub(crate) fn record(&self) -> HandedListener {
        HandedListener {
            configured: self.configured.to_string(),
            address: self.address().to_string(),
            dual_stack: self.is_dual_stack(),
            of_output: self.is_of_output(),
        }
    }

    /// Whether it is one of an output.
    pub(crate) fn is_of_output(&self) -> bool {
        matches!(self.door, Door::Output(_))
    }

    /// Whether it takes connections of IPv4 and of IPv6.
    pub(crate) fn is_dual_stack(&self) -> bool {
        self.bound.dual_stack
    }
    /// Where it listens, with the port that the kernel chose.
    pub(crate) fn address(&self) -> &Address {
        &self.bound.address
    }

    /// Accepts nothing any more but what waits in the backlog: the address is free for others, unless it has `moved`.
    pub(crate) fn close(&mut self, moved: &[Address], doors: &mut Doors<'_>) {
        if let Address::Unix(path) = self.address()
            && !moved.contains(self.address())
        {
            doors.sockets.remove(path);
        }
        doors.own.remove(self.address());
        self.close_spare();
        self.scope.drain();
    }

    /// Keeps no socket open that nobody accepts at any more: a writer that connects then would wait for nothing, and the next
    /// process could not listen.
    pub(crate) fn close_spare(&mut self) {
        self.bound.listeners.clear();
    }

    /// A listener for another input or output at the same address, which this one gives up.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn move_to(
        &self,
        owner: Owner<'_>,
        sockets: &SocketPaths,
        workers: usize,
    ) -> io::Result<NewListener> {
        let mut bound = self.bound.again()?;
        if let Address::Unix(path) = &bound.address
            && let Some(listeners) = sockets.move_to(path, owner, workers)?
        {
            bound.listeners = listeners;
        }
        Ok(NewListener { configured: self.configured.clone(), bound })
    }
}

impl NewListener {
    /// A listener that another process had, for so many workers.
    ///
    /// # Errors
    /// The sockets do not listen.
    pub(crate) fn adopt(
        configured: Address,
        address: Address,
        (sockets, dual_stack): (Vec<OwnedFd>, bool),
        workers: usize,
        file: &SocketFileConfig,
    ) -> io::Result<Self> {
        Ok(Self { configured, bound: listener::adopt(address, sockets, workers, dual_stack, file)? })
    }
    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    pub(crate) fn address(&self) -> &Address {
        &self.bound.address
    }
}

/// What listeners are started with.
pub(crate) struct Doors<'a> {
    pub(crate) workers: &'a Workers,
    pub(crate) own: &'a OwnListeners,
    pub(crate) sockets: &'a mut SocketPaths,
}

impl RunningInput {
    /// An input without a listener and without a dial, which no worker knows yet. Its `tls` addresses shake hands with `tls`.
    pub(crate) fn new(
        id: InputId,
        config: InputConfig,
        tls: Option<Arc<ReloadableServer>>,
        workers: usize,
        inputs: &Scope,
    ) -> Self {
        let accounts: Vec<_> = (0..workers).map(|_| Arc::<InputAccount>::default()).collect();
        let scope = inputs.child(&config.name);
        let skips_oversize = config.oversize == Oversize::Skip;
        let entry = Arc::new(InputEntry::new(&config.name, scope, accounts.clone(), skips_oversize));
        Self {
            id,
            config,
            entry,
            accounts,
            gate: Arc::default(),
            tls,
            handshakes: (0..workers).map(|_| Arc::default()).collect(),
            listeners: Vec::new(),
            dials: Vec::new(),
        }
    }

    /// Tells every worker of the input, as it is configured now.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn tell(&self, workers: &Workers) -> io::Result<()> {
        let config = Arc::new(self.config.clone());
        let reader = Arc::new(config.reader_config());
        let input = |(account, handshakes): (&Arc<InputAccount>, &Arc<HandshakeLimit>)| WorkerInput {
            config: Arc::clone(&config).into(),
            reader: Arc::clone(&reader).into(),
            account: Arc::clone(account),
            gate: Arc::clone(&self.gate),
            tls: self.tls.clone().into(),
            handshakes: Arc::clone(handshakes),
        };
        let workers_parts = self.accounts.iter().zip(&self.handshakes);
        let orders = workers_parts.map(|parts| Order::Input(self.id, input(parts)));
        workers.order(orders.enumerate())
    }

    /// No worker need know the input any more.
    pub(crate) fn forget(&self, workers: &Workers) -> io::Result<()> {
        workers.order((0..workers.count()).map(|worker| (worker, Order::ForgetInput(self.id))))
    }

    /// Accepts connections at one more address.
    ///
    /// # Errors
    /// A worker cannot listen; the system has no thread to look after a path.
    pub(crate) fn listen(&mut self, new: NewListener, doors: &mut Doors<'_>) -> io::Result<()> {
        let door = (Door::Input(self.id), &self.entry.scope);
        let (listener, accepts) = RunningListener::begin(new, Owner::Input(&self.config.name), door, doors)?;
        self.listeners.push(listener);
        accepts
    }

    /// The addresses that are configured and that nobody dials yet. They are to be begun.
    pub(crate) fn take_new_dials(&mut self, own: &Arc<OwnListeners>) -> Vec<RunningDial> {
        let mut new = Vec::new();
        for to in &self.config.dial {
            if !self.dials.iter().any(|dial| dial.to() == to) {
                let input = (self.id, &self.config.name[..]);
                let dial = RunningDial::new(input, to.clone(), &self.entry.scope, own);
                self.dials.push(dial.clone());
                new.push(dial);
            }
        }
        new
    }

    /// Every way in.
    pub(crate) fn ways(&self) -> impl Iterator<Item = WayIn> {
        let listeners = self.listeners.iter().map(RunningListener::way);
        listeners.chain(self.dials.iter().map(RunningDial::way))
    }

    /// Takes nothing any more but what has arrived. Another input listens at the addresses that have `moved`.
    pub(crate) fn close(&mut self, moved: &[Address], doors: &mut Doors<'_>) {
        self.listeners.iter_mut().for_each(|listener| listener.close(moved, doors));
        self.dials.iter().for_each(RunningDial::close);
    }

    /// Listens again at every address, with the sockets that are bound, and dials again: the former listeners have ended.
    ///
    /// # Errors
    /// A worker cannot listen.
    pub(crate) fn listen_again(&mut self, sockets: &SocketPaths, workers: &Workers) -> io::Result<()> {
        for listener in &mut self.listeners {
            listener.scope = self.entry.scope.child(&listener.address().to_string());
        }
        let parent = &self.entry.scope;
        self.dials.iter_mut().try_for_each(|dial| dial.begin_again(parent, workers))?;
        self.accept_again(sockets, workers)
    }

    /// Dials again at every address where that was [stopped](RunningDial::stop_dialling).
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn dial_again(&mut self, workers: &Workers) -> io::Result<()> {
        self.dials.iter_mut().try_for_each(|dial| dial.dial_again(workers))
    }

    /// Accepts again at every listener that has [stopped](RunningListener::stop_accepting).
    ///
    /// # Errors
    /// A worker cannot listen.
    pub(crate) fn accept_again(&mut self, sockets: &SocketPaths, workers: &Workers) -> io::Result<()> {
        let owner = Owner::Input(&self.config.name);
        self.listeners.iter_mut().try_for_each(|listener| listener.accept_again(owner, sockets, workers))
    }

    /// Goes on as configured here. Connections that are open go on, those of ways in that are not configured any more excepted.
    /// Returns these ways: nothing comes in there any more. Another input listens at the addresses that have `moved`. What is to be
    /// dialled from now on is not begun yet.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn reconfigure(
        &mut self,
        config: InputConfig,
        tls: Option<Arc<ReloadableServer>>,
        moved: &[Address],
        doors: &mut Doors<'_>,
    ) -> io::Result<Vec<WayIn>> {
        let goes = |listener: &mut RunningListener| !config.listen.contains(&listener.configured);
        let mut gone: Vec<_> = self.listeners.extract_if(.., goes).collect();
        gone.iter_mut().for_each(|listener| listener.close(moved, doors));
        let not_dialled = self.dials.extract_if(.., |dial| !config.dial.contains(dial.to()));
        let not_dialled: Vec<_> = not_dialled.map(|dial| dial.way()).collect();
        not_dialled.iter().for_each(|way| way.scope.drain());
        if config.socket_file != self.config.socket_file {
            for listener in &self.listeners {
                if let Address::Unix(path) = listener.address() {
                    doors.sockets.reconfigure(path, &config.socket_file)?;
                }
            }
        }
        self.entry.set_skips_oversize(config.oversize == Oversize::Skip);
        (self.config, self.tls) = (config, tls);
        self.tell(doors.workers)?;
        self.dials.iter().for_each(RunningDial::look_again);
        Ok(gone.iter().map(RunningListener::way).chain(not_dialled).collect())
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenAt<'a> {
    pub(crate) owner: Owner<'a>,
    pub(crate) address: &'a Address,
    pub(crate) file: &'a SocketFileConfig,
}

impl<'a> ListenAt<'a> {
    /// An address of an input.
    pub(crate) fn input(input: &'a InputConfig, address: &'a Address) -> Self {
        Self { owner: Owner::Input(&input.name), address, file: &input.socket_file }
    }

    /// Every address of an output.
    pub(crate) fn output(output: &'a OutputConfig) -> impl Iterator<Item = Self> {
        let subscribers = match &output.to {
            Destination::Subscribers(subscribers) => Some(subscribers),
            _ => None,
        };
        subscribers.into_iter().flat_map(|subscribers| {
            let (owner, file) = (Owner::Output(&output.name), &subscribers.socket_file);
            subscribers.listen.iter().map(move |address| Self { owner, address, file })
        })
    }

    /// Whether it is one of an output.
    pub(crate) fn is_of_output(&self) -> bool {
        matches!(self.owner, Owner::Output(_))
    }

    /// It cannot be listened on.
    pub(crate) fn fault(&self, source: io::Error) -> StartError {
        let address = self.address.clone();
        match self.owner {
            Owner::Input(input) => StartError::Listen { input: input.to_owned(), address, source },
            Owner::Output(output) => StartError::Subscribers { output: output.to_owned(), address, source },
        }
    }
}

/// Binds these addresses, each for the input or output of its name, for so many workers: all of them, or none. Those that the
/// service manager passes are bound already. `others` are
/// listened on already, or will be; `going` are about to be given up.
pub(crate) fn bind<'a>(
    addresses: impl Iterator<Item = ListenAt<'a>>,
    others: &[&Address],
    going: &[&Address],
    (passed, workers): (&PassedListeners, usize),
) -> Result<Vec<(String, NewListener)>, StartError> {
    // Names first: a lookup may hang, and a process that is ended meanwhile leaves no socket file behind.
    let (names, paths): (Vec<_>, Vec<_>) =
        addresses.enumerate().partition(|(_, at)| at.address.host_port().is_some());
    let mut all = Vec::new();
    for (place, at) in names.into_iter().chain(paths) {
        let ListenAt { owner, address, file } = at;
        let name = owner.name();
        if faults::hit("start hangs", name) {
            thread::sleep(Duration::from_secs(60));
        }
        let beside = Beside {
            ipv4: others.iter().any(|other| other.is_ipv4_beside(address)),
            own: address.port().is_some() && going.iter().any(|going| going.port() == address.port()),
        };
        let bound = match address {
            Address::Systemd(name) => passed.listen(name.as_deref(), workers),
            _ => listener::bind(address, workers, file, beside),
        };
        let bound = bound.map_err(|source| at.fault(source))?;
        all.extend(bound.into_iter().map(|bound| {
            let configured = address.clone();
            (place, name.to_owned(), NewListener { configured, bound })
        }));
    }
    all.sort_by_key(|(place, ..)| *place);
    Ok(all.into_iter().map(|(_, name, listener)| (name, listener)).collect())
}
