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
use crate::transport::socket::Socket;
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
    /// The reader took nothing for so long.
    Stalled(Duration),
}

impl WriteFault {
    /// Whether the operation was ended by us.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Connection(error) if is_cancellation(error))
    }
}

impl fmt::Display for WriteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::ConnectTimeout => write!(f, "cannot connect in time"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::Connection(error) => write!(f, "the connection broke: {error}"),
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
    handshake_len: u64,
    // Since the handshake.
    bytes_written: u64,
    // The part of it that is known to have arrived: arrived <= bytes_written.
    arrived: u64,
    unix: bool,
    bidirectional: bool,
    // The reader closed after the end of the stream, and had read everything.
    read_to_the_end: bool,
}

impl WriteSession {
    /// Connects and shakes hands, within the handshake timeout. Cancel-safe: the connection is given up.
    pub(crate) async fn open(
        address: &Address,
        config: Arc<WriterConfig>,
        backend: Backend,
    ) -> Result<Self, WriteFault> {
        let begin = Instant::now();
        let timeout = config.handshake_timeout;
        let bidirectional = config.bidirectional;
        let mut session = WriterSession::new(config, begin).map_err(WriteFault::Protocol)?;
        let mut socket = tokio::time::timeout(timeout, Socket::connect(address))
            .await
            .map_err(|_| WriteFault::ConnectTimeout)?
            .map_err(WriteFault::Connect)?;
        let handshake_len = handshake(&mut socket, &mut session).await?;
        let fd = socket.into_fd().map_err(WriteFault::Connection)?;
        let stream = Stream::new(fd, backend).map_err(WriteFault::Connection)?;
        let incoming = Some(listen(&stream, BytesMut::with_capacity(INCOMING_LEN)));
        let unix = matches!(address, Address::Unix(_));
        Ok(Self {
            stream,
            session,
            incoming,
            handshake_len,
            bytes_written: 0,
            arrived: 0,
            unix,
            bidirectional,
            read_to_the_end: false,
        })
    }

    /// Writes `list`, all of it or a part, and says how many bytes; `Err` when the connection has ended, with the bytes
    /// that went before. Ends early when `over` does. Not cancel-safe.
    pub(crate) async fn write(
        &mut self,
        list: SendList,
        over: &mut Over,
    ) -> (usize, Result<(), WriteFault>, SendList) {
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
        self.bytes_written += count as u64;
        let result = match (fault, result) {
            (Some(fault), _) => Err(fault),
            (None, result) => result.map(drop).map_err(WriteFault::Connection),
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
        if self.bidirectional && self.stream.unsent_bytes() > 0 {
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
    /// reader itself (unix). `None` where that cannot be told: the kernel forgets what was not read when the reader of a
    /// unix socket closes.
    pub(crate) fn arrived_bytes(&mut self) -> Option<u64> {
        let arrived = if !self.unix {
            let count = self.stream.acknowledged_bytes().ok()?;
            count.saturating_sub(self.handshake_len).min(self.bytes_written)
        } else if self.read_to_the_end {
            self.bytes_written
        } else {
            // The socket counts memory: never less than the bytes that were not read, and more with every write.
            let unread = self.stream.unsent_bytes() as u64;
            (!self.stream.is_hung_up()).then(|| self.bytes_written.saturating_sub(unread))?
        };
        self.arrived = self.arrived.max(arrived);
        Some(self.arrived)
    }

    /// Bytes written since the handshake.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.bytes_written
    }

    /// Lets the socket take no more than about so many bytes that the reader has no room for.
    pub(crate) fn set_unsent_max(&self, bytes: usize) {
        self.stream.set_unsent_max(bytes, self.unix);
    }

    /// Bytes that were written and may not have reached the reader: what its kernel had not acknowledged (TCP); at
    /// most what the socket buffer holds (unix: the kernel forgets the exact number when the reader closes).
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        if self.unix {
            self.bytes_written.min(self.stream.send_buffer_bytes() as u64)
        } else {
            self.stream.unsent_bytes() as u64
        }
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
                Err(error) if is_cancellation(&error) => self.incoming = Some(listen(&self.stream, buffer)),
                result => break (result, buffer),
            }
        };
        match result {
            // A reader that closes with something unread resets the connection.
            Ok(0) => {
                self.session.handle_eof().map_err(WriteFault::Protocol)?;
                self.read_to_the_end = true;
                Ok(())
            }
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

fn is_cancellation(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// FINISH is 12 bytes; a control frame of a reader that errs is at most 520.
const INCOMING_LEN: usize = 1024;

fn listen(stream: &Stream, buffer: BytesMut) -> Incoming {
    let stream = stream.clone();
    Box::pin(async move { stream.read(buffer, INCOMING_LEN).await })
}

/// Returns how many bytes were written.
async fn handshake(socket: &mut Socket, session: &mut WriterSession) -> Result<u64, WriteFault> {
    let mut buffer = BytesMut::with_capacity(INCOMING_LEN);
    let mut written = 0;
    loop {
        while let Some(bytes) = session.poll_transmit() {
            socket.write_all(&bytes).await.map_err(WriteFault::Connection)?;
            written += bytes.len() as u64;
        }
        if let Some(WriterEvent::Started { .. }) = session.poll_event() {
            return Ok(written);
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
