//! The addresses that an input dials: begun, stopped, and found again by their text.

use std::io;
use std::sync::Arc;

use crate::input::dialled::Dialled;
use crate::input::dialled::DialledConnection;
use crate::lifecycle::Scope;
use crate::observability::listener_log::ListenerLog;
use crate::relay::input_entry::InputId;
use crate::relay::serving::WorkerDial;
use crate::relay::worker::Order;
use crate::relay::workers::Workers;
use crate::transport::Address;
use crate::transport::dial::Site;
use crate::transport::own_listeners::OwnListeners;

/// What connections of an input have in common: their listener, or the address that was dialled.
#[derive(Clone, Debug)]
pub(crate) struct WayIn {
    /// Of whoever accepts or dials, and of the connections.
    pub(crate) scope: Scope,
    pub(crate) log: Arc<ListenerLog>,
}

/// One address of one input. A clone is the same one, for another thread.
#[derive(Clone, Debug)]
pub(crate) struct RunningDial(WorkerDial);

impl RunningDial {
    /// An address that nobody dials yet, of an input with this name and scope.
    pub(crate) fn new(
        (input, name): (InputId, &str),
        to: Address,
        parent: &Scope,
        own: &Arc<OwnListeners>,
    ) -> Self {
        let text = to.to_string();
        let (scope, log) = (parent.child(&text), Arc::new(ListenerLog::of_dial(name, &text)));
        let (dialling, dialled) = (scope.child("dialling"), Arc::new(Dialled::new(to)));
        Self(WorkerDial { input, dialled, own: Arc::clone(own), log, scope, dialling })
    }

    /// The address as it was configured.
    pub(crate) fn to(&self) -> &Address {
        self.0.dialled.to()
    }

    /// What its connections have in common.
    pub(crate) fn way(&self) -> WayIn {
        WayIn { scope: self.0.scope.clone(), log: Arc::clone(&self.0.log) }
    }

    /// The number of its input.
    pub(crate) fn input(&self) -> InputId {
        self.0.input
    }

    /// Dials no more, and lets connections end that have nothing to read.
    pub(crate) fn close(&self) {
        self.0.scope.drain();
    }

    /// Lets one of the workers dial, and all of them serve the connections.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn begin(&self, workers: &Workers) -> io::Result<()> {
        let owner = workers.least_busy();
        workers
            .order((0..workers.count()).map(|worker| (worker, Order::Dial(self.0.clone(), worker == owner))))
    }

    /// Dials no more. Connections go on.
    pub(crate) fn stop_dialling(&self) {
        self.0.dialling.drain();
    }

    /// Whether nobody dials any more.
    pub(crate) fn has_stopped_dialling(&self) -> bool {
        self.0.dialling.has_ended()
    }

    /// Dials again, after [`stop_dialling`](Self::stop_dialling): what has no connection by now.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn dial_again(&mut self, workers: &Workers) -> io::Result<()> {
        self.0.dialling = self.0.scope.child("dialling");
        self.begin(workers)
    }

    /// Begins anew: the former scope, below this one, has ended.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn begin_again(&mut self, parent: &Scope, workers: &Workers) -> io::Result<()> {
        self.0.scope = parent.child(&self.to().to_string());
        self.dial_again(workers)
    }

    /// Sees at once that its input is configured otherwise.
    pub(crate) fn look_again(&self) {
        self.0.dialled.look_again();
    }

    /// A connection that another process has opened to this site.
    pub(crate) fn adopt(&self, site: Site) -> DialledConnection {
        self.0.dialled.opened(site)
    }
}
