//! `tapster run`: relay until a signal, then drain.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::process;
use std::process::ExitCode;
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
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tapster::transport::return_freed_memory;
use tokio::runtime;
use tokio::runtime::Runtime;
use tokio::select;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::interval;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::cli::RelayArgs;
use crate::commands::CommandError;
use crate::commands::resolve_args;

/// Relays until SIGTERM or SIGINT, drains, and tells where every frame went.
pub(crate) fn run(args: &RelayArgs) -> Result<ExitCode, CommandError> {
    return_freed_memory();
    let Resolved { config, warnings } = resolve_args(args)?;
    let failed = |error: io::Error| CommandError::Failed(error.to_string());
    let log = Log::start(args.log_format.into(), args.log_level).map_err(failed)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let result = relay(args, &config, &log);
    log.flush();
    result
}

fn relay(args: &RelayArgs, config: &RelayConfig, log: &Log) -> Result<ExitCode, CommandError> {
    let failed = |error: io::Error| CommandError::Failed(error.to_string());
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // Before anything is bound: a signal from now on drains.
    let mut signals = Signals::new(&runtime).map_err(failed)?;
    raise_descriptor_limit();

    let relay = Relay::start(config.clone()).map_err(|error| CommandError::Failed(error.to_string()))?;
    announce(&relay, config);
    let status_line = log.is_terminal() && args.log_format == crate::cli::LogFormat::Text;
    let name = runtime.block_on(first_signal(&mut signals, &relay, status_line.then_some(log)));

    let timeout = format_duration(config.drain_timeout);
    info!("{name}: draining, at most {timeout}; a second signal ends at once");
    end_at_second_signal(runtime, signals, log.clone()).map_err(failed)?;
    let ledger = relay.drain();
    log_ledger(&ledger);
    if let Some(path) = &args.summary {
        write_summary(path, &ledger)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new(runtime: &Runtime) -> io::Result<Self> {
        let _context = runtime.enter();
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for a signal and meanwhile keeps the status line up to date, if there is one.
async fn first_signal(signals: &mut Signals, relay: &Relay, terminal: Option<&Log>) -> &'static str {
    let Some(log) = terminal else { return signals.next().await };
    let mut status = StatusLine::new(Instant::now());
    let mut ticks = interval(STATUS_INTERVAL);
    loop {
        select! {
            name = signals.next() => {
                log.show_status(String::new());
                return name;
            }
            _ = ticks.tick() => log.show_status(status.text(Instant::now(), &relay.ledger())),
        }
    }
}

fn end_at_second_signal(runtime: Runtime, mut signals: Signals, log: Log) -> io::Result<()> {
    let wait = move || {
        let name = runtime.block_on(signals.next());
        error!("{name} again: ending at once, what waits in memory is lost");
        log.flush();
        process::exit(1);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
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

fn write_summary(path: &Path, ledger: &Ledger) -> Result<(), CommandError> {
    let mut json = serde_json::to_string(ledger).expect("a ledger is plain data");
    json.push('\n');
    let written =
        if path == Path::new("-") { io::stdout().write_all(json.as_bytes()) } else { fs::write(path, json) };
    written.map_err(|error| {
        CommandError::Failed(format!("the summary cannot be written to {}: {error}", path.display()))
    })
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
