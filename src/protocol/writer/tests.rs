use super::*;
use crate::protocol::ControlError;
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

fn sent(session: &mut WriterSession) -> Vec<u8> {
    std::iter::from_fn(|| session.poll_transmit()).flatten().collect()
}

fn offering(content_types: &[&[u8]]) -> WriterConfig {
    let content_types = content_types.iter().map(|bytes| content_type(bytes)).collect();
    WriterConfig { content_types, ..WriterConfig::default() }
}

/// A session that has sent READY.
fn offered(config: WriterConfig, now: Instant) -> WriterSession {
    let expected: Vec<&[u8]> = config.content_types.iter().map(ContentType::as_bytes).collect();
    let expected = ready(&expected);
    let mut session = WriterSession::new(config, now).expect("few types");
    assert_eq!(sent(&mut session), expected);
    session
}

/// A dnstap session that has sent START.
fn started(now: Instant) -> WriterSession {
    let mut session = offered(WriterConfig::default(), now);
    let mut bytes = BytesMut::from(&accept(&[D])[..]);
    session.handle_bytes(now, &mut bytes).expect("a valid ACCEPT");
    assert_eq!(session.poll_event(), Some(WriterEvent::Started { content_type: Some(ContentType::DNSTAP) }));
    assert_eq!(sent(&mut session), start(&[D]));
    session
}

/// A dnstap session that has sent STOP.
fn stopped(now: Instant) -> WriterSession {
    let mut session = started(now);
    session.stop(now);
    assert_eq!(sent(&mut session), stop());
    session
}

/// Plays an answer in all ways to cut it; returns the first event, what was sent, and the error.
fn answer(
    session: impl Fn() -> WriterSession,
    answer: &[u8],
) -> (Option<WriterEvent>, Vec<u8>, Result<(), ProtocolError>) {
    let now = Instant::now();
    let outcomes = all_splits(answer).map(|pieces| {
        let mut session = session();
        let mut bytes = BytesMut::new();
        let mut result = Ok(());
        for piece in pieces {
            bytes.extend_from_slice(piece);
            result = session.handle_bytes(now, &mut bytes);
            if result.is_err() {
                assert_eq!(session.handle_bytes(now, &mut bytes), result, "an error stays");
                assert_eq!(session.handle_eof(), result);
                break;
            }
        }
        (session.poll_event(), sent(&mut session), result)
    });
    let mut outcomes = outcomes.collect::<Vec<_>>();
    outcomes.dedup();
    assert_eq!(outcomes.len(), 1, "every split comes to the same: {outcomes:?}");
    outcomes.remove(0)
}

fn accepted(offered_types: &[&[u8]], accept: &[u8]) -> Result<Option<ContentType>, ProtocolError> {
    let now = Instant::now();
    match answer(|| offered(offering(offered_types), now), accept) {
        (Some(WriterEvent::Started { content_type }), sent, Ok(())) => {
            let named = content_type.as_ref().map(ContentType::as_bytes);
            assert_eq!(sent, start(named.as_slice()));
            Ok(content_type)
        }
        (None, sent, Err(error)) => {
            assert_eq!(sent, b"", "nothing is sent after an answer that is refused");
            Err(error)
        }
        other => panic!("neither started nor refused: {other:?}"),
    }
}

fn unexpected(expected: &'static str, got: ControlType) -> ProtocolError {
    ProtocolError::UnexpectedControl { expected, got }
}

#[test]
fn w01_w02_w03_s05_accept_of_our_type_or_of_any_is_answered_with_start() {
    for types in [&[D][..], &[], &[O, D], &[D, O]] {
        assert_eq!(accepted(&[D], &accept(types)), Ok(Some(ContentType::DNSTAP)));
    }
}

#[test]
fn w04_accept_of_another_type_is_refused() {
    let (peer, ours) = (vec![content_type(O)], vec![ContentType::DNSTAP]);
    let error = ProtocolError::ContentTypeMismatch { peer, ours };
    assert_eq!(error.reason(), "content_type");
    assert_eq!(accepted(&[D], &accept(&[O])), Err(error));
    assert!(accepted(&[], &accept(&[O])).is_err(), "a stream without a type is not of type O");
}

#[test]
fn w05_start_names_the_first_of_our_types_that_is_accepted() {
    assert_eq!(accepted(&[b"A", b"B"], &accept(&[b"B"])), Ok(Some(content_type(b"B"))));
    assert_eq!(accepted(&[b"A", b"B"], &accept(&[b"B", b"A"])), Ok(Some(content_type(b"A"))));
    assert_eq!(accepted(&[b"A", b"B"], &accept(&[])), Ok(Some(content_type(b"A"))));
    assert_eq!(accepted(&[], &accept(&[])), Ok(None));
}

#[test]
fn w06_other_answers_to_ready_are_refused() {
    let cases = [
        (finish(), unexpected("ACCEPT", ControlType::Finish)),
        (start(&[D]), unexpected("ACCEPT", ControlType::Start)),
        (data(b"abcd"), ProtocolError::UnexpectedData { expected: "ACCEPT", len: 4 }),
        (control_raw(&[0; 513]), ProtocolError::ControlLength { len: 513 }),
        (control_raw(&word(6)), ControlError::UnknownType(6).into()),
    ];
    for (bytes, error) in cases {
        assert_eq!(accepted(&[D], &bytes), Err(error));
    }
    let error = ProtocolError::ClosedByReader { during: "in the handshake" };
    assert_eq!(offered(WriterConfig::default(), Instant::now()).handle_eof(), Err(error));
}

#[test]
fn w07_accept_must_come_in_time() {
    let now = Instant::now();
    let config = WriterConfig::default();
    let deadline = now + config.handshake_timeout;
    let mut session = offered(config, now);
    assert_eq!(session.poll_timeout(), Some(deadline));
    assert_eq!(session.handle_timeout(deadline - Duration::from_nanos(1)), Ok(()));
    let error = ProtocolError::HandshakeTimeout { after: Duration::from_secs(5) };
    assert_eq!(session.handle_timeout(deadline), Err(error));
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn w08_w10_s05_finish_after_stop_acknowledges_the_stream() {
    let now = Instant::now();
    let outcome = answer(|| stopped(now), &finish());
    assert_eq!(outcome, (Some(WriterEvent::Finished), Vec::new(), Ok(())));

    let mut session = stopped(now);
    session.handle_bytes(now, &mut BytesMut::from(&finish()[..])).expect("a valid FINISH");
    assert_eq!(session.handle_eof(), Ok(()));
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn w09_nothing_but_finish_acknowledges_the_stream() {
    let now = Instant::now();
    let typed_finish = control_raw(&control_payload(5, &[D]));
    let too_many = ControlError::TooManyContentTypes { control_type: ControlType::Finish, count: 1 };
    for (bytes, error) in [
        (typed_finish, too_many.into()),
        (accept(&[D]), unexpected("FINISH", ControlType::Accept)),
        (data(b"a"), ProtocolError::UnexpectedData { expected: "FINISH", len: 1 }),
    ] {
        assert_eq!(answer(|| stopped(now), &bytes), (None, Vec::new(), Err(error)));
    }
    for received in 0..finish().len() {
        let mut session = stopped(now);
        let mut bytes = BytesMut::from(&finish()[..received]);
        assert_eq!(session.handle_bytes(now, &mut bytes), Ok(()));
        assert_eq!(session.handle_eof(), Err(ProtocolError::NotAcknowledged));
    }
}

#[test]
fn w09_finish_must_come_in_time() {
    let begin = Instant::now();
    let mut session = started(begin);
    assert_eq!(session.poll_timeout(), None);
    let stopped_at = begin + Duration::from_secs(60);
    session.stop(stopped_at);
    let deadline = stopped_at + Duration::from_secs(5);
    assert_eq!(session.poll_timeout(), Some(deadline));
    session.stop(deadline);
    assert_eq!(sent(&mut session), stop(), "STOP is sent once");
    let error = ProtocolError::FinishTimeout { after: Duration::from_secs(5) };
    assert_eq!(session.handle_timeout(deadline), Err(error));
}

#[test]
fn w11_a_reader_that_speaks_or_goes_before_stop_is_an_error() {
    let now = Instant::now();
    for bytes in [finish(), accept(&[D]), vec![0]] {
        let outcome = answer(|| started(now), &bytes);
        assert_eq!(outcome, (None, Vec::new(), Err(ProtocolError::UnexpectedBytes)));
    }
    let error = ProtocolError::ClosedByReader { during: "before STOP" };
    assert_eq!(started(now).handle_eof(), Err(error));
}

#[test]
fn w11_finish_right_behind_accept_is_no_acknowledgement() {
    let now = Instant::now();
    let mut session = offered(WriterConfig::default(), now);
    let mut bytes = BytesMut::from(&[accept(&[D]), finish()].concat()[..]);
    assert_eq!(session.handle_bytes(now, &mut bytes), Err(ProtocolError::UnexpectedBytes));
    session.stop(now);
    assert!(session.handle_eof().is_err());
}

#[test]
fn a_unidirectional_session_waits_for_nothing() {
    let now = Instant::now();
    for content_types in [&[D][..], &[]] {
        let config = WriterConfig { bidirectional: false, ..offering(content_types) };
        let mut session = WriterSession::new(config, now).expect("few types");
        let content_type = content_types.first().map(|bytes| content_type(bytes));
        assert_eq!(session.poll_event(), Some(WriterEvent::Started { content_type }));
        assert_eq!(sent(&mut session), start(content_types));
        assert_eq!(session.poll_timeout(), None);
        assert_eq!(session.handle_eof(), Ok(()), "it may read on");
        session.stop(now);
        assert_eq!(sent(&mut session), stop());
        assert_eq!(session.poll_event(), Some(WriterEvent::Finished));
        let mut late_finish = BytesMut::from(&finish()[..]);
        assert_eq!(session.handle_bytes(now, &mut late_finish), Ok(()));
        assert!(late_finish.is_empty());
        assert_eq!(session.handle_eof(), Ok(()));
    }
}

#[test]
fn stop_does_nothing_before_start() {
    let now = Instant::now();
    let mut session = offered(WriterConfig::default(), now);
    session.stop(now);
    assert_eq!((session.poll_event(), session.poll_transmit()), (None, None));
}

#[test]
fn content_types_that_do_not_fit_into_ready_are_refused() {
    let config = offering(&[&[b'x'; 256], &[b'y'; 256]]);
    let error = ControlError::TooLong { len: 532, len_max: 503 };
    assert_eq!(WriterSession::new(config, Instant::now()).map(|_| ()), Err(error.into()));
}

/// A session with a reader that has connected, and READY.
fn serving(content_types: &[&[u8]], now: Instant) -> WriterSession {
    let mut session = WriterSession::serving(offering(content_types), now).expect("few types");
    assert_eq!(sent(&mut session), ready(content_types));
    session
}

/// One that has got READY and START of the reader.
fn began_by_reader(now: Instant) -> WriterSession {
    let mut session = serving(&[D], now);
    let mut bytes = BytesMut::from(&[ready(&[D]), start(&[D])].concat()[..]);
    session.handle_bytes(now, &mut bytes).expect("a valid handshake");
    assert!(session.reader_began() && session.poll_event().is_some());
    assert_eq!(sent(&mut session), [accept(&[D]), start(&[D])].concat());
    session
}

#[test]
fn a_reader_that_connects_may_answer_ready_as_any_reader_does() {
    let now = Instant::now();
    let event = WriterEvent::Started { content_type: Some(ContentType::DNSTAP) };
    let outcome = answer(|| serving(&[D], now), &accept(&[D]));
    assert_eq!(outcome, (Some(event), start(&[D]), Ok(())));
    assert!(answer(|| serving(&[D], now), &accept(&[O])).2.is_err());
}

#[test]
fn a_reader_that_begins_itself_gets_accept_and_its_start_is_answered_with_ours() {
    let now = Instant::now();
    // The types of its READY, those of its START, of our ACCEPT and of our START.
    type Types<'a> = &'a [&'a [u8]];
    let cases: [(Types<'_>, Types<'_>, Types<'_>); 5] =
        [(&[D], &[D], &[D]), (&[D], &[], &[D]), (&[O, D], &[D], &[D]), (&[], &[D], &[]), (&[], &[], &[])];
    for (theirs, starts, accepted) in cases {
        let event = WriterEvent::Started { content_type: Some(ContentType::DNSTAP) };
        for both in [&b""[..], &accept(&[D])] {
            let bytes = [&ready(theirs)[..], both, &start(starts)].concat();
            let outcome = answer(|| serving(&[D], now), &bytes);
            assert_eq!(outcome, (Some(event.clone()), [accept(accepted), start(&[D])].concat(), Ok(())));
        }
    }
}

#[test]
fn a_reader_that_begins_itself_with_another_type_or_out_of_turn_is_refused() {
    let now = Instant::now();
    let mismatch =
        ProtocolError::ContentTypeMismatch { peer: vec![content_type(O)], ours: vec![ContentType::DNSTAP] };
    let cases = [
        (ready(&[O]), b"".to_vec(), mismatch.clone()),
        ([ready(&[D]), start(&[O])].concat(), accept(&[D]), mismatch),
        ([ready(&[D]), stop()].concat(), accept(&[D]), unexpected("START", ControlType::Stop)),
        ([ready(&[D]), ready(&[D])].concat(), accept(&[D]), unexpected("START", ControlType::Ready)),
        (finish(), b"".to_vec(), unexpected("ACCEPT or READY", ControlType::Finish)),
        (data(b"GET "), b"".to_vec(), ProtocolError::UnexpectedData { expected: "ACCEPT or READY", len: 4 }),
    ];
    for (bytes, sent, error) in cases {
        assert_eq!(answer(|| serving(&[D], now), &bytes), (None, sent, Err(error)));
    }
    // Only one that has connected to us may begin.
    let error = unexpected("ACCEPT", ControlType::Ready);
    assert_eq!(answer(|| offered(offering(&[D]), now), &ready(&[D])).2, Err(error));
}

#[test]
fn a_writer_that_connects_to_a_writer_is_known_by_what_it_sends() {
    let now = Instant::now();
    let is_writer = (None, Vec::new(), Err(ProtocolError::PeerIsWriter));
    assert_eq!(answer(|| serving(&[D], now), &start(&[D])), is_writer);
    assert_eq!(answer(|| began_by_reader(now), &data(b"abcd")), is_writer);
    let speaks = (None, Vec::new(), Err(ProtocolError::UnexpectedBytes));
    assert_eq!(answer(|| began_by_reader(now), &finish()), speaks);
}

#[test]
fn a_reader_that_begins_itself_has_the_time_of_the_handshake_for_its_start() {
    let now = Instant::now();
    let mut session = serving(&[D], now);
    let deadline = session.poll_timeout().expect("a deadline");
    session.handle_bytes(deadline, &mut BytesMut::from(&ready(&[D])[..])).expect("a valid READY");
    assert_eq!(session.poll_timeout(), Some(deadline), "one deadline for both");
    assert!(matches!(session.handle_timeout(deadline), Err(ProtocolError::HandshakeTimeout { .. })));
    let error = ProtocolError::ClosedByReader { during: "in the handshake" };
    assert_eq!(serving(&[D], now).handle_eof(), Err(error));
}

#[test]
fn a_reader_that_began_itself_may_close_in_place_of_finish() {
    let now = Instant::now();
    for finishes in [false, true] {
        let mut session = began_by_reader(now);
        session.stop(now);
        assert_eq!(sent(&mut session), stop());
        if finishes {
            session.handle_bytes(now, &mut BytesMut::from(&finish()[..])).expect("a valid FINISH");
        }
        assert_eq!(session.handle_eof(), Ok(()));
        assert_eq!((session.poll_event(), session.poll_event()), (Some(WriterEvent::Finished), None));
    }
    let error = ProtocolError::ClosedByReader { during: "before STOP" };
    assert_eq!(began_by_reader(now).handle_eof(), Err(error));
}
