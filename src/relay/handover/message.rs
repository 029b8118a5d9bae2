//! What two processes say to each other while one takes over from the other.
//!
//! ```text
//!      ◄──────────────── Lent, where the program has something to lend
//! new: Hello ──────────────────────────────────► old
//!      ◄──── Offer, Listeners…, Passed…, Listed
//!      Accepting ────────────────────────────────►   (or Refused)
//!      ◄─────────────────────────── Connections
//!      Reading ──────────────────────────────────►   for each group of them
//!      ◄─ AllConnections, OutputFree…, Ended
//! ```
//!
//! A message is a version, a JSON text, and bytes that belong to it. Descriptors go beside it. A message of another version is
//! refused, and the old process goes on.

use std::net::SocketAddr;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use serde::Deserialize;
use serde::Serialize;

use crate::input::handing::HandedConnection;
use crate::observability::InputLedger;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::protocol::ContentType;
use crate::protocol::ReaderStage;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum Message {
    /// Descriptors of the program, one for each name.
    Lent { names: Vec<String> },
    /// The new process has a configuration without a fault, and its workers run.
    Hello,
    /// The new process does not take over.
    Refused { usage: bool, reason: String },
    /// What the old process has to give.
    Offer { connections: u64, listeners: u64, generation: u64, started_at: u64, ledger: Box<Ledger> },
    /// Listening sockets, one descriptor each.
    Listeners { listeners: Vec<HandedListener> },
    /// What the service manager has passed, one descriptor for each name, in its order.
    Passed { names: Vec<String> },
    /// There are no more listeners.
    Listed,
    /// The new process accepts connections.
    Accepting,
    /// Connections, one descriptor each.
    Connections { connections: Vec<ConnectionRecord> },
    /// The new process reads the connections of the last message.
    Reading,
    /// There are no more connections.
    AllConnections,
    /// The old process has let go of an output, with these counts.
    OutputFree { ledger: Box<OutputLedger> },
    /// In the descriptor store: listening sockets, by their cookies.
    StoredListeners { listeners: Vec<(u64, HandedListener)> },
    /// In the descriptor store: connections, by the cookies of their sockets, and the counts of the process that has ended.
    StoredConnections {
        connections: Vec<(u64, ConnectionRecord)>,
        generation: u64,
        started_at: u64,
        ledger: Box<Ledger>,
    },
    /// The old process ends. Its inputs have these counts.
    Ended { inputs: Vec<InputLedger> },
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandedListener {
    /// As it was configured.
    pub(crate) configured: String,
    /// With the port that the kernel chose.
    pub(crate) address: String,
    pub(crate) dual_stack: bool,
    /// Whether it is one of an output, for subscribers.
    #[serde(default)]
    pub(crate) of_output: bool,
}

/// A connection. The bytes that it had received are behind the text, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionRecord {
    input: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dial: Option<String>,
    peer: Option<SocketAddr>,
    stage: Stage,
    content_type: Option<Vec<u8>>,
    received: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Opening,
    Accepted { content_type: Option<Vec<u8>>, readies: u32 },
    Streaming { bidirectional: bool, skip: u64 },
}

/// Why a message was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the other process speaks version {0} of the hand-over, and this one version {VERSION}")]
    Version(u32),
    #[error("the other process sends what is no message")]
    NoMessage,
    #[error("the other process sends what is no message: {0}")]
    Text(String),
}

impl Message {
    /// The message as bytes, with bytes that belong to it.
    pub(crate) fn encode(&self, behind: &[Bytes]) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("names are text, and keys are names");
        let mut bytes = VERSION.to_be_bytes().to_vec();
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text);
        behind.iter().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// A message, and the bytes that belong to it.
    ///
    /// # Errors
    /// [`MessageError`].
    pub(crate) fn decode(bytes: Vec<u8>) -> Result<(Self, Bytes), MessageError> {
        let mut bytes = Bytes::from(bytes);
        let version = bytes.try_get_u32().map_err(|_| MessageError::NoMessage)?;
        if version != VERSION {
            return Err(MessageError::Version(version));
        }
        let len = bytes.try_get_u64().map_err(|_| MessageError::NoMessage)?;
        let len =
            usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(MessageError::NoMessage)?;
        let text = bytes.split_to(len);
        let message = serde_json::from_slice(&text).map_err(|error| MessageError::Text(error.to_string()))?;
        Ok((message, bytes))
    }
}

impl ConnectionRecord {
    pub(crate) fn of(connection: &HandedConnection) -> Self {
        let bytes = |content_type: &Option<ContentType>| {
            content_type.as_ref().map(|content_type| content_type.as_bytes().to_vec())
        };
        let stage = match &connection.stage {
            ReaderStage::Opening => Stage::Opening,
            ReaderStage::Accepted { content_type, readies } => {
                Stage::Accepted { content_type: bytes(content_type), readies: *readies }
            }
            ReaderStage::Streaming { bidirectional, skip } => {
                Stage::Streaming { bidirectional: *bidirectional, skip: *skip }
            }
        };
        Self {
            input: connection.input.clone(),
            dial: connection.dial.clone(),
            peer: connection.peer,
            stage,
            content_type: bytes(&connection.content_type),
            received: connection.received.len(),
        }
    }

    /// The connection, with its part of the bytes behind the text.
    ///
    /// # Errors
    /// A content type that is none; fewer bytes than the record says.
    pub(crate) fn take(self, behind: &mut Bytes) -> Result<HandedConnection, MessageError> {
        let content_type = |bytes: Option<Vec<u8>>| {
            let parse =
                |bytes: Vec<u8>| ContentType::try_from(&bytes[..]).map_err(|_| MessageError::NoMessage);
            bytes.map(parse).transpose()
        };
        let stage = match self.stage {
            Stage::Opening => ReaderStage::Opening,
            Stage::Accepted { content_type: accepted, readies } => {
                ReaderStage::Accepted { content_type: content_type(accepted)?, readies }
            }
            Stage::Streaming { bidirectional, skip } => ReaderStage::Streaming { bidirectional, skip },
        };
        if self.received > behind.len() {
            return Err(MessageError::NoMessage);
        }
        // Not the memory of the whole message.
        let received = BytesMut::from(&behind.split_to(self.received)[..]).freeze();
        let content_type = content_type(self.content_type)?;
        let Self { input, dial, peer, .. } = self;
        Ok(HandedConnection { input, dial, peer, stage, content_type, received })
    }
}

/// For fuzzers: takes a message with all that is in it, and encodes it again; `None` where it is refused.
#[doc(hidden)]
pub fn message_again(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (message, mut behind) = Message::decode(bytes).ok()?;
    let Message::Connections { connections } = message else { return Some(message.encode(&[])) };
    let taken = connections.into_iter().map(|record| record.take(&mut behind));
    let taken = taken.collect::<Result<Vec<_>, _>>().ok()?;
    let connections = taken.iter().map(ConnectionRecord::of).collect();
    let received: Vec<_> = taken.into_iter().map(|connection| connection.received).collect();
    Some(Message::Connections { connections }.encode(&received))
}

/// The version of these messages.
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(stage: ReaderStage, received: &'static [u8]) -> HandedConnection {
        let content_type = Some(ContentType::DNSTAP);
        let peer = Some("[2001:db8::1]:7".parse().unwrap());
        let received = Bytes::from_static(received);
        let dial = (received.is_empty()).then(|| "tcp://a:1".to_owned());
        HandedConnection { input: "a".to_owned(), dial, peer, stage, content_type, received }
    }

    #[test]
    fn connections_come_back_as_they_were() {
        let connections = [
            connection(ReaderStage::Opening, b"\0\0"),
            connection(ReaderStage::Accepted { content_type: None, readies: 2 }, b""),
            connection(ReaderStage::Streaming { bidirectional: true, skip: 9 }, b"\0\0\0\x05abc"),
        ];
        let records = connections.iter().map(ConnectionRecord::of).collect();
        let behind: Vec<_> = connections.iter().map(|connection| connection.received.clone()).collect();
        let bytes = Message::Connections { connections: records }.encode(&behind);
        let (Message::Connections { connections: records }, mut behind) = Message::decode(bytes).unwrap()
        else {
            panic!("another message");
        };
        let back: Vec<_> = records.into_iter().map(|record| record.take(&mut behind).unwrap()).collect();
        assert_eq!(back, connections);
        assert!(behind.is_empty());
    }

    #[test]
    fn what_is_no_message_of_this_version_is_refused() {
        let whole = Message::Accepting.encode(&[]);
        for len in 0..whole.len() {
            assert!(Message::decode(whole[..len].to_vec()).is_err(), "{len}");
        }
        let mut newer = whole.clone();
        newer[3] = 9;
        assert_eq!(Message::decode(newer), Err(MessageError::Version(9)));
        let record = ConnectionRecord::of(&connection(ReaderStage::Opening, b"abc"));
        assert_eq!(record.take(&mut Bytes::from_static(b"ab")), Err(MessageError::NoMessage));
    }
}
