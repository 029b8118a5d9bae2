//! Single frames: what comes out of bytes, and that the same bytes are made of it again.

use bytes::Bytes;
use bytes::BytesMut;
use tapster::protocol::ContentType;
use tapster::protocol::ControlError;
use tapster::protocol::ControlFrame;
use tapster::protocol::ControlType;
use tapster::protocol::Decoder;
use tapster::protocol::Encoder;
use tapster::protocol::Frame;
use tapster::protocol::ProtocolError;
use tapster::protocol::scan;

use super::input::Input;
use super::memory::no_more_than_given;

/// A stream of frames, cut anywhere, with one byte of options: the limit for data frames.
///
/// The frames do not depend on the cuts. Encoded again they are the bytes that were decoded. An error stays.
pub(crate) fn decoder(input: &[u8]) {
    let Some(input) = Input::<1>::read(input) else { return };
    let frame_len_max = FRAME_LEN_MAX[usize::from(input.options[0]) % FRAME_LEN_MAX.len()];

    let whole = decode(frame_len_max, &[input.stream]);
    assert_eq!(decode(frame_len_max, &input.pieces(input.stream)), whole, "other frames from pieces");
    assert_eq!(decode_what_is_missing(frame_len_max, input.stream), whole.frames);

    let data_frames = whole.frames.iter().take_while(|frame| matches!(frame, Frame::Data(_))).count();
    assert_eq!(scan(input.stream, frame_len_max).frames as usize, data_frames);
    let mut rest = input.stream;
    for frame in &whole.frames {
        let encoded = encode(frame_len_max, frame);
        rest = rest.strip_prefix(&encoded[..]).unwrap_or_else(|| panic!("{frame:?} is not {rest:?}"));
    }
    assert!(whole.fault.is_some() || rest.len() == whole.bytes_buffered, "bytes are kept or taken");
}

/// What a decoder made of a stream.
#[derive(Debug, PartialEq)]
struct Decoded {
    frames: Vec<Frame>,
    fault: Option<ProtocolError>,
    bytes_buffered: usize,
    bytes_missing: usize,
}

fn decode(frame_len_max: u32, pieces: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new(frame_len_max);
    let (mut frames, mut fault) = (Vec::new(), None);
    let (mut bytes_fed, mut bytes_taken) = (0, 0);
    for piece in pieces {
        decoder.feed(Bytes::copy_from_slice(piece));
        bytes_fed += piece.len();
        fault = loop {
            let before = decoder.bytes_buffered();
            match no_more_than_given(bytes_fed, || decoder.next_frame()) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break None,
                Err(fault) => break Some(fault),
            }
            bytes_taken += before - decoder.bytes_buffered();
        };
        if let Some(fault) = &fault {
            stays(&mut decoder, fault);
            break;
        }
        assert_eq!(decoder.bytes_buffered(), bytes_fed - bytes_taken);
        assert!(decoder.bytes_missing() > 0, "a frame is complete and does not come");
    }
    Decoded {
        frames,
        fault,
        bytes_buffered: decoder.bytes_buffered(),
        bytes_missing: decoder.bytes_missing(),
    }
}

/// The decoder has failed: whatever is fed is not looked at, until it is reset.
fn stays(decoder: &mut Decoder, fault: &ProtocolError) {
    decoder.feed(Bytes::from_static(HELLO));
    assert_eq!(decoder.next_frame().as_ref(), Err(fault));
    assert_eq!((decoder.bytes_buffered(), decoder.bytes_missing()), (0, 0));
    let mut decoder = decoder.clone();
    decoder.reset();
    decoder.feed(Bytes::from_static(HELLO));
    assert_eq!(decoder.next_frame(), Ok(Some(Frame::Data(Bytes::from_static(b"hello")))));
}

/// Feeds as much as the decoder asks for, and no more: it never holds bytes of the next frame.
fn decode_what_is_missing(frame_len_max: u32, mut stream: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new(frame_len_max);
    let mut frames = Vec::new();
    while let Some((piece, rest)) = stream.split_at_checked(decoder.bytes_missing()) {
        decoder.feed(Bytes::copy_from_slice(piece));
        stream = rest;
        if decoder.bytes_missing() > 0 {
            continue;
        }
        let Ok(frame) = decoder.next_frame() else { break };
        frames.push(frame.expect("no bytes are missing"));
        assert_eq!(decoder.bytes_buffered(), 0);
    }
    frames
}

/// Encodes a frame that was decoded. A control frame may be longer than those that the encoder makes.
fn encode(frame_len_max: u32, frame: &Frame) -> BytesMut {
    let mut encoded = BytesMut::new();
    match Encoder::new(frame_len_max).frame(frame, &mut encoded) {
        Ok(()) => {}
        Err(ProtocolError::Control(ControlError::TooLong { len, .. })) => {
            assert!((ControlFrame::ENCODED_LEN_MAX + 1..=ControlFrame::LEN_MAX).contains(&len));
            let payload = match frame {
                Frame::Control(control) => long_payload(control),
                Frame::UnknownControl { control_type, payload } => {
                    [&control_type.to_be_bytes()[..], payload].concat()
                }
                Frame::Data(_) => unreachable!("a data frame is no control frame"),
            };
            assert_eq!(payload.len(), len);
            encoded.extend_from_slice(&head_of_control(len));
            encoded.extend_from_slice(&payload);
        }
        Err(fault) => panic!("{frame:?}: {fault}"),
    }
    encoded
}

/// The payload of a control frame, made once more, without the limit of the encoder.
fn long_payload(control: &ControlFrame) -> Vec<u8> {
    let mut payload = (control.control_type as u32).to_be_bytes().to_vec();
    for content_type in &control.content_types {
        payload.extend(1u32.to_be_bytes());
        payload.extend((content_type.as_bytes().len() as u32).to_be_bytes());
        payload.extend(content_type.as_bytes());
    }
    payload
}

/// The payload of a control frame: it decodes to what is encoded to the same bytes, alone and in a stream.
///
/// The same bytes, read as a list of content types, make a frame that is refused or decodes to itself.
pub(crate) fn control(input: &[u8]) {
    let decoded = no_more_than_given(input.len(), || ControlFrame::decode(input));
    if let Ok(control) = &decoded {
        assert_eq!(long_payload(control), input, "there is one encoding only");
        let encoded = encode(0, &Frame::Control(control.clone()));
        assert_eq!(encoded, [&head_of_control(input.len())[..], input].concat());
        agrees_with_what_it_names(control);
    }

    let mut decoder = Decoder::new(0);
    decoder.feed(Bytes::from([&head_of_control(input.len())[..], input].concat()));
    let expected = match decoded {
        _ if !(4..=ControlFrame::LEN_MAX).contains(&input.len()) => {
            Err(ProtocolError::ControlLength { len: input.len() as u32 })
        }
        Ok(control) => Ok(Some(Frame::Control(control))),
        Err(ControlError::UnknownType(control_type)) => {
            Ok(Some(Frame::UnknownControl { control_type, payload: Bytes::copy_from_slice(&input[4..]) }))
        }
        Err(error) => Err(error.into()),
    };
    let frame = decoder.next_frame();
    assert_eq!(frame, expected);
    if let Err(fault) = frame {
        assert!(fault.to_string().bytes().all(|byte| matches!(byte, b' '..=b'~')), "{fault}");
    }

    encoded_decodes_to_itself(input);
}

fn agrees_with_what_it_names(control: &ControlFrame) {
    let (first, others) = match control.control_type {
        ControlType::Stop | ControlType::Finish => (false, false),
        _ => (true, control.content_types.is_empty()),
    };
    let unnamed = ContentType::try_from(&[b'?'; 256][..]).expect("256 bytes");
    if !control.content_types.contains(&unnamed) {
        assert_eq!(control.matches(Some(&unnamed)), others);
    }
    assert_eq!(control.matches(None), others);
    for content_type in &control.content_types {
        assert_eq!(control.matches(Some(content_type)), first);
        assert!(content_type.to_string().bytes().all(|byte| matches!(byte, b' '..=b'~')));
    }
}

/// Reads `input` as a type and content types, each a length of one byte and its bytes.
fn encoded_decodes_to_itself(input: &[u8]) {
    let Some((control_type, mut rest)) = input.split_first() else { return };
    let control_type = ControlType::try_from(1 + u32::from(control_type % 5)).expect("1 to 5");
    let mut content_types = Vec::new();
    while let Some((len, tail)) = rest.split_first() {
        let (content_type, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        content_types.push(ContentType::try_from(content_type).expect("less than 256 bytes"));
        rest = tail;
    }
    let control = ControlFrame { control_type, content_types };
    if let Ok(encoded) = control.encode() {
        assert!(encoded.len() <= 8 + ControlFrame::ENCODED_LEN_MAX);
        assert_eq!(ControlFrame::decode(&encoded[8..]), Ok(control));
    }
}

/// Escape and length word.
fn head_of_control(len: usize) -> [u8; 8] {
    (len as u64).to_be_bytes()
}

/// Limits for data frames: shorter and longer than what is in the inputs, the usual one, and the longest that can be
/// encoded.
const FRAME_LEN_MAX: [u32; 4] = [16, 300, 1 << 20, u32::MAX - 1];

const HELLO: &[u8] = b"\0\0\0\x05hello";
