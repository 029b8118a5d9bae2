//! The writer's side of a session: what sends to collectors.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ContentType;
use crate::protocol::ControlFrame;
use crate::protocol::ControlType;
use crate::protocol::ProtocolError;
use crate::protocol::control::encode_short;
use crate::protocol::frame::take_control;

/// What a writer offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterConfig {
    /// Content types offered, in order of preference; empty for a stream without a type.
    pub content_types: Vec<ContentType>,
    /// Whether the reader answers: READY, ACCEPT and FINISH. Otherwise the stream begins with START at once.
    pub bidirectional: bool,
    /// From the beginning to ACCEPT.
    pub handshake_timeout: Duration,
    /// From STOP to FINISH.
    pub finish_timeout: Duration,
}

impl Default for WriterConfig {
    /// dnstap to a reader that answers, 5 s each.
    fn default() -> Self {
        Self {
            content_types: vec![ContentType::DNSTAP],
            bidirectional: true,
            handshake_timeout: Duration::from_secs(5),
            finish_timeout: Duration::from_secs(5),
        }
    }
}

/// What happened in a [`WriterSession`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriterEvent {
    /// Data frames may be written, once everything of [`WriterSession::poll_transmit`] has been.
    Started {
        /// The content type of the stream; `None` if it has none.
        content_type: Option<ContentType>,
    },
    /// FINISH came: the reader has received every frame. Without READY there is no FINISH, and this says only that
    /// [`WriterSession::stop`] was called.
    Finished,
}

/// One session, seen from its writer: bytes and the time in; events, bytes to send and a deadline out.
///
/// Driven like a [`ReaderSession`](crate::protocol::ReaderSession). After `Started` the caller writes the bytes of
/// its batches to the connection itself; when it has written the last, it calls [`stop`](Self::stop) and waits for
/// `Finished`. It keeps a read pending all the time: only so does it learn that the reader has gone.
#[derive(Debug)]
pub struct WriterSession {
    config: Arc<WriterConfig>,
    state: State,
    events: VecDeque<WriterEvent>,
    transmit: VecDeque<Bytes>,
}

#[derive(Debug)]
enum State {
    /// READY was sent.
    Offered {
        deadline: Option<Instant>,
    },
    /// START was sent.
    Streaming,
    /// STOP was sent.
    Stopped {
        deadline: Option<Instant>,
    },
    /// FINISH has come, or there is none to wait for.
    Finished,
    Failed(ProtocolError),
}

impl WriterSession {
    /// A session that begins now: with READY, or with START where the reader does not answer. One configuration may
    /// serve many sessions: pass an `Arc`.
    ///
    /// # Errors
    /// [`ProtocolError::Control`] if the content types do not fit into READY.
    pub fn new(config: impl Into<Arc<WriterConfig>>, now: Instant) -> Result<Self, ProtocolError> {
        let config = config.into();
        let deadline = now.checked_add(config.handshake_timeout);
        let ready = ControlFrame::ready(&config.content_types).encode()?;
        let mut session = Self {
            config,
            state: State::Offered { deadline },
            events: VecDeque::new(),
            transmit: VecDeque::new(),
        };
        if session.config.bidirectional {
            session.transmit.push_back(ready);
        } else {
            session.start(session.config.content_types.first().cloned());
        }
        Ok(session)
    }

    /// Takes what is whole off the front of `bytes`, and leaves a partial frame in it for the caller to append to.
    ///
    /// # Errors
    /// What the reader did wrong: it takes none of our content types, or it spoke before STOP. An error is final:
    /// every later call returns it again.
    pub fn handle_bytes(&mut self, _now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        let result = self.read(bytes);
        if let Err(error) = &result {
            self.state = State::Failed(error.clone());
        }
        result
    }

    /// Tells that the time of [`WriterSession::poll_timeout`] has come.
    ///
    /// # Errors
    /// [`ProtocolError::HandshakeTimeout`] or [`ProtocolError::FinishTimeout`], if it has.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ProtocolError> {
        let error = match self.state {
            State::Offered { deadline: Some(deadline) } if deadline <= now => {
                ProtocolError::HandshakeTimeout { after: self.config.handshake_timeout }
            }
            State::Stopped { deadline: Some(deadline) } if deadline <= now => {
                ProtocolError::FinishTimeout { after: self.config.finish_timeout }
            }
            _ => return Ok(()),
        };
        self.state = State::Failed(error.clone());
        Err(error)
    }

    /// Ends the stream: queues STOP, and starts the deadline for FINISH. Only after `Started`, otherwise it does
    /// nothing.
    pub fn stop(&mut self, now: Instant) {
        if !matches!(self.state, State::Streaming) {
            return;
        }
        self.transmit.push_back(encode_short(ControlType::Stop, None));
        if self.config.bidirectional {
            self.state = State::Stopped { deadline: now.checked_add(self.config.finish_timeout) };
        } else {
            self.finish();
        }
    }

    /// Tells that the reader has closed its side.
    ///
    /// # Errors
    /// [`ProtocolError::NotAcknowledged`] after STOP, [`ProtocolError::ClosedByReader`] before; none after
    /// `Finished`. None either where the reader does not answer: it has nothing to say, and may read on. Whether it does shows
    /// when it is written to.
    pub fn handle_eof(&mut self) -> Result<(), ProtocolError> {
        let error = match &self.state {
            State::Offered { .. } => ProtocolError::ClosedByReader { during: "in the handshake" },
            State::Streaming if !self.config.bidirectional => return Ok(()),
            State::Streaming => ProtocolError::ClosedByReader { during: "before STOP" },
            State::Stopped { .. } => ProtocolError::NotAcknowledged,
            State::Finished => return Ok(()),
            State::Failed(error) => return Err(error.clone()),
        };
        self.state = State::Failed(error.clone());
        Err(error)
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<WriterEvent> {
        self.events.pop_front()
    }

    /// The next bytes to send to the reader: READY, START or STOP.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    /// When to call [`WriterSession::handle_timeout`]: the deadline for ACCEPT or FINISH, `None` while neither is
    /// awaited.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Offered { deadline } | State::Stopped { deadline } => deadline,
            State::Streaming | State::Finished | State::Failed(_) => None,
        }
    }

    fn read(&mut self, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        loop {
            match &self.state {
                State::Offered { .. } => {
                    let Some(control) = take_control(bytes, "ACCEPT")? else {
                        return Ok(());
                    };
                    self.handle_accept(&control?)?;
                }
                State::Streaming if bytes.is_empty() => return Ok(()),
                State::Streaming => return Err(ProtocolError::UnexpectedBytes),
                State::Stopped { .. } => {
                    let Some(control) = take_control(bytes, "FINISH")? else {
                        return Ok(());
                    };
                    match control?.control_type {
                        ControlType::Finish => self.finish(),
                        got => return Err(ProtocolError::UnexpectedControl { expected: "FINISH", got }),
                    }
                }
                State::Finished => {
                    bytes.clear();
                    return Ok(());
                }
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }

    fn handle_accept(&mut self, control: &ControlFrame) -> Result<(), ProtocolError> {
        if control.control_type != ControlType::Accept {
            let got = control.control_type;
            return Err(ProtocolError::UnexpectedControl { expected: "ACCEPT", got });
        }
        let ours = &self.config.content_types;
        let content_type = if control.content_types.is_empty() {
            ours.first().cloned()
        } else {
            let taken = ours.iter().find(|ours| control.matches(Some(ours)));
            Some(taken.cloned().ok_or_else(|| ProtocolError::ContentTypeMismatch {
                peer: control.content_types.clone(),
                ours: ours.clone(),
            })?)
        };
        self.start(content_type);
        Ok(())
    }

    fn start(&mut self, content_type: Option<ContentType>) {
        self.transmit.push_back(encode_short(ControlType::Start, content_type.as_ref()));
        self.state = State::Streaming;
        self.events.push_back(WriterEvent::Started { content_type });
    }

    fn finish(&mut self) {
        self.state = State::Finished;
        self.events.push_back(WriterEvent::Finished);
    }
}

#[cfg(test)]
mod tests;
