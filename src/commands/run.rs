//! `tapster run`: relay until a signal, then drain.

use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tapster::config::Resolved;
use tapster::config::buffer_words;
use tapster::config::units::format_duration;
use tapster::config::units::format_size;
use tapster::observability::Ledger;
use tapster::observability::Log;
use tapster::observability::LogFormat;
use tapster::observability::StatusLine;
use tapster::relay::Inherited;
use tapster::relay::Predecessor;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tapster::transport::return_freed_memory;
use tracing::info;
use tracing::warn;

use crate::cli::RelayArgs;
use crate::commands::CommandError;
use crate::commands::manager::Manager;
use crate::commands::resolve_args;
use crate::commands::signals::Event;
use crate::commands::signals::Signals;
use crate::commands::summary::write_summary;
use crate::commands::upgrade;

/// Relays until SIGTERM or SIGINT, drains, and tells where every frame went.
pub(crate) fn run(args: &RelayArgs) -> Result<ExitCode, CommandError> {
    return_freed_memory();
    let failed = |error: io::Error| CommandError::Failed(error.to_string());
    // Before anything is opened.
    let inherited = Inherited::take().map_err(|error| CommandError::Usage(error.to_string()))?;
    let mut signals = Signals::handle_stray().map_err(failed)?;
    let predecessor = upgrade::predecessor().map_err(failed)?;
    // Those of an old process come from there.
    let passed = predecessor.is_none().then(|| inherited.sockets());
    let resolved = resolve_args(args, passed);
    if let (Err(faults), Some(predecessor)) = (&resolved, &predecessor) {
        predecessor.refuse(true, &faults.to_string());
    }
    let Resolved { config, admin: _, warnings } = resolved?;
    let log = Log::start(args.log_format.into(), args.log_level).map_err(failed)?;
    // Before anything is bound: a signal from now on drains.
    signals.handle_end().map_err(failed)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let result = relay(args, &config, (inherited, predecessor), signals, &log);
    log.flush();
    result
}

fn relay(
    args: &RelayArgs,
    config: &RelayConfig,
    origin: (Inherited, Option<Predecessor>),
    signals: Signals,
    log: &Log,
) -> Result<ExitCode, CommandError> {
    raise_descriptor_limit();
    let manager = Manager::of_environment();
    let (sender, events) = mpsc::channel();
    signals
        .watch(sender.clone(), log.clone())
        .map_err(|error| CommandError::Failed(format!("cannot start a thread for signals: {error}")))?;
    let ledger = match start(config, origin, sender, &events)? {
        Start::GivenUp => Ledger::default(),
        Start::Running { mut relay, end } => {
            announce(&relay, config);
            manager.ready(relay.view());
            let status_line = log.is_terminal() && args.log_format == crate::cli::LogFormat::Text;
            let name = match end {
                Some(name) => name,
                None => match wait_for_end(&events, &mut relay, &manager, status_line.then_some(log)) {
                    End::Drain(name) => name,
                    // The process that ends the chain tells where every frame went.
                    End::HandedOver => return Ok(ExitCode::SUCCESS),
                },
            };
            manager.stopping(config.drain_timeout);
            let timeout = format_duration(config.drain_timeout);
            info!(
                "{name}: draining, at most {timeout}; a signal that comes a second later or more ends at once"
            );
            relay.drain()
        }
    };
    log_ledger(&ledger);
    if let Some(path) = &args.summary {
        write_summary(path, &ledger)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What became of the start.
enum Start {
    Running {
        relay: Box<Relay>,
        /// The signal that asked for the end meanwhile.
        end: Option<&'static str>,
    },
    /// A signal asked for the end, and the start did not come to one.
    GivenUp,
}

/// Starts the relay on a thread of its own: looking up a name to listen on takes as long as the name servers let it, and a
/// signal has to end that, too.
fn start(
    config: &RelayConfig,
    (inherited, predecessor): (Inherited, Option<Predecessor>),
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Start, CommandError> {
    let config = config.clone();
    let run = move || {
        let begin = || match predecessor {
            None => Relay::start_with(config, inherited),
            Some(predecessor) => Relay::take_over(config, predecessor),
        };
        let started = catch_unwind(AssertUnwindSafe(|| begin().map(Box::new)));
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
            Some(Event::Started(Ok(Ok(relay)))) => return Ok(Start::Running { relay, end }),
            Some(Event::Started(Ok(Err(error)))) => return Err(CommandError::Failed(error.to_string())),
            Some(Event::Started(Err(panic))) => resume_unwind(panic),
            Some(Event::End(name)) => end = Some(name),
            Some(Event::Reopen(_) | Event::Upgrade(_)) => {}
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

/// Why a relay ends.
enum End {
    /// The signal of this name asks for it.
    Drain(&'static str),
    /// Another process has taken over.
    HandedOver,
}

/// Waits for the signal that ends the relay, and does what others ask for. Meanwhile keeps the status line up to date, if
/// there is one.
fn wait_for_end(
    events: &Receiver<Event>,
    relay: &mut Relay,
    manager: &Manager,
    terminal: Option<&Log>,
) -> End {
    let mut status = StatusLine::new(Instant::now());
    loop {
        let event = match terminal {
            None => events.recv().map_err(RecvTimeoutError::from),
            Some(_) => events.recv_timeout(STATUS_INTERVAL),
        };
        match (event, terminal) {
            (Ok(Event::End(name)), _) => {
                terminal.inspect(|log| log.show_status(String::new()));
                return End::Drain(name);
            }
            (Ok(Event::Reopen(name)), _) => reopen(name, relay),
            (Ok(Event::Upgrade(name)), _) => {
                if take_over(name, relay, manager) {
                    return End::HandedOver;
                }
            }
            (Ok(Event::Started(_)), _) => {}
            (Err(RecvTimeoutError::Timeout), Some(log)) => {
                log.show_status(status.text(Instant::now(), &relay.ledger()));
            }
            (Err(_), _) => unreachable!("the thread that hears signals has no end"),
        }
    }
}

/// Lets a new process take over. Returns whether it has, and this one is to end.
fn take_over(signal: &str, relay: &mut Relay, manager: &Manager) -> bool {
    info!("{signal}: a new process of the program takes over");
    let handed_over = upgrade::hand_over(relay).and_then(|(successor, process)| {
        info!("the new process reads every connection that can pass; this one ends its outputs");
        relay.let_go(&successor)?;
        manager.main_pid(process);
        Ok(())
    });
    match &handed_over {
        Ok(()) => info!("the new process has taken over everything; this one ends"),
        Err(error) => warn!("no upgrade: {error}; this process goes on"),
    }
    handed_over.is_ok()
}

/// Lets every file output begin a new file, for a program that has moved the present one away.
fn reopen(signal: &str, relay: &Relay) {
    relay.reopen_files();
    let not_read = if signal == "SIGHUP" {
        "; the configuration is not read again: restart tapster for a new one"
    } else {
        ""
    };
    info!("{signal}: file outputs begin a new file{not_read}");
}

fn announce(relay: &Relay, config: &RelayConfig) {
    for (input, address) in relay.listeners() {
        info!(input, %address, "listening");
    }
    for output in &config.outputs {
        let queue = format_size(output.buffer.memory() as u64);
        let (_, word) = buffer_words(&output.buffer);
        let (output, to, spool) = (&output.name, &output.to, output.buffer.spool());
        match spool {
            None => info!(output, %to, when_full = word, queue, "writing"),
            Some(spool) => {
                info!(output, %to, spool = %spool.folder.display(), takes = word, queue, "writing");
            }
        }
    }
    info!(backend = %relay.backend(), workers = relay.workers(), version = env!("CARGO_PKG_VERSION"), "relaying");
}

fn log_ledger(ledger: &Ledger) {
    for input in &ledger.inputs {
        info!(
            input = input.name,
            connections = input.connections,
            frames = input.frames,
            bytes = input.bytes,
            frames_unrouted = input.frames_unrouted,
            frames_oversize = input.frames_oversize,
            "taken in"
        );
        // A line for each: a map would be JSON within a string.
        for (end, sessions) in &input.sessions_ended {
            info!(input = input.name, end, sessions, "sessions ended");
        }
        for (reason, connections) in &input.connections_rejected {
            info!(input = input.name, reason, connections, "connections refused");
        }
    }
    for output in &ledger.outputs {
        info!(
            output = output.name,
            frames_received = output.frames_received,
            frames_sent = output.frames_sent,
            frames_filtered = output.frames_filtered,
            frames_dropped = output.frames_dropped.values().sum::<u64>(),
            frames_queued = output.frames_queued,
            frames_spooled = output.frames_spooled,
            bytes_sent = output.bytes_sent,
            bytes_unconfirmed = output.bytes_unconfirmed,
            residence_p50_us = output.residence.p50_us,
            residence_p99_us = output.residence.p99_us,
            residence_max_us = output.residence.max_us,
            "written"
        );
        for (reason, frames_dropped) in &output.frames_dropped {
            info!(output = output.name, reason, frames_dropped, "dropped");
        }
    }
}

/// Every connection needs a descriptor, and the soft limit is often 1024 where the hard one is far higher.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it cannot be raised, it stays: `tapster doctor` tells.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

impl From<crate::cli::LogFormat> for LogFormat {
    fn from(format: crate::cli::LogFormat) -> Self {
        match format {
            crate::cli::LogFormat::Text => Self::Text,
            crate::cli::LogFormat::Json => Self::Json,
        }
    }
}

const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// How long a start goes on after a signal that asks for the end.
const START_GRACE: Duration = Duration::from_secs(1);
