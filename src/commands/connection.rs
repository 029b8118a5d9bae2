//! A writer session over a connection of its own, to one reader.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tapster::config::units::format_duration;
use tapster::output::StreamsConfig;
use tapster::protocol::ContentType;
use tapster::protocol::ProtocolError;
use tapster::protocol::WriterConfig;
use tapster::protocol::WriterEvent;
use tapster::protocol::WriterSession;
use tapster::transport::Address;
use tapster::transport::proxy_header;
use tapster::transport::tls::ClientTls;
use tapster::transport::tls::explain_io;
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
use tokio_rustls::TlsConnector;

use crate::commands::tell::tell;

/// Why not everything was sent, or FINISH did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("no connection to {0}: {1}")]
    Connect(Address, io::Error),
    #[error("no connection to {0} in time")]
    ConnectTimeout(Address),
    #[error("no TLS handshake with {0}: {1}")]
    Tls(Address, String),
    #[error("no TLS handshake with {0} in time: does it speak TLS there?")]
    TlsTimeout(Address),
    #[error("the connection broke: {}", explain_io(.0).unwrap_or_else(|| .0.to_string()))]
    Broken(io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A writer session over a connection. A read is pending all the time: a reader that goes is noticed at once.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    session: WriterSession,
    incoming: BytesMut,
    to: Address,
    ends: Ends,
    content_type: Option<ContentType>,
    finish_timeout: Duration,
}

impl Connection {
    /// Connects and goes as far as START.
    pub(crate) async fn open(
        to: &Address,
        config: &StreamsConfig,
        content_type: Option<ContentType>,
    ) -> Result<Self, SendError> {
        let (mut stream, ends) = match timeout(config.handshake_timeout, connect(to)).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(SendError::Connect(to.clone(), error)),
            Err(_) => return Err(SendError::ConnectTimeout(to.clone())),
        };
        if let Some(version) = config.send_proxy {
            stream.write_all(&proxy_header::encode(version, ends)).await.map_err(SendError::Broken)?;
        }
        if to.is_tls() {
            stream = match timeout(config.handshake_timeout, encrypt(stream, to, &config.tls)).await {
                Ok(encrypted) => encrypted?,
                Err(_) => return Err(SendError::TlsTimeout(to.clone())),
            };
        }
        let config = WriterConfig {
            content_types: content_type.into_iter().collect(),
            bidirectional: config.mode.is_bidirectional(),
            handshake_timeout: config.handshake_timeout,
            finish_timeout: config.mode.finish_timeout(),
        };
        let finish_timeout = config.finish_timeout;
        let session = WriterSession::new(config, Instant::now())?;
        let incoming = BytesMut::new();
        let (to, content_type) = (to.clone(), None);
        let mut connection = Self { stream, session, incoming, to, ends, content_type, finish_timeout };
        connection.content_type = loop {
            if let WriterEvent::Started { content_type } = connection.next_event().await? {
                break content_type;
            }
        };
        connection.transmit().await?;
        Ok(connection)
    }

    /// The address of the reader, over TCP.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.ends.map(|(_, peer)| peer)
    }

    /// The content type of the stream.
    pub(crate) fn content_type(&self) -> Option<&ContentType> {
        self.content_type.as_ref()
    }

    /// STOP, and FINISH if the reader answers at all. Says so if FINISH does not come soon.
    pub(crate) async fn finish(mut self) -> Result<(), SendError> {
        let waiting = format!(
            "{}: every frame is sent; waiting for FINISH, at most {} (finish_timeout)",
            self.to,
            format_duration(self.finish_timeout)
        );
        self.session.stop(Instant::now());
        {
            let mut finished = pin!(self.finished());
            match timeout(FINISH_USUAL, &mut finished).await {
                Ok(result) => result?,
                Err(_) => {
                    tell(&waiting);
                    finished.await?;
                }
            }
        }
        // After FINISH the reader may be gone already.
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    async fn finished(&mut self) -> Result<(), SendError> {
        while self.next_event().await? != WriterEvent::Finished {}
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
        // TLS may have kept some of it.
        self.stream.flush().await.map_err(SendError::Broken)
    }

    /// Writes in the data phase: a reader that speaks or goes ends it.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> Result<(), SendError> {
        let (mut reading, mut writing) = tokio::io::split(&mut self.stream);
        select! {
            biased;
            result = async {
                writing.write_all(bytes).await?;
                writing.flush().await
            } => result.map_err(SendError::Broken),
            result = watch(&mut reading, &mut self.session, &mut self.incoming) => result,
        }
    }

    /// Waits, and watches the reader meanwhile.
    pub(crate) async fn wait_until(&mut self, due: Instant) -> Result<(), SendError> {
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

/// The two ends of a TCP connection, ours first.
type Ends = Option<(SocketAddr, SocketAddr)>;

async fn connect(to: &Address) -> io::Result<(Box<dyn Stream>, Ends)> {
    match to {
        Address::Tcp { host, port } | Address::Tls { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            let ends = (stream.local_addr()?, stream.peer_addr()?);
            Ok((Box::new(stream), Some(ends)))
        }
        Address::Unix(path) => Ok((Box::new(UnixStream::connect(path).await?), None)),
        Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// TLS over a connection.
async fn encrypt(
    stream: Box<dyn Stream>,
    to: &Address,
    settings: &ClientTls,
) -> Result<Box<dyn Stream>, SendError> {
    let fault = |words: String| SendError::Tls(to.clone(), words);
    let connector = settings.load().map_err(|faults| fault(faults.to_string()))?;
    let name = connector.server_name(to).ok_or_else(|| fault("set tls.server_name".to_owned()))?;
    match TlsConnector::from(connector.config()).connect(name, stream).await {
        Ok(encrypted) => Ok(Box::new(encrypted)),
        Err(error) => Err(fault(explain_io(&error).unwrap_or_else(|| error.to_string()))),
    }
}

/// A reader that sends FINISH does it within this time.
const FINISH_USUAL: Duration = Duration::from_secs(1);
