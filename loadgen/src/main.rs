//! The `loadgen` command: load generator, verifying sink and benchmark.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use serde::Serialize;

use crate::cli::Cli;
use crate::cli::Command;
use crate::cli::SinkArgs;
use crate::reader::Behaviour;
use crate::sink::SinkConfig;

mod bench;
mod cli;
mod clock;
mod compare;
mod connection;
mod demo;
mod dnstap;
mod floor;
mod idle;
mod latency;
mod load;
mod mark;
mod payload;
mod plot;
mod poller;
mod progress;
mod reader;
mod report;
mod schedule;
mod send;
mod signal;
mod sink;
mod socket;
mod stream;
mod table;
mod tally;
mod target;
mod units;
mod verify;
mod writer;

fn main() -> ExitCode {
    raise_descriptor_limit();
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Thousands of connections need as many descriptors: takes what the administrator allows.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Runs a command; `false` if what it looked at was not right.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Send(args) => {
            let report = send::run(&args)?;
            print(&report, &report.text(), args.json)?;
            Ok(report.ok)
        }
        Command::Sink(args) => {
            let report = sink::run(&sink_config(&args))?;
            print(&report, &report.text(), args.json)?;
            Ok(report.ok)
        }
        Command::Floor(args) => {
            floor::run(&args.listen, &args.to, args.read_size, args.together).map(|()| true)
        }
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Idle(args) => {
            let report = idle::run(&args)?;
            print(&report, &report.text(), args.json)?;
            Ok(report.ok)
        }
        Command::Plot(args) => plot::run(&args).map(|()| true),
        Command::Compare(args) => compare::run(&args.before, &args.after).map(|()| true),
    }
}

fn sink_config(args: &SinkArgs) -> SinkConfig {
    let ends_by_count = args.expect.is_some() || args.streams.is_some();
    SinkConfig {
        listen: args.listen.clone(),
        group: args.group,
        behaviour: Behaviour {
            read_rate: args.read_rate,
            stall: args.stall_after.zip(args.stall_for),
            die: args.die_after.zip(args.revive_after),
        },
        expect: args.expect,
        streams: args.streams,
        idle_exit: args.idle_exit,
        time_limit: args.time_limit.or(ends_by_count.then_some(TIME_LIMIT)),
        buckets: args.buckets,
        hgrm: args.hgrm.clone(),
        quiet: args.json,
    }
}

fn print(report: &impl Serialize, text: &str, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        print!("{text}");
    }
    Ok(())
}

const TIME_LIMIT: Duration = Duration::from_secs(60);
