//! Looks at all accounts twice a second, and tells what is lost, left out or held up. On a thread of its own: it tells of
//! workers and disks that hang, too.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::relay::accounts::Accounts;

/// The thread that looks. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Watch {
    _alive: mpsc::Sender<()>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn start(accounts: Arc<Accounts>) -> io::Result<Self> {
        let (alive, ended) = mpsc::channel::<()>();
        let watch = move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                accounts.tell(Instant::now());
            }
        };
        thread::Builder::new().name("tapster-watch".to_owned()).spawn(watch)?;
        Ok(Self { _alive: alive })
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
