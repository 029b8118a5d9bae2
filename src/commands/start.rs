//! The start of the relay.

use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use tapster::admin::Answer;
use tapster::admin::Opened;
use tapster::admin::Phase;
use tapster::admin::Refusal;
use tapster::admin::Wish;
use tapster::config::AdminConfig;
use tapster::relay::Inherited;
use tapster::relay::Predecessor;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tracing::warn;

use crate::commands::CommandError;
use crate::commands::events::Begun;
use crate::commands::events::Event;

/// What became of the start.
pub(crate) enum Start {
    Running {
        begun: Begun,
        /// The signal that asked for the end meanwhile.
        end: Option<&'static str>,
    },
    /// A signal asked for the end, and the start did not come to one.
    GivenUp,
}

/// The process to take over from, and the sockets of its admin addresses.
pub(crate) type Former = (Predecessor, Vec<(String, OwnedFd)>);

/// What the service manager passes, and the process to take over from, if there is one.
pub(crate) type Origin = (Inherited, Option<Former>);

/// Starts the relay on a thread of its own: looking up a name to listen on takes as long as the name servers let it, and a
/// signal has to end that, too.
pub(crate) fn start(
    config: &RelayConfig,
    admin: &AdminConfig,
    origin: Origin,
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Start, CommandError> {
    let (config, admin) = (config.clone(), admin.clone());
    let run = move || {
        let started = catch_unwind(AssertUnwindSafe(|| begin(config, &admin, origin)));
        // Where nobody hears it any more, the process is about to end.
        let _ = sender.send(Event::Started(started));
    };
    thread::Builder::new()
        .name("start".to_owned())
        .spawn(run)
        .map_err(|error| CommandError::Failed(format!("cannot start a thread for the start: {error}")))?;
    let mut end = None;
    loop {
        // Both senders live longer than this loop.
        let event = match end {
            None => events.recv().ok(),
            Some(_) => events.recv_timeout(START_GRACE).ok(),
        };
        match event {
            Some(Event::Started(Ok(Ok(begun)))) => return Ok(Start::Running { begun, end }),
            Some(Event::Started(Ok(Err(error)))) => return Err(error),
            Some(Event::Started(Err(panic))) => resume_unwind(panic),
            Some(Event::End(name)) => end = Some(name),
            Some(Event::Wish(wish)) => refuse(wish, Phase::Starting),
            Some(Event::Reopen(_) | Event::Reload(_) | Event::Upgrade(_) | Event::Prepared(_)) => {}
            None => {
                let name = end.unwrap_or("the end");
                warn!(
                    "{name}: tapster ends before it relays; most likely a name to listen on is still looked up"
                );
                return Ok(Start::GivenUp);
            }
        }
    }
}

/// The admin addresses come first: a process that cannot have them leaves everything as it was.
fn begin(
    config: RelayConfig,
    admin: &AdminConfig,
    (inherited, former): Origin,
) -> Result<Begun, CommandError> {
    let (predecessor, lent) = former.unzip();
    let opened = Opened::open(admin, &[], lent.unwrap_or_default()).map_err(|faults| {
        let faults = faults.join("\n");
        predecessor.iter().for_each(|predecessor| predecessor.refuse(true, &faults));
        CommandError::Failed(faults)
    })?;
    let relay = match predecessor {
        None => Relay::start_with(config, inherited),
        Some(predecessor) => Relay::take_over(config, predecessor),
    };
    let relay = relay.map_err(|error| CommandError::Failed(error.to_string()))?;
    Ok(Begun { relay: Box::new(relay), opened })
}

/// Tells whoever asked that it is not the time for it.
pub(crate) fn refuse(wish: Wish, phase: Phase) {
    fn no<T>(answer: Answer<T>, phase: Phase) {
        answer.give(Err(Refusal::Phase(phase)));
    }
    match wish {
        Wish::Reload(answer) => no(answer, phase),
        Wish::Upgrade { answer, .. } => no(answer, phase),
    }
}

/// How long a start goes on after a signal that asks for the end.
const START_GRACE: Duration = Duration::from_secs(1);
