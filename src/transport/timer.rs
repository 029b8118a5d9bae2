//! A timer that is finer than the millisecond of the runtime's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::Itimerspec;
use rustix::time::TimerfdClockId;
use rustix::time::TimerfdFlags;
use rustix::time::TimerfdTimerFlags;
use rustix::time::Timespec;
use rustix::time::timerfd_create;
use rustix::time::timerfd_settime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::transport::sys;

/// One sleep at a time, in the reactor of the calling thread's runtime.
pub(crate) struct Timer {
    timer: AsyncFd<OwnedFd>,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = sys::register(timerfd_create(TimerfdClockId::Monotonic, flags)?, Interest::READABLE)?;
        Ok(Self { timer })
    }

    /// Waits for `duration`, less than a second and not zero. A sleep that is dropped ends with the next one.
    pub(crate) async fn sleep(&self, duration: Duration) -> io::Result<()> {
        let value = Timespec { tv_sec: 0, tv_nsec: duration.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        // Setting it forgets an earlier expiry: it need not be read.
        self.timer.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::transport::epoll;

    #[test]
    fn a_sleep_ends_after_its_time_again_and_again() {
        epoll::runtime().unwrap().block_on(async {
            let timer = Timer::new().unwrap();
            for _ in 0..20 {
                let begin = Instant::now();
                timer.sleep(Duration::from_micros(300)).await.unwrap();
                assert!(begin.elapsed() >= Duration::from_micros(300));
            }
        });
    }
}
