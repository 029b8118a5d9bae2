//! The two sides of a session, each against a peer that sends anything.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tapster::protocol::ContentType;
use tapster::protocol::ContentTypes;
use tapster::protocol::ControlError;
use tapster::protocol::ControlFrame;
use tapster::protocol::ControlType;
use tapster::protocol::Decoder;
use tapster::protocol::Frame;
use tapster::protocol::FrameBatch;
use tapster::protocol::Oversize;
use tapster::protocol::ProtocolError;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderCounters;
use tapster::protocol::ReaderEvent;
use tapster::protocol::ReaderSession;
use tapster::protocol::SessionEnd;
use tapster::protocol::WriterConfig;
use tapster::protocol::WriterEvent;
use tapster::protocol::WriterSession;

use super::input::Input;
use super::memory::no_more_than_given;

/// What a writer sends, cut anywhere, with one byte of options: the configuration of the reader.
///
/// What the session delivers, answers and counts does not depend on the cuts. It delivers what a plain second reading of
/// the stream finds, answers with at most two ACCEPT and one FINISH, and keeps less than a frame.
pub(crate) fn reader(input: &[u8]) {
    let Some(input) = Input::<1>::read(input) else { return };
    let config = reader_config(input.options[0]);
    let finish = input.options[0] & 0x80 != 0;

    let whole = read(&config, &[input.stream], finish);
    assert_eq!(read(&config, &input.pieces(input.stream), finish), whole, "another session from pieces");

    let expected = if whole.started.is_some() { payloads(input.stream, &config) } else { Vec::new() };
    assert_eq!(whole.payloads, expected, "frames in, frames out");
    assert_answers(&whole, &config, finish);
    match whole.end {
        SessionEnd::Finished => assert!(whole.stopped || finish),
        SessionEnd::InHandshake => assert_eq!((&whole.started, &whole.fault), (&None, &None)),
        SessionEnd::Truncated { bytes } => assert_eq!(bytes, whole.rest.len()),
        SessionEnd::Unclean => assert!(whole.rest.is_empty()),
    }
    assert!(config.oversize == Oversize::Skip || whole.counters.frames_oversize <= 1);
    assert!(whole.stopped || finish || whole.counters.bytes_after_stop == 0);
}

fn reader_config(options: u8) -> ReaderConfig {
    let other = || ContentType::try_from("other").expect("short");
    ReaderConfig {
        content_types: match options & 3 {
            0 => ContentTypes::Only(vec![ContentType::DNSTAP]),
            1 => ContentTypes::Any,
            2 => ContentTypes::Only(vec![other(), ContentType::DNSTAP]),
            _ => ContentTypes::Only(vec![ContentType::try_from("").expect("short")]),
        },
        frame_len_max: if options & 4 == 0 { 300 } else { 1 << 20 },
        oversize: if options & 8 == 0 { Oversize::Close } else { Oversize::Skip },
        bidirectional: options & 0x10 == 0,
        unidirectional: options & 0x20 == 0,
        ..ReaderConfig::default()
    }
}

/// What a reader's session made of a stream.
#[derive(Debug, PartialEq)]
struct Read {
    started: Option<(Option<ContentType>, bool)>,
    payloads: Vec<Bytes>,
    /// STOP came.
    stopped: bool,
    sent: Vec<u8>,
    counters: ReaderCounters,
    fault: Option<ProtocolError>,
    /// What is left of the stream; nothing after a fault.
    rest: Vec<u8>,
    end: SessionEnd,
}

/// Runs a session over pieces. With `finish` the reader ends it after the last.
fn read(config: &ReaderConfig, pieces: &[&[u8]], finish: bool) -> Read {
    let now = Instant::now();
    let mut session = ReaderSession::new(config.clone(), now);
    let mut bytes = BytesMut::new();
    let (mut started, mut payloads, mut stopped, mut sent) = (None, Vec::new(), false, Vec::new());
    let mut fault = None;
    let mut bytes_given = 0;
    for piece in pieces {
        bytes.extend_from_slice(piece);
        bytes_given += piece.len();
        fault = no_more_than_given(bytes_given, || session.handle_bytes(now, &mut bytes)).err();
        while let Some(event) = session.poll_event() {
            assert!(!stopped, "{event:?} after STOP");
            match event {
                ReaderEvent::Started { content_type, bidirectional } => {
                    assert!(started.is_none(), "a second START");
                    started = Some((content_type, bidirectional));
                }
                ReaderEvent::Data(batch) => {
                    assert!(started.is_some(), "data before START");
                    assert_eq!(
                        FrameBatch::parse(batch.bytes().clone(), config.frame_len_max, now).as_ref(),
                        Ok(&batch),
                        "whole frames within the limit"
                    );
                    payloads.extend(batch.payloads());
                }
                ReaderEvent::Finished => stopped = true,
            }
        }
        sent.extend(std::iter::from_fn(|| session.poll_transmit()).flatten());
        if fault.is_some() {
            break;
        }
        assert!(bytes.len() < partial_max(config.frame_len_max), "at most a partial frame is left");
        assert_eq!(session.poll_timeout().is_some(), started.is_none(), "a deadline until START");
    }
    if finish {
        session.finish();
        sent.extend(std::iter::from_fn(|| session.poll_transmit()).flatten());
    }
    let rest = if fault.is_none() { bytes.to_vec() } else { Vec::new() };
    let (end, counters) = (session.handle_eof(&rest), session.counters());

    let final_fault = fault.clone().or_else(|| reader_times_out(&mut session, config, now));
    reader_stays_ended(session, final_fault.as_ref(), stopped || finish && started.is_some());
    Read { started, payloads, stopped, sent, counters, fault, rest, end }
}

/// The deadline of the handshake is final too, and there is no other.
fn reader_times_out(
    session: &mut ReaderSession,
    config: &ReaderConfig,
    now: Instant,
) -> Option<ProtocolError> {
    assert_eq!(session.handle_timeout(now), Ok(()), "before the deadline");
    let deadline = session.poll_timeout();
    let fault = session.handle_timeout(now + config.handshake_timeout).err();
    assert_eq!(fault.is_some(), deadline.is_some());
    fault
}

/// After a fault, and after the end, nothing that comes is delivered or answered.
fn reader_stays_ended(mut session: ReaderSession, fault: Option<&ProtocolError>, ended: bool) {
    if fault.is_none() && !ended {
        return;
    }
    let again = session.handle_bytes(Instant::now(), &mut BytesMut::from(STREAM));
    assert_eq!(again.as_ref().err(), fault);
    session.finish();
    assert_eq!((session.poll_event(), session.poll_transmit(), session.poll_timeout()), (None, None, None));
}

/// What the reader sent: ACCEPT, perhaps once more, and FINISH at the end, each where it belongs.
fn assert_answers(read: &Read, config: &ReaderConfig, finish: bool) {
    let controls = controls(&read.sent);
    let accepts = controls.iter().take_while(|control| control.control_type == ControlType::Accept).count();
    let (accepts, others) = controls.split_at(accepts);
    assert!(accepts.len() <= 2, "READY is answered twice at most");
    for accept in accepts {
        match &config.content_types {
            ContentTypes::Any => assert!(accept.content_types.len() <= 1),
            types => assert!(matches!(&accept.content_types[..], [named] if types.contains(named))),
        }
    }
    let bidirectional = read.started.as_ref().is_some_and(|(_, bidirectional)| *bidirectional);
    assert!(!bidirectional || !accepts.is_empty(), "such a session begins with ACCEPT");
    assert!(config.bidirectional || accepts.is_empty());
    if let Some((Some(content_type), _)) = &read.started {
        assert!(config.content_types.contains(content_type));
    }
    let ended = read.stopped || finish && read.fault.is_none();
    let expected = if bidirectional && ended { vec![ControlFrame::finish()] } else { Vec::new() };
    assert_eq!(others, expected, "one FINISH after STOP");
}

/// The payloads of a stream whose START is taken: read a second time, as plainly as possible.
fn payloads<'a>(mut stream: &'a [u8], config: &ReaderConfig) -> Vec<&'a [u8]> {
    let mut payloads = Vec::new();
    let mut started = false;
    while let Some((len, rest)) = word(stream) {
        if len == 0 {
            let Some((len, rest)) = word(rest) else { break };
            let Some((control, rest)) = rest.split_at_checked(len).filter(|_| len <= ControlFrame::LEN_MAX)
            else {
                break;
            };
            match ControlFrame::decode(control) {
                Ok(control) if !started => started = control.control_type == ControlType::Start,
                Err(ControlError::UnknownType(_)) if started => {}
                _ => break,
            }
            stream = rest;
        } else if !started {
            break;
        } else if len > config.frame_len_max as usize {
            if config.oversize == Oversize::Close || len >= 1 << 31 {
                break;
            }
            stream = rest.get(len..).unwrap_or_default();
        } else {
            let Some((payload, rest)) = rest.split_at_checked(len) else { break };
            payloads.push(payload);
            stream = rest;
        }
    }
    payloads
}

fn word(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*word) as usize, rest))
}

/// What a reader sends, cut anywhere, with two bytes of options: the configuration of the writer, and after how many
/// bytes the writer stops.
///
/// What the session reports and sends does not depend on the cuts. The session sends READY, START and STOP in this order,
/// START only after ACCEPT, and no data ever. Only FINISH after STOP acknowledges.
pub(crate) fn writer(input: &[u8]) {
    let Some(input) = Input::<2>::read(input) else { return };
    let config = writer_config(input.options[0]);
    let stop_at = usize::from(input.options[1]).min(input.stream.len());
    let (before, after) = input.stream.split_at(stop_at);

    let late = input.options[0] & 8 != 0;
    let whole = write(&config, late, &[before], &[after]);
    let cut = write(&config, late, &input.pieces(before), &input.pieces(after));
    assert_eq!(cut, whole, "another session from pieces");

    if config.bidirectional {
        let stopped = whole.sent.last() == Some(&ControlFrame::stop());
        assert_eq!(whole.finished, stopped && after.starts_with(FINISH));
    } else {
        assert!(whole.started.is_some());
        assert_eq!(whole.finished, before.is_empty(), "the reader has nothing to say");
    }
}

fn writer_config(options: u8) -> WriterConfig {
    let named = |name: &str| ContentType::try_from(name).expect("short");
    WriterConfig {
        content_types: match options & 3 {
            0 => vec![ContentType::DNSTAP],
            1 => vec![],
            2 => vec![named("other"), ContentType::DNSTAP],
            _ => vec![named("")],
        },
        bidirectional: options & 4 == 0,
        // Otherwise the two could not be told apart.
        handshake_timeout: Duration::from_secs(3),
        finish_timeout: Duration::from_secs(7),
    }
}

/// What a writer's session made of the answers.
#[derive(Debug, PartialEq)]
struct Written {
    /// The content type of the stream.
    started: Option<Option<ContentType>>,
    finished: bool,
    sent: Vec<ControlFrame>,
    fault: Option<ProtocolError>,
    /// What is left of the answers; nothing after a fault.
    rest: Vec<u8>,
}

/// Runs a session over the pieces that come before the writer stops, and over those that come after.
fn write(config: &WriterConfig, late: bool, before: &[&[u8]], after: &[&[u8]]) -> Written {
    let now = Instant::now();
    let session = WriterSession::new(config.clone(), now).expect("few types");
    let mut run = WriterRun {
        session,
        config,
        late,
        now,
        bytes: BytesMut::new(),
        bytes_given: 0,
        written: Written::new(),
    };
    run.take_what_came();
    run.give(before);
    run.session.stop(now);
    run.take_what_came();
    run.give(after);
    run.end()
}

/// A session, and what has come of it until now.
struct WriterRun<'a> {
    session: WriterSession,
    config: &'a WriterConfig,
    /// The reader closes after every deadline.
    late: bool,
    now: Instant,
    bytes: BytesMut,
    bytes_given: usize,
    written: Written,
}

impl Written {
    fn new() -> Self {
        Self { started: None, finished: false, sent: Vec::new(), fault: None, rest: Vec::new() }
    }
}

impl WriterRun<'_> {
    fn give(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
            self.bytes_given += piece.len();
            let (session, bytes) = (&mut self.session, &mut self.bytes);
            let result = no_more_than_given(self.bytes_given, || session.handle_bytes(self.now, bytes));
            let failed_before = self.written.fault.is_some();
            assert!(
                !failed_before || result.as_ref().err() == self.written.fault.as_ref(),
                "a fault is final"
            );
            self.written.fault = result.err();
            self.take_what_came();
            if self.written.fault.is_some() {
                assert_eq!(self.session.poll_timeout(), None);
            } else {
                assert!(self.bytes.len() < partial_max(0), "at most a partial control frame is left");
            }
        }
    }

    fn take_what_came(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                WriterEvent::Started { content_type } => {
                    assert!(self.written.started.is_none(), "a second START");
                    self.written.started = Some(content_type);
                }
                WriterEvent::Finished => {
                    assert!(self.written.started.is_some() && !self.written.finished);
                    self.written.finished = true;
                }
            }
        }
        let sent: Vec<u8> = std::iter::from_fn(|| self.session.poll_transmit()).flatten().collect();
        self.written.sent.extend(controls(&sent));
        self.assert_order();
    }

    /// READY first, where the reader answers; then START with the type that was reported, once it was; then STOP.
    fn assert_order(&self) {
        let mut expected = Vec::new();
        if self.config.bidirectional {
            expected.push(ControlFrame::ready(&self.config.content_types));
        }
        if let Some(content_type) = &self.written.started {
            expected.push(ControlFrame::start(content_type.as_ref()));
            let ours = &self.config.content_types;
            assert!(content_type.as_ref().map_or(ours.is_empty(), |named| ours.contains(named)));
            if self.written.sent.len() > expected.len() {
                expected.push(ControlFrame::stop());
            }
        }
        assert_eq!(self.written.sent, expected);
    }

    /// The reader closes, in half of the runs after every deadline. Then the session is over, if it was not before.
    fn end(mut self) -> Written {
        let mut fault = self.written.fault.clone();
        if fault.is_none() {
            self.written.rest = self.bytes.to_vec();
            let deadline = self.session.poll_timeout();
            assert_eq!(self.session.handle_timeout(self.now), Ok(()), "before the deadline");
            if self.late {
                fault = self.session.handle_timeout(self.now + Duration::from_secs(8)).err();
                assert_eq!(fault.is_some(), deadline.is_some());
            }
        }
        let end = self.session.handle_eof();
        assert_eq!(end.is_ok(), self.written.finished && fault.is_none(), "only FINISH acknowledges");
        assert!(fault.is_none() || end.as_ref().err() == fault.as_ref(), "a fault is final");
        let again = self.session.handle_bytes(self.now, &mut BytesMut::from(STREAM));
        assert_eq!(again, end, "a fault is final");
        assert_eq!((self.session.poll_event(), self.session.poll_transmit()), (None, None));
        self.written
    }
}

/// The control frames in what a session sent: nothing else is ever in it.
fn controls(sent: &[u8]) -> Vec<ControlFrame> {
    let mut decoder = Decoder::new(0);
    decoder.feed(Bytes::copy_from_slice(sent));
    let frames = std::iter::from_fn(|| decoder.next_frame().expect("whole frames"));
    let controls = frames.map(|frame| match frame {
        Frame::Control(control) => control,
        other => panic!("{other:?} was sent"),
    });
    let controls = controls.collect();
    assert_eq!(decoder.bytes_buffered(), 0);
    controls
}

/// A partial frame is shorter than this: bytes.
fn partial_max(frame_len_max: u32) -> usize {
    (4 + frame_len_max as usize).max(8 + ControlFrame::LEN_MAX)
}

/// A whole stream: START without a type, `x`, STOP.
const STREAM: &[u8] = b"\0\0\0\0\0\0\0\x04\0\0\0\x02\0\0\0\x01x\0\0\0\0\0\0\0\x04\0\0\0\x03";

const FINISH: &[u8] = b"\0\0\0\0\0\0\0\x04\0\0\0\x05";
