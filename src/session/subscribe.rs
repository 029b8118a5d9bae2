//! The handshake with a reader that has connected to us.

use std::io;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::protocol::ProtocolError;
use crate::protocol::WriterEvent;
use crate::protocol::WriterSession;
use crate::session::write::WriteStream;
use crate::session::write_fault::WriteFault;
use crate::transport::Backend;
use crate::transport::proxy_header;
use crate::transport::socket::Socket;

/// A connection that was accepted, up to its stream.
pub(crate) struct Subscription {
    pub(crate) socket: Socket,
    pub(crate) session: WriterSession,
    /// Whether the reader answers READY and STOP.
    pub(crate) bidirectional: bool,
    // What has arrived and was not taken.
    received: BytesMut,
}

/// Why there is no stream.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// The peer closed before it sent a byte.
    NoByte,
    /// Something is wrong.
    Fault(WriteFault),
}

impl Subscription {
    /// Nothing was said yet.
    pub(crate) fn new(socket: Socket, session: WriterSession, bidirectional: bool) -> Self {
        Self { socket, session, bidirectional, received: BytesMut::with_capacity(RECEIVED_LEN) }
    }

    /// Drives the handshake until START is next. The reader does not have START then: it begins with what arrives from now on.
    ///
    /// # Errors
    /// [`NotStarted`].
    pub(crate) async fn shake_hands(&mut self, deadline: Instant) -> Result<(), NotStarted> {
        let mut silent = true;
        loop {
            if let Some(WriterEvent::Started { .. }) = self.session.poll_event() {
                return Ok(());
            }
            self.send(deadline).await?;
            let read = self.socket.read_buf(&mut self.received);
            let result = match tokio::time::timeout_at(deadline.into(), read).await {
                Ok(Ok(0)) if silent => return Err(NotStarted::NoByte),
                Ok(Ok(0)) => self.session.handle_eof(),
                Ok(Ok(_)) => self.session.handle_bytes(Instant::now(), &mut self.received),
                Ok(Err(error)) if silent && error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(NotStarted::NoByte);
                }
                Ok(Err(error)) => return Err(WriteFault::Connection(error).into()),
                Err(_) => self.session.handle_timeout(Instant::now().max(deadline)),
            };
            silent = false;
            if let Err(error) = result {
                return Err(named(error, &self.received).into());
            }
        }
    }

    /// Sends START: the stream begins.
    ///
    /// # Errors
    /// [`NotStarted::Fault`].
    pub(crate) async fn start(
        mut self,
        deadline: Instant,
        backend: Backend,
    ) -> Result<WriteStream, NotStarted> {
        self.send(deadline).await?;
        let Self { socket, session, bidirectional, received } = self;
        WriteStream::over(socket, (session, bidirectional), received, backend)
            .map_err(|error| WriteFault::Connection(error).into())
    }

    async fn send(&mut self, deadline: Instant) -> Result<(), NotStarted> {
        while let Some(bytes) = self.session.poll_transmit() {
            match tokio::time::timeout_at(deadline.into(), self.socket.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(WriteFault::Connection(error).into()),
                // A peer that takes not even these bytes.
                Err(late) => return Err(WriteFault::Connection(late.into()).into()),
            }
        }
        Ok(())
    }
}

impl From<WriteFault> for NotStarted {
    fn from(fault: WriteFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<ProtocolError> for NotStarted {
    fn from(error: ProtocolError) -> Self {
        Self::Fault(WriteFault::Protocol(error))
    }
}

/// A fault in the handshake, in words for whoever connected: what it sent is still in `received`.
fn named(error: ProtocolError, received: &[u8]) -> WriteFault {
    match error {
        ProtocolError::UnexpectedData { .. } | ProtocolError::ControlLength { .. } => {
            stranger(received).map_or(WriteFault::Protocol(error), WriteFault::Stranger)
        }
        error => WriteFault::Protocol(error),
    }
}

/// Who begins like this, and is no reader of Frame Streams.
fn stranger(received: &[u8]) -> Option<&'static str> {
    let begins = |begin: &&[u8]| received.starts_with(begin);
    if HTTP.iter().any(begins) {
        return Some("the peer speaks HTTP: what listens here serves readers of Frame Streams");
    }
    if received.starts_with(b"\x16\x03") {
        return Some("the peer begins with TLS, and this listener has none");
    }
    if received.starts_with(b"SSH-") {
        return Some("the peer speaks SSH: what listens here serves readers of Frame Streams");
    }
    if proxy_header::is_begun_by(received) {
        return Some(
            "the peer sends a PROXY header: set `proxy_protocol = true` on this output, or let the proxy send none",
        );
    }
    None
}

/// What requests begin with.
const HTTP: &[&[u8]] = &[b"GET ", b"HEAD", b"POST", b"PUT ", b"PRI ", b"OPTI", b"CONN", b"DELE", b"PATC"];

/// A control frame is at most 520 bytes.
const RECEIVED_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_other_protocols_are_named() {
        let words = |received: &[u8]| {
            let len = u32::from_be_bytes(*received.first_chunk().unwrap());
            named(ProtocolError::UnexpectedData { expected: "ACCEPT or READY", len }, received).to_string()
        };
        assert!(words(b"GET / HTTP/1.1\r\n").contains("HTTP"));
        assert!(words(b"\x16\x03\x01\x02\0").contains("TLS"));
        assert!(words(b"SSH-2.0-x\r\n").contains("SSH"));
        assert!(words(b"PROXY TCP4 ").contains("PROXY"));
        assert_eq!(words(b"abcdefgh"), "expected ACCEPT or READY, got a data frame of 1633837924 bytes");
    }
}
