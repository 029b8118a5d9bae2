//! What outputs find around them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::relay::certificates::Certificates;
use crate::transport::own_listeners::OwnListeners;

/// What every output is put together with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) workers: usize,
    /// The scope of all outputs.
    pub(crate) scope: Scope,
    /// How long the end of anything may take.
    pub(crate) drain_timeout: Duration,
    /// Asks file outputs to end their files and to begin new ones.
    pub(crate) reopen: watch::Sender<u64>,
    /// Which ways of outputs lead back through other relays.
    pub(crate) loops: Arc<Loops>,
    /// Where no output may lead.
    pub(crate) own: Arc<OwnListeners>,
    /// What TLS is spoken with.
    pub(crate) certificates: Arc<Certificates>,
}
