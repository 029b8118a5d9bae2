//! What the task behind one connection is told of its output.

use std::time::Duration;

use crate::output::config::Buffer;
use crate::output::streams::Endpoints;
use crate::output::streams::StreamsConfig;
use crate::protocol::ContentType;
use crate::queue::WhenFull;
use crate::transport::Address;

/// One connection of an output: the reader that it leads to, and what holds for every connection of that output.
#[derive(Clone, Debug)]
pub(crate) struct LaneConfig {
    /// The output's, for the log.
    pub(crate) name: String,
    pub(crate) to: Address,
    /// The content type of START.
    pub(crate) content_type: Option<ContentType>,
    pub(crate) buffer: Buffer,
    pub(crate) streams: StreamsConfig,
}

impl LaneConfig {
    /// Bytes of memory that are this connection's part.
    pub(crate) fn memory(&self) -> usize {
        self.buffer.memory() / self.streams.endpoints.addresses().count()
    }

    /// Whether nothing may be lost that this connection could deliver: its queue blocks, and no spool keeps the frames.
    pub(crate) fn must_deliver(&self) -> bool {
        matches!(self.buffer, Buffer::Memory { when_full: WhenFull::Block, .. })
    }

    /// How long a member of a group may take nothing; `None` for a reader that gets every frame.
    pub(crate) fn stall_timeout(&self) -> Option<Duration> {
        match &self.streams.endpoints {
            Endpoints::One(_) => None,
            Endpoints::Group(group) => Some(group.stall_timeout),
        }
    }
}
