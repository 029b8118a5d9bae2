//! The question "does this way lead back to me?", as it travels from relay to relay: the only content type of a READY, on a
//! connection of its own, which ends once the question is there.
//!
//! A reader that is not tapster takes it for a content type that it does not know, and ends the connection. A content type
//! in addition to that of a stream would cost no connection, but one collector (pktvisor) fails on a READY with two.

use bytes::Bytes;

use crate::protocol::ContentType;
use crate::protocol::ControlFrame;
use crate::protocol::ControlType;

/// One question. Each relay that gets it asks it on, on every way that takes the content type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoopProbe {
    /// Who asks.
    pub(crate) id: ProbeId,
    /// How many relays may still ask it on.
    pub(crate) hops: u8,
    /// The content type of the streams that it is about; `None`: those without one.
    pub(crate) content_type: Option<ContentType>,
}

/// What makes one question different from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeId {
    /// The relay that asks: drawn at its start.
    pub(crate) relay: u64,
    /// The way of that relay on which the question left it.
    pub(crate) way: u32,
    /// Counts the questions of that relay.
    pub(crate) number: u32,
}

impl LoopProbe {
    /// A READY that asks; `None` where the content type leaves no room.
    pub(crate) fn ready(&self) -> Option<Bytes> {
        let ProbeId { relay, way, number } = self.id;
        let mut name = format!("{MARK}{relay:016x} {way:08x} {number:08x} {:02x}", self.hops).into_bytes();
        if let Some(content_type) = &self.content_type {
            name.push(b' ');
            name.extend(content_type.as_bytes());
        }
        ControlFrame::ready(&[ContentType::try_from(&name[..]).ok()?]).encode().ok()
    }

    /// The question, if `bytes` begin with a READY that asks.
    pub(crate) fn in_ready(bytes: &[u8]) -> Option<Self> {
        let (escape, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let payload = rest.get(..u32::from_be_bytes(*len) as usize)?;
        if *escape != [0; 4] {
            return None;
        }
        let control = ControlFrame::decode(payload).ok()?;
        match &control.content_types[..] {
            [name] if control.control_type == ControlType::Ready => Self::parse(name.as_bytes()),
            _ => None,
        }
    }

    fn parse(name: &[u8]) -> Option<Self> {
        let mut parts = name.strip_prefix(MARK.as_bytes())?.splitn(5, |byte| *byte == b' ');
        let mut number = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            u64::from_str_radix(str::from_utf8(part).ok()?, 16).ok()
        };
        let (relay, way, count, hops) = (number(16)?, number(8)?, number(8)?, number(2)?);
        let content_type = parts.next().map(ContentType::try_from).transpose().ok()?;
        // Within their digits each is within its type.
        let id = ProbeId { relay, way: way as u32, number: count as u32 };
        Some(Self { id, hops: hops as u8, content_type })
    }
}

/// How such a content type begins.
const MARK: &str = "tapster-loop/1 ";

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(content_type: Option<&[u8]>) -> LoopProbe {
        let content_type = content_type.map(|bytes| ContentType::try_from(bytes).unwrap());
        let id = ProbeId { relay: 0x0123_4567_89ab_cdef, way: 7, number: u32::MAX };
        LoopProbe { id, hops: 16, content_type }
    }

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let long = [b'x'; 203];
        for content_type in
            [None, Some(&b""[..]), Some(b"protobuf:dnstap.Dnstap"), Some(b"a b\0 c"), Some(&long)]
        {
            let probe = probe(content_type);
            let ready = probe.ready().unwrap();
            assert_eq!(LoopProbe::in_ready(&ready), Some(probe.clone()));
            assert_eq!(LoopProbe::in_ready(&[&ready[..], b"more"].concat()), Some(probe));
            for len in 0..ready.len() {
                assert_eq!(LoopProbe::in_ready(&ready[..len]), None, "{len} bytes of it");
            }
        }
        assert_eq!(probe(Some(&[b'x'; 204])).ready(), None);
    }

    #[test]
    fn nothing_else_is_a_question() {
        let ready = |types: &[&[u8]]| {
            let types: Vec<_> = types.iter().map(|bytes| ContentType::try_from(*bytes).unwrap()).collect();
            ControlFrame::ready(&types).encode().unwrap()
        };
        let name = b"tapster-loop/1 0123456789abcdef 00000007 00000001 10 protobuf:dnstap.Dnstap";
        assert!(LoopProbe::in_ready(&ready(&[name])).is_some());
        for other in [
            &ready(&[])[..],
            &ready(&[b"protobuf:dnstap.Dnstap"]),
            &ready(&[name, b"protobuf:dnstap.Dnstap"]),
            &ready(&[b"tapster-loop/1 "]),
            &ready(&[b"tapster-loop/1 0123456789abcdef 00000007 00000001"]),
            &ready(&[b"tapster-loop/1 0123456789abcdef 00000007 00000001 1"]),
            &ready(&[b"tapster-loop/1 0123456789abcdeg 00000007 00000001 10"]),
            &ready(&[b"tapster-loop/2 0123456789abcdef 00000007 00000001 10"]),
            &ControlFrame::accept(&[ContentType::try_from(&name[..]).unwrap()]).encode().unwrap(),
            &[b"\0\0\0\x01", &ready(&[name])[4..]].concat(),
            &[&[0; 4][..], &[0xff; 4], name].concat(),
        ] {
            assert_eq!(LoopProbe::in_ready(other), None, "{}", other.escape_ascii());
        }
    }
}
