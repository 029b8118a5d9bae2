//! A reader session: what a DNS server writes, taken as batches.

use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::protocol::ProtocolError;
use crate::protocol::ReaderEvent;
use crate::protocol::ReaderSession;
use crate::protocol::SessionEnd;
use crate::session::gather::Gather;
use crate::transport::buffer;
use crate::transport::buffer::Block;
use crate::transport::buffer::BufferPool;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;

/// How a reader session ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// STOP came, FINISH went (if the session has one).
    Finished,
    /// The relay ended: what had arrived was taken, FINISH went.
    Drained,
    /// The writer closed without STOP, between two frames.
    Unclean,
    /// The writer closed in the middle of a frame.
    Truncated { bytes: usize },
    /// The writer closed before its stream began.
    NoStream,
    /// The writer broke the protocol, or was too slow in its handshake.
    Protocol(ProtocolError),
    /// The connection broke.
    Connection(io::Error),
}

impl ReadEnd {
    /// Name in the ledger.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Drained => "drained",
            Self::Unclean => "unclean",
            Self::Truncated { .. } => "truncated",
            Self::NoStream => "no_stream",
            Self::Protocol(error) => error.reason(),
            Self::Connection(_) => "connection",
        }
    }

    /// Whether this is how sessions ought to end.
    pub(crate) fn is_regular(&self) -> bool {
        matches!(self, Self::Finished | Self::Drained)
    }
}

impl From<SessionEnd> for ReadEnd {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Finished => Self::Finished,
            SessionEnd::Unclean => Self::Unclean,
            SessionEnd::Truncated { bytes } => Self::Truncated { bytes },
            SessionEnd::InHandshake => Self::NoStream,
        }
    }
}

impl fmt::Display for ReadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => write!(f, "finished"),
            Self::Drained => write!(f, "drained"),
            Self::Unclean => write!(f, "closed by the writer without STOP"),
            Self::Truncated { bytes } => {
                write!(f, "closed by the writer in the middle of a frame ({bytes} bytes of it dropped)")
            }
            Self::NoStream => write!(f, "closed by the writer before START"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::Connection(error) => write!(f, "{error}"),
        }
    }
}

/// A stream that has begun.
#[derive(Debug)]
pub(crate) struct Started {
    /// `None` if neither side named one.
    pub(crate) content_type: Option<ContentType>,
    /// The tail of what came behind START; whole frames of it are in the events of the session.
    received: BytesMut,
    /// What was wrong in the bytes behind START, if they came with it.
    fault: Option<ProtocolError>,
}

/// Drives the handshake until START. The connection is given up when this future is dropped.
///
/// # Errors
/// How the session ended, if it did not begin.
pub(crate) async fn handshake(socket: &mut Socket, session: &mut ReaderSession) -> Result<Started, ReadEnd> {
    let mut buffer = BytesMut::with_capacity(HANDSHAKE_BUFFER_LEN);
    loop {
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        let Ok(count) = tokio::time::timeout_at(deadline.into(), socket.read_buf(&mut buffer)).await else {
            session.handle_timeout(Instant::now()).map_err(ReadEnd::Protocol)?;
            continue;
        };
        if count.map_err(ReadEnd::Connection)? == 0 {
            return Err(session.handle_eof(&buffer).into());
        }
        let result = session.handle_bytes(Instant::now(), &mut buffer);
        if let Some(ReaderEvent::Started { content_type, .. }) = session.poll_event() {
            return Ok(Started { content_type, received: buffer, fault: result.err() });
        }
        result.map_err(ReadEnd::Protocol)?;
        while let Some(answer) = session.poll_transmit() {
            socket.write_all(&answer).await.map_err(ReadEnd::Connection)?;
        }
    }
}

/// A connection in its data phase, as its worker sees it from outside.
pub(crate) struct ReadHandle {
    stream: Stream,
    draining: Cell<bool>,
    // A read with a block is under way; `reads` tells whether it is still the same.
    reading: Cell<bool>,
    reads: Cell<u64>,
    reads_at_last_look: Cell<u64>,
}

impl ReadHandle {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            draining: Cell::new(false),
            reading: Cell::new(false),
            reads: Cell::new(0),
            reads_at_last_look: Cell::new(u64::MAX),
        }
    }

    /// Ends the session as soon as what has arrived is taken.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        self.stream.cancel();
    }

    /// Called at regular intervals: a connection that read nothing since the last call gives its block back.
    pub(crate) fn release_idle_block(&self) {
        if self.reading.get() && self.reads_at_last_look.replace(self.reads.get()) == self.reads.get() {
            self.stream.cancel();
        }
    }
}

/// Takes frames until the stream ends, and gives each batch to `deliver`, in order. Reading goes on when `deliver` is
/// through. Not cancel-safe: [`ReadHandle::drain`] ends it.
pub(crate) async fn read_frames(
    handle: &ReadHandle,
    session: &mut ReaderSession,
    started: Started,
    pool: &RefCell<BufferPool>,
    gather: &Gather,
    read_len_max: usize,
    deliver: impl AsyncFn(FrameBatch),
) -> ReadEnd {
    let stream = &handle.stream;
    let mut read_len = ReadLen::new(read_len_max);
    // A connection begins idle: without a block.
    let Started { received, fault, .. } = started;
    let mut block = Block::without_room(&received);
    drop(received);
    let mut idle = true;
    let mut small_read = false;
    let mut end = fault.map(ReadEnd::Protocol);
    loop {
        while let Some(event) = session.poll_event() {
            match event {
                ReaderEvent::Data(batch) => {
                    gather.took(batch.read_at(), batch.frames());
                    deliver(read_len.compact_if_small(batch)).await;
                }
                ReaderEvent::Finished => end = Some(ReadEnd::Finished),
                ReaderEvent::Started { .. } => {}
            }
        }
        while let Some(answer) = session.poll_transmit() {
            // A writer that has gone without waiting for FINISH is no error; one that has gone is seen by the read.
            let _ = stream.write_now(answer);
        }
        if let Some(end) = end {
            if end.is_regular() {
                // Bytes left unread would make the close a reset, which could overtake FINISH. They are counted.
                let _ = take_arrived(stream, session, &mut block.bytes);
            }
            pool.borrow_mut().rest(block);
            return end;
        }
        if small_read {
            gather.wait().await;
        }
        // Lanes that were woken queue their writes before the next read: one system call for all of them.
        yield_once().await;
        // No await from here to the read: a drain that is asked for later finds something to cancel.
        if handle.draining.get() {
            let taken = take_arrived(stream, session, &mut block.bytes);
            session.finish();
            end = Some(taken.map_or_else(ReadEnd::Protocol, |()| ReadEnd::Drained));
            continue;
        }
        if idle {
            match stream.readable().await {
                Err(error) if !is_cancelled(&error) => {
                    end = Some(ReadEnd::Connection(error));
                    continue;
                }
                _ if handle.draining.get() => continue,
                _ => idle = false,
            }
        }
        pool.borrow_mut().make_room(&mut block, read_len.now);
        handle.reading.set(true);
        let (result, filled) = stream.read(std::mem::take(&mut block.bytes), read_len.now).await;
        handle.reading.set(false);
        handle.reads.set(handle.reads.get() + 1);
        block.bytes = filled;
        match result {
            Ok(0) => end = Some(session.handle_eof(&block.bytes).into()),
            Ok(count) => {
                small_read = count < SMALL_READ;
                read_len.adapt(count);
                end = session.handle_bytes(Instant::now(), &mut block.bytes).err().map(ReadEnd::Protocol);
            }
            Err(error) if is_cancelled(&error) => {
                idle = true;
                let tail = Block::without_room(&block.bytes);
                pool.borrow_mut().rest(std::mem::replace(&mut block, tail));
            }
            Err(error) => end = Some(ReadEnd::Connection(error)),
        }
    }
}

/// Takes what has arrived and no more: a writer that goes on writing cannot hold up the end.
fn take_arrived(
    stream: &Stream,
    session: &mut ReaderSession,
    buffer: &mut BytesMut,
) -> Result<(), ProtocolError> {
    let mut arrived = stream.arrived_bytes();
    while arrived > 0 {
        buffer.reserve(arrived.min(buffer::READ_LEN_START));
        match stream.read_now(buffer, arrived) {
            Ok(count) if count > 0 => arrived = arrived.saturating_sub(count),
            _ => break,
        }
        session.handle_bytes(Instant::now(), buffer)?;
    }
    Ok(())
}

fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// Lets every other task that is ready run once. Unlike tokio's it does not ask the kernel for events.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Holds READY and START; what comes with them may be more.
const HANDSHAKE_BUFFER_LEN: usize = 1024;

/// A read below this many bytes would have been worth waiting for.
const SMALL_READ: usize = buffer::READ_LEN_MIN;

/// How much to read at once: more when reads come back full, less when they come back nearly empty. Small reads cost
/// system calls, large ones the processor's cache.
struct ReadLen {
    now: usize,
    max: usize,
    short_reads: u32,
}

impl ReadLen {
    /// So many reads in a row below a quarter make the next one smaller.
    const PATIENCE: u32 = 16;
    /// A batch below this part of a read is copied out, so that it does not keep a block from being read into again.
    const SMALL_PART: usize = 4;

    fn new(max: usize) -> Self {
        let max = max.max(buffer::READ_LEN_MIN);
        Self { now: buffer::READ_LEN_START.min(max), max, short_reads: 0 }
    }

    fn adapt(&mut self, count: usize) {
        if count >= self.now {
            self.now = (2 * self.now).min(self.max);
        }
        if count >= self.now / 4 {
            self.short_reads = 0;
            return;
        }
        self.short_reads += 1;
        if self.short_reads == Self::PATIENCE {
            self.now = (self.now / 2).max(buffer::READ_LEN_MIN);
            self.short_reads = 0;
        }
    }

    fn compact_if_small(&self, batch: FrameBatch) -> FrameBatch {
        if batch.byte_len() < self.now / Self::SMALL_PART { batch.compact() } else { batch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_when_full_and_shrink_after_many_short_ones() {
        let mut len = ReadLen::new(256 << 10);
        len.adapt(64 << 10);
        len.adapt(128 << 10);
        len.adapt(256 << 10);
        assert_eq!(len.now, 256 << 10);
        for _ in 0..ReadLen::PATIENCE - 1 {
            len.adapt(100);
        }
        assert_eq!(len.now, 256 << 10);
        len.adapt(100);
        assert_eq!(len.now, 128 << 10);
        for _ in 0..100 * ReadLen::PATIENCE {
            len.adapt(100);
        }
        assert_eq!(len.now, buffer::READ_LEN_MIN);
    }
}
