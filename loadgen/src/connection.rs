//! One sending connection: its handshake, its share of the frames, its end.

use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use bytes::BytesMut;
use socket2::Socket;
use tapster::protocol::WriterConfig;
use tapster::protocol::WriterEvent;
use tapster::protocol::WriterSession;

use crate::stream::Stream;

/// A connection of the generator.
pub(crate) struct Connection {
    socket: Stream,
    session: WriterSession,
    inbox: BytesMut,
    /// The end of a write that the peer took in part.
    pending: Vec<u8>,
    /// Number of its next frame.
    pub(crate) sequence: u64,
    /// How many frames it sends in all; [`u64::MAX`] until that is known.
    pub(crate) target: u64,
    /// Whether it waits for its turn.
    pub(crate) queued: bool,
    /// Whether the peer takes no more for now.
    pub(crate) blocked: bool,
    /// Why it was given up.
    pub(crate) problem: Option<String>,
}

impl Connection {
    /// Begins a session on a connected socket: sends READY, or START where the reader does not answer.
    pub(crate) fn begin(socket: Stream, config: Arc<WriterConfig>) -> Result<Self> {
        let session = WriterSession::new(config, Instant::now())?;
        let mut connection = Self {
            socket,
            session,
            inbox: BytesMut::new(),
            pending: Vec::new(),
            sequence: 0,
            target: u64::MAX,
            queued: false,
            blocked: false,
            problem: None,
        };
        connection.transmit()?;
        Ok(connection)
    }

    /// Waits for ACCEPT and answers with START; from then on the socket does not block.
    pub(crate) fn await_start(&mut self) -> Result<()> {
        loop {
            if let Some(WriterEvent::Started { .. }) = self.session.poll_event() {
                break;
            }
            self.read()?;
        }
        self.transmit()?;
        self.socket.set_nonblocking(true)?;
        Ok(())
    }

    /// Sends STOP; `true` if FINISH is to come.
    pub(crate) fn stop(&mut self) -> Result<bool> {
        self.socket.set_nonblocking(false)?;
        self.session.stop(Instant::now());
        self.transmit()?;
        let finishes = self.session.poll_timeout().is_some();
        if !finishes {
            self.socket.shutdown_write()?;
        }
        Ok(finishes)
    }

    /// Whether it has more to send, and can.
    pub(crate) fn is_active(&self) -> bool {
        self.problem.is_none() && (self.sequence < self.target || self.has_pending())
    }

    /// Reads once after STOP; `true` once FINISH has come.
    pub(crate) fn read_finish(&mut self) -> Result<bool> {
        self.read()?;
        Ok(matches!(self.session.poll_event(), Some(WriterEvent::Finished)))
    }

    /// Reads once in the data phase, where nothing is to come: the error tells what came.
    pub(crate) fn check_silence(&mut self) -> Result<()> {
        match self.read() {
            Err(error) if is_would_block(&error) => Ok(()),
            result => result,
        }
    }

    /// Writes what the peer did not take the last time; `false` if there is still some left.
    pub(crate) fn write_pending(&mut self) -> io::Result<bool> {
        match self.socket.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            result => result?,
        }
        if !self.pending.is_empty() {
            let written = self.try_write(None)?;
            self.pending.drain(..written);
        }
        Ok(!self.has_pending())
    }

    /// Whether a write was taken in part.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.socket.has_encrypted()
    }

    /// Writes; `false` if the peer takes nothing for now. What it takes not of a partly taken write is kept.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let written = self.try_write(Some(bytes))?;
        if written == 0 {
            return Ok(false);
        }
        self.pending.extend_from_slice(&bytes[written..]);
        Ok(true)
    }

    /// The socket, to wait for.
    pub(crate) fn socket(&self) -> &Socket {
        self.socket.socket()
    }

    /// 0 if the peer takes nothing for now. Without bytes: those pending.
    fn try_write(&mut self, bytes: Option<&[u8]>) -> io::Result<usize> {
        match self.socket.write(bytes.unwrap_or(&self.pending)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 1024];
        let len = self.socket.read(&mut buffer)?;
        if len == 0 {
            return Ok(self.session.handle_eof()?);
        }
        self.inbox.extend_from_slice(&buffer[..len]);
        Ok(self.session.handle_bytes(Instant::now(), &mut self.inbox)?)
    }

    fn transmit(&mut self) -> Result<()> {
        while let Some(bytes) = self.session.poll_transmit() {
            self.socket.write_all(&bytes)?;
        }
        Ok(())
    }
}

fn is_would_block(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
