//! The payload of a data frame, read as dnstap.

use std::time::Duration;

use tapster::dnstap::DnstapError;
use tapster::dnstap::Message;
use tapster::dnstap::MessageType;

use super::memory::no_more_than_given;

/// The same message is found after it was written again, beside fields that nobody knows, and behind another message. A
/// number is what its bytes say, or an error.
pub(crate) fn dnstap(input: &[u8]) {
    number(input);
    let parsed = no_more_than_given(0, || Message::parse(input));
    let within = Message::parse(&message_field(input));
    assert_ne!(within, Err(DnstapError::NoMessage), "a message that is there, even an empty one");
    if let Ok(message) = within {
        assert_eq!(Message::parse(&frame_of(&message)), Ok(message), "written again");
        assert_times(&message);
    }
    match parsed {
        Ok(message) => {
            assert_eq!(Message::parse(&frame_of(&message)), Ok(message), "written again");
            assert_times(&message);
            assert_eq!(Message::parse(&[input, UNKNOWN].concat()), Ok(message));
            assert_eq!(Message::parse(&[UNKNOWN, input].concat()), Ok(message));
            // Of a field that comes twice, the last counts.
            assert_eq!(Message::parse(&[input, &message_field(input)].concat()), within);
        }
        Err(DnstapError::NoMessage) => {
            assert_eq!(Message::parse(&[input, UNKNOWN].concat()), parsed);
            assert_eq!(Message::parse(&[input, &message_field(input)].concat()), within);
        }
        Err(fault) => {
            // Nothing that follows mends a field that is broken, except bytes that were missing.
            let longer = Message::parse(&[input, UNKNOWN].concat());
            assert!(fault == DnstapError::Truncated || longer.is_err(), "{fault}, then {longer:?}");
        }
    }
}

/// Reads the front of `input` as the number of a message type, in more bits than a number may have.
fn number(input: &[u8]) {
    let len = input.iter().position(|byte| byte & 0x80 == 0).map_or(input.len(), |last| last + 1);
    let bytes = &input[..len.min(12)];
    let value = bytes.iter().rev().fold(0u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
    let ends = bytes.last().is_some_and(|last| last & 0x80 == 0);
    let parsed = Message::parse(&message_field(&[&[1 << 3][..], bytes].concat()));
    match u64::try_from(value) {
        Ok(value) if ends && bytes.len() <= 10 => {
            assert_eq!(parsed.map(|message| message.message_type), Ok(MessageType(value)));
        }
        // The bytes end before a tenth could tell that they are too many.
        _ if bytes.len() < 10 => assert_eq!(parsed, Err(DnstapError::Truncated)),
        _ => assert_eq!(parsed, Err(DnstapError::Varint)),
    }
}

fn assert_times(message: &Message) {
    let times = [message.query_time, message.response_time];
    assert_eq!(message.time().is_some(), times.iter().any(Option::is_some));
    assert!(message.time().is_none_or(|time| times.contains(&Some(time))));
    assert!(!message.message_type.to_string().is_empty());
}

/// A dnstap frame that says the same.
fn frame_of(message: &Message) -> Vec<u8> {
    let mut fields = Vec::new();
    fields.push(1 << 3);
    varint(message.message_type.0, &mut fields);
    for (time, number) in [(message.query_time, 8), (message.response_time, 12)] {
        let Some(time) = time else { continue };
        fields.push(number << 3);
        varint(time.as_secs(), &mut fields);
        fields.push((number + 1) << 3 | 5);
        fields.extend(time.subsec_nanos().to_le_bytes());
        assert!(time.subsec_nanos() < 1_000_000_000 && time <= Duration::MAX);
    }
    message_field(&fields)
}

/// The field `message` of a dnstap frame.
fn message_field(fields: &[u8]) -> Vec<u8> {
    let mut frame = vec![14 << 3 | 2];
    varint(fields.len() as u64, &mut frame);
    frame.extend(fields);
    frame
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Fields 99, of each wire type.
const UNKNOWN: &[u8] =
    b"\x98\x06\x01\x99\x06\x01\x02\x03\x04\x05\x06\x07\x08\x9a\x06\x03abc\x9d\x06\x01\x02\x03\x04";
