//! What can be wrong with a writer session.

use std::fmt;
use std::io;

use crate::loops::LedBack;
use crate::protocol::ProtocolError;

/// Why a writer session ended, or did not begin.
#[derive(Debug)]
pub(crate) enum WriteFault {
    /// No connection.
    Connect(io::Error),
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
