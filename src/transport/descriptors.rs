//! How many descriptors the process has left.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::process::Resource;
use rustix::process::getrlimit;

/// How many descriptors the connections of writers leave to others. A clone is the same number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reserve(Arc<AtomicUsize>);

impl Reserve {
    /// Leaves so many from now on.
    pub(crate) fn set(&self, descriptors: usize) {
        self.0.store(descriptors, Ordering::Relaxed);
    }

    /// Whether this descriptor, just made, is one of the last that the process may have. The kernel gives the lowest number that
    /// is free. The reserve is at most a quarter of the limit.
    pub(super) fn has(&self, made: RawFd) -> bool {
        let Some(limit) = getrlimit(Resource::Nofile).current else { return false };
        is_in_reserve(made, self.0.load(Ordering::Relaxed), limit)
    }
}

fn is_in_reserve(made: RawFd, reserve: usize, limit: u64) -> bool {
    let reserve = (reserve as u64).min(limit / 4);
    u64::try_from(made).is_ok_and(|made| made >= limit - reserve)
}

/// Whether the process, or the host, has no descriptor left.
pub(super) fn are_exhausted(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_in_the_reserve_and_never_more_than_a_quarter() {
        let first = |reserve, limit| (0..).find(|made| is_in_reserve(*made, reserve, limit)).unwrap();
        assert_eq!(first(20, 1024), 1004);
        assert_eq!(first(2000, 1024), 768);
        assert_eq!(first(0, 64), 64);
    }
}
