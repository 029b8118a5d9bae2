//! A socket between two processes that passes messages and descriptors.
//!
//! A message has a body of any length, which goes in a file in memory: what the socket takes at once is little. So a message
//! is whole, or it is not there.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::fs::MemfdFlags;
use rustix::io::retry_on_intr;
use rustix::net::AddressFamily;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::time::Timespec;
use socket2::SockRef;

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Passing(OwnedFd);

/// What came in one message.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Passing {
    /// Descriptors that one message may have: the kernel takes 253, and the body is one.
    pub(crate) const DESCRIPTORS_MAX: usize = 200;

    /// Both ends. The second is for a child: it stays open when that begins.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = rustix::net::socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        Ok((Self(ours), theirs))
    }

    /// An end that was inherited.
    ///
    /// # Errors
    /// It is no such socket.
    pub(crate) fn inherited(fd: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket for messages"));
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self(fd))
    }

    /// Whether the other process has its end open.
    pub(crate) fn is_open(&self) -> bool {
        let mut poll = [PollFd::new(&self.0, PollFlags::empty())];
        let _ = rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        !poll[0].revents().contains(PollFlags::HUP)
    }

    /// Sends one message, with at most [`Passing::DESCRIPTORS_MAX`] descriptors.
    ///
    /// # Errors
    /// The other process is gone, or does not take the message in this time.
    pub(crate) fn send(
        &self,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> io::Result<()> {
        let mut file = File::from(rustix::fs::memfd_create("tapster", MemfdFlags::CLOEXEC)?);
        file.write_all(body)?;
        let all: Vec<_> = std::iter::once(file.as_fd()).chain(descriptors.iter().copied()).collect();
        let mut space = [MaybeUninit::uninit(); ANCILLARY_LEN];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        SockRef::from(&self.0).set_write_timeout(Some(timeout.max(TIMEOUT_MIN)))?;
        let len = (body.len() as u64).to_be_bytes();
        let pieces = [IoSlice::new(&len)];
        retry_on_intr(|| rustix::net::sendmsg(&self.0, &pieces, &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message; `None` when the other process has closed its end.
    ///
    /// # Errors
    /// Nothing has come in this time; a message that is too long, or of which descriptors were lost: the limit of open files
    /// is too low.
    pub(crate) fn receive(&self, timeout: Duration) -> io::Result<Option<Passed>> {
        SockRef::from(&self.0).set_read_timeout(Some(timeout.max(TIMEOUT_MIN)))?;
        let mut space = [MaybeUninit::uninit(); ANCILLARY_LEN];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut len = [0; 8];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut len)], &mut ancillary, flags)
        })?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("descriptors were lost: the limit of open files is too low"));
        }
        let invalid = |words| io::Error::new(io::ErrorKind::InvalidData, words);
        let len = usize::try_from(u64::from_be_bytes(len)).unwrap_or(usize::MAX);
        if received.bytes != 8 || descriptors.is_empty() || len > BODY_MAX {
            return Err(invalid("a message that is none of ours"));
        }
        let file = File::from(descriptors.remove(0));
        if file.metadata()?.len() < len as u64 {
            return Err(invalid("a message that is cut short"));
        }
        let mut body = vec![0; len];
        file.read_exact_at(&mut body, 0)?;
        Ok(Some(Passed { body, descriptors }))
    }
}

/// A timeout of 0 would be none.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Longest body taken, bytes.
const BODY_MAX: usize = 256 << 20;
/// Room for 253 descriptors.
const ANCILLARY_LEN: usize = 16 + 8 + 4 * 256;

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> [Passing; 2] {
        let (ours, theirs) = Passing::pair().unwrap();
        [ours, Passing::inherited(theirs).unwrap()]
    }

    #[test]
    fn messages_of_any_length_arrive_with_their_descriptors() {
        let [old, new] = pair();
        let files: Vec<_> = (0..Passing::DESCRIPTORS_MAX).map(|_| tempfile::tempfile().unwrap()).collect();
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        for len in [0, 1, 3_000_000] {
            let body = vec![7; len];
            old.send(&body, &descriptors, SOON).unwrap();
            let passed = new.receive(SOON).unwrap().unwrap();
            assert_eq!((passed.body == body, passed.descriptors.len()), (true, files.len()));
        }
        old.send(b"none", &[], SOON).unwrap();
        assert_eq!(new.receive(SOON).unwrap().unwrap().descriptors.len(), 0);
        assert_eq!(new.receive(TIMEOUT_MIN).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(old);
        assert!(new.receive(SOON).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let [old, new] = pair();
        rustix::net::send(&old.0, b"garbage", SendFlags::empty()).unwrap();
        assert_eq!(new.receive(SOON).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let [stream, _other] = std::os::unix::net::UnixStream::pair().map(|(a, b)| [a, b]).unwrap();
        assert!(Passing::inherited(stream.into()).is_err());
    }
}
