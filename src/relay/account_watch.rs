//! Looks at all accounts twice a second, and tells what is lost, left out or held up. On a thread of its own: it tells of
//! workers and disks that hang, too.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::observability::loss_log::LossLog;
use crate::observability::wait_log::InputWait;
use crate::observability::wait_log::InputWaitLog;
use crate::observability::wait_log::OutputWaitLog;
use crate::relay::accounts::Accounts;
use crate::relay::accounts::OutputEntry;

/// The thread that looks. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Watch {
    lines: Arc<Mutex<Lines>>,
    _alive: mpsc::Sender<()>,
}

/// What was told of each input and output.
#[derive(Debug)]
struct Lines {
    accounts: Arc<Accounts>,
    inputs: Vec<(LossLog, InputWaitLog)>,
    outputs: Vec<(LossLog, OutputWaitLog)>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn start(accounts: Arc<Accounts>) -> io::Result<Self> {
        let lines = Arc::new(Mutex::new(Lines::new(accounts)));
        let (alive, ended) = mpsc::channel::<()>();
        let watched = Arc::clone(&lines);
        let watch = move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                watched.lock().expect(UNPOISONED).look(Instant::now());
            }
        };
        thread::Builder::new().name("tapster-watch".to_owned()).spawn(watch)?;
        Ok(Self { lines, _alive: alive })
    }

    /// Tells the rest, after the end of everything else.
    pub(crate) fn end(&self) {
        self.lines.lock().expect(UNPOISONED).end();
    }
}

impl Lines {
    fn new(accounts: Arc<Accounts>) -> Self {
        let inputs = accounts.inputs.iter().map(|input| &input.name);
        let inputs = inputs.map(|name| (LossLog::of_input(name), InputWaitLog::new(name))).collect();
        let outputs = accounts.outputs.iter().map(|output| &output.name);
        let outputs = outputs.map(|name| (LossLog::of_output(name), OutputWaitLog::new(name))).collect();
        Self { accounts, inputs, outputs }
    }

    fn look(&mut self, now: Instant) {
        for (output, (losses, waits)) in self.accounts.outputs.iter().zip(&mut self.outputs) {
            losses.look(&output.dropped(), None, now);
            waits.look(&output.wait(now), now);
            output.tell_left_out(Some(now));
        }
        for (input, (losses, waits)) in self.accounts.inputs.iter().zip(&mut self.inputs) {
            let peer = input.oversize_peer();
            losses.look(&input.lost(), peer.as_deref(), now);
            let oldest = input.held(now);
            let blocks = |output: &&OutputEntry| oldest.is_some() && output.blocks();
            let names = self.accounts.outputs.iter().filter(blocks).map(|output| output.name.clone());
            waits.look(&InputWait { oldest, blocked_by: names.collect() }, now);
        }
    }

    fn end(&mut self) {
        for (output, (losses, _)) in self.accounts.outputs.iter().zip(&mut self.outputs) {
            losses.end(&output.dropped());
            output.tell_left_out(None);
        }
        for (input, (losses, _)) in self.accounts.inputs.iter().zip(&mut self.inputs) {
            losses.end(&input.lost());
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A panic in there would be one of the log.
const UNPOISONED: &str = "no panic while it is held";
