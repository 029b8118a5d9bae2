//! A reader session: what a DNS server writes, taken as batches.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::lifecycle::Phase;
use crate::loops::probe::LoopProbe;
use crate::protocol::ContentType;
use crate::protocol::ControlType;
use crate::protocol::FrameBatch;
use crate::protocol::ProtocolError;
use crate::protocol::ReaderCounters;
use crate::protocol::ReaderEvent;
use crate::protocol::ReaderSession;
use crate::protocol::ReaderStage;
use crate::protocol::SessionEnd;
use crate::session::read_coalescer::ReadCoalescer;
use crate::session::read_handle::ReadHandle;
use crate::session::read_share::ReadShare;
use crate::session::read_turns::LITTLE;
use crate::session::read_turns::ReadTurns;
use crate::session::retirement::Retirement;
use crate::transport::buffer::ReadBuffer;
use crate::transport::buffer::Tail;
use crate::transport::cancel::is_cancelled;
use crate::transport::proxy_header;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;
use crate::transport::tls::first_bytes::is_client_hello;

/// How a reader session ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// STOP came, FINISH went (if the session has one).
    Finished,
    /// The relay ended before STOP: what had arrived was taken, and no FINISH went.
    Drained,
    /// Another process goes on with the connection.
    HandedOver,
    /// tapster closed between two frames, because the connection was as old as it may become.
    MaxAge,
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
    /// Another relay asked whether its frames come back to it.
    LoopProbe(LoopProbe),
    /// A PROXY header came where the stream should begin.
    ProxyHeader,
    /// TLS came where the stream should begin.
    ClientHello,
    /// The TLS handshake came to nothing, for this reason.
    Tls(String),
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
            Self::HandedOver => "handed_over",
            Self::MaxAge => "max_age",
            Self::Unclean => "unclean",
            Self::FinishFromWriter => "finish_from_writer",
            Self::Truncated { .. } => "truncated",
            Self::NoStream | Self::NoByte => "no_stream",
            Self::LoopProbe(_) => "loop_probe",
            Self::ProxyHeader | Self::ClientHello => "protocol_error",
            Self::Tls(_) => "tls",
            Self::Protocol(error) => error.reason(),
            Self::Connection(_) => "connection",
        }
    }

    /// Whether this is how sessions ought to end.
    pub(crate) fn is_regular(&self) -> bool {
        matches!(self, Self::Finished | Self::Drained | Self::HandedOver)
    }

    /// Whether the session ended between two frames, by the will of its writer or of the relay: many writers do not care for
    /// STOP.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_regular() || matches!(self, Self::Unclean | Self::FinishFromWriter)
    }

    /// The end by a fault in what should become a stream, and is still in `bytes`.
    fn of_beginning(error: ProtocolError, bytes: &[u8]) -> Self {
        if is_client_hello(bytes) {
            Self::ClientHello
        } else if proxy_header::is_begun_by(bytes) {
            Self::ProxyHeader
        } else {
            Self::Protocol(error)
        }
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
            Self::HandedOver => write!(f, "handed over to the next process"),
            Self::MaxAge => write!(f, "older than `max_connection_age` of this input"),
            Self::Unclean => write!(f, "closed by the writer without STOP"),
            Self::FinishFromWriter => write!(f, "ended by the writer with FINISH in place of STOP"),
            Self::Truncated { bytes } => {
                write!(f, "closed by the writer in the middle of a frame ({bytes} bytes of it dropped)")
            }
            Self::NoStream => write!(f, "closed by the writer before START"),
            Self::NoByte => write!(f, "closed by the peer before it sent a byte"),
            Self::LoopProbe(_) => {
                write!(f, "closed: another tapster asked whether its frames come back to it")
            }
            Self::ProxyHeader => write!(
                f,
                "the peer sends a PROXY header where its stream should begin: set `proxy_protocol = true` on this input, or let the \
                 proxy send no more of them than one"
            ),
            Self::ClientHello => write!(
                f,
                "the peer speaks TLS, and this address does not: let the writer connect without TLS, or listen on tls://HOST:PORT"
            ),
            Self::Tls(words) => write!(f, "no TLS handshake: {words}"),
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

impl Started {
    /// A stream that was begun elsewhere, with the beginning of a frame.
    pub(crate) fn resumed(content_type: Option<ContentType>, received: BytesMut) -> Self {
        Self { content_type, received, fault: None }
    }
}

/// Drives the handshake until START. `buffer` has what has arrived and was not taken. Cancel-safe.
///
/// # Errors
/// How the session ended, if it did not begin.
pub(crate) async fn handshake(
    socket: &mut Socket,
    session: &mut ReaderSession,
    buffer: &mut BytesMut,
) -> Result<Started, ReadEnd> {
    buffer.reserve(HANDSHAKE_BUFFER_LEN);
    let mut silent = buffer.is_empty();
    loop {
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        let Ok(count) = tokio::time::timeout_at(deadline.into(), socket.read_buf(buffer)).await else {
            session.handle_timeout(Instant::now()).map_err(ReadEnd::Protocol)?;
            continue;
        };
        match count {
            Ok(0) if silent => return Err(ReadEnd::NoByte),
            Ok(0) => return Err(session.handle_eof(buffer).into()),
            Ok(_) => silent = false,
            Err(error) if silent && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ReadEnd::NoByte);
            }
            Err(error) => return Err(ReadEnd::Connection(error)),
        }
        if let Some(probe) = LoopProbe::in_ready(buffer) {
            return Err(ReadEnd::LoopProbe(probe));
        }
        let result = session.handle_bytes(Instant::now(), buffer);
        if let Some(ReaderEvent::Started { content_type, .. }) = session.poll_event() {
            let fault = result.err().map(|error| ReadEnd::fault(error, buffer));
            return Ok(Started { content_type, received: std::mem::take(buffer), fault });
        }
        result.map_err(|error| ReadEnd::of_beginning(error, buffer))?;
        while let Some(answer) = session.poll_transmit() {
            socket.write_all(&answer).await.map_err(ReadEnd::Connection)?;
        }
        // TLS may have kept some of it.
        socket.flush().await.map_err(ReadEnd::Connection)?;
    }
}

/// What a session reads with, and where its batches go.
pub(crate) struct Reading<'a, L, R, O, D, P, C> {
    /// Shared by the connections of a worker.
    pub(crate) buffer: &'a RefCell<ReadBuffer>,
    /// Shared likewise.
    pub(crate) coalescer: &'a ReadCoalescer,
    /// Shared by those connections of a worker that write to the same outputs.
    pub(crate) turns: &'a ReadTurns,
    /// Most bytes of the next read: outputs come and go.
    pub(crate) read_len_max: L,
    /// Lets the session go on as its input is configured now. Called before each read.
    pub(crate) renew: R,
    /// Offers the connection, with the beginning of a frame, to another process. Returns whether that goes on with it.
    pub(crate) offer: O,
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
pub(crate) async fn read_frames<L, R, O, D, P, C>(
    handle: &ReadHandle,
    session: &mut ReaderSession,
    started: Started,
    reading: Reading<'_, L, R, O, D, P, C>,
) -> ReadEnd
where
    L: Fn() -> usize,
    R: Fn(&mut ReaderSession),
    O: AsyncFn(&Stream, Option<ReaderStage>, Bytes) -> bool,
    D: AsyncFn(FrameBatch) -> bool,
    P: AsyncFn(),
    C: Fn(ReaderCounters),
{
    let Reading { buffer, coalescer, turns, read_len_max, renew, offer, deliver, wait_for_consumers, count } =
        reading;
    let stream = &handle.stream;
    // Not the buffer of the handshake, which has room for more: many connections stay idle.
    let tail = RefCell::new(Tail::new(BytesMut::from(&started.received[..])));
    let mut end = started.fault;
    let mut share = ReadShare::new(read_len_max());
    let mut drain: Option<Drain> = None;
    let mut retirement: Option<Retirement> = None;
    let read = |session: &mut ReaderSession, len_max: usize| {
        renew(session);
        let result = buffer.borrow_mut().with_room(&mut tail.borrow_mut(), read_len_max(), |bytes| {
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
                    handle.last_read.set(Some(batch.read_at()));
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
            Phase::Running if handle.hands_over.take() => {
                let received = Bytes::copy_from_slice(tail.borrow().bytes());
                if offer(stream, session.stage(), received).await {
                    return ReadEnd::HandedOver;
                }
                handle.offered.set(None);
                continue;
            }
            Phase::Running if handle.retires.get() => {
                let retirement = retirement.get_or_insert_with(|| Retirement::begin(Instant::now()));
                let is_whole = tail.borrow().is_empty();
                if !retirement.goes_on(stream, is_whole).await {
                    return ReadEnd::MaxAge;
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
        let result = read(session, share.len(read_len_max(), len_max));
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
            Err(ReadEnd::Unclean) if retirement.as_ref().is_some_and(Retirement::is_told) => {
                end = Some(ReadEnd::MaxAge);
            }
            Err(other) => end = Some(other),
        }
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
        stream.readable_within(DRAIN_QUIET).await.unwrap_or(false)
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

/// How long a connection that drains is read from at least, for STOP to arrive.
const DRAIN_GRACE: Duration = Duration::from_millis(200);
/// A connection that drains has nothing more to say after this time without a byte.
const DRAIN_QUIET: Duration = Duration::from_millis(50);

/// Most bytes of one read at the end.
const ARRIVED_READ_MAX: usize = 64 << 10;
