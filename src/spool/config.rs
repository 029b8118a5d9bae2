//! What an operator decides about a spool.

use std::path::PathBuf;
use std::time::Duration;

use crate::spool::record::RECORD_LEN_MAX;
use crate::spool::record::RecordHeader;
use crate::spool::segment::SEGMENT_HEADER_LEN;

/// A spool: where it is, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// The folder of the spool, its own; created where it is missing, within a folder that is there.
    pub folder: PathBuf,
    /// Limits and policies.
    pub config: SpoolConfig,
}

/// Limits and policies of one spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Most bytes on disk, files that were set aside included. Default 10 GiB.
    pub max: u64,
    /// Frames older than this are dropped, in steps of an eighth of it, and files that were set aside removed: dnstap
    /// holds addresses of clients. At least a second. Default 7 days.
    pub max_age: Duration,
    /// Bytes of the file system that are left to others. Default 1 GiB.
    pub min_free: u64,
    /// When frames are safe from a power cut. Default: every 100 ms.
    pub sync: SyncPolicy,
    /// What happens to frames that find no room. Default: [`OnFull::DropOldest`].
    pub on_full: OnFull,
}

/// When frames are made durable. A kill of the process loses nothing under any of these: the kernel has the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the kernel pleases: a power cut loses up to half a minute of frames.
    None,
    /// A power cut loses no more than the frames of this time (or of 16 MiB, if they come sooner). Those that are
    /// acknowledged within it are not made durable at all.
    Interval(Duration),
    /// Before [`append`](crate::spool::Spool::append) returns: a power cut loses nothing that was appended.
    Batch,
}

/// What a full spool does with data. Every frame lost by it is reported, reason
/// [`LossReason::Full`](crate::spool::LossReason::Full).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest frames are dropped, a whole segment at a time.
    #[default]
    DropOldest,
    /// The arriving frames are dropped.
    DropNewest,
    /// Nothing is dropped: the arriving frames have to wait.
    Block,
}

/// Why a spool cannot be run with these limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolConfigError {
    /// It does not hold the few segments without which nothing can be dropped or removed.
    #[error(
        "a spool of {max} bytes is too small: it needs {need} = {SEGMENTS_MIN} segments of {segment} bytes, each of \
         {SEGMENT_HEADER_LEN} (header) + {header} (record) + {batch_len_max} (longest batch) and at least \
         {SEGMENT_LEN_MIN}",
        header = RecordHeader::LEN
    )]
    TooSmall {
        /// What was asked for, in bytes.
        max: u64,
        /// What would do, in bytes.
        need: u64,
        /// Bytes of a segment that holds one batch.
        segment: u64,
        /// The longest batch, in bytes.
        batch_len_max: u64,
    },
    /// Batches may be longer than a record.
    #[error(
        "batches of up to {batch_len_max} bytes do not fit into records, which hold {RECORD_LEN_MAX} at most"
    )]
    BatchTooLong {
        /// The longest batch, in bytes.
        batch_len_max: u64,
    },
    /// Frames would be dropped while they are written.
    #[error("a spool that keeps frames for less than a second keeps nothing")]
    MaxAge,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            max: 10 << 30,
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            min_free: 1 << 30,
            sync: SyncPolicy::Interval(Duration::from_millis(100)),
            on_full: OnFull::DropOldest,
        }
    }
}

impl SpoolConfig {
    /// Whether batches of up to `batch_len_max` encoded bytes can be spooled within these limits.
    ///
    /// # Errors
    /// Every variant of [`SpoolConfigError`].
    pub fn validate(&self, batch_len_max: u64) -> Result<(), SpoolConfigError> {
        if batch_len_max > u64::from(RECORD_LEN_MAX) {
            return Err(SpoolConfigError::BatchTooLong { batch_len_max });
        }
        let segment = SEGMENT_HEADER_LEN as u64 + RecordHeader::LEN as u64 + batch_len_max;
        let segment = segment.max(SEGMENT_LEN_MIN);
        let need = SEGMENTS_MIN * segment;
        if self.max < need {
            return Err(SpoolConfigError::TooSmall { max: self.max, need, segment, batch_len_max });
        }
        if self.max_age < Duration::from_secs(1) {
            return Err(SpoolConfigError::MaxAge);
        }
        Ok(())
    }

    /// Length at which a segment is closed, in bytes: an eighth of the spool, so that little is dropped at once.
    pub(super) fn segment_len(&self) -> u64 {
        (self.max / 8).clamp(SEGMENT_LEN_MIN, SEGMENT_LEN_MAX)
    }

    /// Bytes that are kept in memory until they are durable: more are not written without a sync.
    pub(super) fn unsynced_max(&self) -> u64 {
        UNSYNCED_MAX.min(self.segment_len())
    }

    /// Longest record that is let in, in bytes: it may exceed a segment, and then has one of its own.
    pub(super) fn record_len_max(&self) -> u64 {
        let segment = (self.max / SEGMENTS_MIN).saturating_sub(SEGMENT_HEADER_LEN as u64);
        segment.min(u64::from(RECORD_LEN_MAX) + RecordHeader::LEN as u64)
    }
}

/// A spool holds at least so many segments.
const SEGMENTS_MIN: u64 = 4;
/// Segments are this long even in the smallest spool, in bytes.
const SEGMENT_LEN_MIN: u64 = 64 << 10;
/// Segments are not longer than this, unless one record is: what is scanned after a crash, in bytes.
const SEGMENT_LEN_MAX: u64 = 64 << 20;
/// See [`SpoolConfig::unsynced_max`], bytes.
const UNSYNCED_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_too_small_for_its_batches_is_refused_with_the_sum() {
        let config = SpoolConfig { max: 4 << 20, ..SpoolConfig::default() };
        assert_eq!(config.validate(64 << 10), Ok(()));
        let error = config.validate((1 << 20) + 4).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a spool of 4194304 bytes is too small: it needs 4210864 = 4 segments of 1052716 bytes, each of 4096 \
             (header) + 40 (record) + 1048580 (longest batch) and at least 65536"
        );
        assert_eq!(SpoolConfig { max: 4_210_864, ..config }.validate((1 << 20) + 4), Ok(()));
    }

    #[test]
    fn a_batch_that_was_validated_fits() {
        for batch_len_max in [1, 100_000, 5 << 20] {
            let config = SpoolConfig { max: 0, ..SpoolConfig::default() };
            let Err(SpoolConfigError::TooSmall { need, .. }) = config.validate(batch_len_max) else {
                panic!("nothing fits into nothing");
            };
            let config = SpoolConfig { max: need, ..config };
            assert!(config.record_len_max() >= batch_len_max + RecordHeader::LEN as u64);
        }
    }

    #[test]
    fn what_can_never_work_is_refused() {
        let config = SpoolConfig::default();
        assert_eq!(
            config.validate(u64::from(u32::MAX)),
            Err(SpoolConfigError::BatchTooLong { batch_len_max: u64::from(u32::MAX) })
        );
        assert_eq!(
            SpoolConfig { max_age: Duration::ZERO, ..config }.validate(1),
            Err(SpoolConfigError::MaxAge)
        );
    }
}
