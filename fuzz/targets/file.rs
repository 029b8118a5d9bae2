//! Files, as `inspect` and `replay` read them.

use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tapster::protocol::FilePosition;
use tapster::protocol::FileReader;
use tapster::protocol::FileStatus;
use tapster::protocol::ReaderEvent;
use tapster::protocol::scan;

use super::input::Input;
use super::memory::no_more_than_given;

/// A file, cut anywhere, with one byte of options: the limit for data frames.
///
/// What is found does not depend on the cuts. The whole frames end where the reader says, and nothing behind that place is a
/// frame of the same stream.
pub(crate) fn file(input: &[u8]) {
    let Some(input) = Input::<1>::read(input) else { return };
    let frame_len_max = FRAME_LEN_MAX[usize::from(input.options[0]) % FRAME_LEN_MAX.len()];
    let whole = read(frame_len_max, &[input.stream]);
    assert_eq!(read(frame_len_max, &input.pieces(input.stream)), whole, "another file from pieces");

    let Found { payloads, streams, position, status } = whole;
    assert_eq!((position.frames, position.streams), (payloads.len() as u64, streams));
    let offset = usize::try_from(position.offset).expect("a short file");
    let rest = input.stream.get(offset..).expect("an offset within the file");
    match status {
        FileStatus::Clean => assert!(rest.is_empty() && streams > 0),
        FileStatus::Truncated { bytes } => assert_eq!(bytes, rest.len()),
        FileStatus::Damaged(_) => assert!(streams == 0 || scan(rest, frame_len_max).frames == 0),
        FileStatus::Garbage => assert!(!rest.is_empty() && streams > 0),
    }
}

#[derive(Debug, PartialEq)]
struct Found {
    payloads: Vec<Bytes>,
    streams: u64,
    position: FilePosition,
    status: FileStatus,
}

fn read(frame_len_max: u32, pieces: &[&[u8]]) -> Found {
    let now = Instant::now();
    let mut reader = FileReader::new(frame_len_max, now);
    let (mut payloads, mut streams) = (Vec::new(), 0);
    let mut bytes = BytesMut::new();
    let mut given = 0;
    for piece in pieces {
        bytes.extend_from_slice(piece);
        given += piece.len();
        let result = no_more_than_given(given, || reader.handle_bytes(now, &mut bytes));
        while let Some(event) = reader.poll_event() {
            match event {
                ReaderEvent::Started { .. } => streams += 1,
                ReaderEvent::Data(batch) => payloads.extend(batch.payloads()),
                ReaderEvent::Finished => {}
            }
        }
        if result.is_err() {
            assert_eq!(reader.handle_bytes(now, &mut bytes), result, "a fault is final");
            break;
        }
    }
    let status = reader.handle_eof(&bytes);
    Found { payloads, streams, position: reader.position(), status }
}

const FRAME_LEN_MAX: [u32; 3] = [16, 300, 1 << 20];
