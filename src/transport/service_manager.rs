//! What a process tells the service manager that has started it: datagrams of lines, and descriptors beside them.
//!
//! Source: sd_notify(3). Nothing here blocks for longer than the caller allows: a manager that does not read holds up nobody.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::time::ClockId;

/// The way to the service manager.
#[derive(Debug)]
pub struct ServiceManager {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl ServiceManager {
    /// The service manager that waits for messages of this process; `None` where none does.
    ///
    /// # Errors
    /// NOTIFY_SOCKET is no address of a unix socket; no descriptor is left.
    pub fn of_environment() -> io::Result<Option<Self>> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        name.map(|name| Self::at(&name)).transpose()
    }

    /// The manager at a path, or at a name that begins with `@`: an abstract one.
    fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest)?,
            [b'/', ..] => SocketAddrUnix::new(name)?,
            _ => {
                let words = format!("NOTIFY_SOCKET is {}, and no path or @name", name.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket, address })
    }

    /// Tells the manager these lines, each `NAME=VALUE`. Waits for `patience` at most where the manager reads nothing.
    ///
    /// # Errors
    /// The manager does not take the message in this time, or is gone.
    pub fn tell(&self, lines: &str, patience: Duration) -> io::Result<()> {
        self.send(lines, &[], patience)
    }

    /// Tells the manager these lines, with descriptors beside them: [`ServiceManager::DESCRIPTORS_MAX`] at most.
    ///
    /// # Errors
    /// As [`ServiceManager::tell`].
    pub(crate) fn send(
        &self,
        lines: &str,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> io::Result<()> {
        let by = Instant::now() + patience;
        loop {
            let mut space = [MaybeUninit::uninit(); ANCILLARY_LEN];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "too many descriptors for a message",
                ));
            }
            let pieces = [IoSlice::new(lines.as_bytes())];
            let flags = SendFlags::NOSIGNAL;
            match rustix::net::sendmsg_addr(&self.socket, &self.address, &pieces, &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                // Its queue is full, or too many descriptors are on their way to it.
                Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::INTR) if Instant::now() < by => {
                    thread::sleep(AGAIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Descriptors that one message may have: the kernel takes 253.
    pub(crate) const DESCRIPTORS_MAX: usize = 200;
}

/// How often the manager asks for a sign of life, and does not get it before it ends the process; `None` where it does not ask.
pub fn watchdog_time() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let ours = match env::var_os("WATCHDOG_PID") {
        Some(_) => number("WATCHDOG_PID") == Some(std::process::id().into()),
        None => true,
    };
    number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0).map(Duration::from_micros)
}

/// The line that goes with RELOADING=1: microseconds of the clock that no administrator sets.
pub fn monotonic_line() -> String {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    format!("MONOTONIC_USEC={}\n", now.tv_sec * 1_000_000 + now.tv_nsec / 1000)
}

/// How often a message is tried that the manager does not take.
const AGAIN: Duration = Duration::from_millis(2);
/// Room for 253 descriptors.
const ANCILLARY_LEN: usize = 16 + 8 + 4 * 256;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn received(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 100];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_at_a_path_or_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("tapster-test-{}", std::process::id());
        let at_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
        let at_path = UnixDatagram::bind(&path).unwrap();
        for (manager, name) in
            [(at_path, path.into_os_string()), (at_name, format!("@{abstract_name}").into())]
        {
            let told = ServiceManager::at(&name).unwrap();
            told.tell("READY=1\n", SOON).unwrap();
            assert_eq!(received(&manager), "READY=1\n");
            let file = tempfile::tempfile().unwrap();
            told.send("FDSTORE=1\n", &[file.as_fd(); ServiceManager::DESCRIPTORS_MAX], SOON).unwrap();
            assert_eq!(received(&manager), "FDSTORE=1\n");
        }
        assert!(ServiceManager::at(OsStr::new("vsock:2:1")).is_err());
    }

    #[test]
    fn a_manager_that_reads_nothing_or_is_gone_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let told = ServiceManager::at(path.as_os_str()).unwrap();
        let begin = Instant::now();
        let full = (0..100_000).find(|_| told.tell("STATUS=\n", Duration::ZERO).is_err());
        assert!(full.is_some());
        assert_eq!(told.tell("READY=1\n", AGAIN).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(manager);
        assert_eq!(told.tell("READY=1\n", SOON).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(begin.elapsed() < SOON);
    }
}
