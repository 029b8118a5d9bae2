//! `tapster replay`: files to a reader.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tapster::config::Fault;
use tapster::config::Faults;
use tapster::config::resolve_output;
use tapster::output::Mode;
use tapster::output::OutputConfig;
use tapster::protocol::ContentType;
use tapster::protocol::FileStatus;
use tapster::protocol::FrameBatch;
use tapster::protocol::ProtocolError;
use tapster::protocol::ReaderEvent;
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
use tokio::runtime;
use tokio::select;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::cli::Rate;
use crate::cli::ReplayArgs;
use crate::commands::CommandError;
use crate::commands::file::FrameFile;
use crate::commands::file::count_frames;
use crate::commands::file::end_in_words;
use crate::commands::pace::Pace;
use crate::commands::pace::Pacer;

/// Why a file was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("the file cannot be read: {0}")]
    File(io::Error),
    #[error("no connection to {0}: {1}")]
    Connect(Address, io::Error),
    #[error("no connection to {0} in time")]
    ConnectTimeout(Address),
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("--speed needs the times of dnstap, and the content type of this file is {0}")]
    NoTimes(String),
}

/// Sends the files one after the other, each in a session of its own.
pub(crate) fn replay(args: &ReplayArgs) -> Result<ExitCode, CommandError> {
    let output = resolve_output(&args.to)?;
    if let Address::File(_) = output.to {
        let message = "a replay goes to tcp://HOST:PORT or unix:PATH; files are copied with `cp`".to_owned();
        let place = format!("--to {}", args.to);
        return Err(Faults(vec![Fault { place, key: "to".to_owned(), message }]).into());
    }
    if output.group.is_some() {
        let message = "a replay goes to one reader: start a relay to have it dealt out".to_owned();
        let place = format!("--to {}", args.to);
        return Err(Faults(vec![Fault { place, key: "to".to_owned(), message }]).into());
    }
    let pace = match (args.speed, args.rate) {
        (Some(speed), _) => Pace::Speed(speed),
        (None, Rate::PerSecond(rate)) => Pace::Rate(rate),
        (None, Rate::Max) => Pace::Max,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(error.to_string()))?;
    let mut pacer = Pacer::new(pace, Instant::now());
    let mut all_whole = true;
    for path in &args.files {
        let mut frames = 0;
        let result = runtime.block_on(replay_file(path, &output, &mut pacer, &mut frames));
        let sent = format!("{}: {} sent to {}", path.display(), count_frames(frames), output.to);
        match result {
            Ok(Remark { whole, words: None }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}");
            }
            Ok(Remark { whole, words: Some(words) }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}; the file {words}");
            }
            Err(error) => return Err(CommandError::Failed(format!("{sent}; {error}"))),
        }
    }
    Ok(if all_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to be said about a file that was sent.
struct Remark {
    /// Whether it ends with STOP.
    whole: bool,
    words: Option<String>,
}

/// Sends a file and counts its frames.
async fn replay_file(
    path: &Path,
    output: &OutputConfig,
    pacer: &mut Pacer,
    frames: &mut u64,
) -> Result<Remark, ReplayError> {
    let mut file = FrameFile::open(path, output.frame_len_max).map_err(ReplayError::File)?;
    let mut connection = None;
    while let Some(event) = file.next().map_err(ReplayError::File)? {
        match (event, &mut connection) {
            (ReaderEvent::Started { content_type, .. }, None) => {
                pacer.check_content_type(content_type.as_ref())?;
                connection = Some(Connection::open(output, content_type).await?);
            }
            (ReaderEvent::Data(batch), Some(connection)) => connection.send(&batch, pacer, frames).await?,
            _ => {}
        }
    }
    let started = connection.is_some();
    if let Some(connection) = connection {
        connection.finish().await?;
    }
    let end = file.end();
    Ok(Remark {
        whole: matches!(end, Some(FileStatus::Clean { .. })),
        words: end.and_then(|end| end_in_words(end, started, file.is_empty())),
    })
}

impl Pacer {
    fn check_content_type(&self, content_type: Option<&ContentType>) -> Result<(), ReplayError> {
        match content_type {
            Some(name) if self.needs_times() && *name != ContentType::DNSTAP => {
                Err(ReplayError::NoTimes(name.to_string()))
            }
            _ => Ok(()),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A writer session over a connection. A read is pending all the time: a reader that goes is noticed at once.
struct Connection {
    stream: Box<dyn Stream>,
    session: WriterSession,
    incoming: BytesMut,
}

impl Connection {
    /// Connects and goes as far as START.
    async fn open(output: &OutputConfig, content_type: Option<ContentType>) -> Result<Self, ReplayError> {
        let stream = match timeout(output.handshake_timeout, connect(&output.to)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(ReplayError::Connect(output.to.clone(), error)),
            Err(_) => return Err(ReplayError::ConnectTimeout(output.to.clone())),
        };
        let config = WriterConfig {
            content_types: content_type.into_iter().collect(),
            bidirectional: output.mode == Mode::Bidirectional,
            handshake_timeout: output.handshake_timeout,
            finish_timeout: output.finish_timeout,
        };
        let session = WriterSession::new(config, Instant::now())?;
        let mut connection = Self { stream, session, incoming: BytesMut::new() };
        while !matches!(connection.next_event().await?, WriterEvent::Started { .. }) {}
        connection.transmit().await?;
        Ok(connection)
    }

    /// Sends the frames of a batch as they become due, and counts them.
    async fn send(
        &mut self,
        batch: &FrameBatch,
        pacer: &mut Pacer,
        frames: &mut u64,
    ) -> Result<(), ReplayError> {
        if pacer.is_unlimited() {
            self.write(batch.bytes()).await?;
            *frames += u64::from(batch.frames());
            return Ok(());
        }
        // Everything that is due goes in one write: sent <= due.
        let mut waiting = batch.bytes().clone();
        let (mut due_len, mut due_frames) = (0, 0);
        for payload in batch.payloads() {
            let due = pacer.due(&payload);
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
    async fn finish(mut self) -> Result<(), ReplayError> {
        self.session.stop(Instant::now());
        while self.next_event().await? != WriterEvent::Finished {}
        // After FINISH the reader may be gone already.
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    /// The next event of the session, which is given what arrives and the time.
    async fn next_event(&mut self) -> Result<WriterEvent, ReplayError> {
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
    async fn step(&mut self) -> Result<Option<WriterEvent>, ReplayError> {
        self.transmit().await?;
        let event = self.session.poll_event();
        if event.is_none() {
            read(&mut self.stream, &mut self.session, &mut self.incoming).await?;
        }
        Ok(event)
    }

    async fn transmit(&mut self) -> Result<(), ReplayError> {
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).await.map_err(ReplayError::Broken)?;
        }
        Ok(())
    }

    /// Writes in the data phase: a reader that speaks or goes ends it.
    async fn write(&mut self, bytes: &Bytes) -> Result<(), ReplayError> {
        let (mut reading, mut writing) = tokio::io::split(&mut self.stream);
        select! {
            biased;
            result = writing.write_all(bytes) => result.map_err(ReplayError::Broken),
            result = watch(&mut reading, &mut self.session, &mut self.incoming) => result,
        }
    }

    async fn wait_until(&mut self, due: Instant) -> Result<(), ReplayError> {
        select! {
            () = sleep_until(due.into()) => Ok(()),
            result = watch(&mut self.stream, &mut self.session, &mut self.incoming) => result,
        }
    }
}

/// Reads until the session finds fault with it.
async fn watch(
    stream: &mut (impl AsyncRead + Unpin),
    session: &mut WriterSession,
    incoming: &mut BytesMut,
) -> Result<(), ReplayError> {
    loop {
        read(stream, session, incoming).await?;
    }
}

/// One read; cancel-safe.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    session: &mut WriterSession,
    incoming: &mut BytesMut,
) -> Result<(), ReplayError> {
    match stream.read_buf(incoming).await.map_err(ReplayError::Broken)? {
        0 => session.handle_eof()?,
        _ => session.handle_bytes(Instant::now(), incoming)?,
    }
    Ok(())
}

async fn connect(to: &Address) -> io::Result<Box<dyn Stream>> {
    match to {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Tls { .. } | Address::File(_) => Err(io::Error::from(io::ErrorKind::Unsupported)),
    }
}

const LENGTH_WORD: usize = 4;
