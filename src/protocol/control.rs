//! Control frames: decoded strictly, encoded within what every known reader takes.

use std::fmt;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ContentType;

/// The types of control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ControlType {
    /// Reader to writer: these content types are taken.
    Accept = 1,
    /// Writer to reader: data frames follow, of this content type.
    Start = 2,
    /// Writer to reader: no more data frames.
    Stop = 3,
    /// Writer to reader: these content types are offered.
    Ready = 4,
    /// Reader to writer: STOP was received, and every frame before it.
    Finish = 5,
}

impl ControlType {
    /// How many content types a frame of this type may carry.
    fn content_types_max(self) -> usize {
        match self {
            Self::Accept | Self::Ready => usize::MAX,
            Self::Start => 1,
            Self::Stop | Self::Finish => 0,
        }
    }
}

impl TryFrom<u32> for ControlType {
    type Error = ControlError;

    fn try_from(value: u32) -> Result<Self, ControlError> {
        match value {
            1 => Ok(Self::Accept),
            2 => Ok(Self::Start),
            3 => Ok(Self::Stop),
            4 => Ok(Self::Ready),
            5 => Ok(Self::Finish),
            other => Err(ControlError::UnknownType(other)),
        }
    }
}

impl fmt::Display for ControlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "ACCEPT",
            Self::Start => "START",
            Self::Stop => "STOP",
            Self::Ready => "READY",
            Self::Finish => "FINISH",
        })
    }
}

/// A control frame: its type, and the content types that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFrame {
    /// What the frame says.
    pub control_type: ControlType,
    /// Any number for READY and ACCEPT, at most one for START, none for STOP and FINISH.
    pub content_types: Vec<ContentType>,
}

impl ControlFrame {
    /// Longest control frame that is decoded: payload bytes, without escape and length word.
    ///
    /// Source: fstrm `control.h`, `FSTRM_CONTROL_FRAME_LENGTH_MAX`.
    pub const LEN_MAX: usize = 512;

    /// Longest control frame that is encoded: payload bytes, without escape and length word.
    ///
    /// Less than [`ControlFrame::LEN_MAX`], because `fstrm_capture` refuses 504 bytes and more.
    pub const ENCODED_LEN_MAX: usize = 503;

    /// READY: the writer offers these content types.
    pub fn ready(content_types: &[ContentType]) -> Self {
        Self { control_type: ControlType::Ready, content_types: content_types.to_vec() }
    }

    /// ACCEPT: the reader takes these content types.
    pub fn accept(content_types: &[ContentType]) -> Self {
        Self { control_type: ControlType::Accept, content_types: content_types.to_vec() }
    }

    /// START: data frames of this content type follow.
    pub fn start(content_type: Option<&ContentType>) -> Self {
        Self { control_type: ControlType::Start, content_types: content_type.cloned().into_iter().collect() }
    }

    /// STOP: no more data frames.
    pub fn stop() -> Self {
        Self { control_type: ControlType::Stop, content_types: Vec::new() }
    }

    /// FINISH: STOP was received.
    pub fn finish() -> Self {
        Self { control_type: ControlType::Finish, content_types: Vec::new() }
    }

    /// Whether a stream of `content_type` agrees with this frame; `None` is a stream without a type.
    ///
    /// READY, ACCEPT and START without a type agree with every stream, with types only with those named. STOP and
    /// FINISH agree with none.
    ///
    /// Source: fstrm `control.h`, `fstrm_control_match_field_content_type`.
    pub fn matches(&self, content_type: Option<&ContentType>) -> bool {
        if matches!(self.control_type, ControlType::Stop | ControlType::Finish) {
            return false;
        }
        self.content_types.is_empty()
            || content_type.is_some_and(|content_type| self.content_types.contains(content_type))
    }

    /// Decodes the payload of a control frame: what follows escape and length word.
    ///
    /// # Errors
    /// [`ControlError::UnknownType`] for a type that has no meaning yet, whatever follows it: in the data phase
    /// such a frame is to be ignored. Every other variant but [`ControlError::KnownType`] for a payload that is
    /// not a control frame.
    ///
    /// Source: fstrm `control.h`, `fstrm_control_decode`.
    pub fn decode(payload: &[u8]) -> Result<Self, ControlError> {
        let Some((control_type, mut fields)) = split_u32(payload) else {
            return Err(ControlError::TooShort { len: payload.len() });
        };
        if payload.len() > Self::LEN_MAX {
            return Err(ControlError::TooLong { len: payload.len(), len_max: Self::LEN_MAX });
        }
        let control_type = ControlType::try_from(control_type)?;

        let mut content_types = Vec::new();
        while !fields.is_empty() {
            let (field_type, rest) = split_u32(fields).ok_or(ControlError::FieldTruncated)?;
            if field_type != FIELD_CONTENT_TYPE {
                return Err(ControlError::UnknownField(field_type));
            }
            let (field_len, rest) = split_u32(rest).ok_or(ControlError::FieldTruncated)?;
            let field_len = usize::try_from(field_len).map_err(|_| ControlError::FieldTruncated)?;
            let (value, rest) = rest.split_at_checked(field_len).ok_or(ControlError::FieldTruncated)?;
            let content_type = ContentType::try_from(value)
                .map_err(|error| ControlError::ContentTypeTooLong { len: error.len })?;
            content_types.push(content_type);
            fields = rest;
        }

        let frame = Self { control_type, content_types };
        frame.check_content_types()?;
        Ok(frame)
    }

    /// Encodes the frame with escape and length word.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] above [`ControlFrame::ENCODED_LEN_MAX`], [`ControlError::TooManyContentTypes`]
    /// for more than the type may carry.
    pub fn encode(&self) -> Result<Bytes, ControlError> {
        self.check_content_types()?;
        let len = self.content_types.iter().map(field_len).sum::<usize>() + 4;
        if len > Self::ENCODED_LEN_MAX {
            return Err(ControlError::TooLong { len, len_max: Self::ENCODED_LEN_MAX });
        }
        Ok(encode(self.control_type, len, &self.content_types))
    }

    fn check_content_types(&self) -> Result<(), ControlError> {
        let count = self.content_types.len();
        if count > self.control_type.content_types_max() {
            return Err(ControlError::TooManyContentTypes { control_type: self.control_type, count });
        }
        Ok(())
    }
}

/// A control frame with at most one content type: these always fit.
pub(super) fn encode_short(control_type: ControlType, content_type: Option<&ContentType>) -> Bytes {
    // 4 + 8 + ContentType::LEN_MAX <= ControlFrame::ENCODED_LEN_MAX
    let len = 4 + content_type.map_or(0, field_len);
    encode(control_type, len, content_type)
}

fn encode<'a>(
    control_type: ControlType,
    len: usize,
    content_types: impl IntoIterator<Item = &'a ContentType>,
) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + len);
    frame.put_u32(0);
    frame.put_u32(len as u32); // len <= ENCODED_LEN_MAX
    frame.put_u32(control_type as u32);
    for content_type in content_types {
        frame.put_u32(FIELD_CONTENT_TYPE);
        frame.put_u32(content_type.as_bytes().len() as u32); // <= ContentType::LEN_MAX
        frame.put_slice(content_type.as_bytes());
    }
    frame.freeze()
}

fn field_len(content_type: &ContentType) -> usize {
    8 + content_type.as_bytes().len()
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*word), rest))
}

/// The only type of field.
const FIELD_CONTENT_TYPE: u32 = 1;

/// What is wrong with a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No room for a type.
    #[error("{len} bytes are too few for a type")]
    TooShort {
        /// Payload bytes.
        len: usize,
    },
    /// Above the limit for decoding or encoding.
    #[error("{len} bytes exceed the limit of {len_max}")]
    TooLong {
        /// Payload bytes.
        len: usize,
        /// The limit.
        len_max: usize,
    },
    /// A type other than the five.
    #[error("unknown type {0}")]
    UnknownType(u32),
    /// A frame that was to be encoded as unknown has the number of a known type.
    #[error("type {0} has a meaning of its own")]
    KnownType(ControlType),
    /// A field other than a content type.
    #[error("unknown field type {0}")]
    UnknownField(u32),
    /// The payload ends within a field.
    #[error("the last field is cut")]
    FieldTruncated,
    /// A content type longer than [`ContentType::LEN_MAX`].
    #[error("content type of {len} bytes exceeds the limit of {}", ContentType::LEN_MAX)]
    ContentTypeTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// More content types than this type of frame may carry.
    #[error("{control_type} with {count} content types")]
    TooManyContentTypes {
        /// The type of the frame.
        control_type: ControlType,
        /// How many there were.
        count: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tests::D;
    use crate::protocol::tests::content_type;
    use crate::protocol::tests::control_payload;
    use crate::protocol::tests::control_raw;
    use crate::protocol::tests::word;

    const W1: &[u8] = b"wharr\0garbl";
    const W2: &[u8] = b"wharrgarblv2";

    /// The payload decodes to this frame, and the frame encodes to the same bytes.
    fn assert_round_trip(control_type: ControlType, content_types: &[&[u8]]) -> ControlFrame {
        let payload = control_payload(control_type as u32, content_types);
        let frame = ControlFrame::decode(&payload).expect("a valid payload");
        let content_types = content_types.iter().map(|bytes| content_type(bytes)).collect();
        assert_eq!(frame, ControlFrame { control_type, content_types });
        assert_eq!(frame.encode().expect("a short frame"), control_raw(&payload));
        frame
    }

    fn assert_refused(payload: &[u8], error: ControlError) {
        assert_eq!(ControlFrame::decode(payload), Err(error), "{payload:02x?}");
    }

    #[test]
    fn c01_accept_without_a_type_matches_everything() {
        let frame = assert_round_trip(ControlType::Accept, &[]);
        assert!(frame.matches(None));
        assert!(frame.matches(Some(&content_type(W1))));
    }

    #[test]
    fn c02_accept_with_a_type_matches_that_type_only() {
        let frame = assert_round_trip(ControlType::Accept, &[W1]);
        assert!(frame.matches(Some(&content_type(W1))));
        assert!(!frame.matches(Some(&content_type(W2))));
        assert!(!frame.matches(None));
    }

    #[test]
    fn c03_accept_and_ready_carry_several_types() {
        for control_type in [ControlType::Accept, ControlType::Ready] {
            let frame = assert_round_trip(control_type, &[W1, W2]);
            assert!(frame.matches(Some(&content_type(W1))));
            assert!(frame.matches(Some(&content_type(W2))));
            assert_round_trip(control_type, &[W1, W1]);
        }
    }

    #[test]
    fn c04_start_carries_one_type_or_none() {
        assert!(assert_round_trip(ControlType::Start, &[]).matches(Some(&content_type(W2))));
        let frame = assert_round_trip(ControlType::Start, &[W1]);
        assert!(frame.matches(Some(&content_type(W1))));
        assert!(!frame.matches(Some(&content_type(W2))));
    }

    #[test]
    fn c05_stop_and_finish_match_nothing() {
        for control_type in [ControlType::Stop, ControlType::Finish] {
            let frame = assert_round_trip(control_type, &[]);
            assert!(!frame.matches(None));
            assert!(!frame.matches(Some(&content_type(W1))));
        }
    }

    #[test]
    fn c06_fewer_than_four_bytes_are_refused() {
        for len in 0..4 {
            assert_refused(&[0xff; 4][..len], ControlError::TooShort { len });
        }
    }

    #[test]
    fn c07_unknown_types_are_named() {
        for control_type in [u32::MAX, 0xabad_1dea, 0, 6] {
            assert_refused(&word(control_type), ControlError::UnknownType(control_type));
        }
        assert_refused(&[0xff; 5], ControlError::UnknownType(u32::MAX));
    }

    #[test]
    fn c08_cut_fields_and_trailing_bytes_are_refused() {
        let whole = control_payload(2, &[W1]);
        for len in 5..whole.len() {
            assert_refused(&whole[..len], ControlError::FieldTruncated);
        }
        for trailing in [&[0][..], &[0; 3], &word(1)] {
            assert_refused(&[&whole[..], trailing].concat(), ControlError::FieldTruncated);
            assert_refused(&[&word(2)[..], trailing].concat(), ControlError::FieldTruncated);
        }
    }

    #[test]
    fn c09_wrong_fields_are_refused() {
        for (control_type, types) in [
            (ControlType::Stop, &[W1][..]),
            (ControlType::Finish, &[W1]),
            (ControlType::Start, &[W1, W1]),
            (ControlType::Start, &[W1, W2]),
        ] {
            let count = types.len();
            let error = ControlError::TooManyContentTypes { control_type, count };
            assert_refused(&control_payload(control_type as u32, types), error);
            let content_types = types.iter().map(|bytes| content_type(bytes)).collect();
            assert_eq!(ControlFrame { control_type, content_types }.encode(), Err(error));
        }
        assert_refused(&[word(4), word(2), word(0)].concat(), ControlError::UnknownField(2));
        for field_len in [0xffff_fff8, u32::MAX] {
            assert_refused(&[word(4), word(1), word(field_len)].concat(), ControlError::FieldTruncated);
        }
    }

    #[test]
    fn c10_limits_are_inclusive() {
        assert_round_trip(ControlType::Ready, &[&[b'x'; 256]]);
        assert_round_trip(ControlType::Ready, &[b""]);
        let too_long = control_payload(4, &[&[b'x'; 257]]);
        assert_refused(&too_long, ControlError::ContentTypeTooLong { len: 257 });

        assert!(ControlFrame::decode(&control_payload(4, &[D, &[b'x'; 256], &[b'x'; 206]])).is_ok());
        let too_long = control_payload(4, &[D, &[b'x'; 256], &[b'x'; 207]]);
        assert_refused(&too_long, ControlError::TooLong { len: 513, len_max: 512 });
    }

    #[test]
    fn the_encoder_stops_at_what_fstrm_capture_takes() {
        let frame = |len| {
            let types = [D, &[b'x'; 256], &vec![b'x'; len]].map(content_type);
            ControlFrame::ready(&types)
        };
        assert_eq!(frame(197).encode().map(|bytes| bytes.len()), Ok(8 + 503));
        assert_eq!(frame(198).encode(), Err(ControlError::TooLong { len: 504, len_max: 503 }));
    }

    #[test]
    fn a_frame_with_the_longest_type_is_short() {
        let longest = content_type(&[b'x'; 256]);
        let frame = ControlFrame::accept(std::slice::from_ref(&longest)).encode();
        assert_eq!(Ok(encode_short(ControlType::Accept, Some(&longest))), frame);
    }

    #[test]
    fn every_type_has_its_number_and_its_name() {
        for (number, name) in [(1, "ACCEPT"), (2, "START"), (3, "STOP"), (4, "READY"), (5, "FINISH")] {
            let control_type = ControlType::try_from(number).expect("a known type");
            assert_eq!(control_type as u32, number);
            assert_eq!(control_type.to_string(), name);
        }
    }
}
