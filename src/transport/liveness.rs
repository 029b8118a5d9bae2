//! Whether the host of a TCP peer is still there.
//!
//! Without a limit the kernel sends the same bytes again for a quarter of an hour before it gives a silent host up.
//! `TCP_USER_TIMEOUT` is that limit, and keep-alive probes an idle connection in time for it. But the kernel applies the
//! limit to a peer without room too, however well its host answers: a collector that stalls would be cut off. So while a
//! peer has no room and its host answers the kernel's probes, the limit is moved on. The kernel never waits with a probe
//! beyond the limit, so that a host that vanishes during a stall is noticed about as soon as any other.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;
use std::time::Instant;

use socket2::SockRef;

use crate::transport::sys;

/// The limit of one connection.
#[derive(Debug)]
pub(super) struct Liveness {
    user_timeout: Duration,
    limit: Cell<Limit>,
}

impl Liveness {
    /// For a connection whose socket has this `TCP_USER_TIMEOUT`.
    pub(super) fn new(user_timeout: Duration, now: Instant) -> Self {
        Self { user_timeout, limit: Cell::new(Limit::new(user_timeout, now)) }
    }

    /// Never ready: looks at the connection at regular intervals. Cancel-safe.
    pub(super) async fn watch<T>(&self, socket: impl AsFd) -> T {
        loop {
            tokio::time::sleep(self.user_timeout / LOOKS).await;
            // A look that fails changes nothing: then the kernel's rule holds as it is.
            let _ = self.look(&socket);
        }
    }

    fn look(&self, socket: &impl AsFd) -> io::Result<()> {
        let seen = sys::tcp_state(socket)?;
        let before = self.limit.get();
        let limit = before.next(Instant::now(), seen);
        self.limit.set(limit);
        if limit.timeout != before.timeout {
            SockRef::from(socket).set_tcp_user_timeout(Some(limit.timeout))?;
        }
        Ok(())
    }

    /// Says in plain words what the kernel says when it gives a host up.
    pub(super) fn explain(&self, error: io::Error) -> io::Error {
        // The last two: what the network said meanwhile, in place of "timed out".
        match error.raw_os_error() {
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the reader's host did not answer for {:?}", self.user_timeout),
            ),
            _ => error,
        }
    }
}

/// What `TCP_USER_TIMEOUT` is to be. The kernel measures it from the moment at which it began to probe a peer without room.
#[derive(Clone, Copy, Debug)]
struct Limit {
    user_timeout: Duration,
    timeout: Duration,
    // The last look at which the peer had room, or had taken something.
    since: Instant,
    acked: u64,
}

impl Limit {
    fn new(user_timeout: Duration, now: Instant) -> Self {
        Self { user_timeout, timeout: user_timeout, since: now, acked: 0 }
    }

    fn next(self, now: Instant, seen: sys::TcpState) -> Self {
        if !seen.has_no_room || seen.bytes_acked != self.acked {
            return Self { timeout: self.user_timeout, since: now, acked: seen.bytes_acked, ..self };
        }
        let look = self.user_timeout / LOOKS;
        if seen.silent_for >= SILENT_LOOKS * look {
            return self;
        }
        // The kernel may have begun to probe as early as one look before `since`.
        let stalled_for = now.saturating_duration_since(self.since) + look;
        Self { timeout: self.user_timeout.max(stalled_for + AHEAD_LOOKS * look), ..self }
    }
}

/// Looks within the user timeout.
const LOOKS: u32 = 8;
/// How far ahead of the present the limit is moved. The kernel's next probe is no later.
const AHEAD_LOOKS: u32 = 3;
/// A host that was silent for so long is not answering. More than `AHEAD_LOOKS` by what the kernel is late with the first
/// probe. Both together are the user timeout.
const SILENT_LOOKS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const USER_TIMEOUT: Duration = Duration::from_secs(30);

    fn stalled(silent_for: Duration) -> sys::TcpState {
        sys::TcpState { bytes_acked: 1000, has_no_room: true, silent_for }
    }

    /// The kernel's rule: it probes after pauses that double, and never later than the limit. It measures the limit from its
    /// first probe, which comes somewhat before or after the look that finds the stall.
    #[test]
    fn a_stall_of_an_hour_whose_probes_are_answered_never_reaches_the_limit() {
        let found = Instant::now() + USER_TIMEOUT;
        let look_every = USER_TIMEOUT / LOOKS;
        for first_probe in [found - look_every, found, found + Duration::from_secs(6)] {
            let mut limit = Limit::new(USER_TIMEOUT, found).next(found, stalled(Duration::ZERO));
            let (mut look, mut pause) = (found + look_every, Duration::from_millis(200));
            let mut answered = first_probe;
            while answered < found + Duration::from_secs(3600) {
                let probe = (answered + pause).min(first_probe + limit.timeout);
                while look <= probe {
                    limit = limit.next(look, stalled(look.saturating_duration_since(answered)));
                    look += look_every;
                }
                assert!(first_probe + limit.timeout > probe, "cut off {:?} after it began", probe - found);
                (answered, pause) = (probe, (2 * pause).min(Duration::from_secs(120)));
            }
        }
    }

    #[test]
    fn a_host_that_vanishes_during_a_stall_reaches_the_limit_in_time() {
        let begin = Instant::now();
        let mut limit = Limit::new(USER_TIMEOUT, begin).next(begin, stalled(Duration::ZERO));
        let look_every = USER_TIMEOUT / LOOKS;
        let vanished = begin + Duration::from_secs(300);
        let mut now = begin;
        while begin + limit.timeout > now {
            now += look_every;
            limit = limit.next(now, stalled(now.saturating_duration_since(vanished)));
        }
        let limit = begin + limit.timeout;
        assert!(limit > vanished + USER_TIMEOUT / 2 && limit <= vanished + USER_TIMEOUT + look_every);
    }

    #[test]
    fn once_the_peer_has_room_or_takes_something_the_limit_is_the_user_timeout_again() {
        let begin = Instant::now();
        let late = begin + Duration::from_secs(300);
        let extended = Limit::new(USER_TIMEOUT, begin)
            .next(begin, stalled(Duration::ZERO))
            .next(late, stalled(Duration::ZERO));
        assert_eq!(extended.timeout, Duration::from_secs(300) + USER_TIMEOUT / 2);
        let room = sys::TcpState { has_no_room: false, ..stalled(Duration::ZERO) };
        let taken = sys::TcpState { bytes_acked: 1001, ..stalled(Duration::ZERO) };
        for seen in [room, taken] {
            let limit = extended.next(late, seen);
            assert_eq!((limit.timeout, limit.since), (USER_TIMEOUT, late));
        }
    }

    #[test]
    fn a_host_that_was_given_up_is_told_in_plain_words() {
        let liveness = Liveness::new(Duration::from_secs(2), Instant::now());
        for code in [libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            let error = liveness.explain(io::Error::from_raw_os_error(code));
            assert_eq!(error.to_string(), "the reader's host did not answer for 2s");
        }
        let reset = liveness.explain(io::Error::from_raw_os_error(libc::ECONNRESET));
        assert_eq!(reset.raw_os_error(), Some(libc::ECONNRESET));
    }
}
