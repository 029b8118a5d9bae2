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
///
/// A writer that listens, and readers connect to it, uses [`WriterSession::serving`]: some of these readers begin themselves.
///
/// ```text
/// writer                          reader that connects and begins itself
///   │ READY [types] ───────────────► │   crosses
///   │ ◄────────────── READY [types]  │
///   │ ACCEPT [type] ───────────────► │
///   │ ◄────────────── START [type]   │   stands for ACCEPT
///   │ START [type] ────────────────► │
///   │ data frames, STOP ───────────► │
///   │ ◄─────────────────────── FINISH│   or the end of the connection
/// ```
#[derive(Debug)]
pub struct WriterSession {
    config: Arc<WriterConfig>,
    // The reader has connected to us, and may begin itself.
    serves: bool,
    // It has begun itself.
    reader_began: bool,
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
    /// The reader has begun itself, and ACCEPT was sent.
    Accepted {
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
        Self::begin(config.into(), false, now)
    }

    /// A session with a reader that has connected to this writer. It begins as [`WriterSession::new`] does. A reader may begin
    /// itself, too, and sends READY: it gets ACCEPT, and its START stands for the ACCEPT that others send. Such a reader may
    /// close after STOP in place of sending FINISH.
    ///
    /// # Errors
    /// As [`WriterSession::new`].
    ///
    /// Source: python-dnstap-receiver, `input_tcpclient.py`, is such a reader; it passes over our READY.
    pub fn serving(config: impl Into<Arc<WriterConfig>>, now: Instant) -> Result<Self, ProtocolError> {
        Self::begin(config.into(), true, now)
    }

    fn begin(config: Arc<WriterConfig>, serves: bool, now: Instant) -> Result<Self, ProtocolError> {
        let deadline = now.checked_add(config.handshake_timeout);
        let ready = ControlFrame::ready(&config.content_types).encode()?;
        let mut session = Self {
            config,
            serves,
            reader_began: false,
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
            State::Offered { deadline: Some(deadline) } | State::Accepted { deadline: Some(deadline) }
                if deadline <= now =>
            {
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
    /// [`ProtocolError::NotAcknowledged`] after STOP, unless the reader had begun itself, which counts as `Finished`;
    /// [`ProtocolError::ClosedByReader`] before; none after `Finished`. None either where the reader does not answer: it has nothing to say, and may read on. Whether it does shows
    /// when it is written to.
    pub fn handle_eof(&mut self) -> Result<(), ProtocolError> {
        let error = match &self.state {
            State::Offered { .. } | State::Accepted { .. } => {
                ProtocolError::ClosedByReader { during: "in the handshake" }
            }
            State::Streaming if !self.config.bidirectional => return Ok(()),
            State::Streaming => ProtocolError::ClosedByReader { during: "before STOP" },
            State::Stopped { .. } if self.reader_began => {
                self.finish();
                return Ok(());
            }
            State::Stopped { .. } => ProtocolError::NotAcknowledged,
            State::Finished => return Ok(()),
            State::Failed(error) => return Err(error.clone()),
        };
        self.state = State::Failed(error.clone());
        Err(error)
    }

    /// Whether the reader has begun itself: see [`WriterSession::serving`]. Such a reader may not know FINISH, and waits for the end
    /// of the connection.
    pub fn reader_began(&self) -> bool {
        self.reader_began
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<WriterEvent> {
        self.events.pop_front()
    }

    /// The next bytes to send to the reader: READY, START or STOP, and ACCEPT to one that begins itself.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    /// When to call [`WriterSession::handle_timeout`]: the deadline for ACCEPT or FINISH, `None` while neither is
    /// awaited.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Offered { deadline } | State::Accepted { deadline } | State::Stopped { deadline } => {
                deadline
            }
            State::Streaming | State::Finished | State::Failed(_) => None,
        }
    }

    fn read(&mut self, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        loop {
            match self.state {
                State::Offered { deadline } => {
                    let expected = if self.serves { "ACCEPT or READY" } else { "ACCEPT" };
                    let Some(control) = take_control(bytes, expected)? else {
                        return Ok(());
                    };
                    self.handle_first(&control?, expected, deadline)?;
                }
                State::Accepted { .. } => {
                    let Some(control) = take_control(bytes, "START")? else {
                        return Ok(());
                    };
                    self.handle_start(&control?)?;
                }
                State::Streaming if bytes.is_empty() => return Ok(()),
                // READY and START are what a writer begins with, too.
                State::Streaming if self.reader_began => match bytes.first_chunk() {
                    None => return Ok(()),
                    Some(ESCAPE) => return Err(ProtocolError::UnexpectedBytes),
                    Some(_) => return Err(ProtocolError::PeerIsWriter),
                },
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
                State::Failed(ref error) => return Err(error.clone()),
            }
        }
    }

    /// The first control frame of the reader.
    fn handle_first(
        &mut self,
        control: &ControlFrame,
        expected: &'static str,
        deadline: Option<Instant>,
    ) -> Result<(), ProtocolError> {
        match control.control_type {
            ControlType::Accept => {
                let content_type = self.common_type(control)?;
                self.start(content_type);
            }
            ControlType::Ready if self.serves => {
                let content_type = self.common_type(control)?;
                // As a reader answers: with one of the types that it was offered.
                let accepted = content_type.filter(|_| !control.content_types.is_empty());
                self.transmit.push_back(encode_short(ControlType::Accept, accepted.as_ref()));
                self.reader_began = true;
                self.state = State::Accepted { deadline };
            }
            ControlType::Start if self.serves => return Err(ProtocolError::PeerIsWriter),
            got => return Err(ProtocolError::UnexpectedControl { expected, got }),
        }
        Ok(())
    }

    /// What comes from a reader that has begun itself, behind our ACCEPT.
    fn handle_start(&mut self, control: &ControlFrame) -> Result<(), ProtocolError> {
        match control.control_type {
            ControlType::Start => {
                let content_type = self.common_type(control)?;
                self.start(content_type);
                Ok(())
            }
            // The answer to our READY, from a reader that does both.
            ControlType::Accept => self.common_type(control).map(drop),
            got => Err(ProtocolError::UnexpectedControl { expected: "START", got }),
        }
    }

    /// The first of our content types that the reader names, or takes because it names none.
    fn common_type(&self, control: &ControlFrame) -> Result<Option<ContentType>, ProtocolError> {
        let ours = &self.config.content_types;
        if control.content_types.is_empty() {
            return Ok(ours.first().cloned());
        }
        let taken = ours.iter().find(|ours| control.matches(Some(ours)));
        let mismatch =
            || ProtocolError::ContentTypeMismatch { peer: control.content_types.clone(), ours: ours.clone() };
        taken.cloned().map(Some).ok_or_else(mismatch)
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

/// In place of the length of a data frame: a control frame follows.
const ESCAPE: &[u8; 4] = &[0; 4];

#[cfg(test)]
mod tests;
