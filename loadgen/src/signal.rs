//! SIGINT and SIGTERM as a flag.

use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::Result;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process.
///
/// To be called before other threads are started: they inherit that the signals are blocked.
pub(crate) fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn({
        let flag = Arc::clone(&flag);
        move || {
            while signals.wait().is_ok() {
                if flag.swap(true, Relaxed) {
                    process::exit(1);
                }
            }
        }
    });
    Ok(flag)
}
