//! Just enough of dnstap to tell what a frame is and when it happened.
//!
//! ```text
//!  Dnstap   14 message: Message    15 type: 1 = MESSAGE      1 identity  2 version  3 extra
//!  Message   1 type: 1 = AUTH_QUERY … 14 = UPDATE_RESPONSE, odd for queries, even for responses
//!            8 query_time_sec: varint      9 query_time_nsec: 4 bytes
//!           12 response_time_sec: varint  13 response_time_nsec: 4 bytes
//! ```
//! Source: `dnstap.proto` of <https://dnstap.info>. Everything else is stepped over.

#![forbid(unsafe_code)]

mod error;
mod wire;

use std::fmt;
use std::time::Duration;

pub use error::DnstapError;

use crate::dnstap::wire::Fields;
use crate::dnstap::wire::Value;

/// What a dnstap frame says about its DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who spoke to whom.
    pub message_type: MessageType,
    /// When the query was seen, since the Unix epoch; `None` if the writer did not say.
    pub query_time: Option<Duration>,
    /// When the response was seen, since the Unix epoch; `None` if the writer did not say.
    pub response_time: Option<Duration>,
}

/// `Message.Type` of `dnstap.proto`, as a number: later ones than we know stay what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageType(pub u64);

impl Message {
    /// Reads the payload of a data frame of content type `protobuf:dnstap.Dnstap`.
    ///
    /// # Errors
    /// [`DnstapError`]; fields of unknown numbers are none.
    pub fn parse(payload: &[u8]) -> Result<Self, DnstapError> {
        let mut found = None;
        for field in Fields::new(payload) {
            if let (DNSTAP_MESSAGE, Value::Bytes(message)) = field? {
                found = Some(message); // of a field that comes twice, the last counts
            }
        }
        let mut message_type = MessageType::default();
        let mut query = (None, None);
        let mut response = (None, None);
        for field in Fields::new(found.ok_or(DnstapError::NoMessage)?) {
            match field? {
                (MESSAGE_TYPE, Value::Varint(number)) => message_type = MessageType(number),
                (QUERY_TIME_SEC, Value::Varint(seconds)) => query.0 = Some(seconds),
                (QUERY_TIME_NSEC, Value::Fixed32(nanos)) => query.1 = Some(nanos),
                (RESPONSE_TIME_SEC, Value::Varint(seconds)) => response.0 = Some(seconds),
                (RESPONSE_TIME_NSEC, Value::Fixed32(nanos)) => response.1 = Some(nanos),
                _ => {}
            }
        }
        Ok(Self { message_type, query_time: time(query), response_time: time(response) })
    }

    /// When the frame was made, as near as it says: a response at its response time, a query at its query time.
    pub fn time(&self) -> Option<Duration> {
        if self.message_type.is_response() {
            self.response_time.or(self.query_time)
        } else {
            self.query_time.or(self.response_time)
        }
    }
}

impl MessageType {
    /// Whether it is a response; anything else is a query.
    pub fn is_response(self) -> bool {
        self.0 != 0 && self.0.is_multiple_of(2)
    }
}

impl fmt::Display for MessageType {
    /// The name in `dnstap.proto`, or the number if it is a later one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0).ok().and_then(|number| MESSAGE_TYPES.get(number));
        match name {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

fn time((seconds, nanos): (Option<u64>, Option<u32>)) -> Option<Duration> {
    let nanos = nanos.unwrap_or(0);
    if nanos >= 1_000_000_000 {
        return None; // and `Duration::new` would carry it over
    }
    Some(Duration::new(seconds?, nanos))
}

const DNSTAP_MESSAGE: u64 = 14;
const MESSAGE_TYPE: u64 = 1;
const QUERY_TIME_SEC: u64 = 8;
const QUERY_TIME_NSEC: u64 = 9;
const RESPONSE_TIME_SEC: u64 = 12;
const RESPONSE_TIME_NSEC: u64 = 13;

const MESSAGE_TYPES: [&str; 15] = [
    "no type",
    "AUTH_QUERY",
    "AUTH_RESPONSE",
    "RESOLVER_QUERY",
    "RESOLVER_RESPONSE",
    "CLIENT_QUERY",
    "CLIENT_RESPONSE",
    "FORWARDER_QUERY",
    "FORWARDER_RESPONSE",
    "STUB_QUERY",
    "STUB_RESPONSE",
    "TOOL_QUERY",
    "TOOL_RESPONSE",
    "UPDATE_QUERY",
    "UPDATE_RESPONSE",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// identity "ns1", a message of `message_type`, type MESSAGE.
    fn frame(message_type: u8, times: &[u8]) -> Vec<u8> {
        let message = [&[0x08, message_type, 0x10, 0x01, 0x52, 0x02, 0xab, 0xcd][..], times].concat();
        let mut frame = vec![0x0a, 3, b'n', b's', b'1', 0x72, u8::try_from(message.len()).unwrap()];
        frame.extend(message);
        frame.extend([0x78, 0x01]);
        frame
    }

    // query time 300 s and 5 ns, response time 301 s and 6 ns
    const QUERY_TIME: [u8; 8] = [0x40, 0xac, 0x02, 0x4d, 5, 0, 0, 0];
    const RESPONSE_TIME: [u8; 8] = [0x60, 0xad, 0x02, 0x6d, 6, 0, 0, 0];

    #[test]
    fn type_and_times_are_found() {
        let payload = frame(6, &[QUERY_TIME, RESPONSE_TIME].concat());
        let message = Message::parse(&payload).unwrap();
        assert_eq!(message.message_type.to_string(), "CLIENT_RESPONSE");
        assert_eq!(message.query_time, Some(Duration::new(300, 5)));
        assert_eq!(message.time(), Some(Duration::new(301, 6)));
    }

    #[test]
    fn a_query_counts_from_its_query_time_and_a_response_from_its_response_time() {
        let time = |message_type, times: &[u8]| Message::parse(&frame(message_type, times)).unwrap().time();
        let both = [QUERY_TIME, RESPONSE_TIME].concat();
        assert_eq!(time(5, &both), Some(Duration::new(300, 5)));
        assert_eq!(time(6, &QUERY_TIME), Some(Duration::new(300, 5)));
        assert_eq!(time(5, &RESPONSE_TIME), Some(Duration::new(301, 6)));
        assert_eq!(time(6, &[]), None);
    }

    #[test]
    fn impossible_times_are_none_and_no_panic() {
        let times = [
            &[0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1][..],
            &[0x4d, 255, 255, 255, 255],
        ];
        assert_eq!(Message::parse(&frame(5, &times.concat())).unwrap().time(), None);
        assert_eq!(Message::parse(&frame(5, times[0])).unwrap().time(), Some(Duration::new(u64::MAX, 0)));
    }

    #[test]
    fn what_is_no_dnstap_message_is_told() {
        assert_eq!(Message::parse(b""), Err(DnstapError::NoMessage));
        assert_eq!(Message::parse(b"Hello, world #0\n"), Err(DnstapError::WireType { tag: 108 }));
        assert_eq!(MessageType(99).to_string(), "type 99");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&payload);
        }
    }
}
