//! A reader session: what a DNS server writes, taken as batches.

use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::lifecycle::Phase;
use crate::protocol::ContentType;
use crate::protocol::ControlType;
use crate::protocol::FrameBatch;
use crate::protocol::ProtocolError;
use crate::protocol::ReaderCounters;
use crate::protocol::ReaderEvent;
use crate::protocol::ReaderSession;
use crate::protocol::SessionEnd;
use crate::session::read_coalescer::ReadCoalescer;
use crate::session::read_turns::LITTLE;
use crate::session::read_turns::ReadTurns;
use crate::transport::buffer::ReadBuffer;
use crate::transport::buffer::Tail;
use crate::transport::cancel::is_cancelled;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;

/// How a reader session ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// STOP came, FINISH went (if the session has one).
    Finished,
    /// The relay ended before STOP: what had arrived was taken, and no FINISH went.
    Drained,
    /// The writer closed without STOP, between two frames.
    Unclean,
    /// The writer sent FINISH, which is for readers to send, and nothing behind it: some end like that.
    FinishFromWriter,
    /// The writer closed in the middle of a frame.
    Truncated { bytes: usize },
    /// The writer closed before its stream began.
    NoStream,
    /// The peer closed or reset the connection before it sent a byte: it wanted to know whether somebody listens.
    NoByte,
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
            Self::FinishFromWriter => "finish_from_writer",
            Self::Truncated { .. } => "truncated",
            Self::NoStream | Self::NoByte => "no_stream",
            Self::Protocol(error) => error.reason(),
            Self::Connection(_) => "connection",
        }
    }

    /// Whether this is how sessions ought to end.
    pub(crate) fn is_regular(&self) -> bool {
        matches!(self, Self::Finished | Self::Drained)
    }

    /// Whether the session ended between two frames, by the will of its writer or of the relay: many writers do not care for
    /// STOP.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_regular() || matches!(self, Self::Unclean | Self::FinishFromWriter)
    }

    /// The end by a fault, with `rest` behind it.
    fn fault(error: ProtocolError, rest: &[u8]) -> Self {
        match error {
            ProtocolError::UnexpectedControl { got: ControlType::Finish, .. } if rest.is_empty() => {
                Self::FinishFromWriter
            }
            error => Self::Protocol(error),
        }
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
            Self::FinishFromWriter => write!(f, "ended by the writer with FINISH in place of STOP"),
            Self::Truncated { bytes } => {
                write!(f, "closed by the writer in the middle of a frame ({bytes} bytes of it dropped)")
            }
            Self::NoStream => write!(f, "closed by the writer before START"),
            Self::NoByte => write!(f, "closed by the peer before it sent a byte"),
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
    /// The end of the stream, if a fault in the bytes behind START came with it.
    fault: Option<ReadEnd>,
}

/// Drives the handshake until START. The connection is given up when this future is dropped.
///
/// # Errors
/// How the session ended, if it did not begin.
pub(crate) async fn handshake(socket: &mut Socket, session: &mut ReaderSession) -> Result<Started, ReadEnd> {
    let mut buffer = BytesMut::with_capacity(HANDSHAKE_BUFFER_LEN);
    let mut silent = true;
    loop {
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        let Ok(count) = tokio::time::timeout_at(deadline.into(), socket.read_buf(&mut buffer)).await else {
            session.handle_timeout(Instant::now()).map_err(ReadEnd::Protocol)?;
            continue;
        };
        match count {
            Ok(0) if silent => return Err(ReadEnd::NoByte),
            Ok(0) => return Err(session.handle_eof(&buffer).into()),
            Ok(_) => silent = false,
            Err(error) if silent && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ReadEnd::NoByte);
            }
            Err(error) => return Err(ReadEnd::Connection(error)),
        }
        let result = session.handle_bytes(Instant::now(), &mut buffer);
        if let Some(ReaderEvent::Started { content_type, .. }) = session.poll_event() {
            let fault = result.err().map(|error| ReadEnd::fault(error, &buffer));
            return Ok(Started { content_type, received: buffer, fault });
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
    phase: Cell<Phase>,
    // When the frames were read that outputs are taking.
    delivering: Cell<Option<Instant>>,
}

impl ReadHandle {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, phase: Cell::new(Phase::Running), delivering: Cell::new(None) }
    }

    /// When the frames were read for which the session waits, because an output has no room for them.
    pub(crate) fn held_since(&self) -> Option<Instant> {
        self.delivering.get()
    }

    /// Tells the session of the phase of its input. Draining, it takes what has arrived and ends. Over, it ends.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.stream.cancel();
    }
}

/// What a session reads with, and where its batches go.
pub(crate) struct Reading<'a, D, P, C> {
    /// Shared by the connections of a worker.
    pub(crate) buffer: &'a RefCell<ReadBuffer>,
    /// Shared likewise.
    pub(crate) coalescer: &'a ReadCoalescer,
    /// Shared by those connections of a worker that write to the same outputs.
    pub(crate) turns: &'a ReadTurns,
    /// Most bytes of one read.
    pub(crate) read_len_max: usize,
    /// Takes a batch; reading goes on when it is through. Returns whether the batch was taken: `false` when the relay ended
    /// before.
    pub(crate) deliver: D,
    /// Waits while there is no hurry to read.
    pub(crate) wait_for_consumers: P,
    /// Takes the counters of the session, after each read.
    pub(crate) count: C,
}

/// Takes frames until the stream ends, and delivers each batch, in order. Not cancel-safe: [`ReadHandle::enter`] ends it.
///
/// FINISH goes only in answer to STOP, and only when every frame before STOP was taken.
pub(crate) async fn read_frames<D, P, C>(
    handle: &ReadHandle,
    session: &mut ReaderSession,
    started: Started,
    reading: Reading<'_, D, P, C>,
) -> ReadEnd
where
    D: AsyncFn(FrameBatch) -> bool,
    P: AsyncFn(),
    C: Fn(ReaderCounters),
{
    let Reading { buffer, coalescer, turns, read_len_max, deliver, wait_for_consumers, count } = reading;
    let stream = &handle.stream;
    // Not the buffer of the handshake, which has room for more: many connections stay idle.
    let mut tail = Tail::new(BytesMut::from(&started.received[..]));
    let mut end = started.fault;
    let mut share = ReadShare::new(read_len_max);
    let mut drain: Option<Drain> = None;
    let mut read = |session: &mut ReaderSession, len_max: usize| {
        let result = buffer.borrow_mut().with_room(&mut tail, read_len_max, |bytes| {
            let count = stream.read_now(bytes, len_max).map_err(ReadEnd::Connection)?;
            if count == 0 {
                return Err(session.handle_eof(bytes).into());
            }
            session.handle_bytes(Instant::now(), bytes).map_err(|error| ReadEnd::fault(error, bytes))?;
            Ok(count)
        });
        count(session.counters());
        result
    };
    loop {
        let delivering = drain.as_ref().map(|_| Instant::now());
        while let Some(event) = session.poll_event() {
            share.took_event();
            match event {
                ReaderEvent::Data(batch) => {
                    coalescer.took(batch.read_at(), batch.frames());
                    handle.delivering.set(Some(batch.read_at()));
                    let delivered = deliver(compact_if_small(batch)).await;
                    handle.delivering.set(None);
                    if !delivered {
                        return ReadEnd::Drained;
                    }
                }
                ReaderEvent::Finished => end = Some(ReadEnd::Finished),
                ReaderEvent::Started { .. } => {}
            }
        }
        if let (Some(drain), Some(since)) = (&mut drain, delivering) {
            drain.waited_for_outputs(since.elapsed());
        }
        while let Some(answer) = session.poll_transmit() {
            // A writer that has gone without waiting for FINISH is no error; one that has gone is seen by the read.
            let _ = stream.write_now(answer);
        }
        if let Some(end) = end {
            if end.is_regular() {
                // Bytes left unread would make the close a reset, which could overtake FINISH. They are counted.
                let _ = read_arrived(stream, |len_max| read(session, len_max));
            }
            return end;
        }
        if share.was_small() && drain.is_none() {
            coalescer.wait().await;
        }
        // Lanes that were woken queue their writes before the next read: one system call for all of them.
        yield_once().await;
        let mut turn = None;
        // No await from here to the operation: a drain that is asked for later finds something to cancel.
        match handle.phase.get() {
            Phase::Over => return ReadEnd::Drained,
            Phase::Draining => {
                let drain = drain.get_or_insert_with(|| Drain::begin(stream));
                if !drain.goes_on(stream).await {
                    return ReadEnd::Drained;
                }
            }
            Phase::Running => match stream.readable().await {
                Err(error) if !is_cancelled(&error) => {
                    end = Some(ReadEnd::Connection(error));
                    continue;
                }
                _ => {
                    turn = turns.take(share.was_small()).await;
                    match handle.phase.get() {
                        // Thousands may have waited for their turn.
                        Phase::Over => return ReadEnd::Drained,
                        // Those whose turn comes next wait with this one, and do not read all at once.
                        Phase::Running if turn.is_some() => wait_for_consumers().await,
                        Phase::Running | Phase::Draining => {}
                    }
                }
            },
        }
        let len_max = match (&turn, &drain) {
            (Some(turn), _) => turn.len_max(),
            (None, Some(_)) => usize::MAX,
            // Others have their turn.
            (None, None) => LITTLE,
        };
        let result = read(session, share.len(len_max));
        if let Some(turn) = turn {
            turn.end(*result.as_ref().unwrap_or(&0));
        }
        match result {
            Ok(count) => {
                share.read(count, session.counters().control_frames_ignored);
                if let Some(drain) = &mut drain {
                    drain.took(count);
                }
            }
            Err(ReadEnd::Connection(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(other) => end = Some(other),
        }
    }
}

/// What a connection may read at once: as many bytes as are quickly taken. Control frames between data frames cost a thousand times
/// what the bytes of a batch do, and are no reason to keep other writers waiting.
struct ReadShare {
    len: usize,
    len_max: usize,
    // Of the last read: what it asked for and what it took, batches and control frames.
    asked: usize,
    count: usize,
    events: u64,
    control_frames: u64,
}

impl ReadShare {
    fn new(len_max: usize) -> Self {
        let len = len_max.min(SHARE_BEGIN);
        Self { len, len_max, asked: len, count: 0, events: 0, control_frames: 0 }
    }

    /// How much to read now, `len_max` at most.
    fn len(&mut self, len_max: usize) -> usize {
        if self.events > SHARE_EVENTS {
            self.len = (self.len / 4).max(SHARE_MIN.min(self.len_max));
        } else if self.count >= self.len {
            self.len = (2 * self.len).min(self.len_max);
        }
        self.asked = self.len.min(len_max);
        self.asked
    }

    /// Tells of a read, and of the control frames that the session has ignored until now.
    fn read(&mut self, count: usize, control_frames: u64) {
        self.count = count;
        self.events = control_frames - self.control_frames;
        self.control_frames = control_frames;
    }

    fn took_event(&mut self) {
        self.events += 1;
    }

    /// Whether the last read took little, and all that was there.
    fn was_small(&self) -> bool {
        self.count < LITTLE.min(self.asked)
    }
}

/// The end of a connection whose writer has not sent STOP: what has arrived is taken, and a little more, should STOP be on its
/// way. A writer that goes on writing cannot hold up the end.
struct Drain {
    began: Instant,
    // Bytes that had arrived when the drain began, and were not read since.
    arrived: usize,
}

impl Drain {
    fn begin(stream: &Stream) -> Self {
        Self { began: Instant::now(), arrived: stream.readable_bytes() }
    }

    /// Waits a moment for bytes. Returns whether the session reads on.
    async fn goes_on(&self, stream: &Stream) -> bool {
        if self.arrived == 0 && self.began.elapsed() >= DRAIN_GRACE {
            return false;
        }
        if stream.readable_bytes() > 0 {
            return true;
        }
        let mut readable = pin!(stream.readable());
        tokio::select! {
            biased;
            readable = &mut readable => readable.is_ok(),
            () = tokio::time::sleep(DRAIN_QUIET) => {
                // Polled to its end: what arrives in this moment is not lost.
                stream.cancel();
                readable.await.is_ok()
            }
        }
    }

    fn took(&mut self, count: usize) {
        self.arrived = self.arrived.saturating_sub(count);
    }

    /// Time in which an output that blocks held up the writer does not count.
    fn waited_for_outputs(&mut self, time: Duration) {
        self.began += time;
    }
}

/// Reads what has arrived and no more.
fn read_arrived(
    stream: &Stream,
    mut read: impl FnMut(usize) -> Result<usize, ReadEnd>,
) -> Result<(), ReadEnd> {
    let mut readable = stream.readable_bytes();
    while readable > 0 {
        readable = readable.saturating_sub(read(readable.min(ARRIVED_READ_MAX))?);
    }
    Ok(())
}

/// Copies a batch out of the block in which it was read, so that it does not keep it from being read into again.
fn compact_if_small(batch: FrameBatch) -> FrameBatch {
    if batch.byte_len() < SMALL_BATCH { batch.compact() } else { batch }
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

/// A batch below this many bytes is not worth a block.
const SMALL_BATCH: usize = 4 << 10;

/// The first share of a connection, in bytes. It doubles with each read that uses it up.
const SHARE_BEGIN: usize = 64 << 10;
/// With more batches and control frames in a read, the next one is shorter.
const SHARE_EVENTS: u64 = 256;
/// No share is smaller: these are some 250 data frames of a byte with a control frame before each.
const SHARE_MIN: usize = 4 << 10;

/// How long a connection that drains is read from at least, for STOP to arrive.
const DRAIN_GRACE: Duration = Duration::from_millis(200);
/// A connection that drains has nothing more to say after this time without a byte.
const DRAIN_QUIET: Duration = Duration::from_millis(50);

/// Most bytes of one read at the end.
const ARRIVED_READ_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_with_what_comes_and_shrinks_with_what_it_costs() {
        let mut share = ReadShare::new(1 << 20);
        let mut read = |count: fn(usize) -> usize, control_frames| {
            let len = share.len(usize::MAX);
            share.read(count(len), control_frames);
            share.took_event();
            len
        };
        assert_eq!([0; 6].map(|_| read(|len| len, 0) >> 10), [64, 128, 256, 512, 1024, 1024]);
        assert_eq!([0; 2].map(|_| read(|_| 100, 0) >> 10), [1024, 1024]);
        let mut ignored = 0;
        let lens = [0; 7].map(|_| {
            ignored += 1000;
            read(|len| len, ignored) >> 10
        });
        assert_eq!(lens, [1024, 256, 64, 16, 4, 4, 4]);
        assert_eq!([0; 3].map(|_| read(|len| len, ignored) >> 10), [4, 8, 16]);
        let mut small = ReadShare::new(1000);
        small.read(1000, 5000);
        assert_eq!(small.len(usize::MAX), 1000);
    }
}
