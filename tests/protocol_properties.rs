//! What must hold for the protocol library whatever the bytes are, and however they are cut.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::Just;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::prelude::prop;
use proptest::prop_assert;
use proptest::prop_assert_eq;
use proptest::prop_oneof;
use proptest::proptest;
use tapster::protocol::ContentType;
use tapster::protocol::ContentTypes;
use tapster::protocol::ControlFrame;
use tapster::protocol::Decoder;
use tapster::protocol::Encoder;
use tapster::protocol::FileReader;
use tapster::protocol::FileStatus;
use tapster::protocol::FileWriter;
use tapster::protocol::Frame;
use tapster::protocol::FrameBatch;
use tapster::protocol::Oversize;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderEvent;
use tapster::protocol::ReaderSession;
use tapster::protocol::ScanStop;
use tapster::protocol::WriterConfig;
use tapster::protocol::WriterEvent;
use tapster::protocol::WriterSession;
use tapster::protocol::scan;

/// Small, so that random lengths are on both sides of it.
const FRAME_LEN_MAX: u32 = 300;

/// The longest control frame with its head, in bytes.
const CONTROL_FRAME_LEN_MAX: usize = 8 + ControlFrame::LEN_MAX;

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 1..=FRAME_LEN_MAX as usize).prop_map(Bytes::from)
}

fn content_type() -> impl Strategy<Value = ContentType> {
    vec(any::<u8>(), 0..40).prop_map(|bytes| ContentType::try_from(&bytes[..]).expect("short"))
}

fn control() -> impl Strategy<Value = Frame> {
    prop_oneof![
        vec(content_type(), 0..5).prop_map(|types| ControlFrame::ready(&types)),
        vec(content_type(), 0..5).prop_map(|types| ControlFrame::accept(&types)),
        prop::option::of(content_type()).prop_map(|content_type| ControlFrame::start(content_type.as_ref())),
        Just(ControlFrame::stop()),
        Just(ControlFrame::finish()),
    ]
    .prop_map(Frame::Control)
}

fn unknown_control() -> impl Strategy<Value = Frame> {
    (6..=u32::MAX, vec(any::<u8>(), 0..=499)).prop_map(|(control_type, payload)| Frame::UnknownControl {
        control_type,
        payload: Bytes::from(payload),
    })
}

/// Frames that may come in the data phase.
fn stream_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![8 => payload().prop_map(Frame::Data), 1 => unknown_control()]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![4 => stream_frame(), 1 => control()]
}

/// Bytes that are often nearly frames: random ones alone seldom get past a length word.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![Just(0), 1..8u32, 8..600u32, any::<u32>()];
    let piece = prop_oneof![
        any_frame().prop_map(|frame| encode(&[frame])),
        word.prop_map(|word| word.to_be_bytes().to_vec()),
        vec(any::<u8>(), 0..40),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// How a stream is cut: lengths of pieces, used again and again.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..10usize, 1..2000usize], 1..20)
}

fn cut<'a>(mut stream: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    cuts.iter().cycle().map_while(move |len| {
        let (piece, rest) = stream.split_at((*len).min(stream.len()));
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn encode(frames: &[Frame]) -> Vec<u8> {
    let encoder = Encoder::new(FRAME_LEN_MAX);
    let mut stream = BytesMut::new();
    for frame in frames {
        encoder.frame(frame, &mut stream).expect("a frame within the limits");
    }
    stream.to_vec()
}

fn payloads(frames: &[Frame]) -> Vec<Bytes> {
    let data = frames.iter().filter_map(|frame| match frame {
        Frame::Data(payload) => Some(payload.clone()),
        _ => None,
    });
    data.collect()
}

fn reader_config(oversize: Oversize) -> ReaderConfig {
    ReaderConfig { frame_len_max: FRAME_LEN_MAX, oversize, ..ReaderConfig::default() }
}

proptest! {
    #[test]
    fn frames_survive_any_splitting_through_the_decoder(frames in vec(any_frame(), 0..30), cuts in cuts()) {
        let mut decoder = Decoder::new(FRAME_LEN_MAX);
        let mut decoded = Vec::new();
        for piece in cut(&encode(&frames), &cuts) {
            decoder.feed(Bytes::copy_from_slice(piece));
            while let Some(frame) = decoder.next_frame()? {
                decoded.push(frame);
            }
            prop_assert!(decoder.bytes_missing() > 0);
        }
        prop_assert_eq!(decoded, frames);
        prop_assert_eq!(decoder.bytes_buffered(), 0);
    }

    /// As many bytes as `bytes_missing` says, never more, are enough: the reads of a careful caller.
    #[test]
    fn feeding_what_is_missing_never_takes_more_than_the_frame(frames in vec(any_frame(), 1..10)) {
        let mut decoder = Decoder::new(FRAME_LEN_MAX);
        let stream = encode(&frames);
        let mut rest = &stream[..];
        for frame in frames {
            while decoder.bytes_missing() > 0 {
                let (piece, tail) = rest.split_at(decoder.bytes_missing());
                decoder.feed(Bytes::copy_from_slice(piece));
                rest = tail;
            }
            prop_assert_eq!(decoder.next_frame()?, Some(frame));
            prop_assert_eq!(decoder.bytes_buffered(), 0);
        }
    }

    #[test]
    fn frames_survive_any_splitting_through_a_whole_session(
        frames in vec(stream_frame(), 0..30),
        cuts in cuts(),
        bidirectional: bool,
    ) {
        let now = Instant::now();
        let mut writer = WriterSession::new(WriterConfig { bidirectional, ..WriterConfig::default() }, now)?;
        let mut reader = ReaderSession::new(reader_config(Oversize::Close), now);
        let (mut to_reader, mut to_writer) = (BytesMut::new(), BytesMut::new());
        let mut received = Vec::new();
        let mut finished = (false, false);
        loop {
            // What the writer sends, with the data between START and STOP.
            let mut sent: Vec<u8> = std::iter::from_fn(|| writer.poll_transmit()).flatten().collect();
            while let Some(event) = writer.poll_event() {
                match event {
                    WriterEvent::Started { .. } => {
                        sent.extend(encode(&frames));
                        writer.stop(now);
                    }
                    WriterEvent::Finished => finished.0 = true,
                }
            }
            sent.extend(std::iter::from_fn(|| writer.poll_transmit()).flatten());
            for piece in cut(&sent, &cuts) {
                to_reader.extend_from_slice(piece);
                reader.handle_bytes(now, &mut to_reader)?;
                prop_assert!(to_reader.len() < CONTROL_FRAME_LEN_MAX, "at most a partial frame is left");
            }
            while let Some(event) = reader.poll_event() {
                match event {
                    ReaderEvent::Started { content_type, bidirectional: shape } => {
                        prop_assert_eq!(content_type, Some(ContentType::DNSTAP));
                        prop_assert_eq!(shape, bidirectional);
                    }
                    ReaderEvent::Data(batch) => received.extend(batch.payloads()),
                    ReaderEvent::Finished => finished.1 = true,
                }
            }
            let answer: Vec<u8> = std::iter::from_fn(|| reader.poll_transmit()).flatten().collect();
            for piece in cut(&answer, &cuts) {
                to_writer.extend_from_slice(piece);
                writer.handle_bytes(now, &mut to_writer)?;
            }
            if sent.is_empty() && answer.is_empty() {
                break;
            }
        }
        prop_assert_eq!(finished, (true, true));
        prop_assert_eq!(received, payloads(&frames));
        let ignored = frames.len() - payloads(&frames).len();
        prop_assert_eq!(reader.counters().control_frames_ignored, ignored as u64);
        prop_assert_eq!(writer.handle_eof(), Ok(()));
    }

    #[test]
    fn frames_survive_any_splitting_through_a_file(
        frames in vec(payload(), 0..30),
        content_type in prop::option::of(content_type()),
        cuts in cuts(),
        lost in prop_oneof![Just(0), 1..40usize],
    ) {
        let now = Instant::now();
        let writer = FileWriter::new(content_type.clone());
        let mut file = writer.header().to_vec();
        if !frames.is_empty() {
            file.extend(FrameBatch::from_payloads(&frames, now)?.into_bytes());
        }
        file.extend(writer.trailer());
        file.truncate(file.len().saturating_sub(lost));

        let mut reader = FileReader::new(FRAME_LEN_MAX, now);
        let mut bytes = BytesMut::new();
        let mut received = Vec::new();
        for piece in cut(&file, &cuts) {
            bytes.extend_from_slice(piece);
            reader.handle_bytes(now, &mut bytes)?;
            while let Some(event) = reader.poll_event() {
                match event {
                    ReaderEvent::Started { content_type: read, .. } => prop_assert_eq!(&read, &content_type),
                    ReaderEvent::Data(batch) => received.extend(batch.payloads()),
                    ReaderEvent::Finished => {}
                }
            }
        }
        let status = reader.handle_eof(&bytes);
        if lost == 0 {
            prop_assert_eq!(status, FileStatus::Clean);
            prop_assert_eq!(received, frames);
        } else {
            prop_assert!(matches!(status, FileStatus::Truncated { .. }), "{:?}", status);
            prop_assert!(frames.starts_with(&received));
        }
    }

    #[test]
    fn any_bytes_leave_the_decoder_within_its_limits(stream in hostile_bytes(), cuts in cuts()) {
        let mut decoder = Decoder::new(FRAME_LEN_MAX);
        for piece in cut(&stream, &cuts) {
            decoder.feed(Bytes::copy_from_slice(piece));
            while let Ok(Some(frame)) = decoder.next_frame() {
                if let Frame::Data(payload) = frame {
                    prop_assert!((1..=FRAME_LEN_MAX as usize).contains(&payload.len()));
                }
            }
            prop_assert!(decoder.bytes_buffered() < CONTROL_FRAME_LEN_MAX);
            let missing = decoder.bytes_missing();
            prop_assert!(missing <= CONTROL_FRAME_LEN_MAX);
            prop_assert_eq!(missing == 0, decoder.next_frame().is_err());
        }
    }

    /// The buffer belongs to the caller, who appends to it what is read: what a session leaves in it is what a peer
    /// can make it hold.
    #[test]
    fn any_bytes_leave_a_reader_session_within_its_limits(
        stream in hostile_bytes(),
        cuts in cuts(),
        opened: bool,
        any_type: bool,
        skip: bool,
    ) {
        let now = Instant::now();
        let mut config = reader_config(if skip { Oversize::Skip } else { Oversize::Close });
        if any_type {
            config.content_types = ContentTypes::Any;
        }
        let mut session = ReaderSession::new(config, now);
        let mut bytes = BytesMut::new();
        if opened {
            let start = ControlFrame::start(Some(&ContentType::DNSTAP));
            bytes.extend_from_slice(&encode(&[Frame::Control(start)]));
        }
        let mut failed = false;
        let mut received = 0;
        for piece in cut(&stream, &cuts) {
            bytes.extend_from_slice(piece);
            failed = session.handle_bytes(now, &mut bytes).is_err();
            while let Some(event) = session.poll_event() {
                if let ReaderEvent::Data(batch) = event {
                    let again = FrameBatch::parse(batch.bytes().clone(), FRAME_LEN_MAX, now);
                    prop_assert_eq!(again, Ok(batch.clone()), "whole frames within the limit");
                    received += batch.byte_len();
                }
            }
            if failed {
                break;
            }
            prop_assert!(bytes.len() < CONTROL_FRAME_LEN_MAX);
        }
        let sent: usize = std::iter::from_fn(|| session.poll_transmit()).map(|bytes| bytes.len()).sum();
        prop_assert!(sent <= 2 * CONTROL_FRAME_LEN_MAX + 12, "two ACCEPT and a FINISH at most");
        prop_assert!(received <= stream.len());
        prop_assert_eq!(session.handle_bytes(now, &mut bytes).is_err(), failed);
        session.finish();
        session.handle_eof(&bytes);
    }

    #[test]
    fn any_bytes_leave_a_writer_session_within_its_limits(stream in hostile_bytes(), cuts in cuts(), stop: bool) {
        let begin = Instant::now();
        let mut session = WriterSession::new(WriterConfig::default(), begin)?;
        let mut bytes = BytesMut::new();
        if stop {
            bytes.extend_from_slice(&encode(&[Frame::Control(ControlFrame::accept(&[]))]));
            session.handle_bytes(begin, &mut bytes)?;
            session.stop(begin);
        }
        for piece in cut(&stream, &cuts) {
            bytes.extend_from_slice(piece);
            if session.handle_bytes(begin, &mut bytes).is_err() {
                break;
            }
            prop_assert!(bytes.len() < CONTROL_FRAME_LEN_MAX);
        }
        let acknowledged = std::iter::from_fn(|| session.poll_event()).any(|event| event == WriterEvent::Finished);
        prop_assert_eq!(session.handle_eof().is_ok(), acknowledged);
        let _ = session.handle_timeout(begin + Duration::from_secs(3600));
    }

    #[test]
    fn any_bytes_are_read_as_a_file_to_a_status(stream in hostile_bytes(), cuts in cuts(), opened: bool) {
        let now = Instant::now();
        let mut file = if opened { FileWriter::new(None).header().to_vec() } else { Vec::new() };
        file.extend(stream);
        let mut reader = FileReader::new(FRAME_LEN_MAX, now);
        let mut bytes = BytesMut::new();
        let mut fault = None;
        for piece in cut(&file, &cuts) {
            bytes.extend_from_slice(piece);
            fault = reader.handle_bytes(now, &mut bytes).err();
            if fault.is_some() {
                break;
            }
        }
        prop_assert!(reader.position().offset <= file.len() as u64);
        match (fault, reader.handle_eof(&bytes)) {
            (Some(_), FileStatus::Garbage) => prop_assert!(reader.position().streams > 0),
            (Some(fault), status) => prop_assert_eq!(status, FileStatus::Damaged(fault)),
            (None, FileStatus::Clean | FileStatus::Garbage) => prop_assert!(reader.position().streams > 0),
            (None, status) => prop_assert_eq!(status, FileStatus::Truncated { bytes: bytes.len() }),
        }
    }

    #[test]
    fn scan_never_looks_past_its_bytes(stream in hostile_bytes(), frame_len_max: u32) {
        let scan = scan(&stream, frame_len_max);
        prop_assert!(scan.bytes <= stream.len());
        prop_assert!(scan.payload_len_max <= frame_len_max);
        prop_assert_eq!(scan.frames == 0, scan.bytes == 0);
        let rest = &stream[scan.bytes..];
        match scan.stop {
            ScanStop::Incomplete { missing } => prop_assert!(missing > 0),
            ScanStop::Escape => prop_assert_eq!(&rest[..4], &[0; 4]),
            ScanStop::TooLong { len } => {
                prop_assert_eq!(&rest[..4], &len.to_be_bytes());
                prop_assert!(len > frame_len_max);
            }
        }
    }

    #[test]
    fn any_payload_decodes_to_a_control_frame_or_an_error(payload in vec(any::<u8>(), 0..600)) {
        if let Ok(frame) = ControlFrame::decode(&payload) {
            prop_assert!(payload.len() <= ControlFrame::LEN_MAX);
            if let Ok(encoded) = frame.encode() {
                prop_assert_eq!(&encoded[8..], &payload[..], "there is one encoding only");
            }
        }
    }

    #[test]
    fn batches_cut_and_filtered_keep_every_other_frame(
        frames in vec(payload(), 1..20),
        written in 0..4000usize,
        payload_len_max in 0..=FRAME_LEN_MAX,
    ) {
        let mut batch = FrameBatch::from_payloads(&frames, Instant::now())?;
        let dropped = batch.advance(written) as usize;
        let written_len: usize = frames[..dropped].iter().map(|payload| 4 + payload.len()).sum();
        prop_assert!(written_len <= written);
        prop_assert!(dropped == frames.len() || written_len + 4 + frames[dropped].len() > written);
        prop_assert_eq!(batch.payloads().collect::<Vec<_>>(), &frames[dropped..]);

        let (copy, left_out) = batch.copy_without_longer_than(payload_len_max);
        let kept: Vec<Bytes> = copy.iter().flat_map(FrameBatch::payloads).collect();
        let runs = batch.runs_within(payload_len_max);
        let in_runs: Vec<Bytes> = runs.iter().flat_map(|(_, run)| run.payloads()).collect();
        prop_assert_eq!(&kept, &in_runs);
        let short = frames[dropped..].iter().filter(|payload| payload.len() <= payload_len_max as usize);
        prop_assert_eq!(&kept, &short.cloned().collect::<Vec<_>>());
        prop_assert_eq!(kept.len() + left_out as usize, batch.frames() as usize);
    }
}
