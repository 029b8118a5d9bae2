//! What a delivery asks of whoever has the connections, and what it calls them.

/// One connection of a delivery, from the attempt to open it to its end. No number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId {
    /// Index of the member that it leads to.
    pub(crate) member: usize,
    pub(super) serial: u64,
}

/// What is to be done next. The answer comes as an event, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Open a connection: `handle_connected` or `handle_refused`.
    Connect(StreamId),
    /// Write what [`DeliveryMachine::buffers`](super::DeliveryMachine::buffers) gives, or go on with it: `handle_written`, for all of it or
    /// a part.
    Write(StreamId),
    /// End the write that is under way: `handle_written` with what it has written by now, which may be nothing.
    Interrupt(StreamId),
    /// Look how far the peer is: `handle_progress`, at once.
    Probe(StreamId),
    /// Send STOP, and wait for FINISH where the reader answers: `handle_finish`.
    Stop(StreamId),
    /// Close the connection, or give up to open it. No event of it is expected any more.
    Close(StreamId, CloseReason),
}

impl Action {
    /// The stream that is concerned.
    pub(super) fn stream(self) -> StreamId {
        match self {
            Self::Connect(stream)
            | Self::Write(stream)
            | Self::Interrupt(stream)
            | Self::Probe(stream)
            | Self::Stop(stream)
            | Self::Close(stream, _) => stream,
        }
    }
}

/// Why a delivery closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The connection has served its purpose, or has ended by itself.
    Ended,
    /// No connection within the time that is allowed for it.
    ConnectTimeout,
    /// FINISH did not come within its timeout.
    FinishTimeout,
    /// The reader took nothing for too long.
    Stalled,
    /// The output is over.
    Over,
}
