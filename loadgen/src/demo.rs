//! `demo`: the relay in this process, a generator, and three consumers of which one stalls and one dies and returns.

use std::io::IsTerminal;
use std::io::Write;
use std::io::stdout;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Args;
use tapster::config::units::parse_duration;
use tapster::input::InputConfig;
use tapster::observability::Ledger;
use tapster::observability::OutputLedger;
use tapster::output::Buffer;
use tapster::output::Destination;
use tapster::output::Lanes;
use tapster::output::OutputConfig;
use tapster::output::Reconnect;
use tapster::output::StreamsConfig;
use tapster::queue::WhenFull;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tapster::transport::Address;

use crate::payload::PayloadKind;
use crate::payload::Sizes;
use crate::payload::Wheel;
use crate::reader;
use crate::reader::Behaviour;
use crate::reader::Consumer;
use crate::report::ConsumerReport;
use crate::report::SendReport;
use crate::report::micros;
use crate::report::thousands;
use crate::schedule::Rate;
use crate::table::Table;
use crate::writer;
use crate::writer::Amount;
use crate::writer::Plan;

/// See the relay at work: three consumers of which one stalls and one dies and returns
///
/// Runs the relay inside this process on unix sockets in a temporary folder, sends dnstap frames through it, and
/// shows live what every consumer gets. Ends by itself after about 15 seconds with the relay's ledger checked against
/// what the consumers counted, and with 1 if they disagree.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How long to send
    #[arg(long, value_name = "T", default_value = "13s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Frames per second
    #[arg(long, value_name = "R", default_value = "100k")]
    pub(crate) rate: Rate,
}

/// A consumer on its thread, and the output that feeds it.
struct Part {
    name: &'static str,
    live: Arc<reader::Live>,
    thread: JoinHandle<Result<ConsumerReport>>,
}

/// Runs it; `false` if the relay's ledger and the consumers disagree.
pub(crate) fn run(args: &DemoArgs) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let rate = match args.rate {
        Rate::Max => RATE_FOR_MAX,
        Rate::PerSecond(rate) => rate,
    };
    let part_of = |part: f64| args.duration.mul_f64(part);
    let frames_by = |part: f64| (rate * part_of(part).as_secs_f64()) as u64;
    let bytes_in = |part: f64| frames_by(part) as usize * FRAME_LEN;

    // The stalled one overflows a queue that is too small for its stall; the other queue holds the whole absence.
    let cast = [
        ("fast", Behaviour::default(), QUEUE_MIN),
        (
            "stalling",
            Behaviour { stall: Some((frames_by(0.2), part_of(0.3))), ..Behaviour::default() },
            bytes_in(0.3) / 3,
        ),
        (
            "dying",
            Behaviour { die: Some((frames_by(0.45), part_of(0.25))), ..Behaviour::default() },
            bytes_in(0.25) * 2,
        ),
    ];
    let mut parts = Vec::new();
    let mut outputs = Vec::new();
    for (name, behaviour, queue) in cast {
        let address = Address::Unix(folder.path().join(format!("{name}.sock")));
        let consumer = Consumer::bind(address.clone().into(), behaviour)?;
        let live = consumer.live();
        let thread = thread::spawn(move || consumer.run().map(|received| received.report));
        parts.push(Part { name, live, thread });
        outputs.push(output(name, address, queue.max(QUEUE_MIN)));
    }
    let relay = start_relay(folder.path(), outputs)?;
    let (_, input) = relay.listeners().first().context("one input is configured")?;
    println!(
        "relay on {:?}, {} worker(s), {} frames/s of dnstap from {CONNECTIONS} connections; queues drop the oldest",
        relay.backend(),
        relay.workers(),
        thousands(rate as u64),
    );
    let generator = start_generator(args, input.clone())?;

    show_live(&relay, &parts, || generator.is_finished());
    let sent = generator.join().expect("the generator does not panic")?;
    let ledger = relay.drain();
    let mut reports = Vec::new();
    for part in parts {
        part.live.stop.store(true, Relaxed);
        reports.push((part.name, part.thread.join().expect("a consumer does not panic")?));
    }
    Ok(conclude(&sent, &ledger, &reports))
}

fn output(name: &str, to: Address, queue: usize) -> OutputConfig {
    let reconnect = Reconnect { min: Duration::from_millis(100), max: Duration::from_secs(1) };
    OutputConfig {
        name: name.to_owned(),
        buffer: Buffer::Memory { max: queue, when_full: WhenFull::DropOldest, lanes: Lanes::One },
        to: Destination::Streams(StreamsConfig { reconnect, ..StreamsConfig::from(to) }),
        ..OutputConfig::default()
    }
}

fn start_relay(folder: &Path, outputs: Vec<OutputConfig>) -> Result<Relay> {
    let listen = vec![Address::Unix(folder.join("tapster.sock"))];
    let inputs = vec![InputConfig { name: "demo".to_owned(), listen, ..InputConfig::default() }];
    Ok(Relay::start(RelayConfig { inputs, outputs, ..RelayConfig::default() })?)
}

fn start_generator(args: &DemoArgs, to: Address) -> Result<JoinHandle<Result<SendReport>>> {
    let wheel = Wheel::new(PayloadKind::Dnstap, &Sizes::Dnstap, 1)?;
    let plan = Plan {
        to: to.into(),
        connections: CONNECTIONS,
        amount: Amount::Duration(args.duration),
        rate: args.rate,
        bidirectional: true,
        write_size: 64 << 10,
        connect_timeout: PATIENCE,
        finish_timeout: PATIENCE,
        give_up: PATIENCE,
    };
    Ok(thread::spawn(move || writer::run(&plan, wheel, Arc::default())))
}

/// Draws a table again and again on a terminal, and a line now and then elsewhere.
fn show_live(relay: &Relay, parts: &[Part], is_over: impl Fn() -> bool) {
    let terminal = stdout().is_terminal();
    let every = if terminal { Duration::from_millis(250) } else { Duration::from_secs(1) };
    let started = Instant::now();
    let mut before: Vec<u64> = vec![0; parts.len()];
    let mut drawn_at = started;
    let mut lines_drawn = 0;
    while !is_over() {
        thread::sleep(every.min(LOOK_EVERY));
        if drawn_at.elapsed() < every {
            continue;
        }
        let seconds = drawn_at.elapsed().as_secs_f64();
        drawn_at = Instant::now();
        let ledger = relay.ledger();
        let rows: Vec<[String; 9]> = parts
            .iter()
            .zip(&ledger.outputs)
            .zip(&mut before)
            .map(|((part, output), before)| row(part, output, before, seconds))
            .collect();
        let text = if terminal {
            let heading =
                ["", "state", "received", "frames/s", "queued", "dropped", "oldest", "in relay p99", "p99"];
            let mut table = Table::new(heading);
            rows.into_iter().for_each(|row| table.row(row));
            format!("{:.0} s\n{}", started.elapsed().as_secs_f64(), table.text())
        } else {
            let lines = rows.iter().map(|row| {
                format!("{} {}, {}/s, {} dropped, oldest {}", row[0], row[1], row[3], row[5], row[6])
            });
            format!("{:>3.0} s: {}\n", started.elapsed().as_secs_f64(), lines.collect::<Vec<_>>().join("; "))
        };
        let mut out = stdout().lock();
        if lines_drawn > 0 && terminal {
            // Up to the first line of the last table, and clear from there.
            let _ = write!(out, "\x1b[{lines_drawn}A\x1b[J");
        }
        lines_drawn = text.lines().count();
        let _ = write!(out, "{text}");
        let _ = out.flush();
    }
}

fn row(part: &Part, output: &OutputLedger, before: &mut u64, seconds: f64) -> [String; 9] {
    let live = &part.live;
    let frames = live.frames.load(Relaxed);
    let per_second = (frames - *before) as f64 / seconds;
    *before = frames;
    let state = match (live.dead.load(Relaxed), live.stalled.load(Relaxed)) {
        (true, _) => "dead",
        (_, true) => "stalled",
        _ if live.connections_open.load(Relaxed) == 0 => "waiting",
        _ => "reading",
    };
    [
        part.name.to_owned(),
        state.to_owned(),
        thousands(frames),
        thousands(per_second as u64),
        thousands(output.frames_queued),
        thousands(output.frames_dropped.values().sum()),
        output.oldest_age_us.map_or_else(|| "-".to_owned(), |us| micros(us as f64)),
        micros(output.residence.p99_us as f64),
        micros(live.p99_ns.load(Relaxed) as f64 / 1e3),
    ]
}

/// Prints the ledger beside what the consumers counted; `false` if they disagree.
fn conclude(sent: &SendReport, ledger: &Ledger, reports: &[(&str, ConsumerReport)]) -> bool {
    let mut table = Table::new([
        "",
        "received",
        "sent",
        "dropped",
        "in relay p99",
        "consumer got",
        "missing",
        "lost at death",
        "p99",
    ]);
    let mut problems = sent.problems.clone();
    let taken: u64 = ledger.inputs.iter().map(|input| input.frames).sum();
    if taken != sent.frames {
        problems.push(format!("the generator sent {} frames, the relay took {taken}", sent.frames));
    }
    for (output, (name, report)) in ledger.outputs.iter().zip(reports) {
        let verdict = &report.verdict;
        table.row([
            (*name).to_owned(),
            thousands(output.frames_received),
            thousands(output.frames_sent),
            thousands(output.frames_dropped.values().sum()),
            micros(output.residence.p99_us as f64),
            thousands(verdict.frames),
            thousands(verdict.missing),
            thousands(output.frames_sent.saturating_sub(verdict.frames)),
            micros(report.latency.p99_us),
        ]);
        problems.extend(
            disagreements(sent.frames, output, report).iter().map(|problem| format!("{name}: {problem}")),
        );
    }
    println!("\nthe relay's ledger, in frames, beside what the consumers counted:\n{}", table.text());
    for problem in &problems {
        println!("wrong: {problem}");
    }
    if problems.is_empty() {
        println!(
            "verified: every one of {} frames is accounted for at every consumer",
            thousands(sent.frames)
        );
    }
    problems.is_empty()
}

/// Where an output's account and its consumer's contradict each other, or a frame came wrongly.
fn disagreements(sent: u64, output: &OutputLedger, report: &ConsumerReport) -> Vec<String> {
    let verdict = &report.verdict;
    let dropped: u64 = output.frames_dropped.values().sum();
    // What the buffers of a dead connection held was sent, and never read.
    let lost_at_death = output.frames_sent.checked_sub(verdict.frames);
    let died = report.sessions_unclean > 0;
    let checks = [
        (output.balances(), "the account does not balance"),
        (output.frames_received == sent, "the output was not given every frame"),
        (output.frames_queued == 0, "frames are left in the queue"),
        (lost_at_death.is_some_and(|lost| died || lost == 0), "the consumer did not count what was sent"),
        (
            lost_at_death.is_some_and(|lost| dropped + lost == verdict.missing),
            "frames are missing that were neither dropped nor lost with a connection",
        ),
        (verdict.unfinished == 0, "the last frame of a connection did not arrive"),
        (verdict.duplicate == 0, "frames came twice"),
        (verdict.reordered == 0, "frames came out of order"),
        (verdict.corrupted == 0, "frames were altered"),
        (report.sessions_truncated == 0, "a session ended within a frame"),
        (report.protocol_errors.is_empty(), "the relay broke the protocol"),
    ];
    checks.iter().filter(|(holds, _)| !holds).map(|(_, problem)| (*problem).to_owned()).collect()
}

const CONNECTIONS: u16 = 4;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(10);
/// For the sizes of queues where there is no rate to reckon with.
const RATE_FOR_MAX: f64 = 1e6;
/// Mean length of an encoded frame, roughly.
const FRAME_LEN: usize = 160;
const QUEUE_MIN: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    use crate::verify::Verdict;

    fn accounts(dropped: u64, frames_sent: u64, got: u64, missing: u64) -> (OutputLedger, ConsumerReport) {
        let output = OutputLedger {
            frames_received: frames_sent + dropped,
            frames_sent,
            frames_dropped: [("queue_full".to_owned(), dropped)].into(),
            ..OutputLedger::default()
        };
        let verdict = Verdict { frames: got, missing, ..Verdict::default() };
        (output, ConsumerReport { verdict, ..ConsumerReport::default() })
    }

    #[test]
    fn accounts_that_agree_have_no_disagreement() {
        let (output, report) = accounts(10, 90, 90, 10);
        assert!(disagreements(100, &output, &report).is_empty());
        let (output, report) = accounts(10, 90, 85, 15);
        let report = ConsumerReport { sessions_unclean: 1, ..report };
        assert!(disagreements(100, &output, &report).is_empty(), "five were lost with the connection");
    }

    #[test]
    fn a_frame_lost_without_a_death_or_counted_wrongly_is_a_disagreement() {
        let (output, report) = accounts(10, 90, 89, 11);
        assert_eq!(disagreements(100, &output, &report).len(), 1);
        let (output, report) = accounts(0, 100, 100, 1);
        assert_eq!(disagreements(100, &output, &report).len(), 1);
        let (output, report) = accounts(0, 99, 100, 0);
        assert!(!disagreements(99, &output, &report).is_empty());
    }
}
