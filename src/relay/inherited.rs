//! What a process gets from the service manager that starts it.

use std::io;

use crate::transport::PassedSocket;
use crate::transport::passed::PassedListeners;
use crate::transport::passed::take_passed;

/// Descriptors that the service manager passes: the listeners of its socket units.
#[derive(Debug, Default)]
pub struct Inherited {
    pub(crate) listeners: PassedListeners,
}

impl Inherited {
    /// Takes what the service manager passes to this process. Once in a process, and before it opens anything.
    ///
    /// # Errors
    /// LISTEN_FDS and the other variables do not fit each other, or what is open.
    pub fn take() -> io::Result<Self> {
        Ok(Self { listeners: PassedListeners::new(take_passed()?) })
    }

    /// The sockets, for [`Options::passed`](crate::config::Options).
    pub fn sockets(&self) -> Vec<PassedSocket> {
        self.listeners.describe()
    }
}
