//! A writer session over a connection of its own, to one reader.

use std::future::pending;
use std::io;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tapster::output::StreamsConfig;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::protocol::ProtocolError;
use tapster::protocol::WriterConfig;
use tapster::protocol::WriterEvent;
use tapster::protocol::WriterSession;
use tapster::transport::Address;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::select;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::commands::pace::Pacer;

/// Why not everything was sent, or FINISH did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("no connection to {0}: {1}")]
    Connect(Address, io::Error),
    #[error("no connection to {0} in time")]
    ConnectTimeout(Address),
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A writer session over a connection. A read is pending all the time: a reader that goes is noticed at once.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    session: WriterSession,
    incoming: BytesMut,
}

impl Connection {
    /// Connects and goes as far as START.
    pub(crate) async fn open(
        to: &Address,
        config: &StreamsConfig,
        content_type: Option<ContentType>,
    ) -> Result<Self, SendError> {
        let stream = match timeout(config.handshake_timeout, connect(to)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(SendError::Connect(to.clone(), error)),
            Err(_) => return Err(SendError::ConnectTimeout(to.clone())),
        };
        let config = WriterConfig {
            content_types: content_type.into_iter().collect(),
            bidirectional: config.mode.is_bidirectional(),
            handshake_timeout: config.handshake_timeout,
            finish_timeout: config.mode.finish_timeout(),
        };
        let session = WriterSession::new(config, Instant::now())?;
        let mut connection = Self { stream, session, incoming: BytesMut::new() };
        while !matches!(connection.next_event().await?, WriterEvent::Started { .. }) {}
        connection.transmit().await?;
        Ok(connection)
    }

    /// Sends the frames of a batch as they become due, and counts them. They were recorded at `received`, since the Unix
    /// epoch, or as the dnstap in them says.
    pub(crate) async fn send(
        &mut self,
        batch: &FrameBatch,
        received: Option<Duration>,
        pacer: &mut Pacer,
        frames: &mut u64,
    ) -> Result<(), SendError> {
        if pacer.is_unlimited() {
            self.write(batch.bytes()).await?;
            *frames += u64::from(batch.frames());
            return Ok(());
        }
        // Everything that is due goes in one write: sent <= due.
        let mut waiting = batch.bytes().clone();
        let (mut due_len, mut due_frames) = (0, 0);
        for payload in batch.payloads() {
            let due = pacer.due(&payload, received);
            if due > Instant::now() {
                self.write(&waiting.split_to(due_len)).await?;
                *frames += due_frames;
                (due_len, due_frames) = (0, 0);
                self.wait_until(due).await?;
            }
            due_len += LENGTH_WORD + payload.len();
            due_frames += 1;
        }
        self.write(&waiting).await?;
        *frames += due_frames;
        Ok(())
    }

    /// STOP, and FINISH if the reader answers at all.
    pub(crate) async fn finish(mut self) -> Result<(), SendError> {
        self.session.stop(Instant::now());
        while self.next_event().await? != WriterEvent::Finished {}
        // After FINISH the reader may be gone already.
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    /// The next event of the session, which is given what arrives and the time.
    async fn next_event(&mut self) -> Result<WriterEvent, SendError> {
        loop {
            let event = match self.session.poll_timeout() {
                None => self.step().await?,
                Some(deadline) => match timeout_at(deadline.into(), self.step()).await {
                    Ok(event) => event?,
                    Err(_) => {
                        self.session.handle_timeout(Instant::now())?;
                        None
                    }
                },
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    /// Sends what the session has to say, then takes an event or reads once.
    async fn step(&mut self) -> Result<Option<WriterEvent>, SendError> {
        self.transmit().await?;
        let event = self.session.poll_event();
        if event.is_none() {
            read(&mut self.stream, &mut self.session, &mut self.incoming).await?;
        }
        Ok(event)
    }

    async fn transmit(&mut self) -> Result<(), SendError> {
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).await.map_err(SendError::Broken)?;
        }
        Ok(())
    }

    /// Writes in the data phase: a reader that speaks or goes ends it.
    async fn write(&mut self, bytes: &Bytes) -> Result<(), SendError> {
        let (mut reading, mut writing) = tokio::io::split(&mut self.stream);
        select! {
            biased;
            result = writing.write_all(bytes) => result.map_err(SendError::Broken),
            result = watch(&mut reading, &mut self.session, &mut self.incoming) => result,
        }
    }

    async fn wait_until(&mut self, due: Instant) -> Result<(), SendError> {
        select! {
            () = sleep_until(due.into()) => Ok(()),
            result = watch(&mut self.stream, &mut self.session, &mut self.incoming) => result,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Reads until the session finds fault with it.
async fn watch(
    stream: &mut (impl AsyncRead + Unpin),
    session: &mut WriterSession,
    incoming: &mut BytesMut,
) -> Result<(), SendError> {
    while !read(stream, session, incoming).await? {}
    // It has nothing to say, and may read on.
    pending().await
}

/// One read; cancel-safe. Returns whether the reader has ended its direction.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    session: &mut WriterSession,
    incoming: &mut BytesMut,
) -> Result<bool, SendError> {
    let len = stream.read_buf(incoming).await.map_err(SendError::Broken)?;
    match len {
        0 => session.handle_eof()?,
        _ => session.handle_bytes(Instant::now(), incoming)?,
    }
    Ok(len == 0)
}

async fn connect(to: &Address) -> io::Result<Box<dyn Stream>> {
    match to {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}

const LENGTH_WORD: usize = 4;
