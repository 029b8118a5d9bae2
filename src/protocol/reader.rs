//! The reader's side of a session: what listens to DNS servers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ContentType;
use crate::protocol::ContentTypes;
use crate::protocol::ControlError;
use crate::protocol::ControlFrame;
use crate::protocol::ControlType;
use crate::protocol::FrameBatch;
use crate::protocol::ProtocolError;
use crate::protocol::control::encode_short;
use crate::protocol::decoder::ScanStop;
use crate::protocol::decoder::scan;
use crate::protocol::frame::FRAME_LEN_MAX_DEFAULT;
use crate::protocol::frame::take_control;

/// What a reader takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderConfig {
    /// Content types taken.
    pub content_types: ContentTypes,
    /// Whether writers that begin with READY are taken.
    pub bidirectional: bool,
    /// Whether writers that begin with START are taken.
    pub unidirectional: bool,
    /// Longest data frame taken, payload bytes.
    pub frame_len_max: u32,
    /// What happens on a longer one.
    pub oversize: Oversize,
    /// For the whole handshake, from the beginning to START.
    pub handshake_timeout: Duration,
}

impl Default for ReaderConfig {
    /// dnstap from writers of both kinds, 1 MiB, 10 s.
    fn default() -> Self {
        Self {
            content_types: ContentTypes::Only(vec![ContentType::DNSTAP]),
            bidirectional: true,
            unidirectional: true,
            frame_len_max: FRAME_LEN_MAX_DEFAULT,
            oversize: Oversize::Close,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// What a reader does with a data frame longer than its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oversize {
    /// Ends the session: such a length is more often a broken stream than a long frame.
    #[default]
    Close,
    /// Skips the frame and counts it. A length of 2 GiB and more ends the session all the same.
    Skip,
}

/// What happened in a [`ReaderSession`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReaderEvent {
    /// START came: data frames follow.
    Started {
        /// The content type of the stream; `None` if neither side named one.
        content_type: Option<ContentType>,
        /// Whether the session began with READY and will end with FINISH.
        bidirectional: bool,
    },
    /// Data frames.
    Data(FrameBatch),
    /// STOP came: there will be no more events.
    Finished,
}

/// How a session ended for which the peer closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// After STOP, or after [`ReaderSession::finish`].
    Finished,
    /// Between two frames, without STOP: writers crash, are killed, or do not care.
    Unclean,
    /// Within a frame.
    Truncated {
        /// Bytes of the frame that had arrived; those of a frame that was being skipped do not count.
        bytes: usize,
    },
    /// Before START.
    InHandshake,
}

/// What a session left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReaderCounters {
    /// Data frames longer than the limit, skipped or the reason of the end.
    pub frames_oversize: u64,
    /// Control frames of unknown types in the data phase.
    pub control_frames_ignored: u64,
    /// Bytes that came after STOP, or after [`ReaderSession::finish`].
    pub bytes_after_stop: u64,
}

/// One session, seen from its reader: bytes and the time in; events, bytes to send and a deadline out.
///
/// The caller owns the connection. It gives what it reads to [`handle_bytes`](Self::handle_bytes), then takes
/// [`poll_event`](Self::poll_event) and [`poll_transmit`](Self::poll_transmit) until both are empty, and calls
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come. It closes
/// the connection after an error, and after `Finished` once everything has been sent.
///
/// The rules, where they are stricter than the reference's:
/// - ACCEPT names exactly one content type: the first of ours that READY offers.
/// - A READY without a type of ours is an error, and nothing is sent.
/// - One repeated READY is answered again.
/// - In the data phase unknown control frames are ignored and counted; known ones other than STOP are errors.
/// - After STOP nothing is looked at any more.
#[derive(Debug)]
pub struct ReaderSession {
    config: Arc<ReaderConfig>,
    state: State,
    events: VecDeque<ReaderEvent>,
    transmit: VecDeque<Bytes>,
    counters: ReaderCounters,
    /// See [`ReaderSession::faulty_control_len`].
    control_len: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing has come, or a part of the first control frame.
    Opening {
        deadline: Option<Instant>,
    },
    /// ACCEPT was answered to `readies` READY frames, at last with this type.
    Accepted {
        deadline: Option<Instant>,
        content_type: Option<ContentType>,
        readies: u32,
    },
    /// START has come. `skip` bytes of a frame that is too long are still to come.
    Streaming {
        bidirectional: bool,
        skip: u64,
    },
    Finished,
    Failed(ProtocolError),
}

/// How far a session is.
#[cfg(feature = "relay")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReaderStage {
    /// No whole control frame has come.
    Opening,
    /// ACCEPT was sent, with this type.
    Accepted { content_type: Option<ContentType>, readies: u32 },
    /// START has come. `skip` bytes of a frame that is too long are still to come.
    Streaming { bidirectional: bool, skip: u64 },
}

impl ReaderSession {
    /// The configuration.
    #[cfg(feature = "relay")]
    pub(crate) fn config(&self) -> &Arc<ReaderConfig> {
        &self.config
    }

    /// The next frame is taken as this configuration says. What was agreed in the handshake stays.
    #[cfg(feature = "relay")]
    pub(crate) fn set_config(&mut self, config: Arc<ReaderConfig>) {
        self.config = config;
    }

    /// How far the session is, for another process that goes on with it; `None` where it has ended, or something is to be sent
    /// or delivered first.
    #[cfg(feature = "relay")]
    pub(crate) fn stage(&self) -> Option<ReaderStage> {
        if !self.events.is_empty() || !self.transmit.is_empty() {
            return None;
        }
        match &self.state {
            State::Opening { .. } => Some(ReaderStage::Opening),
            State::Accepted { content_type, readies, .. } => {
                Some(ReaderStage::Accepted { content_type: content_type.clone(), readies: *readies })
            }
            State::Streaming { bidirectional, skip } => {
                Some(ReaderStage::Streaming { bidirectional: *bidirectional, skip: *skip })
            }
            State::Finished | State::Failed(_) => None,
        }
    }

    /// A session that was begun elsewhere. A handshake has all of its time once more.
    #[cfg(feature = "relay")]
    pub(crate) fn resume(config: Arc<ReaderConfig>, stage: ReaderStage, now: Instant) -> Self {
        let mut session = Self::new(config, now);
        let deadline = session.poll_timeout();
        session.state = match stage {
            ReaderStage::Opening => State::Opening { deadline },
            ReaderStage::Accepted { content_type, readies } => {
                State::Accepted { deadline, content_type, readies }
            }
            ReaderStage::Streaming { bidirectional, skip } => State::Streaming { bidirectional, skip },
        };
        session
    }

    /// A session that begins now. One configuration may serve many sessions: pass an `Arc`.
    pub fn new(config: impl Into<Arc<ReaderConfig>>, now: Instant) -> Self {
        let config = config.into();
        let deadline = now.checked_add(config.handshake_timeout);
        Self {
            config,
            state: State::Opening { deadline },
            events: VecDeque::new(),
            transmit: VecDeque::new(),
            counters: ReaderCounters::default(),
            control_len: 0,
        }
    }

    /// Takes what is whole off the front of `bytes`, without copying data frames, and leaves a partial frame in it
    /// for the caller to append to.
    ///
    /// # Errors
    /// What the writer did wrong. Frames that came before the fault are still delivered as events. An error is
    /// final: every later call returns it again.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        self.handle_bytes_to_stop(now, bytes)?;
        if let State::Finished = self.state {
            self.counters.bytes_after_stop += bytes.len() as u64;
            bytes.clear();
        }
        Ok(())
    }

    /// Does what [`ReaderSession::handle_bytes`] does, and leaves in `bytes` what is behind STOP.
    pub(super) fn handle_bytes_to_stop(
        &mut self,
        now: Instant,
        bytes: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        let result = self.read(now, bytes);
        if let Err(error) = &result {
            self.state = State::Failed(error.clone());
        }
        result
    }

    /// Whether STOP came.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// Length in bytes of the control frame that was taken off the input last, and that is the fault of a session that
    /// failed; 0 if the fault was found before anything was taken.
    pub(super) fn faulty_control_len(&self) -> usize {
        self.control_len
    }

    /// Tells that the time of [`ReaderSession::poll_timeout`] has come.
    ///
    /// # Errors
    /// [`ProtocolError::HandshakeTimeout`], if it has.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ProtocolError> {
        if self.poll_timeout().is_some_and(|deadline| deadline <= now) {
            let error = ProtocolError::HandshakeTimeout { after: self.config.handshake_timeout };
            self.state = State::Failed(error.clone());
            return Err(error);
        }
        Ok(())
    }

    /// Tells that the writer has closed its side. `rest` is what [`ReaderSession::handle_bytes`] left.
    pub fn handle_eof(&mut self, rest: &[u8]) -> SessionEnd {
        match self.state {
            State::Opening { .. } | State::Accepted { .. } => SessionEnd::InHandshake,
            State::Streaming { skip: 0, .. } if rest.is_empty() => SessionEnd::Unclean,
            State::Streaming { .. } => SessionEnd::Truncated { bytes: rest.len() },
            State::Finished => SessionEnd::Finished,
            State::Failed(_) => SessionEnd::Unclean,
        }
    }

    /// Ends the session from our side: FINISH is sent although no STOP has come, and what comes later is counted and
    /// not delivered. Before START and after an error this does nothing; without READY there is no FINISH to send.
    ///
    /// Writers take this for a reader that closes early, and connect again.
    pub fn finish(&mut self) {
        if let State::Streaming { bidirectional, .. } = self.state {
            self.end(bidirectional);
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<ReaderEvent> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.events.capacity() > EVENTS_KEPT_MAX {
            // A peer can make many small runs of frames; it cannot make us keep the room for them.
            self.events = VecDeque::new();
        }
        event
    }

    /// The next bytes to send to the writer: ACCEPT or FINISH.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    /// When to call [`ReaderSession::handle_timeout`]: the deadline of the handshake, `None` outside of it.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Opening { deadline } | State::Accepted { deadline, .. } => deadline,
            State::Streaming { .. } | State::Finished | State::Failed(_) => None,
        }
    }

    /// What was left out so far.
    pub fn counters(&self) -> ReaderCounters {
        self.counters
    }

    fn read(&mut self, now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        loop {
            match &self.state {
                State::Opening { .. } => {
                    let Some(control) = self.take_control(bytes, self.expected_first())? else {
                        return Ok(());
                    };
                    self.handle_first(&control?)?;
                }
                State::Accepted { .. } => {
                    let Some(control) = self.take_control(bytes, "START")? else {
                        return Ok(());
                    };
                    self.handle_second(&control?)?;
                }
                State::Streaming { .. } => {
                    self.handle_stream(now, bytes)?;
                    if matches!(self.state, State::Streaming { .. }) {
                        return Ok(());
                    }
                }
                State::Finished => return Ok(()),
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }

    fn take_control(
        &mut self,
        bytes: &mut BytesMut,
        expected: &'static str,
    ) -> Result<Option<Result<ControlFrame, ControlError>>, ProtocolError> {
        let len = bytes.len();
        let control = take_control(bytes, expected);
        self.control_len = len - bytes.len();
        control
    }

    /// The first control frame decides the shape of the session.
    fn handle_first(&mut self, control: &ControlFrame) -> Result<(), ProtocolError> {
        match control.control_type {
            ControlType::Ready if self.config.bidirectional => self.accept(&control.content_types, 1),
            ControlType::Start if self.config.unidirectional => {
                let content_type = match control.content_types.first() {
                    Some(named) if self.config.content_types.contains(named) => Some(named.clone()),
                    Some(named) => return Err(self.mismatch(std::slice::from_ref(named))),
                    None => self.config.content_types.as_slice().first().cloned(),
                };
                self.start(content_type, false);
                Ok(())
            }
            got => Err(ProtocolError::UnexpectedControl { expected: self.expected_first(), got }),
        }
    }

    /// After ACCEPT: START, or READY once more from a writer that tries again on the same connection.
    fn handle_second(&mut self, control: &ControlFrame) -> Result<(), ProtocolError> {
        let State::Accepted { content_type, readies, .. } = &mut self.state else {
            return Ok(());
        };
        match control.control_type {
            ControlType::Ready if *readies < READIES_MAX => {
                let readies = *readies + 1;
                self.accept(&control.content_types, readies)
            }
            ControlType::Ready => Err(ProtocolError::RepeatedReady { count: *readies + 1 }),
            ControlType::Start => {
                let content_type = match (content_type.take(), control.content_types.first()) {
                    (accepted, None) => accepted,
                    (None, Some(named)) => Some(named.clone()),
                    (Some(accepted), Some(named)) if accepted == *named => Some(accepted),
                    (Some(accepted), Some(named)) => {
                        let (peer, ours) = (vec![named.clone()], vec![accepted]);
                        return Err(ProtocolError::ContentTypeMismatch { peer, ours });
                    }
                };
                self.start(content_type, true);
                Ok(())
            }
            got => Err(ProtocolError::UnexpectedControl { expected: "START", got }),
        }
    }

    /// Answers READY.
    fn accept(&mut self, offered: &[ContentType], readies: u32) -> Result<(), ProtocolError> {
        let content_type = match &self.config.content_types {
            ContentTypes::Any => offered.first(),
            ContentTypes::Only(ours) if offered.is_empty() => ours.first(),
            ContentTypes::Only(ours) => {
                Some(ours.iter().find(|ours| offered.contains(ours)).ok_or_else(|| self.mismatch(offered))?)
            }
        };
        self.transmit.push_back(encode_short(ControlType::Accept, content_type));
        self.state =
            State::Accepted { deadline: self.poll_timeout(), content_type: content_type.cloned(), readies };
        Ok(())
    }

    fn start(&mut self, content_type: Option<ContentType>, bidirectional: bool) {
        self.state = State::Streaming { bidirectional, skip: 0 };
        self.events.push_back(ReaderEvent::Started { content_type, bidirectional });
    }

    /// The data phase: one scan and one event per run of data frames.
    fn handle_stream(&mut self, now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        let len_max = self.config.frame_len_max;
        while let State::Streaming { bidirectional, skip } = &mut self.state {
            let bidirectional = *bidirectional;
            if *skip > 0 {
                let skipped = bytes.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
                bytes.advance(skipped);
                *skip -= skipped as u64;
            }
            let scan = scan(bytes, len_max);
            if scan.frames > 0 {
                let frames = bytes.split_to(scan.bytes).freeze();
                self.events.push_back(ReaderEvent::Data(FrameBatch::scanned(frames, &scan, now)));
            }
            // What is found wrong from here on is wrong with the next frame.
            self.control_len = 0;
            match scan.stop {
                ScanStop::Incomplete { .. } => return Ok(()),
                ScanStop::TooLong { len } => {
                    self.counters.frames_oversize += 1;
                    if self.config.oversize == Oversize::Close || len >= SKIP_LEN_END {
                        return Err(ProtocolError::FrameTooLong { len, len_max });
                    }
                    *skip = 4 + u64::from(len);
                }
                ScanStop::Escape => match self.take_control(bytes, "a control frame")? {
                    None => return Ok(()),
                    Some(Ok(control)) if control.control_type == ControlType::Stop => {
                        self.end(bidirectional);
                        self.events.push_back(ReaderEvent::Finished);
                    }
                    Some(Ok(control)) => {
                        let (expected, got) = ("a data frame or STOP", control.control_type);
                        return Err(ProtocolError::UnexpectedControl { expected, got });
                    }
                    Some(Err(ControlError::UnknownType(_))) => self.counters.control_frames_ignored += 1,
                    Some(Err(error)) => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    fn end(&mut self, bidirectional: bool) {
        if bidirectional {
            self.transmit.push_back(encode_short(ControlType::Finish, None));
        }
        self.state = State::Finished;
    }

    fn expected_first(&self) -> &'static str {
        match (self.config.bidirectional, self.config.unidirectional) {
            (true, true) => "READY or START",
            (false, true) => "START",
            _ => "READY",
        }
    }

    fn mismatch(&self, peer: &[ContentType]) -> ProtocolError {
        let ours = self.config.content_types.as_slice().to_vec();
        ProtocolError::ContentTypeMismatch { peer: peer.to_vec(), ours }
    }
}

/// How many READY frames are answered: libfstrm's writer repeats its own on the same connection when it does not
/// like the first answer.
const READIES_MAX: u32 = 2;

/// From here on a length is not skipped, whatever the configuration: the stream is out of step.
const SKIP_LEN_END: u32 = 0x8000_0000;

/// Room for events that an idle session may keep.
const EVENTS_KEPT_MAX: usize = 16;

#[cfg(test)]
mod tests;
