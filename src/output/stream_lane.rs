//! One lane over connections, as it is put together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Retry;
use crate::loops::Loops;
use crate::output::config::Buffer;
use crate::output::lane::Source;
use crate::output::settings::LaneSettings;
use crate::output::streams::Endpoints;
use crate::output::streams::StreamsConfig;
use crate::protocol::ContentType;
use crate::queue::WhenFull;
use crate::transport::dial::ADDRESSES_MAX;
use crate::transport::own_listeners::OwnListeners;

/// One lane over connections: to one reader, or to those of a group.
#[derive(Clone, Debug)]
pub(crate) struct StreamLane {
    pub(crate) source: Source,
    /// The content type of START.
    pub(crate) content_type: Option<ContentType>,
    /// They change while the lane runs.
    pub(crate) settings: watch::Receiver<Arc<LaneSettings>>,
    /// Where no output may lead.
    pub(crate) own: Arc<OwnListeners>,
    /// Which ways of outputs lead back through other relays.
    pub(crate) loops: Arc<Loops>,
    /// The reader has connected to us, from there: the lane ends with its connection.
    pub(crate) subscriber: Option<String>,
}

impl StreamLane {
    /// What it delivers with, as it is configured.
    pub(super) fn delivery_config(&self, settings: &LaneSettings) -> DeliveryConfig {
        let StreamsConfig { endpoints, mode, .. } = &settings.streams;
        let queue = &self.source.queue;
        let (queue_max, write_len_max) = (queue.budget().max(), queue.write_len_max());
        let member_max = queue_max / endpoints.addresses().count();
        let acknowledge = match (mode.checkpoint(), mode.margin()) {
            (Some(checkpoint), _) => Acknowledge::Finish { checkpoint, order: mode.order() },
            (None, None) => Acknowledge::Written,
            (None, Some(margin)) => Acknowledge::Progress {
                margin: margin as u64,
                // Where little is written at once, little is to be let go of at once.
                probe_len: (member_max / 8).min(write_len_max).min(PROBE_LEN) as u64,
                probe_pause: PROBE_PAUSE,
            },
        };
        let group = match endpoints {
            Endpoints::One(_) => None,
            Endpoints::Group(group) => Some(group),
        };
        DeliveryConfig {
            weights: group
                .map_or(vec![1], |group| group.members.iter().map(|member| member.weight).collect()),
            balance: group.map(|group| group.balance).unwrap_or_default(),
            acknowledge,
            answers: mode.is_bidirectional(),
            // The opening has limits of its own, for each address, and says what it waited for.
            connect_timeout: settings.streams.handshake_timeout.saturating_mul(OPENING_PARTS),
            finish_timeout: mode.finish_timeout(),
            stall_timeout: settings.stall_timeout,
            slow_start: group.map_or(Duration::ZERO, |group| group.slow_start),
            reconnect: settings.streams.reconnect,
            retry: match settings.buffer {
                _ if self.subscriber.is_some() => Retry::Never,
                // Nothing may be lost that could be delivered: the queue blocks, and no spool keeps the frames.
                Buffer::Memory { when_full: WhenFull::Block, .. } => Retry::ToTheEnd,
                _ => Retry::WhileRunning,
            },
            queue_max,
            held_max: queue.budget().held_max(),
            write_len_max,
            max_age: self.source.max_age,
            seed: fastrand::u64(..),
        }
    }
}

/// How often what has arrived is looked at: after so many bytes.
const PROBE_LEN: usize = 256 << 10;
/// And so long after a write, at the latest.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// An opening ends by itself: after a lookup, and for each address a connect and a handshake, each within the same time.
const OPENING_PARTS: u32 = 1 + 2 * (ADDRESSES_MAX as u32 + 1);
