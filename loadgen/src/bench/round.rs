//! One contender, once: sink, contender and generator started, measured and ended.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use tapster::transport::Address;

use crate::bench::args::BenchArgs;
use crate::bench::contender::Contender;
use crate::bench::peer::Peer;
use crate::bench::process::Pin;
use crate::bench::process::Process;
use crate::bench::result::Round;
use crate::bench::transport::Transport;
use crate::bench::transport::free_address;
use crate::report::SendReport;
use crate::report::SinkReport;
use crate::schedule::Rate;

/// Runs it.
pub(crate) fn run(args: &BenchArgs, contender: &Contender, number: u32, pin: Option<&Pin>) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let load_cpus = pin.map(|pin| &pin.load[..]);
    let relay_cpus = pin.map(|pin| &pin.relay[..]);

    // The generator has one place to write to: without a relay, that is one sink.
    let outputs = if *contender == Contender::Peer(Peer::Direct) { 1 } else { args.outputs };
    let mut sink = Process::start(&mut sink_command(args, outputs, folder.path())?, load_cpus)?;
    let addresses = sink.addresses(outputs)?;
    let mut input = free_address(args.transport, folder.path())?;
    let log = folder.path().join("log");
    let mut relay = match contender.command(args, &input, &addresses, folder.path())? {
        Some(mut command) => {
            command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
            let mut relay = Process::start(&mut command, relay_cpus)?;
            let listening = relay.await_listening(&input);
            listening.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
            Some(relay)
        }
        None => {
            input.clone_from(addresses.first().context("the sink listens once")?);
            None
        }
    };

    let before = relay.as_mut().map(Process::cpu_time).transpose()?;
    let send = Process::start(&mut send_command(args, &input)?, load_cpus)?.output()?;
    let sink = sink.output()?;
    let after = relay.as_mut().map(Process::cpu_time).transpose()?;
    let memory_peak = relay.as_mut().and_then(Process::memory_peak);
    if let Some(relay) = relay {
        relay.terminate()?;
    }

    let sent: SendReport = serde_json::from_slice(&send.stdout)
        .with_context(|| format!("generator: {}", String::from_utf8_lossy(&send.stderr)))?;
    let received: SinkReport = serde_json::from_slice(&sink.stdout).context("the sink did not report")?;
    let arrived: u64 = received.consumers.iter().map(|consumer| consumer.verdict.frames).sum();
    Ok(Round {
        number,
        contender: contender.name().to_owned(),
        frames: sent.frames,
        bytes: sent.bytes,
        cpu_ns: after.zip(before).map(|(after, before)| after.saturating_sub(before).as_nanos() as u64),
        memory_peak,
        lost: (sent.frames * outputs as u64).saturating_sub(arrived),
        frames_per_second: sent.frames_per_second,
        latency: received.latency,
        problems: [sent.problems, received.problems].concat(),
    })
}

fn sink_command(args: &BenchArgs, outputs: usize, folder: &Path) -> Result<Command> {
    let mut command = args.class.command(env::current_exe()?);
    command.args(["sink", "--json"]);
    if args.load.rate != Rate::Max || args.hgrm.is_some() {
        command.arg("--buckets");
    }
    command.args(["--streams", &args.load.connections.to_string()]);
    // What lost its last frames ends by silence; the dnstap command keeps its last ones for five seconds.
    command.args(["--idle-exit", "10s", "--time-limit"]);
    command.arg(format!("{}ms", (args.duration + TIME_LIMIT).as_millis()));
    for index in 0..outputs {
        let listen = match args.transport {
            Transport::Unix => Address::Unix(folder.join(format!("out{index}.sock"))),
            Transport::Tcp => Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        };
        command.args(["--listen", &listen.to_string()]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn send_command(args: &BenchArgs, to: &Address) -> Result<Command> {
    let mut command = args.class.command(env::current_exe()?);
    command.args(["send", "--json", "--to", &to.to_string()]);
    command.arg(format!("--duration={}ms", args.duration.as_millis()));
    command.args(args.load.to_args());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

const TIME_LIMIT: Duration = Duration::from_secs(60);
