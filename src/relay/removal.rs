//! The end of one input or output, while the relay goes on.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tracing::info;

use crate::lifecycle::Scope;
use crate::relay::FORCE;
use crate::relay::LANES_PART;
use crate::relay::accounts::Accounts;
use crate::relay::output_entry::OutputEntry;

/// Drains an output that no worker feeds any more, on a thread of its own: it writes what waits, STOP, and takes FINISH, within
/// `timeout`. What is left then is dropped, reason `removed`.
///
/// # Errors
/// The system has no thread for it: the output has ended at once.
pub(crate) fn of_output(
    entry: &Arc<OutputEntry>,
    accounts: &Arc<Accounts>,
    timeout: Duration,
) -> io::Result<()> {
    entry.all_accounts().iter().for_each(|account| account.remove());
    // No lane begins again, and those that are away try once more.
    entry.scope.drain();
    entry.close();
    let (ending, ending_in) = (Arc::clone(entry), Arc::clone(accounts));
    let drain = move || {
        let began = Instant::now();
        if !ending.scope.wait_for_end(began + timeout.mul_f64(LANES_PART)) {
            ending.end_lanes();
            ending.scope.wait_for_end(began + timeout);
        }
        end_output(&ending, &ending_in);
    };
    let started = thread::Builder::new().name("tapster-removal".to_owned()).spawn(drain);
    if started.is_err() {
        end_output(entry, accounts);
    }
    started.map(drop)
}

fn end_output(entry: &Arc<OutputEntry>, accounts: &Accounts) {
    entry.scope.end();
    entry.scope.wait_for_end(Instant::now() + FORCE);
    entry.abandon();
    accounts.end_output(entry);
    let ledger = entry.ledger(Instant::now());
    let (output, frames_sent, frames_spooled) = (&entry.name, ledger.frames_sent, ledger.frames_spooled);
    let frames_dropped = ledger.frames_dropped.get("removed").copied().unwrap_or_default();
    if let Some(spool) = &entry.spool {
        let spool = spool.display();
        info!(output, frames_sent, frames_dropped, frames_spooled, %spool, "the output was removed; its spool stays");
    } else {
        info!(output, frames_sent, frames_dropped, "the output was removed");
    }
}

/// Waits until these scopes, which drain, have ended, for `timeout` at most, ends them, and then does the rest. On a thread of
/// its own.
///
/// # Errors
/// The system has no thread for it: the scopes have ended at once.
pub(crate) fn of_scopes(
    scopes: Vec<Scope>,
    timeout: Duration,
    then: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let at_once = scopes.clone();
    let drain = move || {
        wait_for(&scopes, Instant::now() + timeout);
        scopes.iter().for_each(Scope::end);
        wait_for(&scopes, Instant::now() + FORCE);
        then();
    };
    let started = thread::Builder::new().name("tapster-removal".to_owned()).spawn(drain);
    if started.is_err() {
        at_once.iter().for_each(Scope::end);
    }
    started.map(drop)
}

fn wait_for(scopes: &[Scope], deadline: Instant) {
    for scope in scopes {
        scope.wait_for_end(deadline);
    }
}
