//! How a spool stands.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::observability::SpoolLedger;
use crate::observability::age::Oldest;

/// How the spool of one lane stands. Set by the stage that has the spool.
#[derive(Debug, Default)]
pub(crate) struct SpoolAccount {
    pub(crate) degraded: AtomicBool,
    pub(crate) frames_recovered: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) bytes_unsynced: AtomicU64,
    pub(crate) files_set_aside: AtomicU64,
    /// The oldest of what is in the spool, or about to go there, and not with the lane.
    pub(crate) oldest: Oldest,
}

impl SpoolAccount {
    pub(crate) fn ledger(&self) -> SpoolLedger {
        SpoolLedger {
            degraded: self.degraded.load(Relaxed),
            frames_recovered: self.frames_recovered.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bytes_unsynced: self.bytes_unsynced.load(Relaxed),
            files_set_aside: self.files_set_aside.load(Relaxed),
        }
    }
}
