//! A writer session: batches to a collector, with an ear for what it says.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::drain::Over;
use crate::protocol::ProtocolError;
use crate::protocol::WriterConfig;
use crate::protocol::WriterEvent;
use crate::protocol::WriterSession;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::cancel::is_cancelled;
use crate::transport::socket::ConnectOptions;
use crate::transport::socket::Socket;
use crate::transport::stream::Progress;
use crate::transport::stream::Stream;
use crate::transport::sys::SendList;

/// Why a writer session ended, or did not begin.
#[derive(Debug)]
pub(crate) enum WriteFault {
    /// No connection.
    Connect(io::Error),
    /// No connection in time.
    ConnectTimeout,
    /// The reader broke the protocol, was too slow, or closed.
    Protocol(ProtocolError),
    /// The connection broke.
    Connection(io::Error),
    /// We ended the operation ourselves.
    Cancelled,
    /// The reader took nothing for so long.
    Stalled(Duration),
}

impl WriteFault {
    /// What an error of an open connection means.
    fn of_connection(error: io::Error) -> Self {
        if is_cancelled(&error) { Self::Cancelled } else { Self::Connection(error) }
    }

    /// Whether the operation was ended by us.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

impl fmt::Display for WriteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::ConnectTimeout => write!(f, "cannot connect in time"),
            Self::Protocol(error) => write!(f, "{error}"),
            // The peer's host is gone: the error says that, in words of its own.
            Self::Connection(error) if error.kind() == io::ErrorKind::TimedOut => write!(f, "{error}"),
            Self::Connection(error) => write!(f, "the connection broke: {error}"),
            Self::Cancelled => write!(f, "tapster stopped writing before the end"),
            Self::Stalled(pause) => write!(f, "the reader took nothing for {pause:?}"),
        }
    }
}

/// A read that is always under way: only so is the death of an idle connection noticed.
type Incoming = Pin<Box<dyn Future<Output = (io::Result<usize>, BytesMut)>>>;

/// A session in its data phase.
pub(crate) struct WriteSession {
    stream: Stream,
    session: WriterSession,
    // `None` once the connection has ended: no operation is left under way then.
    incoming: Option<Incoming>,
    bidirectional: bool,
    // Bytes of data frames that were written before STOP; `None` until STOP is sent.
    data_len: Option<u64>,
}

impl WriteSession {
    /// Connects and shakes hands, within the handshake timeout. Cancel-safe: the connection is given up.
    pub(crate) async fn open(
        address: &Address,
        options: &ConnectOptions,
        config: Arc<WriterConfig>,
        backend: Backend,
    ) -> Result<Self, WriteFault> {
        let begin = Instant::now();
        let timeout = config.handshake_timeout;
        let bidirectional = config.bidirectional;
        let mut session = WriterSession::new(config, begin).map_err(WriteFault::Protocol)?;
        let mut socket = tokio::time::timeout(timeout, Socket::connect(address, options))
            .await
            .map_err(|_| WriteFault::ConnectTimeout)?
            .map_err(WriteFault::Connect)?;
        handshake(&mut socket, &mut session).await?;
        let stream = socket.into_stream(backend).map_err(WriteFault::Connection)?;
        let incoming = Some(listen(&stream, BytesMut::with_capacity(INCOMING_LEN)));
        Ok(Self { stream, session, incoming, bidirectional, data_len: None })
    }

    /// Writes `list`, all of it or a part, and says how many bytes; `Err` when the connection has ended, with the bytes
    /// that went before. Ends early when `over` does. Not cancel-safe.
    pub(crate) async fn write(
        &mut self,
        mut list: SendList,
        over: &mut Over,
    ) -> (usize, Result<(), WriteFault>, SendList) {
        match self.stream.write_now_list(&mut list) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return (0, Err(WriteFault::of_connection(error)), list),
            Ok(count) => return (count, Ok(()), list),
        }
        let stream = self.stream.clone();
        let mut write = std::pin::pin!(stream.write(list));
        let mut fault = None;
        let (result, list) = tokio::select! {
            biased;
            done = &mut write => done,
            heard = self.hear() => {
                fault = heard.err();
                // The write that is under way comes back with what it had written.
                self.stream.shutdown();
                write.await
            }
            () = over.reached() => {
                self.stream.cancel();
                write.await
            }
        };
        let count = *result.as_ref().unwrap_or(&0);
        let result = match (fault, result) {
            (Some(fault), _) => Err(fault),
            (None, result) => result.map(drop).map_err(WriteFault::of_connection),
        };
        (count, result, list)
    }

    /// Waits until the reader says something that it must not say before STOP, or closes. Cancel-safe.
    pub(crate) async fn closed(&mut self) -> WriteFault {
        loop {
            if let Err(fault) = self.hear().await {
                return fault;
            }
        }
    }

    /// Sends STOP and waits for FINISH, within its timeout. Not cancel-safe; ends early when `over` does.
    ///
    /// # Errors
    /// The stream is not acknowledged, and why.
    pub(crate) async fn finish(&mut self, over: &mut Over) -> Result<(), WriteFault> {
        // What the reader has said by now was not said in answer to STOP.
        tokio::select! {
            biased;
            heard = self.hear() => heard?,
            () = tokio::task::yield_now() => {}
        }
        self.data_len = Some(self.stream.written_bytes());
        self.session.stop(Instant::now());
        let deadline = self.session.poll_timeout();
        let mut list = SendList::new();
        list.extend(std::iter::from_fn(|| self.session.poll_transmit()));
        while !list.is_empty() {
            let (written, result, back) = self.write_before(deadline, list, over).await;
            result?;
            list = back;
            list.advance(written);
        }
        while self.session.poll_event() != Some(WriterEvent::Finished) {
            let deadline = self.session.poll_timeout().unwrap_or_else(Instant::now);
            tokio::select! {
                heard = self.hear() => heard?,
                () = tokio::time::sleep_until(deadline.into()) => {
                    self.session.handle_timeout(Instant::now()).map_err(WriteFault::Protocol)?;
                }
                () = over.reached() => return Err(WriteFault::Protocol(ProtocolError::NotAcknowledged)),
            }
        }
        // A reader that has not got STOP did not answer it: FINISH was on its way before.
        if self.bidirectional && self.arrived_bytes().is_some_and(|arrived| arrived < self.written_bytes()) {
            return Err(WriteFault::Protocol(ProtocolError::UnexpectedBytes));
        }
        Ok(())
    }

    /// Writes as [`WriteSession::write`] does, and gives up at the deadline: with what it had written by then, or an error if
    /// that is nothing.
    pub(crate) async fn write_before(
        &mut self,
        deadline: Option<Instant>,
        list: SendList,
        over: &mut Over,
    ) -> (usize, Result<(), WriteFault>, SendList) {
        let Some(deadline) = deadline else { return self.write(list, over).await };
        let stream = self.stream.clone();
        let mut write = std::pin::pin!(self.write(list, over));
        tokio::select! {
            biased;
            done = &mut write => done,
            () = tokio::time::sleep_until(deadline.into()) => {
                stream.cancel();
                write.await
            }
        }
    }

    /// How many bytes, of those written since the handshake, have arrived: in the kernel of the reader (TCP), at the
    /// reader itself (unix). `None` where that cannot be told.
    pub(crate) fn arrived_bytes(&self) -> Option<u64> {
        match self.stream.progress() {
            Progress::Acknowledged(count) | Progress::Taken(count) => Some(count),
            Progress::Unknown => None,
        }
    }

    /// Bytes written since the handshake.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.stream.written_bytes()
    }

    /// Lets the socket take no more than about so many bytes that the reader has no room for.
    pub(crate) fn set_unsent_max(&self, bytes: usize) {
        self.stream.set_unsent_max(bytes);
    }

    /// Bytes of data frames that were written and may not have reached the reader.
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        // STOP is no data, and is what the reader gets last.
        let stop_len = self.data_len.map_or(0, |data_len| self.stream.written_bytes() - data_len);
        self.stream.unconfirmed_bytes().saturating_sub(stop_len)
    }

    /// Closes the connection. To be called at every end: a read that is under way would keep it open.
    pub(crate) async fn close(mut self) {
        self.stream.shutdown();
        if let Some(incoming) = self.incoming.take() {
            // What it still heard matters to nobody.
            let _ = incoming.await;
        }
    }

    /// Waits for the next bytes of the reader and lets the session judge them. Cancel-safe. Pending for ever once the
    /// connection has ended.
    async fn hear(&mut self) -> Result<(), WriteFault> {
        let (result, mut buffer) = loop {
            let Some(incoming) = &mut self.incoming else { return std::future::pending().await };
            let (result, buffer) = incoming.await;
            self.incoming = None;
            match result {
                // A write was to end, and this read with it.
                Err(error) if is_cancelled(&error) => self.incoming = Some(listen(&self.stream, buffer)),
                result => break (result, buffer),
            }
        };
        match result {
            Ok(0) => self.session.handle_eof().map_err(WriteFault::Protocol),
            Ok(_) => {
                self.session.handle_bytes(Instant::now(), &mut buffer).map_err(WriteFault::Protocol)?;
                buffer.reserve(INCOMING_LEN);
                self.incoming = Some(listen(&self.stream, buffer));
                Ok(())
            }
            Err(error) => Err(WriteFault::Connection(error)),
        }
    }
}

/// FINISH is 12 bytes; a control frame of a reader that errs is at most 520.
const INCOMING_LEN: usize = 1024;

fn listen(stream: &Stream, buffer: BytesMut) -> Incoming {
    let stream = stream.clone();
    Box::pin(async move { stream.read(buffer, INCOMING_LEN).await })
}

async fn handshake(socket: &mut Socket, session: &mut WriterSession) -> Result<(), WriteFault> {
    let mut buffer = BytesMut::with_capacity(INCOMING_LEN);
    loop {
        while let Some(bytes) = session.poll_transmit() {
            socket.write_all(&bytes).await.map_err(WriteFault::Connection)?;
        }
        if let Some(WriterEvent::Started { .. }) = session.poll_event() {
            return Ok(());
        }
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        match tokio::time::timeout_at(deadline.into(), socket.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => session.handle_eof().map_err(WriteFault::Protocol)?,
            Ok(Ok(_)) => session.handle_bytes(Instant::now(), &mut buffer).map_err(WriteFault::Protocol)?,
            Ok(Err(error)) => return Err(WriteFault::Connection(error)),
            Err(_) => session.handle_timeout(Instant::now()).map_err(WriteFault::Protocol)?,
        }
    }
}
