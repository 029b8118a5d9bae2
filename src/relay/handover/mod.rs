//! A new process takes over from an old one: listeners, open connections, outputs one after the other, and the ledger.
//!
//! The old process goes on until the new one reads. Whatever fails before that leaves everything where it was. No byte is
//! read by both: the old process stops reading a connection, offers it, and lets go of it when the new one has it.

mod leave;
pub(crate) mod message;
mod new;
mod old;
pub(crate) mod store;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;

use crate::relay::handover::message::Message;
use crate::relay::handover::message::MessageError;
#[doc(hidden)]
pub use crate::relay::handover::message::message_again;
pub(crate) use crate::relay::handover::new::Adoption;
pub(crate) use crate::relay::handover::new::Estate;
pub use crate::relay::handover::new::Predecessor;
pub(crate) use crate::relay::handover::new::TakingOver;
use crate::transport::passing::Passing;

/// Why a new process has not taken over. The old one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The new process found faults in its configuration, or refuses for another reason.
    #[error("the new process does not take over: {reason}")]
    Refused {
        /// Whether its command line or its configuration is at fault.
        usage: bool,
        /// What it says.
        reason: String,
    },
    /// The new process has ended, or does not answer.
    #[error("the new process did not take over: {0}")]
    Failed(#[from] io::Error),
    /// The other process does not speak as this one does.
    #[error("{0}")]
    Message(String),
}

impl From<MessageError> for HandoverError {
    fn from(error: MessageError) -> Self {
        Self::Message(error.to_string())
    }
}

/// The process that is to take over, as the old one sees it.
#[derive(Debug)]
pub struct Successor {
    passing: Passing,
}

impl Successor {
    /// A successor that has not begun, and the descriptor that it is to inherit.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (passing, inherited) = Passing::pair()?;
        Ok((Self { passing }, inherited))
    }

    /// Gives the new process descriptors of the program, each with a name, for [`Predecessor::lent`]: at most 200 of them, once, and before
    /// the relay is handed over. Both processes have them then.
    ///
    /// # Errors
    /// There are too many, or no descriptor is left.
    pub fn lend(&self, descriptors: &[(String, BorrowedFd<'_>)]) -> Result<(), HandoverError> {
        let names = descriptors.iter().map(|(name, _)| name.clone()).collect();
        let descriptors: Vec<_> = descriptors.iter().map(|(_, fd)| *fd).collect();
        say_with(&self.passing, &Message::Lent { names }, &[], &descriptors)
    }
}

/// A message from the other process.
struct Heard {
    message: Message,
    behind: Bytes,
    descriptors: Vec<OwnedFd>,
}

fn say(passing: &Passing, message: &Message) -> Result<(), HandoverError> {
    say_with(passing, message, &[], &[])
}

fn say_with(
    passing: &Passing,
    message: &Message,
    behind: &[Bytes],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    Ok(passing.send(&message.encode(behind), descriptors, ANSWER_TIME)?)
}

/// The next message, within this time.
fn hear(passing: &Passing, time: Duration) -> Result<Heard, HandoverError> {
    let passed = match passing.receive(time) {
        Ok(Some(passed)) => passed,
        Ok(None) => return Err(gone().into()),
        // With something in its socket that it has not read.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(gone().into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let late = format!("it did not answer within {time:.1?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, late).into());
        }
        Err(error) => return Err(error.into()),
    };
    let (message, behind) = Message::decode(passed.body)?;
    if let Message::Refused { usage, reason } = message {
        return Err(HandoverError::Refused { usage, reason });
    }
    Ok(Heard { message, behind, descriptors: passed.descriptors })
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended, or has closed its end")
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Message(format!("the other process says what was not expected: {message:?}"))
}

/// The new process has so long until it accepts connections; what comes then takes 3 s more.
const BEGIN_TIME: Duration = Duration::from_secs(11);
/// The other process has so long for anything else.
const ANSWER_TIME: Duration = Duration::from_secs(5);
