//! `idle`: what connections cost that have begun and send nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Args;
use serde::Deserialize;
use serde::Serialize;
use tapster::config::units::parse_duration;
use tapster::protocol::WriterConfig;
use tapster::transport::Address;

use crate::bench::process::Class;
use crate::bench::process::Process;
use crate::bench::relay::RelayArgs;
use crate::bench::transport::Transport;
use crate::bench::transport::free_address;
use crate::connection::Connection;
use crate::report;
use crate::socket::connect;
use crate::stream::Stream;

/// Measure what idle connections cost the relay
///
/// Starts the relay with one output, opens the connections up to START, and compares memory and CPU time over a while in
/// which nothing is sent with those of the relay before. Then ends every connection with STOP. Memory is what the
/// process has resident; the kernel's part of a socket is not in it. Exits with 1 if a connection broke.
///
/// Example: loadgen idle --connections 10000 --hold 10s
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    /// Connections to open
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// What the connections are made of
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    /// How long to look, without connections and with them
    #[arg(long, value_name = "T", default_value = "10s", value_parser = parse_duration)]
    pub(crate) hold: Duration,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the connections cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdleReport {
    /// Whether every connection lasted and its STOP was answered.
    pub(crate) ok: bool,
    pub(crate) connections: u16,
    pub(crate) hold_seconds: f64,
    /// CPU time of the relay while nobody was connected, in milliseconds.
    pub(crate) cpu_before_ms: f64,
    /// CPU time of the relay in as much time with the connections, in milliseconds.
    pub(crate) cpu_ms: f64,
    /// Resident memory, in bytes, while nobody was connected.
    pub(crate) resident_before: u64,
    /// Resident memory, in bytes, with the connections.
    pub(crate) resident: u64,
    /// The difference for each connection, in bytes.
    pub(crate) bytes_per_connection: f64,
    /// What went wrong, by connection.
    pub(crate) problems: Vec<String>,
}

/// Starts everything, looks, and ends it.
pub(crate) fn run(args: &IdleArgs) -> Result<IdleReport> {
    let folder = tempfile::tempdir()?;
    let mut sink = Process::start(&mut sink_command(folder.path())?, None)?;
    let output = sink.addresses(1)?;
    let input = free_address(args.transport, folder.path())?;
    let log = folder.path().join("log");
    let mut command = args.relay.command(Class::Normal, &input, &output)?;
    command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut relay = Process::start(&mut command, None)?;
    let listening = relay.await_listening(&input);
    listening.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;

    settle(&mut relay)?;
    let (resident_before, cpu_before) = look(&mut relay, args.hold)?;
    let mut connections = open(&input, args.connections)?;
    settle(&mut relay)?;
    let (resident, cpu) = look(&mut relay, args.hold)?;
    let problems = close(&mut connections);
    relay.terminate()?;

    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(IdleReport {
        ok: problems.is_empty(),
        connections: args.connections,
        hold_seconds: args.hold.as_secs_f64(),
        cpu_before_ms: milliseconds(cpu_before),
        cpu_ms: milliseconds(cpu),
        resident_before,
        resident,
        bytes_per_connection: (resident as f64 - resident_before as f64) / f64::from(args.connections),
        problems,
    })
}

impl IdleReport {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} idle connections: {} of memory each ({} before, {} with them)\nCPU in {} s: {:.1} ms, {:.1} ms before\n",
            self.connections,
            report::bytes(self.bytes_per_connection.max(0.0) as u64),
            report::bytes(self.resident_before),
            report::bytes(self.resident),
            self.hold_seconds,
            self.cpu_ms,
            self.cpu_before_ms,
        );
        report::add_problems(&mut text, &self.problems);
        text
    }
}

fn sink_command(folder: &Path) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    let listen = Address::Unix(folder.join("out.sock"));
    command.args(["sink", "--json", "--listen", &listen.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Waits until the relay has done what there was to do: it has used no CPU for a while, or never stops.
fn settle(relay: &mut Process) -> Result<()> {
    let give_up_at = Instant::now() + SETTLE_MAX;
    let mut quiet_since = Instant::now();
    let mut before = relay.cpu_time()?;
    while quiet_since.elapsed() < QUIET && Instant::now() < give_up_at {
        thread::sleep(LOOK_EVERY);
        let now = relay.cpu_time()?;
        if now != before {
            (before, quiet_since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Memory resident after `hold`, and CPU time used in it.
fn look(relay: &mut Process, hold: Duration) -> Result<(u64, Duration)> {
    let before = relay.cpu_time()?;
    thread::sleep(hold);
    let cpu = relay.cpu_time()?.saturating_sub(before);
    Ok((relay.memory_resident().context("the relay has ended")?, cpu))
}

/// Connects and goes as far as START with each of them: all READY first, so that handshakes overlap.
fn open(to: &Address, connections: u16) -> Result<Vec<Connection>> {
    let config = Arc::new(WriterConfig {
        handshake_timeout: PATIENCE,
        finish_timeout: PATIENCE,
        ..WriterConfig::default()
    });
    let begin = |_| {
        let socket = connect(to, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Connection::begin(Stream::new(socket, None), Arc::clone(&config))
    };
    let mut connections = (0..connections).map(begin).collect::<Result<Vec<_>>>()?;
    for (index, connection) in connections.iter_mut().enumerate() {
        connection.await_start().with_context(|| format!("handshake on connection {index} to {to}"))?;
    }
    Ok(connections)
}

/// Ends every connection; what went wrong with any.
fn close(connections: &mut [Connection]) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, connection) in connections.iter_mut().enumerate() {
        let finished = connection.check_silence().and_then(|()| {
            connection.stop()?;
            while !connection.read_finish()? {}
            Ok(())
        });
        if let Err(error) = finished {
            problems.push(format!("connection {index}: {error:#}"));
        }
    }
    problems
}

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const QUIET: Duration = Duration::from_millis(300);
/// Handshakes of thousands of connections take a second or two.
const SETTLE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_tells_memory_and_cpu() {
        let report = IdleReport {
            ok: true,
            connections: 1000,
            hold_seconds: 10.0,
            cpu_before_ms: 0.5,
            cpu_ms: 1.25,
            resident_before: 5 << 20,
            resident: 9 << 20,
            bytes_per_connection: 4194.3,
            problems: Vec::new(),
        };
        let text = report.text();
        assert!(text.contains("1000 idle connections: 4194 B") && text.contains("9216.0 KiB"), "{text}");
        assert!(text.contains("1.2 ms, 0.5 ms before") && text.ends_with("nothing wrong\n"), "{text}");
    }
}
