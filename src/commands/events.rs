//! What the thread that controls the relay waits for.

use std::thread;

use tapster::admin::Opened;
use tapster::admin::Refusal;
use tapster::admin::Wish;
use tapster::relay::Relay;

use crate::commands::CommandError;
use crate::commands::reloading::Prepared;

/// Something that happened, or that somebody asks for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The relay has begun, or cannot; the outer error is a panic.
    Started(thread::Result<Result<Begun, CommandError>>),
    /// A signal of this name asks for the end.
    End(&'static str),
    /// A signal of this name asks for new output files.
    Reopen(&'static str),
    /// A signal of this name asks for the configuration to be read again, and for new output files.
    Reload(&'static str),
    /// A signal of this name asks for a new process in place of this one.
    Upgrade(&'static str),
    /// Somebody asks on an admin address.
    Wish(Wish),
    /// The configuration was read again, and can be taken or not.
    Prepared(Box<Result<Prepared, Refusal>>),
}

/// A relay that has begun, and the admin addresses, where nobody answers yet.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) relay: Box<Relay>,
    pub(crate) opened: Opened,
}
