//! Batches and logs for the unit tests of a spool.

use std::collections::VecDeque;

use crate::batch::connection::ConnectionId;
use crate::protocol::FrameBatch;
use crate::spool::config::SpoolConfig;
use crate::spool::config::SyncPolicy;
use crate::spool::log::Log;
use crate::spool::log::LogFiles;
use crate::spool::moment::Moment;
use crate::spool::numbered::NumberedBatch;
use crate::spool::sim::SimFolder;

/// Limits of a small spool: segments of 64 KiB.
pub(super) fn config(sync: SyncPolicy) -> SpoolConfig {
    SpoolConfig { max: 512 << 10, min_free: 0, sync, ..SpoolConfig::default() }
}

/// An empty log.
pub(super) fn empty_log(folder: &SimFolder, sync: SyncPolicy) -> Log<SimFolder> {
    let files = LogFiles {
        id: [7; 16],
        content_type: None,
        segments: VecDeque::new(),
        segment_next: 1,
        aside: VecDeque::new(),
        head: 0,
    };
    Log::new(folder.clone(), config(sync), files)
}

/// `frames` frames of 1000 payload bytes.
pub(super) fn batch(frames: usize, now: Moment) -> FrameBatch {
    FrameBatch::from_payloads(vec![[b'x'; 1000]; frames], now.instant).expect("short payloads")
}

/// The same, with the next numbers of the log.
pub(super) fn numbered(log: &mut Log<SimFolder>, frames: usize, now: Moment) -> NumberedBatch {
    let batch = batch(frames, now);
    NumberedBatch::new(log.take_numbers(batch.frames()), (ConnectionId::default(), batch), now)
}
