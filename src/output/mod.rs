//! Ways out: connections that run Frame Streams writers, and files.

pub(crate) mod backlog;
pub(crate) mod backoff;
pub(crate) mod balance;
pub(crate) mod file;
pub(crate) mod frame_stream;
pub(crate) mod group;
pub(crate) mod rollover;
pub(crate) mod stall;
pub(crate) mod watch;
pub(crate) mod window;

use std::time::Duration;

pub use crate::output::balance::Balance;
use crate::protocol::ContentType;
use crate::queue::SpoolUse;
use crate::queue::WhenFull;
use crate::spool::OnFull;
use crate::transport::Address;

/// One output: where it writes and what happens when it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// Name in the ledger and in the log, unique among outputs.
    pub name: String,
    /// Where to write: `tcp`, `unix` or `file`; of a group the first member.
    pub to: Address,
    /// The members, where each frame goes to one of several addresses.
    pub group: Option<GroupConfig>,
    /// What happens to data that finds the queue full. With a spool its [`OnFull`] says that.
    pub when_full: WhenFull,
    /// Room of the queue in bytes, for each lane. Of a lane with a spool half of it is before the spool, and half behind.
    pub queue: usize,
    /// What is put on disk; sockets with one connection, or groups of them, only.
    pub spool: Option<SpoolUse>,
    /// How many connections.
    pub connections: Connections,
    /// With or without READY, ACCEPT and FINISH; sockets only.
    pub mode: Mode,
    /// The content type that this output writes; streams of other types do not go there. Empty: streams without a
    /// type.
    pub content_type: ContentType,
    /// Longer data frames (payload bytes) are dropped, reason `frame_too_long`.
    pub frame_len_max: u32,
    /// From connect to ACCEPT.
    pub handshake_timeout: Duration,
    /// From STOP to FINISH.
    pub finish_timeout: Duration,
    /// What must have happened to a frame before the output lets go of it; sockets only.
    pub ack: Ack,
    /// Bytes before the acknowledged position that are sent again after a break, for what a dead reader had not read;
    /// [`Ack::Received`] over TCP without a checkpoint only.
    pub replay_margin: usize,
    /// When to have the frames sent so far acknowledged by FINISH, if at all: with it frames are held until FINISH,
    /// whatever `ack` says; bidirectional sockets only.
    pub checkpoint: Option<Checkpoint>,
    /// What a checkpoint does to the order of frames.
    pub order: Order,
    /// Pause between attempts to connect.
    pub reconnect: Reconnect,
    /// When a file output begins a new file.
    pub rotate: Rotate,
}

/// A group: several addresses, each frame to one of them. Sockets only, one connection each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// At least two, with different addresses.
    pub members: Vec<Member>,
    /// Which frame goes to which member.
    pub balance: Balance,
    /// A member that has something to take, and takes nothing for so long, is given up: others get it.
    pub stall_timeout: Duration,
    /// How long the share of a member that returns grows until it is the full one.
    pub slow_start: Duration,
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `tcp` or `unix`.
    pub address: Address,
    /// Its share, relative to those of the others; at least 1.
    pub weight: u32,
}

impl GroupConfig {
    /// A group of equals.
    pub fn new(members: impl IntoIterator<Item = Address>) -> Self {
        Self {
            members: members.into_iter().map(|address| Member { address, weight: 1 }).collect(),
            balance: Balance::default(),
            stall_timeout: Duration::from_millis(750),
            slow_start: Duration::from_secs(10),
        }
    }
}

/// How many connections an output keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connections {
    /// One, fed by every worker.
    #[default]
    One,
    /// One on every worker: batches never change core.
    PerWorker,
}

/// With or without the answers of a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// READY, ACCEPT, START, data, STOP, FINISH.
    #[default]
    Bidirectional,
    /// START, data, STOP.
    Unidirectional,
}

/// When a frame has been delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Once it is written to the socket. What its buffers held is lost with a connection that breaks.
    #[default]
    Written,
    /// Once the reader's kernel has it (TCP), or the reader itself has read it (unix). Until then it stays in the queue, to
    /// be sent again if the connection breaks.
    Received,
}

/// When a stream is ended, to have its FINISH, and the next begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// So long after the stream has begun.
    Every(Duration),
    /// Once its frames take so many bytes of the queue.
    Bytes(usize),
}

/// In which order a reader gets the frames around a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In order on each connection. The next stream flows while FINISH of the last is awaited: a reader may take its
    /// first frames before the last ones of the other.
    #[default]
    PerConnection,
    /// In order altogether: nothing is written between STOP and FINISH.
    Strict,
}

/// Doubling, jittered pause between attempts to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// First pause.
    pub min: Duration,
    /// Longest pause.
    pub max: Duration,
}

/// When a file output begins a new file; both `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotate {
    /// Once the file has this many bytes.
    pub size: Option<u64>,
    /// Once the file is this old.
    pub every: Option<Duration>,
}

impl OutputConfig {
    /// Every address that it writes to.
    pub fn addresses(&self) -> Vec<&Address> {
        match &self.group {
            Some(group) => group.members.iter().map(|member| &member.address).collect(),
            None => vec![&self.to],
        }
    }

    /// The addresses, separated by commas.
    pub fn addresses_text(&self) -> String {
        self.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// What happens to data that finds no room, in memory or on disk.
    pub(crate) fn policy(&self) -> WhenFull {
        match self.spool.as_ref().map(|spool| spool.config.on_full) {
            None => self.when_full,
            Some(OnFull::DropOldest) => WhenFull::DropOldest,
            Some(OnFull::DropNewest) => WhenFull::DropNewest,
            Some(OnFull::Block) => WhenFull::Block,
        }
    }

    /// The part of the queue that its lane empties.
    pub(crate) fn lane_queue(&self) -> usize {
        if self.spool.is_some() { self.queue / 2 } else { self.queue }
    }

    /// Whether frames are kept until they are acknowledged.
    pub(crate) fn keeps_unacknowledged(&self) -> bool {
        self.checkpoint.is_some() || self.ack == Ack::Received
    }

    /// The content type of START; `None` where it is configured as the empty one.
    pub(crate) fn stream_type(&self) -> Option<ContentType> {
        (!self.content_type.as_bytes().is_empty()).then(|| self.content_type.clone())
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            name: "output".to_owned(),
            to: Address::File("tapster-%Y%m%dT%H%M%S.fstrm".to_owned()),
            group: None,
            when_full: WhenFull::DropOldest,
            queue: 64 << 20,
            spool: None,
            connections: Connections::One,
            mode: Mode::Bidirectional,
            content_type: ContentType::DNSTAP,
            frame_len_max: 1 << 20,
            handshake_timeout: Duration::from_secs(5),
            finish_timeout: Duration::from_secs(5),
            ack: Ack::Written,
            replay_margin: 0,
            checkpoint: None,
            order: Order::PerConnection,
            reconnect: Reconnect { min: Duration::from_millis(100), max: Duration::from_secs(30) },
            rotate: Rotate::default(),
        }
    }
}
