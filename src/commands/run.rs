//! `tapster run`: relay until a signal, then drain.

use std::collections::VecDeque;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tapster::admin::Desk;
use tapster::admin::Opened;
use tapster::admin::Server;
use tapster::config::AdminConfig;
use tapster::config::Resolved;
use tapster::config::buffer_words;
use tapster::config::to_json;
use tapster::config::units::format_size;
use tapster::observability::Ledger;
use tapster::observability::Log;
use tapster::observability::LogFormat;
use tapster::relay::Inherited;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tapster::transport::return_freed_memory;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::cli::RelayArgs;
use crate::commands::CommandError;
use crate::commands::events::Begun;
use crate::commands::events::Event;
use crate::commands::manager::Manager;
use crate::commands::resolve_args;
use crate::commands::service::Ended;
use crate::commands::service::Service;
use crate::commands::signals::Signals;
use crate::commands::stages::Stages;
use crate::commands::start::Origin;
use crate::commands::start::Start;
use crate::commands::start::start;
use crate::commands::successor;
use crate::commands::summary::write_summary;

/// Relays until SIGTERM or SIGINT, drains, and tells where every frame went.
pub(crate) fn run(args: &RelayArgs) -> Result<ExitCode, CommandError> {
    return_freed_memory();
    let failed = |error: io::Error| CommandError::Failed(error.to_string());
    // Before anything is opened.
    let inherited = Inherited::take().map_err(|error| CommandError::Usage(error.to_string()))?;
    let mut signals = Signals::handle_stray().map_err(failed)?;
    let former = successor::predecessor().map_err(failed)?;
    // Those of an old process come from there.
    let passed = former.is_none().then(|| inherited.sockets());
    let resolved = resolve_args(args, passed);
    if let (Err(faults), Some((predecessor, _))) = (&resolved, &former) {
        let lines: Vec<_> = faults.0.iter().map(ToString::to_string).collect();
        predecessor.refuse(true, &lines.join("\n"));
    }
    let resolved = resolved?;
    let log = Log::start(args.log_format.into(), args.log_level).map_err(failed)?;
    // Before anything is bound: a signal from now on drains.
    signals.handle_end().map_err(failed)?;
    for expired in &resolved.expired {
        error!("{expired}");
    }
    for warning in &resolved.warnings {
        warn!("{warning}");
    }
    let result = relay(args, &resolved, (inherited, former), signals, &log);
    log.flush();
    result
}

fn relay(
    args: &RelayArgs,
    Resolved { config, admin, .. }: &Resolved,
    origin: Origin,
    signals: Signals,
    log: &Log,
) -> Result<ExitCode, CommandError> {
    raise_descriptor_limit();
    let manager = Manager::of_environment();
    let (sender, events) = mpsc::channel();
    let wishes = sender.clone();
    // Where nobody hears a wish any more, the process is about to end, and the answer says so.
    let desk = Arc::new(Desk::new(move |wish| drop(wishes.send(Event::Wish(wish)))));
    signals
        .watch(sender.clone(), Arc::clone(&desk), log.clone())
        .map_err(|error| CommandError::Failed(format!("cannot start a thread for signals: {error}")))?;
    let ledger = match start(config, admin, origin, sender.clone(), &events)? {
        Start::GivenUp => Ledger::default(),
        Start::Running { begun: Begun { relay, opened }, end } => {
            announce(&relay, config, &opened);
            desk.show(relay.view());
            desk.show_config(to_json(config, admin));
            let mut server = Server::new(Arc::clone(&desk));
            answer(&mut server, admin, opened)?;
            let service = Service {
                relay: *relay,
                server,
                stages: Stages::new(Arc::clone(&desk), manager),
                desk,
                args,
                sender,
                events,
                tasks: VecDeque::new(),
                reloading: None,
            };
            let status_line = log.is_terminal() && args.log_format == crate::cli::LogFormat::Text;
            match service.run(end, status_line.then_some(log)) {
                Ended::Drained(ledger) => ledger,
                // The process that ends the chain tells where every frame went.
                Ended::HandedOver => return Ok(ExitCode::SUCCESS),
            }
        }
    };
    log_ledger(&ledger);
    if let Some(path) = &args.summary {
        write_summary(path, &ledger)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers at the admin addresses. Those that were configured must be had.
fn answer(server: &mut Server, admin: &AdminConfig, opened: Opened) -> Result<(), CommandError> {
    let is_default = admin.listen.is_none();
    let answered = server.adopt(admin.clone(), opened);
    server.own();
    match answered {
        Err(error) if is_default => warn!("nobody answers at the admin addresses: {error}"),
        Err(error) => {
            return Err(CommandError::Failed(format!("nobody answers at the admin addresses: {error}")));
        }
        Ok(()) => {}
    }
    Ok(())
}

fn announce(relay: &Relay, config: &RelayConfig, opened: &Opened) {
    for address in opened.addresses() {
        info!(%address, "admin");
    }
    for address in &opened.busy {
        info!(
            "another process has the default admin address {address}: `admin` or --admin gives this one its own"
        );
    }
    for warning in &opened.warnings {
        warn!("{warning}; `admin` or --admin names another address, or none");
    }
    for (input, address) in relay.listeners() {
        info!(input, %address, "listening");
    }
    for (output, address) in relay.output_listeners() {
        info!(output, %address, "listening for subscribers");
    }
    for input in &config.inputs {
        for dial in &input.dial {
            info!(input = input.name, %dial, "dialling");
        }
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
            dials_failed = (input.dials_failed > 0).then_some(input.dials_failed),
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
