//! How many descriptors the process has left.

use std::io;
use std::os::fd::RawFd;

use rustix::io::Errno;
use rustix::process::Resource;
use rustix::process::getrlimit;

/// Whether this descriptor, just made, is one of the last `reserve` that the process may have. The kernel gives the lowest number
/// that is free. The reserve is at most a quarter of the limit.
pub(super) fn are_scarce(made: RawFd, reserve: usize) -> bool {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return false };
    is_in_reserve(made, reserve, limit)
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
