//! `sink`: consumers in threads of their own, until what was expected has come.

use std::fs;
use std::io::IsTerminal;
use std::io::stderr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use crate::clock::now_ns;
use crate::latency;
use crate::latency::Latency;
use crate::latency::percentile_distribution;
use crate::progress::Progress;
use crate::reader::Behaviour;
use crate::reader::Consumer;
use crate::reader::Live;
use crate::reader::Received;
use crate::report::SinkReport;
use crate::signal;
use crate::target::Place;
use crate::verify::Verifier;

/// What a sink listens on, and when it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinkConfig {
    pub(crate) listen: Vec<Place>,
    /// Whether each frame has to come to one of the listeners, and not to every one.
    pub(crate) group: bool,
    pub(crate) behaviour: Behaviour,
    /// Ends once so many frames have come, all listeners together, and the connections have ended.
    pub(crate) expect: Option<u64>,
    /// Ends once the last frames of so many sending connections have come to every listener, or to the group.
    pub(crate) streams: Option<u64>,
    /// Ends once frames have come and none has for so long.
    pub(crate) idle_exit: Option<Duration>,
    /// Ends after so long in any case.
    pub(crate) time_limit: Option<Duration>,
    /// Whether the report carries whole histograms.
    pub(crate) buckets: bool,
    /// Where the percentile distribution goes.
    pub(crate) hgrm: Option<PathBuf>,
    pub(crate) quiet: bool,
}

/// Runs a sink to its end. SIGINT and SIGTERM end it, too.
pub(crate) fn run(config: &SinkConfig) -> Result<SinkReport> {
    let interrupted = signal::on_interrupt()?;
    let mut threads = Vec::new();
    let mut lives = Vec::new();
    for place in &config.listen {
        let consumer = Consumer::bind(place.clone(), config.behaviour)?;
        eprintln!("listening on {}", consumer.address());
        lives.push(consumer.live());
        threads.push(thread::spawn(move || consumer.run()));
    }
    let end = wait_for_end(config, &lives, &interrupted);
    for live in &lives {
        live.stop.store(true, Relaxed);
    }

    let mut report = SinkReport::default();
    let mut merged = latency::empty();
    let mut group = Verifier::default();
    for thread in threads {
        let Received { report: consumer, latency, verifier } =
            thread.join().expect("a consumer does not panic").context("a consumer failed")?;
        merged.add(&latency).expect("histograms have the same bounds");
        report.frames += consumer.verdict.frames;
        report.problems.extend(consumer.session_problems());
        if config.group {
            group.merge(verifier);
        } else {
            report.problems.extend(consumer.verdict.problems(&consumer.address));
        }
        report.consumers.push(consumer);
    }
    if config.group {
        let verdict = report.group.insert(group.verdict());
        report.problems.extend(verdict.problems("together"));
    }
    if let Some(path) = &config.hgrm {
        fs::write(path, percentile_distribution(&merged))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    report.latency = Latency::of(&merged, config.buckets);
    if let Some(expect) = config.expect.filter(|expect| *expect != report.frames) {
        report.problems.push(format!("{expect} frames were expected, {} came", report.frames));
    }
    if end == End::TimeLimit {
        report.problems.push("the time limit was reached".to_owned());
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Idle,
    TimeLimit,
    Interrupted,
}

fn wait_for_end(config: &SinkConfig, lives: &[Arc<Live>], interrupted: &AtomicBool) -> End {
    let progress = Progress::new(!config.quiet && stderr().is_terminal(), config.expect);
    let started = Instant::now();
    let mut complete_at = None;
    let sum = |field: fn(&Live) -> u64| lives.iter().map(|live| field(live)).sum::<u64>();
    loop {
        let frames = sum(|live| live.frames.load(Relaxed));
        progress.update(frames);
        let all_streams = |streams| {
            let finished = |live: &Arc<Live>| live.streams_finished.load(Relaxed);
            if config.group {
                lives.iter().map(finished).sum::<u64>() >= streams
            } else {
                lives.iter().all(|live| finished(live) >= streams)
            }
        };
        let expected = config.expect.is_some_and(|expect| frames >= expect);
        if expected || config.streams.is_some_and(all_streams) {
            let since = *complete_at.get_or_insert_with(Instant::now);
            let connected = sum(|live| live.connections_open.load(Relaxed)) > 0;
            // What comes after the expected frames is to be seen, but a relay may stay connected without end.
            if !connected || since.elapsed() >= LINGER {
                return End::Complete;
            }
        }
        let read_at_ns = lives.iter().map(|live| live.read_at_ns.load(Relaxed)).max().unwrap_or(0);
        let idle = Duration::from_nanos(now_ns().saturating_sub(read_at_ns));
        let pausing = lives.iter().any(|live| live.stalled.load(Relaxed) || live.dead.load(Relaxed));
        if read_at_ns > 0 && !pausing && config.idle_exit.is_some_and(|limit| idle >= limit) {
            return End::Idle;
        }
        if config.time_limit.is_some_and(|limit| started.elapsed() >= limit) {
            return End::TimeLimit;
        }
        if interrupted.load(Relaxed) {
            return End::Interrupted;
        }
        thread::sleep(LOOK_EVERY);
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long connections may take to end after the expected frames.
const LINGER: Duration = Duration::from_millis(300);
