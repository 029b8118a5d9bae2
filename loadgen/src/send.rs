//! `send`: the generator as a command.

use std::io::IsTerminal;
use std::io::stderr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::cli::Mode;
use crate::cli::SendArgs;
use crate::payload::Wheel;
use crate::progress::Progress;
use crate::report::SendReport;
use crate::writer;
use crate::writer::Amount;
use crate::writer::Live;
use crate::writer::Plan;

/// Builds the frames, sends them, and shows how far it is.
pub(crate) fn run(args: &SendArgs) -> Result<SendReport> {
    let wheel = Wheel::new(args.payload, &args.load.sizes, args.seed)?;
    let plan = Plan {
        to: args.to.clone(),
        connections: args.load.connections,
        amount: args.frames.map_or(Amount::Duration(args.duration), Amount::Frames),
        rate: args.load.rate,
        bidirectional: args.mode == Mode::Bidirectional,
        write_size: args.load.write_size,
        connect_timeout: args.connect_timeout,
        finish_timeout: args.finish_timeout,
        give_up: args.give_up,
    };
    let live = Arc::new(Live::default());
    if args.json || !stderr().is_terminal() {
        return writer::run(&plan, wheel, live);
    }
    let progress = Progress::new(true, args.frames);
    let generator = thread::spawn({
        let live = Arc::clone(&live);
        move || writer::run(&plan, wheel, live)
    });
    while !generator.is_finished() {
        progress.update(live.frames.load(Relaxed));
        thread::sleep(Duration::from_millis(50));
    }
    generator.join().expect("the generator does not panic")
}
