//! What the types of an output's configuration allow, and no output can be.

use crate::spool::SpoolConfigError;
use crate::transport::Address;

/// Why an output cannot be as it was configured. The sentences name the keys of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A group without any member.
    #[error("a group has two members or more")]
    GroupOfNone,
    /// A group with one member.
    #[error("a group has two members or more: write to = \"{to}\"")]
    GroupOfOne {
        /// The address of the member.
        to: String,
    },
    /// A group with more than `members_max` members.
    #[error("a group has at most {members_max} members, not {members}")]
    GroupTooLarge {
        /// [`GroupConfig::MEMBERS_MAX`](crate::output::GroupConfig::MEMBERS_MAX).
        members_max: usize,
        /// How many it has.
        members: usize,
    },
    /// Two members of a group with one address.
    #[error("has {0} twice: a larger share is given by `weights`")]
    MemberTwice(Address),
    /// A member of a group that would get nothing.
    #[error("the share of {0} is 0, and at least 1: a member that is to get nothing is left out")]
    MemberWithoutShare(Address),
    /// [`Lanes::PerWorker`](crate::output::Lanes::PerWorker) of a group.
    #[error("each member of a group has one connection: leave this key out")]
    LanesOfGroup,
    /// [`Lanes::PerWorker`](crate::output::Lanes::PerWorker) of a file.
    #[error("a file has one writer: leave this key out")]
    LanesOfFile,
    /// A spool before a file.
    #[error("what goes into a file is on disk: leave this key out")]
    SpoolBeforeFile,
    /// A spool that cannot hold what this output puts there.
    #[error("{0}: raise `max`, or lower `frame_len_max`")]
    Spool(SpoolConfigError),
    /// A margin for a reader that tells what it has read.
    #[error("is for TCP: a unix socket tells what its reader has read; leave this key out")]
    MarginOfUnix,
    /// A [`Reconnect`](crate::output::Reconnect) that would never pause, or whose first pause is the longest.
    #[error("must be above 0 and not longer than `max`")]
    Reconnect,
    /// A file name that is not a strftime pattern.
    #[error("`{pattern}` is not a strftime pattern ({reason}): as in file:{PATTERN_EXAMPLE}")]
    Pattern {
        /// The name.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// [`Keep::Files`](crate::output::Keep::Files) of no file.
    #[error("must be at least 1: the file that is being written stays")]
    KeepOfNone,
    /// [`Keep`](crate::output::Keep) with a pattern whose names cannot be told from others.
    #[error(
        "needs file names that tell their date, and `{0}` makes others: use %Y, %m, %d, %H, %M, %S, as in {PATTERN_EXAMPLE}"
    )]
    KeepOfUnknown(String),
    /// A suffix that makes no other name, or one in another folder.
    #[error("must not be empty and has no `/`, as in \".part\"")]
    PartialSuffix,
    /// An output for subscribers without an address.
    #[error("needs an address, as in listen = [\"tcp://127.0.0.1:6010\"]")]
    ListenNowhere,
    /// An output that listens twice at one address.
    #[error("has {0} twice")]
    ListenTwice(Address),
    /// A `tls` address for subscribers.
    #[error(
        "has {0}: subscribers do not come over TLS yet; use tcp://, through stunnel or haproxy where the way is not trusted"
    )]
    TlsOfSubscribers(Address),
    /// [`WhenFull::Block`](crate::queue::WhenFull::Block) for subscribers.
    #[error(
        "cannot be \"block\" where subscribers connect: one that stalls would stop the inputs; use \"drop_oldest\", \"drop_newest\" or \"sample\""
    )]
    SubscribersBlock,
    /// A spool for subscribers.
    #[error(
        "is for one reader that comes back, and subscribers get what comes while they are there: leave this key out"
    )]
    SpoolOfSubscribers,
    /// [`Lanes::PerWorker`](crate::output::Lanes::PerWorker) for subscribers.
    #[error("each subscriber has the connection that it opens: leave this key out")]
    LanesOfSubscribers,
    /// A file name that is a folder.
    #[error("`{0}` names a folder: add a file name, as in {PATTERN_EXAMPLE}")]
    PatternOfFolder(String),
}

impl ConfigError {
    /// The key of the configuration that is wrong; a key within a table is written with a dot.
    pub fn key(&self) -> &'static str {
        match self {
            Self::GroupOfNone
            | Self::GroupOfOne { .. }
            | Self::GroupTooLarge { .. }
            | Self::MemberTwice(_)
            | Self::Pattern { .. }
            | Self::PatternOfFolder(_) => "to",
            Self::MemberWithoutShare(_) => "weights",
            Self::ListenNowhere | Self::ListenTwice(_) | Self::TlsOfSubscribers(_) => "listen",
            Self::SubscribersBlock => "when_full",
            Self::LanesOfGroup | Self::LanesOfFile | Self::LanesOfSubscribers => "connections",
            Self::SpoolOfSubscribers | Self::SpoolBeforeFile | Self::Spool(_) => "spool",
            Self::MarginOfUnix => "replay_margin",
            Self::Reconnect => "reconnect.min",
            Self::KeepOfNone | Self::KeepOfUnknown(_) => "keep",
            Self::PartialSuffix => "rotate.partial_suffix",
        }
    }
}

/// The name of the files of an output without one.
pub(crate) const PATTERN_EXAMPLE: &str = "tapster-%Y%m%dT%H%M%S.fstrm";
