//! The one file with `unsafe` code: system calls and ring operations on buffers that we own.
//!
//! tokio-uring 0.5 has no RECV with flags, no SENDMSG for streams, no POLL_ADD and no cancellation, but it takes
//! submission entries made by hand ([`UnsubmittedOneshot`]). An entry holds raw pointers; what they point to travels
//! in the operation's stored data, which tokio-uring keeps until the kernel has answered, even when the future is
//! dropped. So every operation here stores its buffer and its descriptor.

#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::OneshotOutputTransform;
use tokio_uring::UnsubmittedOneshot;

/// Most buffers in one [`SendList`]: the kernel's limit for one `sendmsg` (`UIO_MAXIOV`).
pub(crate) const SEND_BUFFERS_MAX: usize = 1024;

/// Buffers that one `sendmsg` writes in order, with the memory that the kernel reads them from. Reused from one
/// write to the next, so that a write allocates nothing.
pub(crate) struct SendList {
    buffers: Vec<Bytes>,
    // Invariant while a write is under way: vectors[i] covers buffers[i]. The box keeps the header where it is.
    vectors: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
}

impl SendList {
    pub(crate) fn new() -> Self {
        // SAFETY: `msghdr` is a plain C structure of pointers and lengths; all zeroes is its empty value.
        let header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
        Self { buffers: Vec::new(), vectors: Vec::new(), header: Box::new(header) }
    }

    /// Adds buffers, none of them empty, at most [`SEND_BUFFERS_MAX`] in all.
    pub(crate) fn extend(&mut self, buffers: impl Iterator<Item = Bytes>) {
        self.buffers.extend(buffers);
        debug_assert!(self.buffers.len() <= SEND_BUFFERS_MAX);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Bytes of all buffers.
    pub(crate) fn byte_len(&self) -> usize {
        self.buffers.iter().map(Bytes::len).sum()
    }

    /// The bytes from `offset` on, `len_max` of them at most.
    pub(crate) fn slices(&self, mut offset: usize, mut len_max: usize) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().filter_map(move |buffer| {
            let skipped = offset.min(buffer.len());
            offset -= skipped;
            let len = (buffer.len() - skipped).min(len_max);
            len_max -= len;
            buffer.get(skipped..skipped + len).filter(|slice| !slice.is_empty())
        })
    }

    /// Takes `written` bytes off the front.
    pub(crate) fn advance(&mut self, mut written: usize) {
        let whole = self.buffers.iter().take_while(|buffer| {
            let taken = buffer.len() <= written;
            written -= if taken { buffer.len() } else { 0 };
            taken
        });
        let whole = whole.count();
        self.buffers.drain(..whole);
        if let Some(first) = self.buffers.first_mut() {
            first.advance(written);
        }
    }

    /// Points the header at the buffers as they are now.
    fn header(&mut self) -> *const libc::msghdr {
        self.vectors.clear();
        self.vectors.extend(self.buffers.iter().map(|buffer| libc::iovec {
            iov_base: buffer.as_ptr().cast_mut().cast(),
            iov_len: buffer.len(),
        }));
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len() as _;
        &raw const *self.header
    }
}

/// Appends what is there to be read, `len_max` bytes at most, without waiting.
///
/// # Errors
/// `WouldBlock` when there is nothing; what `recv` says.
pub(crate) fn recv_now(socket: &impl AsFd, buffer: &mut BytesMut, len_max: usize) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    let len = spare.len().min(len_max);
    let pointer = spare.as_mut_ptr();
    // SAFETY: the kernel writes at most `len` bytes to memory that `buffer` owns and lends exclusively.
    let result = unsafe { libc::recv(socket.as_fd().as_raw_fd(), pointer.cast(), len, libc::MSG_DONTWAIT) };
    let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has just written `count` bytes, count <= len <= spare capacity.
    unsafe { buffer.advance_mut(count) };
    Ok(count)
}

/// Writes as much of `list` as the socket takes without waiting. The list stays as it was.
///
/// # Errors
/// `WouldBlock` when it takes nothing; what `sendmsg` says.
pub(crate) fn send_now(socket: &impl AsFd, list: &mut SendList) -> io::Result<usize> {
    let header = list.header();
    // SAFETY: header, vectors and buffers are owned by `list`, which outlives the call.
    let result =
        unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Bytes that the socket still holds for its peer: written by us, not yet read (unix) or acknowledged (TCP).
pub(crate) fn unsent_bytes(socket: &impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same request as TIOCOUTQ) writes one c_int to the pointer.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(count).unwrap_or(0)) }
}

/// What the kernel knows about the peer of a TCP connection; readable after a reset too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpState {
    /// Bytes that the peer's kernel has acknowledged; a SYN that we sent and a FIN count as one each.
    pub(crate) bytes_acked: u64,
    /// Something waits to be sent, and the peer has closed its window.
    pub(crate) has_no_room: bool,
    /// Since the last acknowledgement of whatever kind, answers to probes included.
    pub(crate) silent_for: Duration,
}

/// Asks the kernel about a TCP connection.
///
/// # Errors
/// What `getsockopt` says; `Unsupported` on kernels before 4.1.
pub(crate) fn tcp_state(socket: &impl AsFd) -> io::Result<TcpState> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to the structure, and to `len` how many it wrote.
    let result = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = len as usize;
    if len < std::mem::offset_of!(libc::tcp_info, tcpi_bytes_acked) + size_of::<u64>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let window_is_told = len >= std::mem::offset_of!(libc::tcp_info, tcpi_snd_wnd) + size_of::<u32>();
    // SAFETY: a structure of integers, for which all zeroes and whatever the kernel wrote are values.
    let info = unsafe { info.assume_init() };
    let waits = info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0;
    Ok(TcpState {
        bytes_acked: info.tcpi_bytes_acked,
        // Nothing is under way to a peer whose window is too small for the next segment.
        has_no_room: waits && (info.tcpi_unacked == 0 || window_is_told && info.tcpi_snd_wnd == 0),
        silent_for: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

/// Takes over the descriptors `first..first + count`, which the process that started this one left open for it. They are closed
/// in children from now on. Once in a process, before it opens anything: what a second call asks for has its owner, and the
/// call returns nothing.
///
/// # Errors
/// One of them is not open.
pub(crate) fn take_inherited(first: RawFd, count: RawFd) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let all = first..first.saturating_add(count);
    for descriptor in all.clone() {
        // SAFETY: the number is handed to the kernel alone, which says whether it is open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
    }
    // SAFETY: all of them are open, as was just seen, and nobody in this process owns them: they were inherited for this caller,
    // and this is the first call.
    Ok(all.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect())
}

/// Tells the C library to give large blocks back to the system as soon as they are freed.
///
/// glibc keeps what is freed for later: after the first free of a block of 128 KiB such blocks come from the heap, between
/// small allocations that live longer, and the process never shrinks again. For programs that run a relay, once, at their
/// start; other C libraries do not need it.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets a number; it is called before the threads that allocate.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Gives the small blocks back that many connections left in the heap. Takes milliseconds: for quiet moments.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Hands a non-blocking descriptor to the reactor of the calling thread's runtime.
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, together with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// RECV: appends up to `len_max` bytes to `buffer`, waits for the first.
pub(crate) fn ring_recv(
    socket: Rc<OwnedFd>,
    mut buffer: BytesMut,
    len_max: usize,
) -> impl Future<Output = (io::Result<usize>, BytesMut)> {
    let spare = buffer.spare_capacity_mut();
    let len = u32::try_from(spare.len().min(len_max)).unwrap_or(u32::MAX);
    let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), spare.as_mut_ptr().cast(), len).build();
    submit(entry, (buffer, socket), |(mut buffer, _), result| {
        if let Ok(count) = result {
            // SAFETY: the kernel has written `count` bytes behind the initialised part of `buffer`, whose heap
            // memory did not move while the operation owned it; count <= len <= spare capacity.
            unsafe { buffer.advance_mut(count) };
        }
        (result, buffer)
    })
}

/// SENDMSG with MSG_WAITALL: one completion for the whole list; short only when the connection ends or the operation
/// is cancelled.
pub(crate) fn ring_send(
    socket: Rc<OwnedFd>,
    mut list: SendList,
) -> impl Future<Output = (io::Result<usize>, SendList)> {
    let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL).cast_unsigned();
    let entry = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), list.header()).flags(flags).build();
    submit(entry, (list, socket), |(list, _), result| (result, list))
}

/// POLL_ADD: until a read would not wait. Holds no buffer.
pub(crate) fn ring_readable(socket: Rc<OwnedFd>) -> impl Future<Output = io::Result<()>> {
    let events = libc::POLLIN.cast_unsigned().into();
    let entry = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), events).build();
    submit(entry, socket, |_, result| result.map(drop))
}

/// ASYNC_CANCEL: every operation on the socket ends, with `ECANCELED` or with what it had done.
pub(crate) fn ring_cancel(socket: Rc<OwnedFd>) -> impl Future<Output = ()> {
    let all_on_fd = types::CancelBuilder::fd(types::Fd(socket.as_raw_fd())).all();
    submit(opcode::AsyncCancel2::new(all_on_fd).build(), socket, |_, _| ())
}

/// NOP: until the ring has been handed over to the kernel, and has answered.
pub(crate) fn ring_nop() -> impl Future<Output = ()> {
    submit(opcode::Nop::new().build(), (), |(), _| ())
}

fn submit<D: Unpin + 'static, O>(
    entry: squeue::Entry,
    data: D,
    complete: fn(D, io::Result<usize>) -> O,
) -> impl Future<Output = O> {
    UnsubmittedOneshot::new(data, Complete(complete), entry).submit()
}

struct Complete<D, O>(fn(D, io::Result<usize>) -> O);

impl<D, O> OneshotOutputTransform for Complete<D, O> {
    type Output = O;
    type StoredData = D;

    fn transform_oneshot_output(self, data: D, completion: cqueue::Entry) -> O {
        let result = completion.result();
        (self.0)(data, usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_list_advances_over_whole_buffers_and_into_the_next() {
        let mut list = SendList::new();
        list.extend(["abc", "de", "fgh"].into_iter().map(Bytes::from));
        let slices = |offset, len_max| list.slices(offset, len_max).collect::<Vec<_>>();
        assert_eq!(slices(1, 5), [&b"bc"[..], b"de", b"f"]);
        assert_eq!(slices(3, 100), [&b"de"[..], b"fgh"]);
        assert_eq!(slices(8, 100), [&b""[..]; 0]);
        list.advance(0);
        assert_eq!(list.buffers.len(), 3);
        list.advance(4);
        assert_eq!(list.buffers, ["e", "fgh"]);
        list.advance(1);
        assert_eq!(list.buffers, ["fgh"]);
        list.advance(3);
        assert!(list.is_empty());
    }
}
