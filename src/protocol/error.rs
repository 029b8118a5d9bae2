//! What can be wrong with a stream.

use std::time::Duration;

use crate::protocol::ContentType;
use crate::protocol::ControlError;
use crate::protocol::ControlFrame;
use crate::protocol::ControlType;
use crate::protocol::content_type::Listed;

/// Why a stream or a session cannot go on.
///
/// The text says what was wrong; [`ProtocolError::reason`] is a short label to count by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A length word above the limit. Far above it, the stream is out of step rather than the frame long.
    #[error("data frame of {len} bytes exceeds the limit of {len_max}")]
    FrameTooLong {
        /// Announced payload bytes.
        len: u32,
        /// The limit, payload bytes.
        len_max: u32,
    },
    /// A data frame without payload has no encoding: its length word would be the escape.
    #[error("a data frame cannot be empty: a length of 0 announces a control frame")]
    EmptyPayload,
    /// A batch without frames.
    #[error("a batch needs at least one data frame")]
    EmptyBatch,
    /// Bytes that were to be whole frames end within one.
    #[error("the last data frame is cut: at least {missing} bytes are missing")]
    PartialFrame {
        /// Bytes missing at least.
        missing: usize,
    },
    /// Bytes that were to be data frames hold a control frame.
    #[error("control frame among the data frames of a batch, at byte {offset}")]
    ControlInBatch {
        /// Where its escape is.
        offset: usize,
    },
    /// The length word of a control frame is impossible.
    #[error("control frame of {len} bytes: must be 4 to {}", ControlFrame::LEN_MAX)]
    ControlLength {
        /// Announced payload bytes.
        len: u32,
    },
    /// A control frame does not decode, or cannot be encoded.
    #[error("control frame: {0}")]
    Control(#[from] ControlError),
    /// A control frame that may not occur here.
    #[error("expected {expected}, got {got}")]
    UnexpectedControl {
        /// What could have come.
        expected: &'static str,
        /// What came.
        got: ControlType,
    },
    /// A data frame that may not occur here.
    #[error("expected {expected}, got a data frame of {len} bytes")]
    UnexpectedData {
        /// What could have come.
        expected: &'static str,
        /// Announced payload bytes.
        len: u32,
    },
    /// READY came once more than a writer may repeat it.
    #[error("READY came {count} times; expected START")]
    RepeatedReady {
        /// How many there were.
        count: u32,
    },
    /// The two sides have no content type in common.
    #[error("content type: the peer names {}, taken here are {}", Listed(peer), Listed(ours))]
    ContentTypeMismatch {
        /// What READY, ACCEPT or START named.
        peer: Vec<ContentType>,
        /// What could have been named.
        ours: Vec<ContentType>,
    },
    /// The reader spoke while it had nothing to say. A FINISH before STOP is one case: a reader that closes early.
    #[error("the reader spoke before STOP was sent to it")]
    UnexpectedBytes,
    /// A peer that connected to a writer sends a stream itself.
    #[error("the peer sends a stream itself: it is a writer, and who connects here is to read")]
    PeerIsWriter,
    /// The handshake was not complete in time.
    #[error("handshake not complete after {} s", after.as_secs_f64())]
    HandshakeTimeout {
        /// The time allowed.
        after: Duration,
    },
    /// FINISH did not come in time.
    #[error("no FINISH {} s after STOP", after.as_secs_f64())]
    FinishTimeout {
        /// The time allowed.
        after: Duration,
    },
    /// The reader closed the connection before STOP was sent.
    #[error("the reader closed the connection {during}")]
    ClosedByReader {
        /// In which phase: "in the handshake" or "before STOP".
        during: &'static str,
    },
    /// The reader closed the connection after STOP, without FINISH.
    #[error("the reader closed the connection without FINISH")]
    NotAcknowledged,
}

impl ProtocolError {
    /// A stable `snake_case` label, to count errors by: `frame_too_long`, `content_type`, `handshake_timeout`,
    /// `finish_timeout`, `closed_by_reader`, `not_acknowledged`, or `protocol_error` for everything that no
    /// correct peer sends.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::FrameTooLong { .. } => "frame_too_long",
            Self::ContentTypeMismatch { .. } => "content_type",
            Self::HandshakeTimeout { .. } => "handshake_timeout",
            Self::FinishTimeout { .. } => "finish_timeout",
            Self::ClosedByReader { .. } => "closed_by_reader",
            Self::NotAcknowledged => "not_acknowledged",
            Self::EmptyPayload
            | Self::EmptyBatch
            | Self::PartialFrame { .. }
            | Self::ControlInBatch { .. }
            | Self::ControlLength { .. }
            | Self::Control(_)
            | Self::UnexpectedControl { .. }
            | Self::UnexpectedData { .. }
            | Self::RepeatedReady { .. }
            | Self::UnexpectedBytes
            | Self::PeerIsWriter => "protocol_error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_was_wrong_and_what_would_be_right() {
        let cases: [(ProtocolError, &str); 5] = [
            (
                ProtocolError::FrameTooLong { len: 11, len_max: 10 },
                "data frame of 11 bytes exceeds the limit of 10",
            ),
            (
                ProtocolError::UnexpectedControl { expected: "READY", got: ControlType::Stop },
                "expected READY, got STOP",
            ),
            (
                ProtocolError::ContentTypeMismatch {
                    peer: vec!["a\n".parse().unwrap()],
                    ours: vec![ContentType::DNSTAP],
                },
                r#"content type: the peer names ["a\n"], taken here are ["protobuf:dnstap.Dnstap"]"#,
            ),
            (
                ProtocolError::HandshakeTimeout { after: Duration::from_millis(1500) },
                "handshake not complete after 1.5 s",
            ),
            (ControlError::UnknownType(6).into(), "control frame: unknown type 6"),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }
}
