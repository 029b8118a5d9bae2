//! Where a replay goes: to a reader, or into a file.

use std::io;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tapster::observability::printable;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tokio::time::sleep_until;

use crate::commands::connection::Connection;
use crate::commands::connection::SendError;
use crate::commands::file_sink::FileSink;
use crate::commands::pace::Pacer;
use crate::commands::tell::tell;

/// A stream being sent or written.
pub(crate) struct Sink {
    pub(crate) content_type: Option<ContentType>,
    way: Way,
}

/// What the frames go through.
pub(crate) enum Way {
    /// A session of its own, ended with FINISH.
    Reader(Box<Connection>),
    /// Takes what follows, too.
    File(PathBuf, FileSink),
}

/// Why a sink takes nothing more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{}: {source}", printable(path))]
    Write { path: PathBuf, source: io::Error },
}

impl SinkError {
    /// Whether there is no sense in sending anything else.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Send(error) => matches!(
                error,
                SendError::Connect(..)
                    | SendError::ConnectTimeout(_)
                    | SendError::Tls(..)
                    | SendError::TlsTimeout(_)
            ),
            Self::Write { .. } => true,
        }
    }
}

impl Sink {
    pub(crate) fn new(content_type: Option<ContentType>, way: Way) -> Self {
        Self { content_type, way }
    }

    /// Whether it is a file, which takes stream after stream.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.way, Way::File(..))
    }

    /// Sends the frames of a batch as they become due, and counts them. They were recorded at `received`, since the Unix
    /// epoch, or as the dnstap in them says.
    pub(crate) async fn send(
        &mut self,
        batch: &FrameBatch,
        received: Option<Duration>,
        pacer: &mut Pacer,
        frames: &mut u64,
    ) -> Result<(), SinkError> {
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
                tell_pause(due, pacer.uncut_pause());
                self.wait_until(due).await?;
            }
            due_len += LENGTH_WORD + payload.len();
            due_frames += 1;
        }
        self.write(&waiting).await?;
        *frames += due_frames;
        Ok(())
    }

    /// Ends the stream.
    pub(crate) async fn finish(self) -> Result<(), SinkError> {
        match self.way {
            Way::Reader(connection) => Ok(connection.finish().await?),
            Way::File(path, file) => file.finish().map_err(|source| SinkError::Write { path, source }),
        }
    }

    async fn write(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        match &mut self.way {
            Way::Reader(connection) => Ok(connection.write(bytes).await?),
            Way::File(path, file) => {
                file.write(bytes).map_err(|source| SinkError::Write { path: path.clone(), source })
            }
        }
    }

    async fn wait_until(&mut self, due: Instant) -> Result<(), SinkError> {
        match &mut self.way {
            Way::Reader(connection) => Ok(connection.wait_until(due).await?),
            Way::File(path, file) => {
                file.flush().map_err(|source| SinkError::Write { path: path.clone(), source })?;
                sleep_until(due.into()).await;
                Ok(())
            }
        }
    }
}

/// Says that nothing is sent now, and why; short pauses are not worth a word.
fn tell_pause(due: Instant, uncut: Option<Duration>) {
    let pause = due.saturating_duration_since(Instant::now());
    if pause < PAUSE_TOLD {
        return;
    }
    let seconds = pause.as_secs_f64();
    match uncut {
        Some(uncut) => tell(&format_args!(
            "waiting {seconds:.1} s for the next frame: its recording asks for {:.1} s, and --pause-max cuts that",
            uncut.as_secs_f64()
        )),
        None => tell(&format_args!("waiting {seconds:.1} s for the next frame, as it was recorded")),
    }
}

const LENGTH_WORD: usize = 4;
const PAUSE_TOLD: Duration = Duration::from_millis(900);
