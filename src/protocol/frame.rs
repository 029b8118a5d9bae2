//! What a frame is, and what its first bytes tell.

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ControlError;
use crate::protocol::ControlFrame;
use crate::protocol::ProtocolError;

/// The usual limit for data frames: 1 MiB of payload.
///
/// Source: fstrm `reader.h`, `FSTRM_READER_MAX_FRAME_SIZE_DEFAULT`.
pub const FRAME_LEN_MAX_DEFAULT: u32 = 1 << 20;

/// One frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A data frame: its payload, at least one byte.
    Data(Bytes),
    /// A control frame.
    Control(ControlFrame),
    /// A control frame of a type that has no meaning yet. In the data phase it is to be ignored.
    UnknownControl {
        /// The type: none of 1 to 5.
        control_type: u32,
        /// What follows the type, at most 508 bytes.
        payload: Bytes,
    },
}

/// What the first bytes of a frame tell about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Not even the lengths are complete.
    Incomplete { missing: usize },
    /// A data frame; its length is not checked.
    Data { len: u32 },
    /// A control frame, 4 to 512 bytes of payload.
    Control { len: u32 },
}

impl Head {
    /// Longest head: escape and length word of a control frame.
    pub(super) const LEN_MAX: usize = 8;

    /// Reads the length words at the front of `bytes`.
    ///
    /// # Errors
    /// [`ProtocolError::ControlLength`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let Some((word, rest)) = bytes.split_first_chunk() else {
            return Ok(Self::Incomplete { missing: 4 - bytes.len() });
        };
        let len = u32::from_be_bytes(*word);
        if len != 0 {
            return Ok(Self::Data { len });
        }
        let Some(word) = rest.first_chunk() else {
            return Ok(Self::Incomplete { missing: Self::LEN_MAX - bytes.len() });
        };
        let len = u32::from_be_bytes(*word);
        if len < 4 || len as usize > ControlFrame::LEN_MAX {
            return Err(ProtocolError::ControlLength { len });
        }
        Ok(Self::Control { len })
    }

    /// Length of the whole frame in bytes; `None` while it is not known.
    pub(super) fn frame_len(self) -> Option<usize> {
        match self {
            Self::Incomplete { .. } => None,
            Self::Data { len } => Some(4usize.saturating_add(len as usize)),
            Self::Control { len } => Some(Self::LEN_MAX + len as usize),
        }
    }
}

/// Takes the control frame at the front of `bytes`; `None` until all of it has arrived.
///
/// # Errors
/// [`ProtocolError::UnexpectedData`] for a data frame, where `expected` was to come;
/// [`ProtocolError::ControlLength`] as soon as the length words have arrived.
pub(super) fn take_control(
    bytes: &mut BytesMut,
    expected: &'static str,
) -> Result<Option<Result<ControlFrame, ControlError>>, ProtocolError> {
    let head = Head::parse(bytes)?;
    if let Head::Data { len } = head {
        return Err(ProtocolError::UnexpectedData { expected, len });
    }
    let Some(frame_len) = head.frame_len() else {
        return Ok(None);
    };
    let Some(payload) = bytes.get(Head::LEN_MAX..frame_len) else {
        return Ok(None);
    };
    let control = ControlFrame::decode(payload);
    bytes.advance(frame_len);
    Ok(Some(control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_the_length_of_its_frame_and_what_is_missing() {
        assert_eq!(Head::parse(b""), Ok(Head::Incomplete { missing: 4 }));
        assert_eq!(Head::parse(b"\0\0\x01"), Ok(Head::Incomplete { missing: 1 }));
        assert_eq!(Head::parse(b"\0\0\x01\x02x"), Ok(Head::Data { len: 258 }));
        assert_eq!(Head::parse(b"\0\0\0\0"), Ok(Head::Incomplete { missing: 4 }));
        assert_eq!(Head::parse(b"\0\0\0\0\0\0\x02\0"), Ok(Head::Control { len: 512 }));
        assert_eq!(Head::Data { len: 258 }.frame_len(), Some(262));
        assert_eq!(Head::Control { len: 512 }.frame_len(), Some(520));
    }

    #[test]
    fn d08_impossible_lengths_of_control_frames_are_refused() {
        for len in [0u32, 3, 513, 600, u32::MAX] {
            let bytes = [[0; 4], len.to_be_bytes()].concat();
            assert_eq!(Head::parse(&bytes), Err(ProtocolError::ControlLength { len }));
        }
    }
}
