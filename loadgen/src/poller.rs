//! Readiness of many sockets in one thread.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::CreateFlags;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::event::poll;
use rustix::io::Errno;

use crate::clock::timespec;

/// An epoll instance; sockets are known by tokens of the caller's choice.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    /// Token and flags of what happened in the last wait.
    events: Vec<(u64, EventFlags)>,
}

impl Poller {
    /// A poller that watches nothing yet.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::new() })
    }

    /// Watches a socket until it is closed.
    pub(crate) fn add(&self, socket: impl AsFd, token: u64, flags: EventFlags) -> Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Watches a socket no longer.
    pub(crate) fn remove(&self, socket: impl AsFd) -> Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits until something happens or the time is up; without a time, until something happens.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.events.clear();
        let mut timeout = timeout.map(timespec);
        if let Some(exact) = timeout.filter(|timeout| timeout.tv_nsec % 1_000_000 != 0) {
            // epoll sleeps for whole milliseconds (epoll_pwait2 would not, but asks for Linux 5.11).
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&exact)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => timeout = Some(Timespec::default()),
                Err(error) => return Err(error.into()),
            }
        }
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_PER_WAIT];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => self.events.extend(events.iter().map(|event| (event.data.u64(), event.flags))),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// How many things happened in the last wait.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// Token and flags of one of them.
    pub(crate) fn event(&self, index: usize) -> (u64, EventFlags) {
        self.events[index]
    }
}

const EVENTS_PER_WAIT: usize = 256;
