//! Why a writer session does not begin, or ends.

use std::fmt;
use std::io;

use crate::loops::LedBack;
use crate::protocol::ProtocolError;
use crate::transport::tls::explain::explain_io;

/// Why a writer session ended, or did not begin.
#[derive(Debug)]
pub(crate) enum WriteFault {
    /// No connection.
    Connect(io::Error),
    /// The TLS handshake came to nothing.
    Tls(String),
    /// The reader speaks TLS, and the address does not say so.
    ReaderSpeaksTls,
    /// The reader has closed the connection before ACCEPT, over TLS.
    ClosedBeforeAccept,
    /// The connection leads to an input of this relay, which has this name.
    OwnInput(String),
    /// The same, through other relays.
    Loop(LedBack),
    /// The reader broke the protocol, was too slow, or closed.
    Protocol(ProtocolError),
    /// The peer of a connection that we accepted is none that reads Frame Streams. In words.
    Stranger(&'static str),
    /// The connection broke.
    Connection(io::Error),
}

impl fmt::Display for WriteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Tls(words) => write!(f, "no TLS handshake: {words}"),
            Self::ReaderSpeaksTls => {
                write!(f, "the reader speaks TLS: write tls:// in place of tcp:// in the address")
            }
            Self::ClosedBeforeAccept => write!(
                f,
                "the reader closed the connection behind the TLS handshake and before ACCEPT: it does not let us in, most likely \
                 because of our certificate (TLS 1.3 tells no earlier); see tls.cert and tls.key, and the log of the reader"
            ),
            Self::OwnInput(input) => write!(
                f,
                "this address leads to input `{input}` of this same tapster, so that every frame would go round without end; \
                 no frame is written there; change the address of the output"
            ),
            Self::Loop(led_back) => write!(f, "{led_back}"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::Stranger(words) => write!(f, "{words}"),
            // The peer's host is gone: the error says that, in words of its own.
            Self::Connection(error) if error.kind() == io::ErrorKind::TimedOut => write!(f, "{error}"),
            Self::Connection(error) => write!(f, "the connection broke: {error}"),
        }
    }
}

impl WriteFault {
    /// What a fault of the handshake means over TLS: a server tells whether it takes our certificate behind its own handshake.
    pub(super) fn over_tls(self) -> Self {
        match self {
            Self::Protocol(ProtocolError::ClosedByReader { .. }) => Self::ClosedBeforeAccept,
            Self::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::ClosedBeforeAccept
            }
            Self::Connection(error) => match explain_io(&error) {
                Some(words) => Self::Tls(words),
                None if error.kind() == io::ErrorKind::ConnectionReset => Self::ClosedBeforeAccept,
                None => Self::Connection(error),
            },
            other => other,
        }
    }
}
