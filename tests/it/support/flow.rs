//! A writer that goes on while things change around it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::JoinHandle;

use tapster::transport::Address;

use super::numbered;
use super::peer::Peer;
use super::wait::eventually;
use super::wait::millis;

/// A writer that goes on until it is told to stop, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    writer: JoinHandle<()>,
}

impl Flow {
    pub(crate) fn begin(number: u32, address: &Address) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut peer = Peer::writer(address);
        let (told, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let writer = thread::spawn(move || {
            while !told.load(Relaxed) {
                let first = count.load(Relaxed);
                peer.send(&numbered::frames(number, first..first + 20));
                count.store(first + 20, Relaxed);
                thread::sleep(millis(1));
            }
            peer.finish();
        });
        Self { stop, sent, writer }
    }

    /// Waits until it has sent so many frames more.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, frames: u64) {
        let from = self.sent.load(Relaxed);
        eventually("the writer goes on", || self.sent.load(Relaxed) >= from + frames);
    }

    /// Ends the writer in order, and returns how many frames it has sent.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.writer.join().expect("the writer ends well");
        self.sent.load(Relaxed)
    }
}
