//! The error of an operation that we ended ourselves.

use std::io;

/// Whether the operation ended because of [`Stream::cancel`](crate::transport::stream::Stream::cancel). The connection
/// is as good as before.
pub(crate) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// The error that io_uring gives to an operation that was cancelled.
pub(super) fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}
