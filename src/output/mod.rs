//! Ways out: connections that run Frame Streams writers, and files.

pub(crate) mod backlog;
pub(crate) mod backoff;
pub(crate) mod file;
pub(crate) mod frame_stream;
pub(crate) mod rollover;
pub(crate) mod watch;
pub(crate) mod window;

use std::time::Duration;

use crate::protocol::ContentType;
use crate::queue::WhenFull;
use crate::transport::Address;

/// One output: where it writes and what happens when it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// Name in the ledger and in the log, unique among outputs.
    pub name: String,
    /// Where to write: `tcp`, `unix` or `file`.
    pub to: Address,
    /// What happens to data that finds the queue full.
    pub when_full: WhenFull,
    /// Room of the queue in bytes, for each lane.
    pub queue: usize,
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
            when_full: WhenFull::DropOldest,
            queue: 64 << 20,
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
