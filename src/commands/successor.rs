//! A new process of the program takes over from this one.

use std::env;
use std::io;
use std::io::stdin;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::admin::Server;
use tapster::relay::HandoverError;
use tapster::relay::Predecessor;
use tapster::relay::Relay;
use tapster::relay::Successor;
use tapster::transport::PASSED_VARIABLES;

use crate::commands::start::Former;

/// The process that this one is to take over from, and the sockets of its admin addresses; `None` where this one was started in the
/// ordinary way.
///
/// # Errors
/// Stdin is not what that process gives.
pub(crate) fn predecessor() -> io::Result<Option<Former>> {
    if env::var_os(TAKE_OVER).is_none() {
        return Ok(None);
    }
    let predecessor = Predecessor::inherited(stdin().as_fd().try_clone_to_owned()?)?;
    match predecessor.lent() {
        Ok(lent) => Ok(Some((predecessor, lent))),
        Err(error) => {
            predecessor.refuse(false, &error.to_string());
            Err(io::Error::other(error.to_string()))
        }
    }
}

/// Starts the program anew, from `binary` or the path that this process was started with, and hands over to it. When this returns,
/// the new process reads every connection that can pass. Takes 15 s at most. Returns that process, and its number.
///
/// # Errors
/// The new process did not take over. It has ended, and this one goes on.
pub(crate) fn hand_over(
    relay: &mut Relay,
    binary: Option<&Path>,
    server: &Server,
) -> Result<(Successor, u32), HandoverError> {
    let (successor, inherited) = Successor::new()?;
    let lent = server.lend()?;
    let lent: Vec<_> = lent.iter().map(|(name, socket)| (name.clone(), socket.as_fd())).collect();
    successor.lend(&lent)?;
    let mut arguments = env::args_os();
    let own = arguments.next().unwrap_or_else(|| "tapster".into());
    let program = binary.map_or(own, |path| path.as_os_str().to_owned());
    let mut command = Command::new(&program);
    command.args(arguments).env(TAKE_OVER, "1").stdin(Stdio::from(inherited));
    // They are for this process. The other one gets the sockets from here.
    for name in PASSED_VARIABLES {
        command.env_remove(name);
    }
    // The watchdog goes on with the process that takes over.
    command.env_remove("WATCHDOG_PID");
    let mut child = command.spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start {}: {error}", program.display()))
    })?;
    // It has the other end of the connection, which is to be closed when the new process ends.
    drop(command);
    match relay.hand_over(&successor) {
        Ok(()) => Ok((successor, child.id())),
        Err(error) => {
            drop(successor);
            end(&mut child);
            Err(error)
        }
    }
}

/// Waits a moment for a process that has nothing more to do, and ends it then.
fn end(child: &mut Child) {
    let by = Instant::now() + PATIENCE;
    while Instant::now() < by {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Both fail for a process that has ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}

/// In the environment of a process that takes over: its stdin leads to the old one.
const TAKE_OVER: &str = "TAPSTER_TAKE_OVER";
/// A process that does not take over ends by itself within this time.
const PATIENCE: Duration = Duration::from_secs(1);
