//! A disk that takes no more.

use std::io;

use rustix::io::Errno;

/// What a log knows of a disk that took no more although it showed room: a quota is reached, or what is left is kept for others.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Bytes that the log had then.
    pub(super) bytes: u64,
    /// Length of what the disk did not take, in bytes.
    pub(super) record_len: u64,
    /// What the system said.
    pub(super) reason: String,
}

/// Whether an error says that room would help.
pub(super) fn is_full(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}
