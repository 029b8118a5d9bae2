//! What the frames of a file say, summed up in constant memory.

use std::fmt::Write;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Serialize;
use serde::Serializer;
use serde::ser::SerializeMap;
use tapster::dnstap::Message;
use tapster::dnstap::MessageType;

use crate::commands::count::count_frames;

/// What is in the frames of a file.
#[derive(Debug, Default, Serialize)]
pub(crate) struct FrameSummary {
    /// Payload bytes of the longest frame.
    #[serde(rename = "longest")]
    payload_len_max: usize,
    #[serde(serialize_with = "in_utc")]
    first: Option<Duration>,
    #[serde(serialize_with = "in_utc")]
    last: Option<Duration>,
    types: TypeCounts,
    #[serde(rename = "not_dnstap")]
    frames_not_dnstap: u64,
}

/// Frames by their type: those that `dnstap.proto` has, and all others together.
#[derive(Debug, Default)]
struct TypeCounts {
    known: [u64; TYPES],
    others: u64,
}

impl FrameSummary {
    /// Counts a frame of a stream that is not of dnstap.
    pub(crate) fn add(&mut self, payload: &[u8]) {
        self.payload_len_max = self.payload_len_max.max(payload.len());
    }

    /// Counts a frame of a stream that is of dnstap, or of no type.
    pub(crate) fn add_dnstap(&mut self, payload: &[u8]) {
        self.add(payload);
        let Ok(message) = Message::parse(payload) else {
            self.frames_not_dnstap += 1;
            return;
        };
        let known =
            usize::try_from(message.message_type.0).ok().and_then(|index| self.types.known.get_mut(index));
        *known.unwrap_or(&mut self.types.others) += 1;
        if let Some(time) = message.time() {
            self.first = Some(self.first.map_or(time, |first| first.min(time)));
            self.last = Some(self.last.map_or(time, |last| last.max(time)));
        }
    }

    /// `; longest payload 16 bytes; …`, or nothing where there is no frame.
    pub(crate) fn in_words(&self) -> String {
        let mut words = String::new();
        let mut add = |part: &str| write!(words, "; {part}").expect("a String takes every character");
        if self.payload_len_max > 0 {
            add(&format!("longest payload {} bytes", self.payload_len_max));
        }
        if let Some((first, last)) = self.first.and_then(utc).zip(self.last.and_then(utc)) {
            add(&format!("{first:.6} to {last:.6}"));
        }
        let types: Vec<String> = self.types.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if !types.is_empty() {
            add(&types.join(", "));
        }
        if self.frames_not_dnstap > 0 {
            add(&format!("{} not dnstap", count_frames(self.frames_not_dnstap)));
        }
        words
    }
}

impl TypeCounts {
    /// Every type that there is, with its count.
    fn iter(&self) -> impl Iterator<Item = (String, u64)> {
        let named = (0..).zip(self.known).map(|(number, count)| (MessageType(number).to_string(), count));
        named.chain([("other types".to_owned(), self.others)]).filter(|(_, count)| *count > 0)
    }
}

impl Serialize for TypeCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, count) in self.iter() {
            map.serialize_entry(&name, &count)?;
        }
        map.end()
    }
}

/// A time since the Unix epoch, if a calendar has it.
pub(crate) fn utc(time: Duration) -> Option<Timestamp> {
    Timestamp::from_duration(SignedDuration::try_from(time).ok()?).ok()
}

fn in_utc<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(utc).map(|time| time.to_string()).serialize(serializer)
}

/// Types that have a name, and "no type".
const TYPES: usize = 15;
