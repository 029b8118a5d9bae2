//! dnstap messages of a wanted size, each with room for a mark, around DNS messages that any software can read.

use domain::base::MessageBuilder;
use domain::base::Name;
use domain::base::Rtype;
use domain::base::StaticCompressor;
use domain::rdata::A;
use domain::rdata::Aaaa;
use fastrand::Rng;
use prost::Message as _;

use crate::mark::MARK_LEN;

/// Shortest payload that holds a mark beside a valid dnstap message.
pub(crate) const SIZE_MIN: usize = 60;

/// `dnstap.Dnstap` of `dnstap.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Dnstap {
    #[prost(bytes = "vec", optional, tag = "1")]
    identity: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    version: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    extra: Option<Vec<u8>>,
    #[prost(message, optional, tag = "14")]
    message: Option<Message>,
    #[prost(int32, required, tag = "15")]
    kind: i32,
}

/// `dnstap.Message` of `dnstap.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(int32, optional, tag = "2")]
    socket_family: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    socket_protocol: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    query_address: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    response_address: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "6")]
    query_port: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    response_port: Option<u32>,
    #[prost(uint64, optional, tag = "8")]
    query_time_sec: Option<u64>,
    #[prost(fixed32, optional, tag = "9")]
    query_time_nsec: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "10")]
    query_message: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "11")]
    query_zone: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "12")]
    response_time_sec: Option<u64>,
    #[prost(fixed32, optional, tag = "13")]
    response_time_nsec: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "14")]
    response_message: Option<Vec<u8>>,
}

/// An encoded message of exactly `size` bytes (at least [`SIZE_MIN`]) and where its mark goes.
pub(crate) fn payload(size: usize, rng: &mut Rng) -> (Vec<u8>, usize) {
    let kind = kind(size, rng);
    let mut message = frame_of(kind, size, rng);
    // Length prefixes grow with what they count: approach the size by its own error.
    let mut dns_len = size.saturating_sub(message.encoded_len()).clamp(DNS_LEN_MIN, DNS_LEN_MAX);
    for _ in 0..4 {
        message.set_dns(kind, dns(kind, dns_len, rng));
        let len = message.encoded_len();
        dns_len = (dns_len + size).saturating_sub(len).clamp(DNS_LEN_MIN, DNS_LEN_MAX);
        if len == size {
            break;
        }
    }
    while message.encoded_len() > size {
        dns_len -= 1;
        message.set_dns(kind, dns(kind, dns_len, rng));
    }
    // What no DNS message fills, by its granularity or because it ends at 64 KiB, goes behind the mark.
    let rest = size - message.encoded_len();
    for padding in (rest.saturating_sub(4)..=rest).rev() {
        message.extra = Some(vec![0; MARK_LEN + padding]);
        if message.encoded_len() <= size {
            break;
        }
    }
    let bytes = message.encode_to_vec();
    let mark_at = mark_offset(&message);
    (bytes, mark_at)
}

impl Dnstap {
    fn set_dns(&mut self, kind: i32, dns: Vec<u8>) {
        let message = self.message.as_mut().expect("built with one");
        if is_response(kind) {
            message.response_message = Some(dns);
        } else {
            message.query_message = Some(dns);
        }
    }
}

/// A message type, in the proportions of a resolver: long ones are responses.
fn kind(size: usize, rng: &mut Rng) -> i32 {
    let kinds: &[i32] = if size < 160 {
        &[CLIENT_QUERY, CLIENT_QUERY, CLIENT_RESPONSE, RESOLVER_QUERY, RESOLVER_RESPONSE]
    } else {
        &[CLIENT_RESPONSE, CLIENT_RESPONSE, RESOLVER_RESPONSE]
    };
    kinds[rng.usize(..kinds.len())]
}

fn is_response(kind: i32) -> bool {
    kind % 2 == 0
}

/// Everything but the DNS message, as much of it as leaves room for one.
fn frame_of(kind: i32, size: usize, rng: &mut Rng) -> Dnstap {
    let mut message = Message { kind, ..Message::default() };
    if size >= SIZE_WITH_ADDRESSES {
        let ipv6 = size >= SIZE_WITH_IDENTITY && rng.u8(..4) == 0;
        let mut address = || {
            if ipv6 {
                [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 10], &[rng.u8(..), rng.u8(..)]].concat()
            } else {
                vec![192, 0, 2, rng.u8(..)]
            }
        };
        message.query_address = Some(address());
        message.response_address = Some(address());
        message.socket_family = Some(if ipv6 { 2 } else { 1 });
        message.socket_protocol = Some(1);
        message.query_port = Some(rng.u32(1024..65536));
        message.response_port = Some(53);
    }
    let seconds = (size >= SIZE_WITH_SECONDS).then_some(SECONDS);
    let query_nanos = rng.u32(..500_000_000);
    let response_nanos = query_nanos + rng.u32(..500_000_000);
    let exact = |nanos: u32| (size >= SIZE_WITH_ADDRESSES).then_some(nanos);
    if is_response(kind) {
        message.response_time_sec = seconds;
        message.response_time_nsec = exact(response_nanos);
    }
    if !is_response(kind) || size >= SIZE_WITH_IDENTITY {
        message.query_time_sec = seconds;
        message.query_time_nsec = exact(query_nanos);
    }
    Dnstap {
        identity: (size >= SIZE_WITH_IDENTITY).then(|| b"ns1".to_vec()),
        version: None,
        extra: Some(vec![0; MARK_LEN]),
        message: Some(message),
        kind: TYPE_MESSAGE,
    }
}

/// A query or response of `len` bytes, or a few less where names cannot be that long.
fn dns(kind: i32, len: usize, rng: &mut Rng) -> Vec<u8> {
    let room = len - HEADER_AND_QUESTION_LEN;
    let records_len = room.saturating_sub(NAME_LEN_MIN);
    let (record_len, rtype) = if rng.u8(..3) == 0 { (28, Rtype::AAAA) } else { (16, Rtype::A) };
    let records = if is_response(kind) { records_len / record_len } else { 0 };
    let name = name((room - records * record_len).min(NAME_LEN_MAX), rng);

    let target = StaticCompressor::new(Vec::with_capacity(len));
    let mut builder = MessageBuilder::from_target(target).expect("a Vec has room");
    builder.header_mut().set_id(rng.u16(..));
    builder.header_mut().set_rd(true);
    builder.header_mut().set_qr(is_response(kind));
    let mut builder = builder.question();
    builder.push((&name, rtype)).expect("a Vec has room");
    let mut builder = builder.answer();
    for _ in 0..records {
        let pushed = if rtype == Rtype::A {
            builder.push((&name, 300, A::from_octets(198, 51, 100, rng.u8(..))))
        } else {
            builder.push((&name, 300, Aaaa::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, rng.u16(..)].into())))
        };
        pushed.expect("a Vec has room");
    }
    builder.finish().into_target()
}

/// A name of `len` bytes on the wire; one less where there is none of that length.
fn name(len: usize, rng: &mut Rng) -> Name<Vec<u8>> {
    let suffix: &[u8] = if len >= 16 { b"\x07example\x03com\x00" } else { b"\x00" };
    let mut wire = Vec::with_capacity(len);
    let mut rest = len - suffix.len();
    while rest >= 2 {
        // A label is a length byte and at least one more: no single byte may remain.
        let mut taken = rest.min(1 + LABEL_LEN_MAX);
        if rest - taken == 1 {
            taken -= 1;
        }
        wire.push((taken - 1) as u8);
        wire.extend((1..taken).map(|_| rng.lowercase() as u8));
        rest -= taken;
    }
    wire.extend_from_slice(suffix);
    Name::from_octets(wire).expect("labels and length are within limits")
}

/// Where the mark begins in the encoded message: behind identity and version.
fn mark_offset(message: &Dnstap) -> usize {
    let front = Dnstap { extra: None, message: None, ..message.clone() };
    // `kind` is encoded at the end, in two bytes.
    let front_len = front.encoded_len() - 2;
    let extra_len = message.extra.as_ref().map_or(0, Vec::len);
    front_len + 1 + prost::encoding::encoded_len_varint(extra_len as u64)
}

const TYPE_MESSAGE: i32 = 1;
const RESOLVER_QUERY: i32 = 3;
const RESOLVER_RESPONSE: i32 = 4;
const CLIENT_QUERY: i32 = 5;
const CLIENT_RESPONSE: i32 = 6;

/// From these sizes on, there is room for more than the DNS message.
const SIZE_WITH_SECONDS: usize = 70;
const SIZE_WITH_ADDRESSES: usize = 100;
const SIZE_WITH_IDENTITY: usize = 150;

/// Some time in November 2023.
const SECONDS: u64 = 1_700_000_000;
const HEADER_AND_QUESTION_LEN: usize = 12 + 4;
const NAME_LEN_MIN: usize = 14;
const NAME_LEN_MAX: usize = 60;
const LABEL_LEN_MAX: usize = 20;
/// The root as a question.
const DNS_LEN_MIN: usize = HEADER_AND_QUESTION_LEN + 1;
const DNS_LEN_MAX: usize = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    use domain::base::Message as DnsMessage;

    #[test]
    fn every_size_is_met_exactly_and_decodes_to_a_dns_message() {
        let mut rng = Rng::with_seed(1);
        for size in (SIZE_MIN..1500).chain([4000, 16_511, 60_000, 66_000, 1 << 20]) {
            let (bytes, mark_at) = payload(size, &mut rng);
            assert_eq!(bytes.len(), size);
            let dnstap = Dnstap::decode(&bytes[..]).unwrap();
            assert_eq!(dnstap.kind, TYPE_MESSAGE);
            let extra = dnstap.extra.unwrap();
            assert_eq!(bytes[mark_at..mark_at + extra.len()], extra, "the mark lies in `extra`, size {size}");
            assert!(extra.len() >= MARK_LEN);
            let message = dnstap.message.unwrap();
            let dns = message.query_message.or(message.response_message).unwrap();
            let dns = DnsMessage::from_octets(dns).unwrap();
            assert_eq!(dns.header().qr(), is_response(message.kind));
            assert!(dns.sole_question().is_ok());
            assert!(dns.answer().unwrap().all(|record| record.is_ok()));
        }
    }

    #[test]
    fn little_is_padded() {
        let mut rng = Rng::with_seed(2);
        for size in SIZE_MIN..1500 {
            let (bytes, _) = payload(size, &mut rng);
            let padding = Dnstap::decode(&bytes[..]).unwrap().extra.unwrap().len() - MARK_LEN;
            assert!(padding <= 48, "size {size}: {padding} bytes of padding");
        }
    }
}
