//! Bytes out of frames, with every limit checked.

use bytes::BufMut;
use bytes::BytesMut;

use crate::protocol::ControlError;
use crate::protocol::ControlFrame;
use crate::protocol::ControlType;
use crate::protocol::Frame;
use crate::protocol::ProtocolError;

/// Appends encoded frames to a buffer.
///
/// ```
/// use bytes::BytesMut;
/// use tapster::protocol::Encoder;
///
/// let mut stream = BytesMut::new();
/// Encoder::new(65_536).data(b"hello", &mut stream)?;
/// assert_eq!(&stream[..], b"\0\0\0\x05hello");
/// # Ok::<(), tapster::protocol::ProtocolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoder {
    frame_len_max: u32,
}

impl Encoder {
    /// An encoder of data frames up to `frame_len_max` payload bytes.
    pub fn new(frame_len_max: u32) -> Self {
        Self { frame_len_max }
    }

    /// Appends a data frame.
    ///
    /// # Errors
    /// [`ProtocolError::EmptyPayload`] and [`ProtocolError::FrameTooLong`]; then nothing is appended.
    pub fn data(&self, payload: &[u8], stream: &mut BytesMut) -> Result<(), ProtocolError> {
        // A length that does not fit its word is reported as the longest that would.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if len == 0 {
            return Err(ProtocolError::EmptyPayload);
        }
        if len > self.frame_len_max || len == u32::MAX {
            return Err(ProtocolError::FrameTooLong { len, len_max: self.frame_len_max.min(u32::MAX - 1) });
        }
        stream.reserve(4 + payload.len());
        stream.put_u32(len);
        stream.put_slice(payload);
        Ok(())
    }

    /// Appends any frame.
    ///
    /// # Errors
    /// Those of [`Encoder::data`], and [`ProtocolError::Control`] for a control frame that is too long, names more
    /// content types than it may, or is called unknown and is not; then nothing is appended.
    pub fn frame(&self, frame: &Frame, stream: &mut BytesMut) -> Result<(), ProtocolError> {
        match frame {
            Frame::Data(payload) => self.data(payload, stream)?,
            Frame::Control(control) => stream.put(control.encode()?),
            Frame::UnknownControl { control_type, payload } => {
                if let Ok(known) = ControlType::try_from(*control_type) {
                    return Err(ControlError::KnownType(known).into());
                }
                let len = 4 + payload.len();
                if len > ControlFrame::ENCODED_LEN_MAX {
                    return Err(ControlError::TooLong { len, len_max: ControlFrame::ENCODED_LEN_MAX }.into());
                }
                stream.reserve(8 + len);
                stream.put_u32(0);
                stream.put_u32(len as u32); // len <= ENCODED_LEN_MAX
                stream.put_u32(*control_type);
                stream.put_slice(payload);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::tests::control_raw;
    use crate::protocol::tests::data;
    use crate::protocol::tests::stop;

    fn encode(frame: &Frame) -> Result<BytesMut, ProtocolError> {
        let mut stream = BytesMut::new();
        let result = Encoder::new(3).frame(frame, &mut stream);
        assert!(result.is_ok() || stream.is_empty(), "nothing is appended with an error");
        result.map(|()| stream)
    }

    fn unknown(control_type: u32, len: usize) -> Frame {
        Frame::UnknownControl { control_type, payload: Bytes::from(vec![7; len]) }
    }

    #[test]
    fn every_kind_of_frame_is_encoded() {
        assert_eq!(encode(&Frame::Data(Bytes::from_static(b"abc"))).unwrap(), data(b"abc"));
        assert_eq!(encode(&Frame::Control(ControlFrame::stop())).unwrap(), stop());
        assert_eq!(encode(&unknown(6, 1)).unwrap(), control_raw(&[0, 0, 0, 6, 7]));
    }

    #[test]
    fn frames_outside_the_limits_are_refused() {
        assert_eq!(encode(&Frame::Data(Bytes::new())), Err(ProtocolError::EmptyPayload));
        assert_eq!(
            encode(&Frame::Data(Bytes::from_static(b"abcd"))),
            Err(ProtocolError::FrameTooLong { len: 4, len_max: 3 })
        );
        assert!(encode(&unknown(6, 499)).is_ok());
        assert_eq!(encode(&unknown(6, 500)), Err(ControlError::TooLong { len: 504, len_max: 503 }.into()));
        assert_eq!(encode(&unknown(3, 0)), Err(ControlError::KnownType(ControlType::Stop).into()));
    }
}
