//! Streams built by hand, and all the ways to cut them: for the tests of this folder.

use std::iter;

use bytes::Bytes;

use crate::protocol::ContentType;

/// The content type of dnstap.
pub(super) const D: &[u8] = b"protobuf:dnstap.Dnstap";

/// Another content type.
pub(super) const O: &[u8] = b"protobuf:other.Type";

/// A word as it is on the wire.
pub(super) fn word(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// The payload of a control frame.
pub(super) fn control_payload(control_type: u32, content_types: &[&[u8]]) -> Vec<u8> {
    let mut payload = word(control_type).to_vec();
    for content_type in content_types {
        payload.extend(word(1));
        payload.extend(word(content_type.len() as u32));
        payload.extend(*content_type);
    }
    payload
}

/// Any payload as a control frame.
pub(super) fn control_raw(payload: &[u8]) -> Vec<u8> {
    [&word(0)[..], &word(payload.len() as u32), payload].concat()
}

fn control(control_type: u32, content_types: &[&[u8]]) -> Vec<u8> {
    control_raw(&control_payload(control_type, content_types))
}

pub(super) fn accept(content_types: &[&[u8]]) -> Vec<u8> {
    control(1, content_types)
}

pub(super) fn start(content_types: &[&[u8]]) -> Vec<u8> {
    control(2, content_types)
}

pub(super) fn stop() -> Vec<u8> {
    control(3, &[])
}

pub(super) fn ready(content_types: &[&[u8]]) -> Vec<u8> {
    control(4, content_types)
}

pub(super) fn finish() -> Vec<u8> {
    control(5, &[])
}

pub(super) fn data(payload: &[u8]) -> Vec<u8> {
    [&word(payload.len() as u32)[..], payload].concat()
}

pub(super) fn content_type(bytes: &[u8]) -> ContentType {
    ContentType::try_from(bytes).expect("within the limit")
}

/// START["test:hello"], ten frames, STOP: the file that the tests of the reference read.
pub(super) fn golden_file() -> Vec<u8> {
    let mut file = start(&[b"test:hello"]);
    for payload in golden_payloads() {
        file.extend(data(&payload));
    }
    file.extend(stop());
    file
}

pub(super) fn golden_payloads() -> Vec<Bytes> {
    (0..10).map(|n| format!("Hello, world #{n}\n").into()).collect()
}

/// The stream in one piece, in two pieces at every place, and byte by byte.
pub(super) fn all_splits(stream: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let in_two = (0..=stream.len()).map(|at| {
        let (head, tail) = stream.split_at(at);
        vec![head, tail]
    });
    in_two.chain(iter::once(stream.chunks(1).collect()))
}
