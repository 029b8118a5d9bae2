//! A process that ends leaves its connections in the descriptor store of the service manager, and the next one goes on with them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use rustix::net::sockopt::socket_cookie;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::unbounded_channel;
use tracing::info;
use tracing::warn;

use crate::input::handing::HandedConnection;
use crate::input::handing::Offer;
use crate::lifecycle::Scope;
use crate::observability::Ledger;
use crate::relay::Relay;
use crate::relay::dials::RunningDial;
use crate::relay::handover::message::ConnectionRecord;
use crate::relay::handover::message::HandedListener;
use crate::relay::handover::message::Message;
use crate::relay::handover::store;
use crate::relay::handover::store::Store;
use crate::relay::handover::store::Stored;
use crate::relay::inputs::RunningListener;
use crate::relay::worker::Order;
use crate::transport::Address;
use crate::transport::ServiceManager;

/// Connections that are in the store, and of which no message tells yet.
#[derive(Debug)]
pub(crate) struct Leaving {
    store: Store,
    message: File,
    connections: Vec<(u64, ConnectionRecord)>,
    behind: Vec<Bytes>,
    behind_len: usize,
    // The store takes no more.
    is_full: bool,
}

impl Relay {
    /// Uses a store of this size from now on.
    pub(crate) fn set_store(&mut self, max: usize) {
        if max == self.asked_store {
            return;
        }
        self.asked_store = max;
        if let Some(store) = self.store.take() {
            store.clear();
        }
        self.store = Store::of_environment(max);
    }

    /// Puts every listener into the store, if there is one, where it outlives the process.
    pub(crate) fn keep_listeners(&mut self) {
        let Some(mut store) = self.store.take() else { return };
        let kept = self.own_listeners().and_then(|listeners| store.keep_listeners(&listeners));
        if let Err(error) = kept {
            warn!(
                "the listeners are not in the descriptor store, and would not outlive a crash: {error}; `descriptor_store`, and \
                 FileDescriptorStoreMax= of the unit, have to be larger than their number"
            );
        }
        self.store = Some(store);
    }

    /// The listeners that the service manager has not passed: it keeps those by itself.
    fn own_listeners(&self) -> std::io::Result<Vec<(HandedListener, OwnedFd)>> {
        let mut all = Vec::new();
        for listener in self.all_listeners() {
            if matches!(listener.configured, Address::Systemd(_)) {
                continue;
            }
            let record = listener.record();
            all.extend(listener.sockets(&self.sockets)?.into_iter().map(|socket| (record.clone(), socket)));
        }
        Ok(all)
    }

    /// Stops reading, and puts connections into the store, if there is one. Takes about 4 s at most; usually some milliseconds.
    pub(crate) fn leave_connections(&mut self) -> Option<Leaving> {
        self.wait_until_taken_over(self.around.drain_timeout);
        // Paths may have been bound again.
        self.store.iter_mut().for_each(Store::distrust);
        self.keep_listeners();
        let store = self.store.take()?;
        let message = store.put_message();
        let message = message.inspect_err(|error| warn!("{NOT_TAKEN}: {error}")).ok()?;
        // The next process listens there.
        self.sockets.leave();
        let listeners = || self.inputs.iter().flat_map(|input| &input.listeners);
        let dials = || self.inputs.iter().flat_map(|input| &input.dials);
        listeners().for_each(RunningListener::stop_accepting);
        dials().for_each(RunningDial::stop_dialling);
        let by = Instant::now() + ACCEPT_TIME;
        let have_stopped = || {
            listeners().all(RunningListener::has_stopped_accepting)
                && dials().all(RunningDial::has_stopped_dialling)
        };
        while Instant::now() < by && !have_stopped() {
            thread::sleep(LOOK);
        }
        let scopes: Vec<_> = self.ways().map(|way| way.scope).collect();
        let (connections, behind) = (Vec::new(), Vec::new());
        let mut leaving = Leaving { store, message, connections, behind, behind_len: 0, is_full: false };
        let (offers, mut offered) = unbounded_channel();
        let all = 0..self.workers.count();
        // A worker that does not answer drains, as the others do without a store.
        let asked =
            self.workers.order(all.clone().map(|worker| (worker, Order::Offer(Some(offers.clone())))));
        drop(offers);
        if asked.is_ok() {
            leaving.take(&mut offered, &scopes);
        }
        // Before what is offered now is turned down: nobody offers it once more.
        let _ = self.workers.order(all.map(|worker| (worker, Order::Offer(None))));
        Some(leaving)
    }

    /// Goes on with connections that a process has left which has ended.
    pub(crate) fn go_on_with(&mut self, connections: Vec<Stored<HandedConnection>>, is_left: bool) {
        // From the first byte on that is read here, nobody else can go on with them.
        match &self.store {
            Some(store) => {
                if let Err(error) = store.remove_connections() {
                    warn!(
                        "the service manager does not forget the connections of the former process: {error}"
                    );
                }
            }
            None if is_left => store::clear(),
            None => {}
        }
        let mut adoption = self.adoption();
        if !connections.is_empty() {
            info!(
                connections = connections.len(),
                "this process goes on with the connections of the former one"
            );
        }
        for (connection, socket) in connections {
            adoption.serve(socket, connection);
        }
        adoption.dial();
    }
}

impl Leaving {
    /// Takes what is offered, until every connection of these scopes has ended here, or those that are left do not come to a
    /// point where they can pass.
    fn take(&mut self, offered: &mut UnboundedReceiver<Offer>, scopes: &[Scope]) {
        let mut last = Instant::now();
        while !self.is_full {
            let mut group = Vec::new();
            while group.len() < ServiceManager::DESCRIPTORS_MAX
                && let Ok(offer) = offered.try_recv()
            {
                group.push(offer);
            }
            if !group.is_empty() {
                self.put(group);
                last = Instant::now();
            } else if last.elapsed() >= OFFER_TIME || scopes.iter().all(Scope::has_ended) {
                return;
            } else {
                thread::sleep(LOOK);
            }
        }
    }

    fn put(&mut self, group: Vec<Offer>) {
        let mut fitting = Vec::new();
        for offer in group {
            let len = self.behind_len + offer.connection.received.len();
            let count = self.connections.len() + fitting.len();
            let Ok(cookie) = socket_cookie(&offer.socket) else { continue };
            // An offer that is dropped was turned down.
            if len > BEHIND_MAX || count >= self.store.connections_max() {
                self.is_full = true;
                continue;
            }
            self.behind_len = len;
            fitting.push((cookie, offer));
        }
        let sockets: Vec<_> = fitting.iter().map(|(_, offer)| offer.socket.as_fd()).collect();
        if !sockets.is_empty()
            && let Err(error) = self.store.put_connections(&sockets)
        {
            warn!("{NOT_TAKEN}: {error}");
            self.is_full = true;
            return;
        }
        for (cookie, Offer { connection, verdict, .. }) in fitting {
            // One that has ended meanwhile has ended for the next process, too.
            if verdict.send(true).is_ok() {
                self.connections.push((cookie, ConnectionRecord::of(&connection)));
                self.behind.push(connection.received);
            }
        }
    }

    /// Tells the next process of the connections and of the counts, the last that this one does.
    pub(crate) fn finish(self, ledger: &Ledger, generation: u64, started_at: u64) {
        let connections = self.connections.len();
        let message = Message::StoredConnections {
            connections: self.connections,
            generation,
            started_at,
            ledger: Box::new(ledger.clone()),
        };
        if self.is_full {
            warn!(
                "not every connection is in the descriptor store: raise `descriptor_store`, and FileDescriptorStoreMax= of the unit"
            );
        }
        match store::write_message(&self.message, &message, &self.behind) {
            Ok(()) => {
                info!(connections, "the next process goes on with the connections, if tapster is restarted");
            }
            Err(error) => {
                warn!(connections, "no process goes on with the connections: {error}");
                // Nothing can be done if this fails as well: the next process closes them.
                let _ = self.store.remove_connections();
            }
        }
    }
}

const NOT_TAKEN: &str = "the service manager does not take connections into its descriptor store";
/// What waits in backlogs is accepted within this time.
const ACCEPT_TIME: Duration = Duration::from_millis(1500);
/// A connection whose frames an output does not take for so long is drained.
const OFFER_TIME: Duration = Duration::from_secs(2);
/// Bytes of frames that have begun, of all connections.
const BEHIND_MAX: usize = 64 << 20;
const LOOK: Duration = Duration::from_micros(500);
