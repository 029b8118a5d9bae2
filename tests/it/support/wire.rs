//! Frame Streams by hand.
//!
//! The bytes of these tests do not come from `tapster::protocol`: a fault there would hide itself.

use std::io;
use std::io::Read;

/// The content type of dnstap.
pub(crate) const D: &[u8] = b"protobuf:dnstap.Dnstap";
/// Some other content type.
pub(crate) const O: &[u8] = b"protobuf:other.Type";

pub(crate) const ACCEPT: u32 = 1;
pub(crate) const START: u32 = 2;
pub(crate) const STOP: u32 = 3;
pub(crate) const READY: u32 = 4;
pub(crate) const FINISH: u32 = 5;

/// A control frame with an escape, its content types, and whatever bytes follow them.
pub(crate) fn control(kind: u32, types: &[&[u8]], raw: &[u8]) -> Vec<u8> {
    let mut payload = kind.to_be_bytes().to_vec();
    for content_type in types {
        payload.extend(1u32.to_be_bytes());
        payload.extend((content_type.len() as u32).to_be_bytes());
        payload.extend(*content_type);
    }
    payload.extend(raw);
    let mut frame = vec![0; 4];
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn ready(types: &[&[u8]]) -> Vec<u8> {
    control(READY, types, b"")
}

/// Whether a control frame is a READY that asks whether there is a loop.
pub(crate) fn asks_about_loops(payload: &[u8]) -> bool {
    payload.get(12..).is_some_and(|name| name.starts_with(b"tapster-loop/1 "))
}

pub(crate) fn accept(types: &[&[u8]]) -> Vec<u8> {
    control(ACCEPT, types, b"")
}

pub(crate) fn start(types: &[&[u8]]) -> Vec<u8> {
    control(START, types, b"")
}

pub(crate) fn stop() -> Vec<u8> {
    control(STOP, &[], b"")
}

pub(crate) fn finish() -> Vec<u8> {
    control(FINISH, &[], b"")
}

/// A data frame: length word and payload.
pub(crate) fn data(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + payload.len());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

/// A length word or any other 32-bit integer, as on the wire.
pub(crate) fn word(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// A content type of `len` bytes that nobody takes.
pub(crate) fn pad(len: usize) -> Vec<u8> {
    vec![b'x'; len]
}

/// Session Z of the conformance cases: a whole session of 103 bytes that delivers `abc`.
pub(crate) fn session_z() -> Vec<u8> {
    [ready(&[D]), start(&[D]), data(b"abc"), stop()].concat()
}

/// One frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Data(Vec<u8>),
    /// The payload of a control frame: type and fields.
    Control(Vec<u8>),
}

impl Frame {
    /// Reads one frame, and not a byte more.
    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Self> {
        let len = read_word(stream)?;
        if len > 0 {
            return Ok(Self::Data(read_exactly(stream, len)?));
        }
        let len = read_word(stream)?;
        Ok(Self::Control(read_exactly(stream, len)?))
    }
}

fn read_word(stream: &mut impl Read) -> io::Result<u32> {
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    Ok(u32::from_be_bytes(word))
}

fn read_exactly(stream: &mut impl Read, len: u32) -> io::Result<Vec<u8>> {
    assert!(len <= 1 << 24, "the relay announced a frame of {len} bytes");
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The payloads of encoded data frames that lie end to end; fails where the last one is cut.
pub(crate) fn payloads(mut encoded: &[u8]) -> Vec<&[u8]> {
    let mut payloads = Vec::new();
    while let Some((word, rest)) = encoded.split_first_chunk() {
        let (payload, rest) = rest.split_at(u32::from_be_bytes(*word) as usize);
        payloads.push(payload);
        encoded = rest;
    }
    assert!(encoded.is_empty(), "a length word is cut");
    payloads
}
