//! What one input took in.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::observability::InputLedger;
use crate::observability::age::Oldest;
use crate::observability::rejection::Rejection;

/// What one input took in on one worker.
#[derive(Debug, Default)]
pub(crate) struct InputAccount {
    connections: AtomicU64,
    dials_failed: AtomicU64,
    // Connections that another process had before, and those that it has now.
    taken_over: AtomicU64,
    handed_over: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    unrouted: AtomicU64,
    oversize: AtomicU64,
    controls_ignored: AtomicU64,
    bytes_after_stop: AtomicU64,
    ended: Mutex<BTreeMap<&'static str, u64>>,
    // By number of the reason.
    rejected: [AtomicU64; Rejection::ALL.len()],
    // Who sent a frame over the limit, most recently.
    oversize_peer: Mutex<Option<String>>,
    /// The oldest frame that an output keeps from going on. Looked for once a second.
    pub(crate) held: Oldest,
}

impl InputAccount {
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// An attempt to connect, or to look up where to, came to nothing.
    pub(crate) fn dial_failed(&self) {
        self.dials_failed.fetch_add(1, Relaxed);
    }

    /// A connection that another process has accepted and counted.
    pub(crate) fn taken_over(&self) {
        self.taken_over.fetch_add(1, Relaxed);
    }

    /// Another process goes on with a connection, and counts its end.
    pub(crate) fn handed_over(&self) {
        self.handed_over.fetch_add(1, Relaxed);
    }

    pub(crate) fn taken(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn unrouted(&self, frames: u64) {
        self.unrouted.fetch_add(frames, Relaxed);
    }

    /// Frames over the limit, control frames of unknown type, and bytes after STOP were left out.
    pub(crate) fn left_out(&self, oversize: u64, controls_ignored: u64, bytes_after_stop: u64) {
        self.oversize.fetch_add(oversize, Relaxed);
        self.controls_ignored.fetch_add(controls_ignored, Relaxed);
        self.bytes_after_stop.fetch_add(bytes_after_stop, Relaxed);
    }

    /// This peer sent a frame over the limit.
    pub(crate) fn oversize_from(&self, peer: &str) {
        let mut last = self.oversize_peer.lock().expect(UNPOISONED);
        if last.as_deref() != Some(peer) {
            *last = Some(peer.to_owned());
        }
    }

    pub(crate) fn oversize_peer(&self) -> Option<String> {
        self.oversize_peer.lock().expect(UNPOISONED).clone()
    }

    pub(crate) fn oversize_now(&self) -> u64 {
        self.oversize.load(Relaxed)
    }

    pub(crate) fn unrouted_now(&self) -> u64 {
        self.unrouted.load(Relaxed)
    }

    /// A connection has ended, once for each.
    pub(crate) fn ended(&self, reason: &'static str) {
        *self.ended.lock().expect(UNPOISONED).entry(reason).or_default() += 1;
    }

    /// A connection was refused. It has ended, too.
    pub(crate) fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }

    /// Adds this worker's share to the ledger of the input.
    pub(crate) fn add_to(&self, ledger: &mut InputLedger) {
        let ended = self.ended.lock().expect(UNPOISONED).clone();
        let connections = self.connections.load(Relaxed);
        ledger.connections += connections;
        ledger.dials_failed += self.dials_failed.load(Relaxed);
        let gone = ended.values().sum::<u64>() + self.handed_over.load(Relaxed);
        ledger.connections_open += connections + self.taken_over.load(Relaxed) - gone;
        ledger.frames += self.frames.load(Relaxed);
        ledger.bytes += self.bytes.load(Relaxed);
        ledger.frames_unrouted += self.unrouted.load(Relaxed);
        ledger.frames_oversize += self.oversize.load(Relaxed);
        ledger.control_frames_ignored += self.controls_ignored.load(Relaxed);
        ledger.bytes_after_stop += self.bytes_after_stop.load(Relaxed);
        for (reason, count) in ended {
            *ledger.sessions_ended.entry(reason.to_owned()).or_default() += count;
        }
        for (reason, count) in Rejection::ALL.iter().zip(&self.rejected) {
            let count = count.load(Relaxed);
            if count > 0 {
                *ledger.connections_rejected.entry(reason.name().to_owned()).or_default() += count;
            }
        }
    }
}

/// No panic is possible while a lock is held.
const UNPOISONED: &str = "no panic while it is held";
