//! Settings of an output: enums that carry what belongs together, so that most impossible combinations cannot be written.
//! [`OutputConfig::validate`] finds the others.

use std::fmt;

use crate::output::config_error::ConfigError;
use crate::output::file_config::FileConfig;
use crate::output::streams::Endpoints;
use crate::output::streams::StreamsConfig;
use crate::output::subscribers::SubscribersConfig;
use crate::protocol::ContentType;
use crate::queue::WhenFull;
use crate::spool::OnFull;
use crate::spool::SpoolSettings;
use crate::transport::Address;

/// One output: which frames it takes, where they wait, and where they go.
///
/// ```
/// use tapster::output::Buffer;
/// use tapster::output::Destination;
/// use tapster::output::Endpoints;
/// use tapster::output::Lanes;
/// use tapster::output::OutputConfig;
/// use tapster::output::StreamsConfig;
/// use tapster::queue::WhenFull;
///
/// let output = OutputConfig {
///     name: "siem".to_owned(),
///     buffer: Buffer::Memory { max: 256 << 20, when_full: WhenFull::Block, lanes: Lanes::One },
///     to: Destination::Streams(StreamsConfig::new(Endpoints::One("tcp://siem.example:6000".parse()?))),
///     ..OutputConfig::default()
/// };
/// output.validate()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// Name in the ledger and in the log, unique among outputs.
    pub name: String,
    /// The content type that this output writes; streams of other types do not go there. Empty: streams without a
    /// type.
    pub content_type: ContentType,
    /// Longer data frames (payload bytes) are dropped, reason `frame_too_long`.
    pub frame_len_max: u32,
    /// Where frames wait.
    pub buffer: Buffer,
    /// Where frames go.
    pub to: Destination,
}

/// Where the frames of an output wait, and what happens to frames that find no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// In memory alone.
    Memory {
        /// Room in bytes, for each lane.
        max: usize,
        /// What happens to frames that find no room.
        when_full: WhenFull,
        /// How many connections the output keeps.
        lanes: Lanes,
    },
    /// In memory. Frames that memory has no room for go to disk, and so do all that follow, until the reader has caught
    /// up.
    Spill {
        /// Room in memory in bytes: half of it before the spool, half behind.
        memory: usize,
        /// The disk.
        spool: SpoolSettings,
    },
    /// On disk, before they are sent: frames that were taken survive a kill.
    Disk {
        /// Room in memory in bytes: half of it before the spool, half behind.
        memory: usize,
        /// The disk.
        spool: SpoolSettings,
    },
}

/// How many connections an output keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lanes {
    /// One, fed by every worker. A file has one writer; each member of a group has one connection.
    #[default]
    One,
    /// One on every worker: batches never change core.
    PerWorker,
}

/// Where the frames of an output go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Into Frame Streams files.
    File(FileConfig),
    /// Over connections, to readers of Frame Streams.
    Streams(StreamsConfig),
    /// Over connections that readers of Frame Streams open.
    Subscribers(SubscribersConfig),
}

impl OutputConfig {
    /// Looks for what the types allow and no output can be.
    ///
    /// # Errors
    /// The first [`ConfigError`] that is found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.faults().into_iter().next().map_or(Ok(()), Err)
    }

    /// Everything that [`OutputConfig::validate`] looks for.
    pub(crate) fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        let longest = u64::from(self.frame_len_max) + LENGTH_WORD;
        if let Some(spool) = self.buffer.spool() {
            let batch_len_max = (self.buffer.memory() as u64 / 8).min(BATCH_LEN_MAX).max(longest);
            faults.extend(spool.config.validate(batch_len_max).err().map(ConfigError::Spool));
        }
        let per_worker = self.buffer.lanes() == Lanes::PerWorker;
        match &self.to {
            Destination::File(file) => {
                faults.extend(file.faults());
                if self.buffer.spool().is_some() {
                    faults.push(ConfigError::SpoolBeforeFile);
                }
                if per_worker {
                    faults.push(ConfigError::LanesOfFile);
                }
            }
            Destination::Streams(streams) => {
                faults.extend(streams.faults());
                if per_worker && matches!(streams.endpoints, Endpoints::Group(_)) {
                    faults.push(ConfigError::LanesOfGroup);
                }
            }
            Destination::Subscribers(subscribers) => {
                faults.extend(subscribers.faults());
                if self.buffer.spool().is_some() {
                    faults.push(ConfigError::SpoolOfSubscribers);
                } else if self.buffer.policy() == WhenFull::Block {
                    faults.push(ConfigError::SubscribersBlock);
                }
                if per_worker {
                    faults.push(ConfigError::LanesOfSubscribers);
                }
            }
        }
        faults
    }

    /// The addresses that it connects to; none for files and subscribers.
    pub fn addresses(&self) -> Vec<&Address> {
        match &self.to {
            Destination::File(_) | Destination::Subscribers(_) => Vec::new(),
            Destination::Streams(streams) => streams.endpoints.addresses().collect(),
        }
    }

    /// The addresses that it listens at, for subscribers.
    pub fn listen(&self) -> &[Address] {
        match &self.to {
            Destination::File(_) | Destination::Streams(_) => &[],
            Destination::Subscribers(subscribers) => &subscribers.listen,
        }
    }

    /// The content type of START; `None` where it is configured as the empty one.
    pub fn stream_type(&self) -> Option<ContentType> {
        (!self.content_type.as_bytes().is_empty()).then(|| self.content_type.clone())
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            name: "output".to_owned(),
            content_type: ContentType::DNSTAP,
            frame_len_max: 1 << 20,
            buffer: Buffer::default(),
            to: Destination::File(FileConfig::new(FileConfig::PATTERN)),
        }
    }
}

impl Buffer {
    /// Room in memory in bytes, for each lane.
    pub fn memory(&self) -> usize {
        match self {
            Self::Memory { max, .. } => *max,
            Self::Spill { memory, .. } | Self::Disk { memory, .. } => *memory,
        }
    }

    /// The part of memory that the lane empties.
    pub(crate) fn lane_queue(&self) -> usize {
        match self {
            Self::Memory { max, .. } => *max,
            Self::Spill { memory, .. } | Self::Disk { memory, .. } => memory / 2,
        }
    }

    /// The disk, where there is one.
    pub fn spool(&self) -> Option<&SpoolSettings> {
        match self {
            Self::Memory { .. } => None,
            Self::Spill { spool, .. } | Self::Disk { spool, .. } => Some(spool),
        }
    }

    /// How many connections the output keeps. A spool has one writer, and its frames one connection.
    pub fn lanes(&self) -> Lanes {
        match self {
            Self::Memory { lanes, .. } => *lanes,
            Self::Spill { .. } | Self::Disk { .. } => Lanes::One,
        }
    }

    /// What happens to frames that find no room, in memory or on disk.
    pub(crate) fn policy(&self) -> WhenFull {
        match self {
            Self::Memory { when_full, .. } => *when_full,
            Self::Spill { spool, .. } | Self::Disk { spool, .. } => match spool.config.on_full {
                OnFull::DropOldest => WhenFull::DropOldest,
                OnFull::DropNewest => WhenFull::DropNewest,
                OnFull::Block => WhenFull::Block,
            },
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::Memory { max: 64 << 20, when_full: WhenFull::default(), lanes: Lanes::One }
    }
}

impl fmt::Display for Destination {
    /// As it is written in a configuration; the members of a group are separated by commas, and so are several addresses to listen
    /// at.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = match self {
            Self::File(file) => return write!(f, "{file}"),
            Self::Streams(streams) => streams.endpoints.addresses().collect(),
            Self::Subscribers(subscribers) => subscribers.listen.iter().collect(),
        };
        for (index, address) in addresses.into_iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

/// The length word before every data frame, in bytes.
const LENGTH_WORD: u64 = 4;
/// As long as batches are, in bytes, unless one frame is longer: the share of the queue that one write may have.
const BATCH_LEN_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::delivery::balance::Balance;
    use crate::delivery::config::Reconnect;
    use crate::output::file_config::Keep;
    use crate::output::streams::Ack;
    use crate::output::streams::Delivery;
    use crate::output::streams::GroupConfig;
    use crate::output::streams::Mode;
    use crate::spool::SpoolConfig;

    fn group(addresses: &[&str]) -> GroupConfig {
        GroupConfig::new(addresses.iter().map(|address| address.parse().unwrap()))
    }

    fn to(streams: StreamsConfig) -> OutputConfig {
        OutputConfig { to: Destination::Streams(streams), ..OutputConfig::default() }
    }

    fn to_one(address: &str) -> StreamsConfig {
        StreamsConfig::new(Endpoints::One(address.parse().unwrap()))
    }

    fn disk(max: u64) -> Buffer {
        let config = SpoolConfig { max, ..SpoolConfig::default() };
        Buffer::Disk { memory: 64 << 20, spool: SpoolSettings { folder: "/s".into(), config } }
    }

    const PER_WORKER: Buffer =
        Buffer::Memory { max: 64 << 20, when_full: WhenFull::Block, lanes: Lanes::PerWorker };

    fn listening(addresses: &[&str]) -> OutputConfig {
        let listen = addresses.iter().map(|address| address.parse().unwrap()).collect();
        OutputConfig {
            to: Destination::Subscribers(SubscribersConfig::new(listen)),
            ..OutputConfig::default()
        }
    }

    fn buffer(when_full: WhenFull, lanes: Lanes) -> Buffer {
        Buffer::Memory { max: 64 << 20, when_full, lanes }
    }

    #[test]
    fn what_can_be_is_let_through() {
        for output in [
            OutputConfig::default(),
            listening(&["tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "unix:/a"]),
            OutputConfig { buffer: PER_WORKER, ..to(to_one("tcp://a:1")) },
            OutputConfig { buffer: disk(1 << 30), ..to(group(&["tcp://a:1", "unix:/b"]).into()) },
        ] {
            assert_eq!(output.validate(), Ok(()), "{output:?}");
        }
    }

    #[test]
    fn groups_have_members_that_differ_and_each_its_share() {
        let fault = |group: GroupConfig| to(group.into()).validate().unwrap_err();
        assert_eq!(fault(group(&[])), ConfigError::GroupOfNone);
        assert_eq!(fault(group(&["unix:/a"])), ConfigError::GroupOfOne { to: "unix:/a".to_owned() });
        let twice = fault(group(&["tcp://a:1", "tcp://b:1", "tcp://a:1"]));
        assert_eq!(twice, ConfigError::MemberTwice("tcp://a:1".parse().unwrap()));
        let many: Vec<String> = (1..=65).map(|port| format!("tcp://a:{port}")).collect();
        let many = group(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(fault(many), ConfigError::GroupTooLarge { members: 65, members_max: 64 });
        let mut idle = GroupConfig { balance: Balance::Sticky, ..group(&["tcp://a:1", "tcp://b:1"]) };
        idle.members[1].weight = 0;
        assert_eq!(fault(idle), ConfigError::MemberWithoutShare("tcp://b:1".parse().unwrap()));
    }

    #[test]
    fn what_the_types_allow_and_no_output_can_be_is_refused_with_its_key() {
        let (min, max) = (Duration::from_secs(2), Duration::from_secs(1));
        let margin = Delivery::Acked(Ack::Received { margin: 1 });
        let kept = Mode::Bidirectional { finish_timeout: max, delivery: margin };
        let file = |pattern: &str| OutputConfig {
            to: Destination::File(FileConfig::new(pattern)),
            ..OutputConfig::default()
        };
        let keeping = |pattern: &str, keep| OutputConfig {
            to: Destination::File(FileConfig { keep: Some(keep), ..FileConfig::new(pattern) }),
            ..OutputConfig::default()
        };
        let small = OutputConfig { buffer: disk(1 << 20), ..to(to_one("tcp://a:1")) };
        for (output, key) in [
            (OutputConfig { buffer: PER_WORKER, ..OutputConfig::default() }, "connections"),
            (OutputConfig { buffer: PER_WORKER, ..to(group(&["unix:/a", "unix:/b"]).into()) }, "connections"),
            (OutputConfig { buffer: disk(1 << 30), ..OutputConfig::default() }, "spool"),
            (small, "spool"),
            (to(StreamsConfig { mode: kept, ..to_one("unix:/a") }), "replay_margin"),
            (to(StreamsConfig { mode: kept, ..group(&["tcp://a:1", "unix:/b"]).into() }), "replay_margin"),
            (to(StreamsConfig { reconnect: Reconnect { min, max }, ..to_one("unix:/a") }), "reconnect.min"),
            (listening(&[]), "listen"),
            (listening(&["unix:/a", "tcp://a:1", "unix:/a"]), "listen"),
            (OutputConfig { buffer: disk(1 << 30), ..listening(&["unix:/a"]) }, "spool"),
            (
                OutputConfig { buffer: buffer(WhenFull::Block, Lanes::One), ..listening(&["unix:/a"]) },
                "when_full",
            ),
            (
                OutputConfig {
                    buffer: buffer(WhenFull::Sample, Lanes::PerWorker),
                    ..listening(&["unix:/a"])
                },
                "connections",
            ),
            (file("100%"), "to"),
            (file("a/"), "to"),
            (keeping("a", Keep::Files(0)), "keep"),
            (keeping("%Z", Keep::Files(1)), "keep"),
        ] {
            assert_eq!(output.validate().unwrap_err().key(), key, "{output:?}");
        }
    }
}
