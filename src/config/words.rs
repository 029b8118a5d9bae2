//! The words of the configuration. Each stands here and nowhere else: it is parsed, listed in messages and printed from
//! here.

use crate::input::Oversize;
use crate::output::Balance;
use crate::output::Buffer;
use crate::output::Mode;
use crate::output::Order;
use crate::queue::WhenFull;
use crate::spool::OnFull;
use crate::spool::SyncPolicy;
use crate::transport::BackendChoice;
use crate::transport::ProxyVersion;
use crate::transport::tls::TlsVersion;

/// An enum whose values are written as words.
pub trait Words: Copy + Sized + 'static {
    /// Every word with its value, in the order in which messages list them.
    const WORDS: &'static [(&'static str, Self)];

    /// The value as it is written in a configuration.
    fn word(self) -> &'static str;
}

/// Gives every variant its word. A variant that is left out does not compile.
macro_rules! words {
    ($type:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        impl Words for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

words!(BackendChoice: Auto = "auto", Uring = "uring", Epoll = "epoll");
words!(Oversize: Close = "close", Skip = "skip");
words!(WhenFull: DropOldest = "drop_oldest", DropNewest = "drop_newest", Block = "block", Sample = "sample");
words!(OnFull: DropOldest = "drop_oldest", DropNewest = "drop_newest", Block = "block");
words!(
    Balance:
    RoundRobin = "round_robin",
    LeastBacklog = "least_backlog",
    Failover = "failover",
    Sticky = "sticky",
);
words!(Order: PerConnection = "per_connection", Strict = "strict");
words!(BufferWord: Memory = "memory", Disk = "disk");
words!(ModeWord: Bidirectional = "bidirectional", Unidirectional = "unidirectional");
words!(ProxyVersion: V1 = "v1", V2 = "v2");
words!(TlsVersion: V1_2 = "1.2", V1_3 = "1.3");
words!(AckWord: Written = "written", Received = "received");

/// The values of `buffer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BufferWord {
    #[default]
    Memory,
    Disk,
}

/// The values of `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ModeWord {
    #[default]
    Bidirectional,
    Unidirectional,
}

impl ModeWord {
    pub(super) fn of(mode: Mode) -> Self {
        if mode.is_bidirectional() { Self::Bidirectional } else { Self::Unidirectional }
    }
}

/// The values of `ack`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AckWord {
    #[default]
    Written,
    Received,
}

impl AckWord {
    pub(super) fn of(mode: Mode) -> Self {
        if mode.keeps_unacknowledged() { Self::Received } else { Self::Written }
    }
}

/// The words of `when_full`; `None` means the spool.
pub(super) fn when_full_words() -> Vec<(&'static str, Option<WhenFull>)> {
    let policies = WhenFull::WORDS.iter().map(|(word, policy)| (*word, Some(*policy)));
    policies.chain([(SPILL, None)]).collect()
}

/// The key and the word that say where frames wait.
pub fn buffer_words(buffer: &Buffer) -> (&'static str, &'static str) {
    match buffer {
        Buffer::Memory { when_full, .. } => ("when_full", when_full.word()),
        Buffer::Spill { .. } => ("when_full", SPILL),
        Buffer::Disk { .. } => ("buffer", BufferWord::Disk.word()),
    }
}

/// The words of `sync`; the other values are times.
pub(super) const SYNC_WORDS: &[(&str, SyncPolicy)] =
    &[("none", SyncPolicy::None), ("batch", SyncPolicy::Batch)];
/// A connection on every worker, in `connections`.
pub(super) const PER_WORKER: &str = "per_worker";
/// Every content type, in `content_types`.
pub(super) const ANY_TYPE: &str = "*";

const SPILL: &str = "spill";

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Words + PartialEq + std::fmt::Debug>() {
        for (index, (word, value)) in T::WORDS.iter().enumerate() {
            assert_eq!(value.word(), *word);
            assert!(T::WORDS[..index].iter().all(|(other, _)| other != word), "{word} stands for two values");
        }
    }

    #[test]
    fn each_word_stands_for_one_value_and_is_what_that_value_is_printed_as() {
        check::<BackendChoice>();
        check::<Oversize>();
        check::<WhenFull>();
        check::<OnFull>();
        check::<Balance>();
        check::<Order>();
        check::<BufferWord>();
        check::<ModeWord>();
        check::<AckWord>();
        check::<ProxyVersion>();
    }
}
