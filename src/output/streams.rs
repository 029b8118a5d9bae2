//! Settings of an output over connections: who reads, and when a frame has been delivered.

use std::time::Duration;

use crate::delivery::balance::Balance;
use crate::delivery::config::Checkpoint;
use crate::delivery::config::Order;
use crate::delivery::config::Reconnect;
use crate::output::config_error::ConfigError;
use crate::transport::Address;
use crate::transport::ProxyVersion;
use crate::transport::tls::ClientTls;

/// Connections to one reader, or to the readers of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamsConfig {
    /// Who reads.
    pub endpoints: Endpoints,
    /// Which handshake, and when a frame has been delivered.
    pub mode: Mode,
    /// From connect to ACCEPT.
    pub handshake_timeout: Duration,
    /// How long written bytes may stay unacknowledged by the kernel of a TCP peer before the connection is given up.
    pub user_timeout: Duration,
    /// How `tls` addresses are spoken to.
    pub tls: ClientTls,
    /// The PROXY header that every connection begins with; `None`: none.
    pub send_proxy: Option<ProxyVersion>,
    /// Pause between attempts to connect.
    pub reconnect: Reconnect,
}

/// Who reads the streams of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// One reader gets every frame.
    One(Address),
    /// Each frame goes to one of several readers.
    Group(GroupConfig),
}

/// A group: several addresses, each frame to one of them, one connection to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Two to [`GroupConfig::MEMBERS_MAX`], with different addresses.
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
    /// Where its reader listens.
    pub address: Address,
    /// Its share, relative to those of the others; at least 1.
    pub weight: u32,
}

/// With or without the answers of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// READY, ACCEPT, START, data, STOP, FINISH.
    Bidirectional {
        /// From STOP to FINISH.
        finish_timeout: Duration,
        /// When a frame has been delivered.
        delivery: Delivery,
    },
    /// START, data, STOP.
    Unidirectional {
        /// From STOP until everything has arrived, where that is waited for.
        finish_timeout: Duration,
        /// When a frame has been delivered.
        ack: Ack,
    },
}

/// When a frame has been delivered to a reader that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Without help of the reader.
    Acked(Ack),
    /// With the FINISH of its stream. Until then it stays in the queue, to be sent again if FINISH does not come.
    Finish {
        /// When a stream is ended, to have its FINISH, and the next begun.
        every: Checkpoint,
        /// What a checkpoint does to the order of frames.
        order: Order,
    },
}

/// When a frame has been delivered, seen without help of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Once it is written to the socket. What its buffers held is lost with a connection that breaks.
    Written,
    /// Once the reader's kernel has it (TCP), or the reader itself has read it (unix). Until then it stays in the queue, to
    /// be sent again if the connection breaks.
    Received {
        /// Bytes before the acknowledged position that are sent again after a break, for what a dead reader had not read;
        /// 0 for unix sockets, which tell what their reader has read.
        margin: usize,
    },
}

impl StreamsConfig {
    /// Bidirectional streams whose frames are delivered when they are written.
    pub fn new(endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            mode: Mode::default(),
            handshake_timeout: Duration::from_secs(5),
            user_timeout: Duration::from_secs(30),
            tls: ClientTls::default(),
            send_proxy: None,
            reconnect: Reconnect::default(),
        }
    }

    pub(super) fn faults(&self) -> Vec<ConfigError> {
        let mut faults = match &self.endpoints {
            Endpoints::One(_) => Vec::new(),
            Endpoints::Group(group) => group.faults(),
        };
        let unix = self.endpoints.addresses().any(|address| matches!(address, Address::Unix(_)));
        if unix && self.mode.margin().is_some_and(|margin| margin > 0) {
            faults.push(ConfigError::MarginOfUnix);
        }
        faults.extend(reconnect_fault(self.reconnect));
        faults
    }
}

impl From<Address> for StreamsConfig {
    fn from(address: Address) -> Self {
        Self::new(Endpoints::One(address))
    }
}

impl From<GroupConfig> for StreamsConfig {
    fn from(group: GroupConfig) -> Self {
        Self::new(Endpoints::Group(group))
    }
}

impl Endpoints {
    /// The address of every reader.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        let (one, members) = match self {
            Self::One(address) => (Some(address), &[][..]),
            Self::Group(group) => (None, &group.members[..]),
        };
        one.into_iter().chain(members.iter().map(|member| &member.address))
    }
}

impl GroupConfig {
    /// So that each member has a part of the queue worth speaking of.
    pub const MEMBERS_MAX: usize = 64;

    /// A group of equals.
    pub fn new(members: impl IntoIterator<Item = Address>) -> Self {
        Self {
            members: members.into_iter().map(|address| Member { address, weight: 1 }).collect(),
            balance: Balance::default(),
            stall_timeout: Duration::from_millis(750),
            slow_start: Duration::from_secs(10),
        }
    }

    fn faults(&self) -> Vec<ConfigError> {
        match &self.members[..] {
            [] => return vec![ConfigError::GroupOfNone],
            [one] => return vec![ConfigError::GroupOfOne { to: one.address.to_string() }],
            _ => {}
        }
        let mut faults = Vec::new();
        let members = self.members.len();
        if members > Self::MEMBERS_MAX {
            faults.push(ConfigError::GroupTooLarge { members, members_max: Self::MEMBERS_MAX });
        }
        let twice = |(index, member): &(usize, &Member)| {
            self.members.iter().take(*index).any(|seen| seen.address == member.address)
        };
        if let Some((_, member)) = self.members.iter().enumerate().find(twice) {
            faults.push(ConfigError::MemberTwice(member.address.clone()));
        }
        if let Some(member) = self.members.iter().find(|member| member.weight == 0) {
            faults.push(ConfigError::MemberWithoutShare(member.address.clone()));
        }
        faults
    }
}

impl Mode {
    /// Whether READY, ACCEPT and FINISH are exchanged.
    pub fn is_bidirectional(self) -> bool {
        matches!(self, Self::Bidirectional { .. })
    }

    /// How long the end of a stream is waited for.
    pub fn finish_timeout(self) -> Duration {
        match self {
            Self::Bidirectional { finish_timeout, .. } | Self::Unidirectional { finish_timeout, .. } => {
                finish_timeout
            }
        }
    }

    /// Bytes before the acknowledged position that are kept; `None` where frames are not kept until they have arrived.
    pub(crate) fn margin(self) -> Option<usize> {
        match self {
            Self::Bidirectional { delivery: Delivery::Acked(ack), .. } | Self::Unidirectional { ack, .. } => {
                match ack {
                    Ack::Written => None,
                    Ack::Received { margin } => Some(margin),
                }
            }
            Self::Bidirectional { delivery: Delivery::Finish { .. }, .. } => None,
        }
    }

    /// When to have frames acknowledged by FINISH; `None` where another thing acknowledges them.
    pub(crate) fn checkpoint(self) -> Option<Checkpoint> {
        match self {
            Self::Bidirectional { delivery: Delivery::Finish { every, .. }, .. } => Some(every),
            _ => None,
        }
    }

    /// What a checkpoint does to the order of frames.
    pub(crate) fn order(self) -> Order {
        match self {
            Self::Bidirectional { delivery: Delivery::Finish { order, .. }, .. } => order,
            _ => Order::default(),
        }
    }

    /// Whether frames are kept until they are acknowledged.
    pub(crate) fn keeps_unacknowledged(self) -> bool {
        self.checkpoint().is_some() || self.margin().is_some()
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::Bidirectional {
            finish_timeout: Duration::from_secs(5),
            delivery: Delivery::Acked(Ack::Written),
        }
    }
}

/// Whether pauses can be within these limits.
pub(super) fn reconnect_fault(limits: Reconnect) -> Option<ConfigError> {
    (limits.min.is_zero() || limits.min > limits.max).then_some(ConfigError::Reconnect)
}
