//! A writer session: batches to a collector, with an ear for what it says.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::protocol::ProtocolError;
use crate::protocol::WriterConfig;
use crate::protocol::WriterEvent;
use crate::protocol::WriterSession;
use crate::session::encryption::Encryption;
use crate::session::half_closed::HalfClosed;
use crate::session::write_fault::WriteFault;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::cancel::is_cancelled;
use crate::transport::dial::Dial;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::socket::ConnectOptions;
use crate::transport::socket::Socket;
use crate::transport::stream::Progress;
use crate::transport::stream::Stream;
use crate::transport::sys::SendList;
use crate::transport::tls::ReloadableClient;
use crate::transport::tls::first_bytes::is_tls_answer;

/// What happens on an open stream.
#[derive(Debug)]
pub(crate) enum WriteEvent {
    /// A write came back, with so many more bytes written: all of it, or a part.
    Written(usize),
    /// FINISH came in answer to STOP; without answers: STOP is sent.
    Finished,
    /// The stream has ended.
    Lost(WriteFault),
}

/// An operation of the stream. It is polled until it is ready, never dropped before: the ring may own its buffer.
type Operation<T> = Pin<Box<dyn Future<Output = (io::Result<usize>, T)>>>;

/// A session in its data phase. [`WriteStream::poll_event`] drives it.
pub(crate) struct WriteStream {
    stream: Stream,
    // TCP.
    peer: Option<SocketAddr>,
    opened_at: Instant,
    remark: String,
    session: WriterSession,
    bidirectional: bool,
    // What the write under way, or the next one, writes.
    list: Option<SendList>,
    writing: Option<Operation<SendList>>,
    // A read that is always under way: only so is the death of an idle connection noticed. `None` once the stream has
    // ended.
    incoming: Option<Operation<BytesMut>>,
    // The reader has ended its own direction, and need not say anything.
    half_closed: Option<HalfClosed>,
    // Bytes of such a write that count because it was interrupted.
    interrupted: Option<usize>,
    // What the reader said while a write was under way: told once the write has come back.
    fault: Option<WriteFault>,
    stop: Stop,
    direction_ended: bool,
    closing: bool,
}

/// How far STOP has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Nobody asked for it.
    Not,
    /// Asked for: what the reader has said by now was not said in answer to it. `true`: everything was heard.
    Wanted(bool),
    /// Written, or about to be; before it so many bytes of data were written.
    Sent { data_len: u64 },
}

impl WriteStream {
    /// Connects and shakes hands. Every address of a name is tried until one gives a session; `last` comes after the others.
    /// Cancel-safe: the connection is given up. Each address has its own deadline, for connecting and once more for the handshakes.
    /// `tls` addresses are spoken to with `tls`.
    pub(crate) async fn open(
        address: &Address,
        last: Option<SocketAddr>,
        options: &ConnectOptions,
        tls: Option<&ReloadableClient>,
        own: &OwnListeners,
        config: Arc<WriterConfig>,
        backend: Backend,
    ) -> Result<Self, WriteFault> {
        let encryption = if address.is_tls() { Some(Encryption::new(address, tls)?) } else { None };
        let dial = Dial::new(address, *options, last).await.map_err(WriteFault::Connect)?;
        Self::open_one_of(dial, encryption.as_ref(), own, config, backend).await
    }

    async fn open_one_of(
        mut dial: Dial,
        encryption: Option<&Encryption>,
        own: &OwnListeners,
        config: Arc<WriterConfig>,
        backend: Backend,
    ) -> Result<Self, WriteFault> {
        let mut own_input = None;
        loop {
            let socket = match dial.next().await {
                Ok(socket) => socket,
                Err(error) => return Err(own_input.unwrap_or(WriteFault::Connect(error))),
            };
            let peer = socket.peer();
            let fault = match own.behind(&socket) {
                Some(input) => WriteFault::OwnInput(input),
                None => match Self::begin(socket, &dial, encryption, Arc::clone(&config), backend).await {
                    Ok(mut stream) => {
                        stream.remark = dial.remark();
                        return Ok(stream);
                    }
                    Err(fault) => fault,
                },
            };
            if !dial.has_more() && dial.remark().is_empty() {
                return Err(fault);
            }
            dial.failed(peer, &fault.to_string());
            if matches!(fault, WriteFault::OwnInput(_)) {
                own_input = Some(fault);
            }
        }
    }

    /// Shakes hands.
    async fn begin(
        mut socket: Socket,
        dial: &Dial,
        encryption: Option<&Encryption>,
        config: Arc<WriterConfig>,
        backend: Backend,
    ) -> Result<Self, WriteFault> {
        if let Some(version) = dial.send_proxy() {
            socket.send_proxy_header(version).await.map_err(WriteFault::Connection)?;
        }
        let bidirectional = config.bidirectional;
        // Its time runs for TLS, too.
        let (began, timeout) = (Instant::now(), config.handshake_timeout);
        let mut session = WriterSession::new(config, began).map_err(WriteFault::Protocol)?;
        if let Some(encryption) = encryption {
            socket = encryption.encrypt(socket, began + timeout).await?;
        }
        let shaken = handshake(&mut socket, &mut session).await;
        shaken.map_err(|fault| if encryption.is_some() { fault.over_tls() } else { fault })?;
        let received = BytesMut::with_capacity(INCOMING_LEN);
        Self::over(socket, (session, bidirectional), received, backend).map_err(WriteFault::Connection)
    }

    /// A session that has begun, with what the reader has said since, which the session has not taken.
    pub(super) fn over(
        socket: Socket,
        (session, bidirectional): (WriterSession, bool),
        mut received: BytesMut,
        backend: Backend,
    ) -> io::Result<Self> {
        let peer = socket.peer();
        let stream = socket.into_stream(backend)?;
        received.reserve(INCOMING_LEN);
        let incoming = Some(listen(&stream, received));
        Ok(Self {
            stream,
            peer,
            opened_at: Instant::now(),
            remark: String::new(),
            session,
            bidirectional,
            list: Some(SendList::new()),
            writing: None,
            incoming,
            half_closed: None,
            interrupted: None,
            fault: None,
            stop: Stop::Not,
            direction_ended: false,
            closing: false,
        })
    }

    /// Addresses of the name that were tried before this one, and what was wrong with each. Empty where there was none.
    pub(crate) fn remark(&self) -> &str {
        &self.remark
    }

    /// TCP: the address of a connection that did not last: another one is better tried first.
    pub(crate) fn brief_peer(&self, now: Instant) -> Option<SocketAddr> {
        self.peer.filter(|_| now.saturating_duration_since(self.opened_at) < LASTING)
    }

    /// Writes `buffers`, or goes on with those that were not written last time. Returns how many bytes the socket took at
    /// once; `None`: [`WriteEvent::Written`] will tell.
    ///
    /// # Errors
    /// The stream has ended.
    pub(crate) fn write(
        &mut self,
        buffers: impl Iterator<Item = Bytes>,
    ) -> Result<Option<usize>, WriteFault> {
        let Some(list) = &mut self.list else { return Ok(None) };
        if list.is_empty() {
            list.extend(buffers);
        }
        match self.stream.write_now_list(list) {
            Ok(count) => {
                list.advance(count);
                let counts = self.half_closed.as_mut().is_none_or(|reader| reader.written(count));
                Ok(counts.then_some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.begin_write();
                Ok(None)
            }
            Err(error) => Err(self.fault.take().unwrap_or(WriteFault::Connection(error))),
        }
    }

    fn begin_write(&mut self) {
        let Some(list) = self.list.take() else { return };
        let stream = self.stream.clone();
        self.writing = Some(Box::pin(async move { stream.write(list).await }));
    }

    /// Ends the write that is under way: [`WriteEvent::Written`] tells what it has written by now.
    pub(crate) fn interrupt(&mut self) {
        if self.writing.is_some() {
            self.stream.cancel();
        } else if let Some(written) = self.half_closed.as_mut().and_then(HalfClosed::give_up_doubt) {
            self.interrupted = Some(written);
        }
    }

    /// Sends STOP. [`WriteEvent::Finished`] tells that the stream is acknowledged. No write may be under way.
    pub(crate) fn stop(&mut self) {
        self.stop = Stop::Wanted(false);
    }

    /// Ends the connection: every operation under way completes. Poll [`WriteStream::poll_closed`] from now on.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.stream.shutdown();
    }

    /// Whether every operation has completed after [`WriteStream::close`].
    pub(crate) fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(writing) = &mut self.writing {
            let _ = ready!(writing.as_mut().poll(context));
            self.writing = None;
        }
        if let Some(incoming) = &mut self.incoming {
            // What it still heard matters to nobody.
            let _ = ready!(incoming.as_mut().poll(context));
            self.incoming = None;
        }
        Poll::Ready(())
    }

    /// The next thing that happens. Pending after [`WriteEvent::Lost`].
    pub(crate) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<WriteEvent> {
        while let Poll::Ready(heard) = self.poll_incoming(context) {
            match heard {
                // FINISH counts, whatever comes behind it.
                Ok(()) if matches!(self.stop, Stop::Sent { .. }) => {
                    if let Poll::Ready(event) = self.poll_finished() {
                        return Poll::Ready(event);
                    }
                }
                Ok(()) => {}
                Err(fault) if self.writing.is_none() => return Poll::Ready(WriteEvent::Lost(fault)),
                Err(fault) => {
                    // The write that is under way comes back with what it had written.
                    self.stream.shutdown();
                    self.fault.get_or_insert(fault);
                }
            }
        }
        if self.writing.is_some() {
            let written = ready!(self.poll_write(context));
            match (self.stop, written) {
                (Stop::Sent { .. }, Ok(_)) if self.list.as_ref().is_some_and(|list| !list.is_empty()) => {
                    self.begin_write();
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                (Stop::Sent { .. }, Ok(_)) => {}
                (_, Ok(count)) => {
                    if self.half_closed.as_mut().is_none_or(|reader| reader.written(count)) {
                        return Poll::Ready(WriteEvent::Written(count));
                    }
                }
                (_, Err(fault)) => return Poll::Ready(WriteEvent::Lost(self.fault.take().unwrap_or(fault))),
            }
        }
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(WriteEvent::Lost(fault));
        }
        if let Some(written) = self.interrupted.take() {
            return Poll::Ready(WriteEvent::Written(written));
        }
        if let Some(reader) = &mut self.half_closed
            && let Poll::Ready(written) = reader.poll_written(&self.stream, context)
        {
            return Poll::Ready(match written {
                Ok(count) => WriteEvent::Written(count),
                Err(error) => WriteEvent::Lost(WriteFault::Protocol(error)),
            });
        }
        match self.stop {
            Stop::Not => Poll::Pending,
            Stop::Wanted(false) => {
                // One turn of the worker, in which what has arrived is heard.
                self.stop = Stop::Wanted(true);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Stop::Wanted(true) => {
                self.send_stop();
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Stop::Sent { .. } => {
                // Such a reader may wait for the end of the connection.
                if self.session.reader_began() && !std::mem::replace(&mut self.direction_ended, true) {
                    self.stream.shutdown_write();
                }
                self.poll_finished()
            }
        }
    }

    fn send_stop(&mut self) {
        self.stop = Stop::Sent { data_len: self.stream.written_bytes() };
        self.session.stop(Instant::now());
        if let Some(list) = &mut self.list {
            list.extend(std::iter::from_fn(|| self.session.poll_transmit()));
        }
        match self.write(std::iter::empty()) {
            Err(fault) => self.fault = Some(fault),
            Ok(_) if self.list.as_ref().is_some_and(|list| !list.is_empty()) => self.begin_write(),
            Ok(_) => {}
        }
    }

    fn poll_finished(&mut self) -> Poll<WriteEvent> {
        if self.session.poll_event() != Some(WriterEvent::Finished) {
            return Poll::Pending;
        }
        // A reader that has not got STOP did not answer it: FINISH was on its way before.
        if self.bidirectional
            && self.arrived_bytes().is_some_and(|arrived| arrived < self.stream.written_bytes())
        {
            return Poll::Ready(WriteEvent::Lost(WriteFault::Protocol(ProtocolError::UnexpectedBytes)));
        }
        Poll::Ready(WriteEvent::Finished)
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, WriteFault>> {
        let Some(writing) = &mut self.writing else { return Poll::Pending };
        let (result, mut list) = ready!(writing.as_mut().poll(context));
        self.writing = None;
        let result = match result {
            Err(error) if is_cancelled(&error) => Ok(0),
            result => result.map_err(WriteFault::Connection),
        };
        list.advance(*result.as_ref().unwrap_or(&0));
        self.list = Some(list);
        Poll::Ready(result)
    }

    /// Waits for the next bytes of the reader and lets the session judge them.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WriteFault>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Pending };
        let (result, mut buffer) = ready!(incoming.as_mut().poll(context));
        self.incoming = None;
        match result {
            // A write was to end, and this read with it.
            Err(error) if is_cancelled(&error) => {}
            Err(error) => return Poll::Ready(Err(WriteFault::Connection(error))),
            Ok(0) => {
                let ended = self.session.handle_eof().and_then(|()| {
                    if self.stop == Stop::Not {
                        self.half_closed = Some(HalfClosed::new(&self.stream)?);
                    }
                    Ok(())
                });
                return Poll::Ready(ended.map_err(WriteFault::Protocol));
            }
            Ok(_) => {
                let heard = self.session.handle_bytes(Instant::now(), &mut buffer);
                if let Err(error) = heard {
                    return Poll::Ready(Err(WriteFault::Protocol(error)));
                }
                buffer.reserve(INCOMING_LEN);
            }
        }
        self.incoming = Some(listen(&self.stream, buffer));
        Poll::Ready(Ok(()))
    }

    /// How many bytes, of those written since the handshake, have arrived: in the kernel of the reader (TCP), at the
    /// reader itself (unix). `None` where that cannot be told.
    pub(crate) fn arrived_bytes(&self) -> Option<u64> {
        match self.stream.progress() {
            Progress::Acknowledged(count) | Progress::Taken(count) => Some(count),
            Progress::Unknown => None,
        }
    }

    /// Lets the socket take no more than about so many bytes that the reader has no room for.
    pub(crate) fn set_unsent_max(&self, bytes: usize) {
        self.stream.set_unsent_max(bytes);
    }

    /// Bytes of data frames that were written and may not have reached the reader.
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        // STOP is no data, and is what the reader gets last.
        let stop_len = match self.stop {
            Stop::Sent { data_len } => self.stream.written_bytes() - data_len,
            _ => 0,
        };
        // What does not count as written is written again.
        let doubtful = self.half_closed.as_ref().map_or(0, HalfClosed::doubtful_bytes) as u64;
        self.stream.unconfirmed_bytes().saturating_sub(stop_len + doubtful)
    }
}

impl Drop for WriteStream {
    /// An operation that the ring still has keeps the socket open: a lane that fails leaves no connection behind that its reader
    /// takes for a living one.
    fn drop(&mut self) {
        if !self.closing {
            self.stream.shutdown();
        }
    }
}

/// A connection that ends sooner did not last.
const LASTING: Duration = Duration::from_secs(1);

/// FINISH is 12 bytes; a control frame of a reader that errs is at most 520.
const INCOMING_LEN: usize = 1024;

fn listen(stream: &Stream, buffer: BytesMut) -> Operation<BytesMut> {
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
        // TLS may have kept some of what was written.
        socket.flush().await.map_err(WriteFault::Connection)?;
        match tokio::time::timeout_at(deadline.into(), socket.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => session.handle_eof().map_err(WriteFault::Protocol)?,
            Ok(Ok(_)) if is_tls_answer(&buffer) => return Err(WriteFault::ReaderSpeaksTls),
            Ok(Ok(_)) => session.handle_bytes(Instant::now(), &mut buffer).map_err(WriteFault::Protocol)?,
            Ok(Err(error)) => return Err(WriteFault::Connection(error)),
            Err(_) => session.handle_timeout(Instant::now()).map_err(WriteFault::Protocol)?,
        }
    }
}

#[cfg(test)]
mod tests;
