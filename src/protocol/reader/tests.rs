//! The conformance cases of a reader: H handshake, D data, L limits, S split reads, X ends, T time. Every stream is
//! played in one piece, in two at every place, and byte by byte, and must come to the same each time.

use super::*;
use crate::protocol::tests::D;
use crate::protocol::tests::O;
use crate::protocol::tests::accept;
use crate::protocol::tests::all_splits;
use crate::protocol::tests::content_type;
use crate::protocol::tests::control_payload;
use crate::protocol::tests::control_raw;
use crate::protocol::tests::data;
use crate::protocol::tests::finish;
use crate::protocol::tests::ready;
use crate::protocol::tests::start;
use crate::protocol::tests::stop;
use crate::protocol::tests::word;

/// All that came out of a session by the time its writer closed the connection.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Content type, and whether bidirectional.
    started: Option<(Option<ContentType>, bool)>,
    payloads: Vec<Bytes>,
    finished: bool,
    sent: Vec<u8>,
    result: Result<(), ProtocolError>,
    end: SessionEnd,
    counters: ReaderCounters,
}

impl Outcome {
    /// Of a bidirectional dnstap session that got as far as START.
    fn started() -> Self {
        Self {
            started: Some((Some(ContentType::DNSTAP), true)),
            payloads: Vec::new(),
            finished: false,
            sent: accept(&[D]),
            result: Ok(()),
            end: SessionEnd::Unclean,
            counters: ReaderCounters::default(),
        }
    }

    /// Of a session that ended after it had sent these bytes, before START.
    fn unstarted(sent: &[u8], result: Result<(), ProtocolError>) -> Self {
        let end = if result.is_ok() { SessionEnd::InHandshake } else { SessionEnd::Unclean };
        Self { started: None, sent: sent.to_vec(), result, end, ..Self::started() }
    }

    fn with(self, payloads: &[&[u8]]) -> Self {
        Self { payloads: payloads.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect(), ..self }
    }

    /// STOP came.
    fn finished(self) -> Self {
        let sent = [self.sent, finish()].concat();
        Self { finished: true, sent, end: SessionEnd::Finished, ..self }
    }

    fn failed(self, error: ProtocolError) -> Self {
        Self { result: Err(error), ..self }
    }
}

/// Plays a stream to a session, then the end of the connection.
fn play_pieces<'a>(config: &Arc<ReaderConfig>, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let now = Instant::now();
    let mut session = ReaderSession::new(Arc::clone(config), now);
    let mut bytes = BytesMut::new();
    let mut outcome =
        Outcome { started: None, sent: Vec::new(), end: SessionEnd::InHandshake, ..Outcome::started() };
    for piece in pieces {
        bytes.extend_from_slice(piece);
        outcome.result = session.handle_bytes(now, &mut bytes);
        while let Some(event) = session.poll_event() {
            assert!(!outcome.finished, "nothing comes after Finished");
            match event {
                ReaderEvent::Started { content_type, bidirectional } => {
                    assert_eq!(outcome.started.replace((content_type, bidirectional)), None);
                }
                ReaderEvent::Data(batch) => {
                    let checked = FrameBatch::parse(batch.bytes().clone(), config.frame_len_max, now);
                    assert_eq!(checked.as_ref(), Ok(&batch));
                    outcome.payloads.extend(batch.payloads());
                }
                ReaderEvent::Finished => outcome.finished = true,
            }
        }
        while let Some(sent) = session.poll_transmit() {
            outcome.sent.extend(sent);
        }
        if outcome.result.is_err() {
            assert_eq!(session.handle_bytes(now, &mut bytes), outcome.result, "an error stays");
            assert_eq!((session.poll_event(), session.poll_transmit()), (None, None));
            break;
        }
        let in_handshake = outcome.started.is_none();
        assert_eq!(session.poll_timeout().is_some(), in_handshake);
    }
    outcome.end = session.handle_eof(&bytes);
    outcome.counters = session.counters();
    outcome
}

/// Plays a stream in all ways to cut it.
fn play_with(config: ReaderConfig, stream: &[u8]) -> Outcome {
    let config = Arc::new(config);
    let whole = play_pieces(&config, [stream]);
    for pieces in all_splits(stream) {
        let lens = pieces.iter().take(2).map(|piece| piece.len()).collect::<Vec<_>>();
        assert_eq!(play_pieces(&config, pieces), whole, "in pieces of {lens:?}… bytes");
    }
    whole
}

fn play(frames: &[Vec<u8>]) -> Outcome {
    play_with(ReaderConfig::default(), &frames.concat())
}

/// The beginning of every good session.
fn opened(frames: &[Vec<u8>]) -> Vec<u8> {
    [&[ready(&[D]), start(&[D])], frames].concat().concat()
}

fn mismatch(peer: &[&[u8]], ours: &[&[u8]]) -> ProtocolError {
    let types = |types: &[&[u8]]| types.iter().map(|bytes| content_type(bytes)).collect();
    ProtocolError::ContentTypeMismatch { peer: types(peer), ours: types(ours) }
}

fn unexpected(expected: &'static str, got: ControlType) -> ProtocolError {
    ProtocolError::UnexpectedControl { expected, got }
}

fn unknown_control(control_type: u32) -> ProtocolError {
    ControlError::UnknownType(control_type).into()
}

// H: handshake

#[test]
fn h01_s01_s02_x07_a_whole_session_is_answered_with_accept_and_finish() {
    let outcome = play(&[ready(&[D]), start(&[D]), data(b"abc"), stop()]);
    assert_eq!(outcome, Outcome::started().with(&[b"abc"]).finished());
    assert_eq!(outcome.sent.len(), 42 + 12);
}

#[test]
fn h02_ready_without_a_type_is_answered_with_ours() {
    assert_eq!(play(&[ready(&[]), start(&[D])]), Outcome::started());
}

#[test]
fn h03_h04_accept_names_exactly_one_type() {
    for offered in [[O, D], [D, O], [D, D]] {
        assert_eq!(play(&[ready(&offered), start(&[D])]), Outcome::started());
    }
}

#[test]
fn h05_h12_ready_without_a_type_of_ours_is_refused_and_nothing_is_sent() {
    for offered in [O, b"Protobuf:dnstap.Dnstap", &D[..D.len() - 1], b"protobuf:dnstap.Dnstap\0", b""] {
        let refused = Outcome::unstarted(b"", Err(mismatch(&[offered], &[D])));
        assert_eq!(play(&[ready(&[offered]), start(&[offered])]), refused);
        assert_eq!(refused.result.unwrap_err().reason(), "content_type");
    }
}

#[test]
fn h06_start_with_another_type_than_accepted_is_refused() {
    let refused = Outcome::unstarted(&accept(&[D]), Err(mismatch(&[O], &[D])));
    assert_eq!(play(&[ready(&[D]), start(&[O]), data(b"a")]), refused);
    assert_eq!(play(&[ready(&[O, D]), start(&[O]), data(b"a")]), refused);
}

#[test]
fn h07_start_without_a_type_takes_the_accepted_one() {
    assert_eq!(play(&[ready(&[D]), start(&[]), data(b"a")]), Outcome::started().with(&[b"a"]));
}

#[test]
fn h08_start_with_two_types_is_refused() {
    let error = ControlError::TooManyContentTypes { control_type: ControlType::Start, count: 2 };
    let refused = Outcome::unstarted(&accept(&[D]), Err(error.into()));
    assert_eq!(play(&[ready(&[D]), start(&[D, D])]), refused);
}

#[test]
fn h09_other_first_frames_are_refused() {
    let expected = "READY or START";
    for (first, got) in
        [(stop(), ControlType::Stop), (accept(&[D]), ControlType::Accept), (finish(), ControlType::Finish)]
    {
        assert_eq!(play(&[first]), Outcome::unstarted(b"", Err(unexpected(expected, got))));
    }
    assert_eq!(play(&[control_raw(&word(6))]), Outcome::unstarted(b"", Err(unknown_control(6))));
}

#[test]
fn h09_start_first_is_a_unidirectional_session_and_never_answered() {
    let finished = Outcome::started().with(&[b"a"]).finished();
    let unanswered =
        Outcome { started: Some((Some(ContentType::DNSTAP), false)), sent: Vec::new(), ..finished };
    for named in [&[D][..], &[]] {
        assert_eq!(play(&[start(named), data(b"a"), stop()]), unanswered);
    }
    assert_eq!(play(&[start(&[O])]), Outcome::unstarted(b"", Err(mismatch(&[O], &[D]))));
}

#[test]
fn h09_a_shape_that_is_not_allowed_is_refused() {
    let config = ReaderConfig { unidirectional: false, ..ReaderConfig::default() };
    let refused = Outcome::unstarted(b"", Err(unexpected("READY", ControlType::Start)));
    assert_eq!(play_with(config, &start(&[D])), refused);

    let config = ReaderConfig { bidirectional: false, ..ReaderConfig::default() };
    let refused = Outcome::unstarted(b"", Err(unexpected("START", ControlType::Ready)));
    assert_eq!(play_with(config, &ready(&[D])), refused);
}

#[test]
fn h10_ready_may_come_twice() {
    let answered_twice = [accept(&[D]), accept(&[D])].concat();
    let outcome = play(&[ready(&[D]), ready(&[D]), start(&[D]), data(b"a")]);
    assert_eq!(outcome, Outcome { sent: answered_twice.clone(), ..Outcome::started().with(&[b"a"]) });
    let outcome = play(&[ready(&[D]), ready(&[D]), ready(&[D])]);
    assert_eq!(outcome, Outcome::unstarted(&answered_twice, Err(ProtocolError::RepeatedReady { count: 3 })));
}

#[test]
fn h10_another_control_frame_in_place_of_start_is_refused() {
    for (second, error) in [
        (stop(), unexpected("START", ControlType::Stop)),
        (accept(&[D]), unexpected("START", ControlType::Accept)),
        (finish(), unexpected("START", ControlType::Finish)),
        (control_raw(&word(6)), unknown_control(6)),
        (data(b"a"), ProtocolError::UnexpectedData { expected: "START", len: 1 }),
    ] {
        assert_eq!(play(&[ready(&[D]), second]), Outcome::unstarted(&accept(&[D]), Err(error)));
    }
}

#[test]
fn h11_the_handshake_may_come_without_waiting_for_accept() {
    assert_eq!(play(&[opened(&[data(b"a")])]), Outcome::started().with(&[b"a"]));
}

#[test]
fn h13_data_before_ready_is_refused() {
    let error = ProtocolError::UnexpectedData { expected: "READY or START", len: 1 };
    assert_eq!(play(&[data(b"x"), ready(&[D])]), Outcome::unstarted(b"", Err(error)));
}

#[test]
fn accept_names_the_first_type_of_our_list_that_ready_offers() {
    let content_types = ContentTypes::Only(vec![content_type(b"B"), content_type(b"A")]);
    let config = ReaderConfig { content_types, ..ReaderConfig::default() };
    for (offered, accepted) in [(&[&b"A"[..], b"B"][..], &b"B"[..]), (&[b"A", b"C"], b"A"), (&[], b"B")] {
        let outcome = play_with(config.clone(), &[ready(offered), start(&[accepted])].concat());
        assert_eq!(outcome.sent, accept(&[accepted]));
        assert_eq!(outcome.started, Some((Some(content_type(accepted)), true)));
    }
    let outcome = play_with(config, &start(&[]));
    assert_eq!(outcome.started, Some((Some(content_type(b"B")), false)));
}

#[test]
fn a_reader_of_any_type_accepts_the_first_offered() {
    let config = ReaderConfig { content_types: ContentTypes::Any, ..ReaderConfig::default() };
    for (offered, answer, named, started) in [
        (&[O, D][..], &[O][..], &[O][..], Some(O)),
        (&[O, D], &[O], &[], Some(O)),
        (&[], &[], &[D], Some(D)),
        (&[], &[], &[], None),
    ] {
        let outcome = play_with(config.clone(), &[ready(offered), start(named)].concat());
        assert_eq!(outcome.sent, accept(answer));
        assert_eq!(outcome.started, Some((started.map(content_type), true)));
    }
    for named in [Some(O), None] {
        let stream = start(named.as_slice());
        assert_eq!(play_with(config.clone(), &stream).started, Some((named.map(content_type), false)));
    }
    let outcome = play_with(config, &[ready(&[O, D]), start(&[D])].concat());
    assert_eq!(outcome.result, Err(mismatch(&[D], &[O])));
}

// D: data frames

#[test]
fn d01_d02_d03_payloads_are_not_interpreted() {
    let payloads = [&b"\0"[..], b"abc", &word(4), &word(3), &word(0), &stop(), &ready(&[D]), b"z"];
    let frames = payloads.map(data);
    assert_eq!(play(&[opened(&frames)]), Outcome::started().with(&payloads));
}

#[test]
fn d04_s04_frames_of_all_lengths_survive_reads_of_any_length() {
    let payloads: Vec<Vec<u8>> =
        (1..=1000).map(|len| (0..len).map(|i| (len * 31 + i) as u8).collect()).collect();
    let mut frames: Vec<Vec<u8>> = payloads.iter().map(|payload| data(payload)).collect();
    frames.push(stop());
    let stream = opened(&frames);
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
    let expected = Outcome::started().with(&payloads).finished();
    for read_len in [1, 2, 3, 5, 7, 64, 1460, 4096, 16_384, 65_536, stream.len()] {
        let config = Arc::new(ReaderConfig::default());
        assert_eq!(play_pieces(&config, stream.chunks(read_len)), expected, "reads of {read_len} bytes");
    }
}

#[test]
fn d05_d07_unknown_control_frames_are_ignored_and_counted() {
    let longest = [&word(6)[..], &[0xa5; 508]].concat();
    let stream = [
        control_raw(&word(6)),
        control_raw(b"abcd"),
        control_raw(&longest),
        data(b"y"),
        [&word(0)[..], &data(b"abcd")].concat(),
        data(b"z"),
    ];
    let counters = ReaderCounters { control_frames_ignored: 4, ..ReaderCounters::default() };
    let expected = Outcome { counters, ..Outcome::started().with(&[b"y", b"z"]) };
    assert_eq!(play(&[opened(&stream)]), expected);
}

#[test]
fn d06_known_control_frames_among_the_data_are_refused() {
    for (frame, got) in [
        (ready(&[D]), ControlType::Ready),
        (accept(&[D]), ControlType::Accept),
        (start(&[D]), ControlType::Start),
        (finish(), ControlType::Finish),
    ] {
        let stream = opened(&[data(b"a"), frame, data(b"z")]);
        let error = unexpected("a data frame or STOP", got);
        assert_eq!(play(&[stream]), Outcome::started().with(&[b"a"]).failed(error));
    }
}

#[test]
fn d08_control_frames_of_impossible_length_are_refused() {
    for (frame, len) in [
        ([word(0), word(0)].concat(), 0),
        ([&word(0)[..], &word(3), b"abc"].concat(), 3),
        ([&word(0)[..], &data(&[7; 600])].concat(), 600),
    ] {
        let stream = opened(&[data(b"a"), frame]);
        let error = ProtocolError::ControlLength { len };
        assert_eq!(play(&[stream]), Outcome::started().with(&[b"a"]).failed(error));
    }
}

#[test]
fn malformed_control_frames_among_the_data_are_refused() {
    let typed_stop = control_raw(&control_payload(3, &[D]));
    let error = ControlError::TooManyContentTypes { control_type: ControlType::Stop, count: 1 };
    assert_eq!(play(&[opened(&[typed_stop])]), Outcome::started().failed(error.into()));
}

// L: limits

#[test]
fn l01_l03_l08_s03_the_longest_frames_are_taken_whole() {
    for len in [65_835, 131_600, 262_140, 262_141, 1 << 20] {
        let payload: Vec<u8> = (0..len).map(|i: usize| (i % 251) as u8).collect();
        let stream = opened(&[data(&payload), data(b"n")]);
        let expected = Outcome::started().with(&[&payload, b"n"]);
        let config = Arc::new(ReaderConfig::default());
        let (head, rest) = stream.split_at(100);
        let (body, tail) = rest.split_at(rest.len() - 21);
        let pieces = head.chunks(1).chain(body.chunks(1460)).chain(tail.chunks(1));
        assert_eq!(play_pieces(&config, pieces), expected, "{len} bytes");
    }
}

#[test]
fn l02_a_frame_above_the_limit_ends_the_session() {
    let counters = ReaderCounters { frames_oversize: 1, ..ReaderCounters::default() };
    let config = ReaderConfig { frame_len_max: 10, ..ReaderConfig::default() };
    let stream = opened(&[data(b"0123456789"), data(b"0123456789A"), data(b"n")]);
    let error = ProtocolError::FrameTooLong { len: 11, len_max: 10 };
    let expected = Outcome { counters, ..Outcome::started().with(&[b"0123456789"]).failed(error) };
    assert_eq!(play_with(config, &stream), expected);

    let error = ProtocolError::FrameTooLong { len: 1_048_577, len_max: 1_048_576 };
    let stream = opened(&[word(1_048_577).to_vec()]);
    assert_eq!(play(&[stream]), Outcome { counters, ..Outcome::started().failed(error) });
}

#[test]
fn l02_a_frame_above_the_limit_is_skipped_where_that_is_configured() {
    let config = ReaderConfig { frame_len_max: 3, oversize: Oversize::Skip, ..ReaderConfig::default() };
    let stream = opened(&[data(b"abc"), data(b"long"), data(b"n"), data(&stop()), data(b"abcd"), stop()]);
    let counters = ReaderCounters { frames_oversize: 3, ..ReaderCounters::default() };
    let expected = Outcome { counters, ..Outcome::started().with(&[b"abc", b"n"]).finished() };
    assert_eq!(play_with(config.clone(), &stream), expected);

    let cut = opened(&[data(b"a"), word(4).to_vec(), b"lon".to_vec()]);
    let counters = ReaderCounters { frames_oversize: 1, ..ReaderCounters::default() };
    let end = SessionEnd::Truncated { bytes: 0 };
    assert_eq!(play_with(config, &cut), Outcome { counters, end, ..Outcome::started().with(&[b"a"]) });
}

#[test]
fn a_skipped_frame_is_not_buffered() {
    let config = ReaderConfig { oversize: Oversize::Skip, ..ReaderConfig::default() };
    let now = Instant::now();
    let mut session = ReaderSession::new(config, now);
    let mut bytes = BytesMut::from(&opened(&[word(2 << 20).to_vec()])[..]);
    assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
    for _ in 0..512 {
        bytes.extend_from_slice(&[0; 4096]);
        assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
        assert!(bytes.is_empty());
    }
    bytes.extend_from_slice(&stop());
    assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
    assert_eq!(session.handle_eof(&bytes), SessionEnd::Finished);
}

#[test]
fn l04_l05_l06_lengths_of_two_gib_and_more_always_end_the_session() {
    for oversize in [Oversize::Close, Oversize::Skip] {
        for len in [u32::MAX, 0xffff_fffd, 0xffff_fffe, 0xffff_fffc, 0x8000_0000] {
            let config = ReaderConfig { oversize, ..ReaderConfig::default() };
            let counters = ReaderCounters { frames_oversize: 1, ..ReaderCounters::default() };
            let error = ProtocolError::FrameTooLong { len, len_max: 1 << 20 };
            let stream = opened(&[word(len).to_vec(), vec![7; 16]]);
            assert_eq!(play_with(config, &stream), Outcome { counters, ..Outcome::started().failed(error) });
        }
    }
}

#[test]
fn l07_ready_may_have_512_bytes() {
    for len in [197, 198, 206] {
        let stream = [ready(&[D, &[b'x'; 256], &vec![b'x'; len]]), start(&[D])];
        assert_eq!(play(&stream), Outcome::started());
    }
    let stream = [ready(&[D, &[b'x'; 256], &[b'x'; 207]])];
    assert_eq!(play(&stream), Outcome::unstarted(b"", Err(ProtocolError::ControlLength { len: 513 })));
}

// S: split reads; every other test splits as well

#[test]
fn s06_data_stop_and_end_may_come_at_once() {
    let stream = opened(&[data(b"abc"), stop()]);
    let outcome = play_pieces(&Arc::new(ReaderConfig::default()), [&stream[..]]);
    assert_eq!(outcome, Outcome::started().with(&[b"abc"]).finished());
}

#[test]
fn s07_sessions_do_not_share_bytes() {
    let now = Instant::now();
    let config = Arc::new(ReaderConfig::default());
    let streams: Vec<Vec<u8>> =
        (0..16).map(|n| opened(&[data(&vec![n; 100 + usize::from(n)]), stop()])).collect();
    let mut sessions: Vec<_> =
        (0..16).map(|_| (ReaderSession::new(Arc::clone(&config), now), BytesMut::new())).collect();
    // Each stops within its data frame, at another byte.
    for (n, (stream, (session, bytes))) in streams.iter().zip(&mut sessions).enumerate() {
        bytes.extend_from_slice(&stream[..84 + n]);
        assert_eq!(session.handle_bytes(now, bytes), Ok(()));
    }
    for (n, (stream, (session, bytes))) in streams.iter().zip(&mut sessions).enumerate() {
        bytes.extend_from_slice(&stream[84 + n..]);
        assert_eq!(session.handle_bytes(now, bytes), Ok(()));
        let batch = std::iter::from_fn(|| session.poll_event()).find_map(|event| match event {
            ReaderEvent::Data(batch) => Some(batch),
            _ => None,
        });
        assert_eq!(batch.expect("a batch").bytes(), &data(&vec![n as u8; 100 + n]));
    }
}

#[test]
fn frames_share_the_bytes_that_were_read() {
    let now = Instant::now();
    let mut session = ReaderSession::new(ReaderConfig::default(), now);
    let mut bytes = BytesMut::from(&opened(&[data(b"abc"), data(b"d"), word(9).to_vec()])[..]);
    let read = bytes.as_ptr_range();
    assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
    assert_eq!(bytes, word(9)[..], "the cut frame is left");
    let events: Vec<_> = std::iter::from_fn(|| session.poll_event()).collect();
    let [ReaderEvent::Started { .. }, ReaderEvent::Data(batch)] = &events[..] else {
        panic!("one batch for a run of frames, got {events:?}");
    };
    assert_eq!((batch.frames(), batch.payload_len_max(), batch.read_at()), (2, 3, now));
    assert!(read.contains(&batch.bytes().as_ptr()));
}

// X: ends

#[test]
fn x01_stop_without_data_is_answered() {
    assert_eq!(play(&[opened(&[stop()])]), Outcome::started().finished());
}

#[test]
fn x03_the_end_without_stop_is_unclean() {
    let outcome = play(&[opened(&[data(b"a")])]);
    assert_eq!(outcome, Outcome { end: SessionEnd::Unclean, ..Outcome::started().with(&[b"a"]) });
}

#[test]
fn x04_the_end_within_a_frame_is_truncated_and_no_part_is_delivered() {
    for cut in [data(b"abc"), stop()] {
        for bytes in 1..cut.len() {
            let outcome = play(&[opened(&[data(b"a"), cut[..bytes].to_vec()])]);
            let end = SessionEnd::Truncated { bytes };
            assert_eq!(outcome, Outcome { end, ..Outcome::started().with(&[b"a"]) });
        }
    }
}

#[test]
fn x05_the_end_in_the_handshake_delivers_nothing() {
    assert_eq!(play(&[]), Outcome::unstarted(b"", Ok(())));
    assert_eq!(play(&[ready(&[D])[..20].to_vec()]), Outcome::unstarted(b"", Ok(())));
    assert_eq!(play(&[ready(&[D])]), Outcome::unstarted(&accept(&[D]), Ok(())));
}

#[test]
fn x07_x08_x09_what_comes_after_stop_is_counted_and_not_looked_at() {
    for after in [stop(), data(b"z"), ready(&[D]), vec![0xff; 100]] {
        let bytes_after_stop = after.len() as u64;
        let counters = ReaderCounters { bytes_after_stop, ..ReaderCounters::default() };
        let outcome = play(&[opened(&[data(b"a"), stop(), after])]);
        assert_eq!(outcome, Outcome { counters, ..Outcome::started().with(&[b"a"]).finished() });
    }
}

#[test]
fn finish_may_be_sent_before_stop() {
    for (stream, sent) in [(opened(&[]), finish()), (start(&[D]), Vec::new())] {
        let now = Instant::now();
        let mut session = ReaderSession::new(ReaderConfig::default(), now);
        let mut bytes = BytesMut::from(&[stream, data(b"abc")[..5].to_vec()].concat()[..]);
        assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
        while session.poll_event().is_some() || session.poll_transmit().is_some() {}

        session.finish();
        session.finish();
        assert_eq!(session.poll_transmit().unwrap_or_default(), sent);
        bytes.extend_from_slice(&[&b"bc"[..], &data(b"d"), &stop()].concat());
        assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
        assert_eq!((session.poll_event(), session.poll_transmit()), (None, None));
        assert_eq!(session.counters().bytes_after_stop, 7 + 5 + 12);
        assert_eq!(session.handle_eof(&bytes), SessionEnd::Finished);
    }
}

#[test]
fn finish_does_nothing_before_start() {
    let now = Instant::now();
    let mut session = ReaderSession::new(ReaderConfig::default(), now);
    session.finish();
    assert_eq!(session.poll_transmit(), None);
    assert_eq!(session.handle_eof(b""), SessionEnd::InHandshake);
}

// T: time

#[test]
fn t01_t02_the_deadline_is_for_the_whole_handshake() {
    let config = ReaderConfig::default();
    let begin = Instant::now();
    let end = begin + config.handshake_timeout;
    let stream = opened(&[]);
    for received in 0..stream.len() {
        let mut session = ReaderSession::new(config.clone(), begin);
        let mut bytes = BytesMut::new();
        for (n, byte) in stream[..received].iter().enumerate() {
            bytes.extend_from_slice(&[*byte]);
            let now = begin + Duration::from_millis(n as u64);
            assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
            assert_eq!(session.handle_timeout(now), Ok(()));
            assert_eq!(session.poll_timeout(), Some(end), "a byte does not move the deadline");
        }
        let error = ProtocolError::HandshakeTimeout { after: config.handshake_timeout };
        assert_eq!(session.handle_timeout(end), Err(error.clone()));
        assert_eq!(session.handle_bytes(end, &mut bytes), Err(error));
        assert_eq!(session.poll_timeout(), None);
    }
}

#[test]
fn t04_x10_there_is_no_deadline_in_the_data_phase() {
    let begin = Instant::now();
    let mut session = ReaderSession::new(ReaderConfig::default(), begin);
    let mut bytes = BytesMut::from(&opened(&[word(100).to_vec()])[..]);
    assert_eq!(session.handle_bytes(begin, &mut bytes), Ok(()));
    assert_eq!(session.poll_timeout(), None);
    assert_eq!(session.handle_timeout(begin + Duration::from_secs(3600)), Ok(()));
}

#[test]
fn room_for_events_is_given_back() {
    let now = Instant::now();
    let mut session = ReaderSession::new(ReaderConfig::default(), now);
    let frames = vec![[data(b"a"), control_raw(b"abcd")].concat(); 1000];
    let mut bytes = BytesMut::from(&opened(&frames)[..]);
    assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
    assert_eq!(std::iter::from_fn(|| session.poll_event()).count(), 1 + 1000);
    assert!(session.events.capacity() <= EVENTS_KEPT_MAX);
}
