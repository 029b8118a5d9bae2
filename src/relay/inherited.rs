//! What a process gets from the service manager that starts it.

use std::io;

use crate::relay::handover::store::is_left;
use crate::transport::PassedSocket;
use crate::transport::passed::Named;
use crate::transport::passed::PassedListeners;
use crate::transport::passed::take_passed;

/// Descriptors that the service manager passes: the listeners of its socket units, and what a former process has left in its
/// descriptor store.
#[derive(Debug, Default)]
pub struct Inherited {
    pub(crate) listeners: PassedListeners,
    pub(crate) left: Vec<Named>,
}

impl Inherited {
    /// Takes what the service manager passes to this process. Once in a process, and before it opens anything.
    ///
    /// # Errors
    /// LISTEN_FDS and the other variables do not fit each other, or what is open.
    pub fn take() -> io::Result<Self> {
        let (left, listeners) = take_passed()?.into_iter().partition(|(name, _)| is_left(name));
        Ok(Self { listeners: PassedListeners::new(listeners), left })
    }

    /// The sockets, for [`Options::passed`](crate::config::Options).
    pub fn sockets(&self) -> Vec<PassedSocket> {
        self.listeners.describe()
    }
}
