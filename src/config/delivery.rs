//! The keys that say when a frame has been delivered: `mode`, `finish_timeout`, `ack`, `replay_margin`, `checkpoint`,
//! `order`.

use std::time::Duration;

use crate::config::buffer::QUEUE_MAX;
use crate::config::keys::DAY;
use crate::config::keys::HOUR;
use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::units::format_size;
use crate::config::value;
use crate::config::words::AckWord;
use crate::config::words::ModeWord;
use crate::output::Ack;
use crate::output::Checkpoint;
use crate::output::ConfigError;
use crate::output::Delivery;
use crate::output::Mode;
use crate::output::Order;

/// The keys as they were written, whether they go together or not.
pub(super) struct DeliveryKeys {
    mode: ModeWord,
    finish_timeout: Duration,
    ack: AckWord,
    margin: usize,
    checkpoint: Option<Checkpoint>,
    order: Order,
}

/// The memory that what is not acknowledged has to fit into, in bytes.
pub(super) struct Room {
    pub(super) queue: u64,
    /// Whether that is the half of it behind a spool.
    pub(super) behind_spool: bool,
    /// The longest frame with its length word.
    pub(super) longest: u64,
    /// How many connections share it.
    pub(super) members: u64,
}

impl DeliveryKeys {
    /// Takes the keys of an output whose `mode` is known.
    pub(super) fn take(section: &mut Section<'_>, mode: ModeWord) -> Self {
        let finish_timeout = section.take("finish_timeout", value::duration(Duration::ZERO..=HOUR));
        let ack = section.take("ack", value::word).unwrap_or_default();
        let margin = section.take("replay_margin", value::size(0..=QUEUE_MAX)).unwrap_or_default();
        let checkpoint = section.take("checkpoint", checkpoint);
        let order = section.take("order", value::word).unwrap_or_default();
        if checkpoint.is_some() && section.has("ack") && ack == AckWord::Written {
            let message = "`checkpoint` holds frames until FINISH: write \"received\", or leave this key out";
            section.fault("ack", message.to_owned());
        }
        let usual = match (checkpoint, Mode::default()) {
            (Some(_), _) => CHECKPOINT_FINISH_TIMEOUT,
            (None, mode) => mode.finish_timeout(),
        };
        let finish_timeout = finish_timeout.unwrap_or(usual);
        let margin = usize::try_from(margin).unwrap_or(usize::MAX);
        Self { mode, finish_timeout, ack, margin, checkpoint, order }
    }

    /// Names keys that contradict each other, and values that the queue cannot hold.
    pub(super) fn check(&self, section: &mut Section<'_>, room: &Room) {
        if self.checkpoint.is_some() && self.mode == ModeWord::Unidirectional {
            let message =
                "waits for FINISH, which a unidirectional output does not get: leave one of the two out";
            section.fault("checkpoint", message.to_owned());
        }
        if section.has("order") && self.checkpoint.is_none() {
            let message = "is for outputs with a `checkpoint`: without one order is always kept";
            section.fault("order", message.to_owned());
        }
        if let Some(Checkpoint::Bytes(bytes)) = self.checkpoint
            && let Some(lack) = room.lack_of(bytes)
        {
            let message = format!(
                "{bytes} for the stream that waits for FINISH, {bytes} for the next one and {lack}: give it room, or have \
                 checkpoints sooner",
                bytes = format_size(bytes as u64)
            );
            section.fault("checkpoint", message);
        }
        if self.margin == 0 {
            return;
        }
        if self.checkpoint.is_some() {
            let message = "with a `checkpoint` everything since the last FINISH is sent again: leave one of the two out";
            section.fault("replay_margin", message.to_owned());
        } else if self.ack == AckWord::Written {
            let message = "needs ack = \"received\": without it nothing is sent again";
            section.fault("replay_margin", message.to_owned());
        }
        // As much again is on its way to the reader before it is acknowledged.
        if let Some(lack) = room.lack_of(self.margin) {
            let margin = format_size(self.margin as u64);
            section.fault("replay_margin", format!("{margin} that is kept, {margin} on its way and {lack}"));
        }
    }

    /// A margin that [`Mode`] has no place for is wrong for a unix socket all the same.
    pub(super) fn check_unix(&self, section: &mut Section<'_>) {
        if self.margin > 0 && self.mode().margin().is_none() {
            section.fault(ConfigError::MarginOfUnix.key(), ConfigError::MarginOfUnix.to_string());
        }
    }

    /// The mode that the keys make; where faults were noted, one that some of them make.
    pub(super) fn mode(&self) -> Mode {
        let finish_timeout = self.finish_timeout;
        let ack = match self.ack {
            AckWord::Written => Ack::Written,
            AckWord::Received => Ack::Received { margin: self.margin },
        };
        match (self.mode, self.checkpoint) {
            (ModeWord::Unidirectional, _) => Mode::Unidirectional { finish_timeout, ack },
            (ModeWord::Bidirectional, Some(every)) => {
                let delivery = Delivery::Finish { every, order: self.order };
                Mode::Bidirectional { finish_timeout, delivery }
            }
            (ModeWord::Bidirectional, None) => {
                Mode::Bidirectional { finish_timeout, delivery: Delivery::Acked(ack) }
            }
        }
    }
}

impl Room {
    /// Whether twice `bytes` for each member and the longest frame are more than there is, in words.
    fn lack_of(&self, bytes: usize) -> Option<String> {
        let Self { queue, longest, members, .. } = *self;
        let needed = members * 2 * bytes as u64 + longest;
        if needed <= queue {
            return None;
        }
        let half = if self.behind_spool { "the half of `queue` behind the spool" } else { "`queue`" };
        let each = if members > 1 { format!(", for {members} members") } else { String::new() };
        Some(format!(
            "{longest} for the longest frame make {needed}{each}, and {half} has {queue}",
            longest = format_size(longest),
            needed = format_size(needed),
            queue = format_size(queue),
        ))
    }
}

/// A time or a size.
fn checkpoint(written: &Value) -> Result<Checkpoint, String> {
    let bytes = value::size(CHECKPOINT_BYTES_MIN..=QUEUE_MAX);
    let every = value::duration(CHECKPOINT_EVERY_MIN..=DAY);
    let is_size = matches!(written, Value::Text(text) if text.trim_end().ends_with('B'));
    if is_size {
        return bytes(written).map(|bytes| Checkpoint::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX)));
    }
    every(written).map(Checkpoint::Every).map_err(|error| format!("{error}; or a size as in \"16MiB\""))
}

const CHECKPOINT_EVERY_MIN: Duration = Duration::from_millis(100);
const CHECKPOINT_BYTES_MIN: u64 = 64 << 10;
/// A reader that is slow at FINISH is a slow reader, not a broken one.
const CHECKPOINT_FINISH_TIMEOUT: Duration = Duration::from_secs(30);
/// The length word before every data frame.
pub(super) const LENGTH_WORD: u64 = 4;
