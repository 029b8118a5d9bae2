//! The data phase over TLS: a stream around a stream.
//!
//! The stream below is on epoll, under both backends: a runtime of tokio-uring has tokio's reactor, too. Ciphertext is received in
//! large pieces into memory that all connections of a thread share, and is decrypted behind what the caller has. What is
//! written goes to rustls in large slices, so that records are full, and from there to the socket without another copy.
//!
//! Bytes count as written when the socket has taken the whole record. Those of a record that it has not taken are encrypted
//! already, and the caller, who does not know, brings them again: they are passed over. So nothing waits in here that nobody
//! looks after.

use std::cell::RefCell;
use std::io;
use std::io::IoSlice;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use bytes::BytesMut;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendFlags;

use crate::transport::epoll;
use crate::transport::sys;
use crate::transport::sys::SendList;
use crate::transport::tls::channel::Channel;

/// A connected socket in its data phase, with what TLS knows of it. A clone is the same stream.
#[derive(Clone)]
pub(in crate::transport) struct Stream {
    shared: Rc<Shared>,
}

struct Shared {
    socket: epoll::Stream,
    channel: RefCell<Channel>,
    // Bytes that the kernel counts as acknowledged before the first byte of this stream.
    acked_before: u64,
}

impl Stream {
    /// Takes over a socket whose handshake is done, and of which everything that TLS has to say is written.
    pub(in crate::transport) fn new(
        socket: epoll::Stream,
        tls: rustls::Connection,
        acked_before: u64,
    ) -> Self {
        let channel = RefCell::new(Channel::new(tls));
        Self { shared: Rc::new(Shared { socket, channel, acked_before }) }
    }

    pub(in crate::transport) async fn readable(&self) -> io::Result<()> {
        if self.shared.channel.borrow_mut().has_news() {
            return Ok(());
        }
        self.shared.socket.readable().await
    }

    pub(in crate::transport) async fn read(
        &self,
        mut buffer: BytesMut,
        len_max: usize,
    ) -> (io::Result<usize>, BytesMut) {
        loop {
            if let Err(error) = self.readable().await {
                return (Err(error), buffer);
            }
            match self.read_now(&mut buffer, len_max) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, buffer),
            }
        }
    }

    pub(in crate::transport) fn read_now(&self, buffer: &mut BytesMut, len_max: usize) -> io::Result<usize> {
        let room = (buffer.capacity() - buffer.len()).min(len_max);
        let mut channel = self.shared.channel.borrow_mut();
        let mut taken = channel.take(buffer, room);
        // What came may have no byte for us: a part of a record, or something about keys.
        for _ in 0..RECEIVES_MAX {
            if taken == room || channel.has_ended() {
                break;
            }
            let received = RECEIVED.with_borrow_mut(|ciphertext| {
                ciphertext.clear();
                ciphertext.reserve(RECEIVE_LEN);
                match self.shared.socket.read_now(ciphertext, (room - taken).min(RECEIVE_LEN)) {
                    Ok(0) => Ok(channel.end()),
                    Ok(_) => channel.decrypt(ciphertext, buffer, room - taken),
                    Err(error) => Err(error),
                }
            });
            match received {
                Ok(count) => taken += count,
                Err(_) if taken > 0 => break,
                Err(error) => {
                    // An alert that tells the peer why, perhaps.
                    let _ = self.flush(&mut channel);
                    return Err(error);
                }
            }
            if taken > 0 {
                break;
            }
        }
        if channel.has_to_answer() {
            // The rest goes with the next write.
            let _ = self.flush(&mut channel);
        }
        match taken {
            0 if room > 0 => {
                channel.fault().map_or(Err(io::ErrorKind::WouldBlock.into()), |fault| fault.map(|()| 0))
            }
            taken => Ok(taken),
        }
    }

    /// As `write_now` of the other streams: bytes of `list` that the socket has taken, from the first on.
    pub(in crate::transport) fn write_now(&self, list: &mut SendList) -> io::Result<usize> {
        let mut channel = self.shared.channel.borrow_mut();
        let result = self.write_to(&mut channel, list);
        let written = channel.take_written();
        self.bound_records(&mut channel);
        let result = match result {
            _ if written > 0 => Ok(written),
            Ok(()) => Ok(0),
            Err(error) => Err(error),
        };
        self.shared.socket.note_room(&result);
        result
    }

    /// Writes everything, or returns the error at which that ended.
    fn write_to(&self, channel: &mut Channel, list: &SendList) -> io::Result<()> {
        loop {
            self.flush(channel)?;
            // unreported <= list.byte_len(): the caller brings again what does not count as written.
            let slices: Vec<IoSlice<'_>> =
                list.slices(channel.unreported(), ENCRYPT_LEN).map(IoSlice::new).collect();
            if slices.is_empty() {
                return Ok(());
            }
            channel.encrypt(&slices)?;
        }
    }

    pub(in crate::transport) async fn write(&self, mut list: SendList) -> (io::Result<usize>, SendList) {
        let result = self.shared.socket.write_with(|| self.write_now(&mut list)).await;
        (result, list)
    }

    pub(in crate::transport) fn cancel(&self) {
        self.shared.socket.cancel();
    }

    /// Bytes that the kernel of the peer has, as far as they can be decrypted.
    pub(in crate::transport) fn acknowledged_bytes(&self) -> Option<u64> {
        self.acknowledge(&mut self.shared.channel.borrow_mut()).ok()
    }

    fn acknowledge(&self, channel: &mut Channel) -> io::Result<u64> {
        let acked = sys::tcp_state(&self.shared.socket)?.bytes_acked;
        Ok(channel.acknowledge(acked.saturating_sub(self.shared.acked_before)))
    }

    /// Nobody may ask how far the peer is for as long as the connection lasts.
    fn bound_records(&self, channel: &mut Channel) {
        if channel.has_many_records() {
            // Where the kernel does not tell, it is looked again later.
            let _ = self.acknowledge(channel);
            channel.note_records();
        }
    }

    /// Bytes that were decrypted and not read, and an upper bound of those that have arrived and were not.
    pub(in crate::transport) fn readable_bytes(&self, arrived: usize) -> usize {
        let mut channel = self.shared.channel.borrow_mut();
        if channel.has_ended() { 0 } else { arrived + usize::from(channel.has_news()) }
    }

    /// Says that nothing more comes from here. Best effort.
    pub(in crate::transport) fn close_notify(&self) {
        self.shared.close_notify();
    }

    /// Gives rustls's output to the socket.
    fn flush(&self, channel: &mut Channel) -> io::Result<()> {
        channel.flush(&mut Sender(&self.shared.socket))
    }
}

impl Shared {
    fn close_notify(&self) {
        let mut channel = self.channel.borrow_mut();
        channel.close();
        let _ = channel.flush(&mut Sender(&self.socket));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close_notify();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

/// Writes to a socket, as much as it has room for.
struct Sender<'a>(&'a epoll::Stream);

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(self.0, slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    /// What was received and is about to be decrypted: empty between two reads.
    static RECEIVED: RefCell<BytesMut> = RefCell::default();
}

/// Most bytes of ciphertext that are received at once: they stay in the processor's cache until they are decrypted.
const RECEIVE_LEN: usize = 128 << 10;
/// Most bytes that are encrypted at once: eight full records, which stay in the cache until the kernel copies them.
const ENCRYPT_LEN: usize = 128 << 10;
/// A peer that sends records without data for ever has its turn like others.
const RECEIVES_MAX: usize = 8;
