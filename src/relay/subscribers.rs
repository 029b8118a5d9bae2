//! What an output that listens tells those who subscribe: the same for all of them, and changed while they are there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::admission::gate::Gate;
use crate::lifecycle::Scope;
use crate::observability::account::OutputAccount;
use crate::observability::roster::Roster;
use crate::output::Ack;
use crate::output::Delivery;
use crate::output::Endpoints;
use crate::output::Mode;
use crate::output::OutputConfig;
use crate::output::StreamsConfig;
use crate::output::SubscribersConfig;
use crate::output::settings::LaneSettings;
use crate::output::subscriber::Door;
use crate::queue::takers::Takers;
use crate::relay::around::Surroundings;
use crate::transport::Address;

/// The subscribers of one output, as the relay has them.
#[derive(Debug)]
pub(crate) struct Subscribers {
    door: Arc<Door>,
    config: watch::Sender<Arc<SubscribersConfig>>,
    settings: watch::Sender<Arc<LaneSettings>>,
}

impl Subscribers {
    /// Nobody is there, and nothing listens.
    pub(crate) fn new(
        output: &OutputConfig,
        subscribers: &SubscribersConfig,
        (account, scope): (&Arc<OutputAccount>, Scope),
        around: &Surroundings,
    ) -> (Self, Arc<Takers>, Arc<Roster>) {
        let roster = Arc::new(Roster::new(Arc::clone(account)));
        let (max, when_full) = (output.buffer.memory(), output.buffer.policy());
        let takers = Arc::new(Takers::new(max, when_full, Arc::clone(&roster)));
        let (config, config_seen) = watch::channel(Arc::new(subscribers.clone()));
        let (settings, settings_seen) =
            watch::channel(make_settings(output, subscribers, around.drain_timeout));
        let door = Arc::new(Door {
            output: output.name.clone(),
            content_type: output.stream_type(),
            config: config_seen,
            settings: settings_seen,
            takers: Arc::clone(&takers),
            roster: Arc::clone(&roster),
            gate: Arc::<Gate>::default(),
            scope,
            own: Arc::clone(&around.own),
            loops: Arc::clone(&around.loops),
        });
        (Self { door, config, settings }, takers, roster)
    }

    /// Where they connect.
    pub(crate) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// Those that come, and those that are there, are served as configured here; handshakes that are over stay as they were.
    pub(crate) fn reconfigure(
        &self,
        output: &OutputConfig,
        subscribers: &SubscribersConfig,
        around: &Surroundings,
    ) {
        self.config.send_replace(Arc::new(subscribers.clone()));
        self.settings.send_replace(make_settings(output, subscribers, around.drain_timeout));
    }
}

/// What the lane of each subscriber is told.
fn make_settings(
    output: &OutputConfig,
    subscribers: &SubscribersConfig,
    renew_timeout: Duration,
) -> Arc<LaneSettings> {
    let finish_timeout = subscribers.finish_timeout;
    let mode = if subscribers.bidirectional {
        Mode::Bidirectional { finish_timeout, delivery: Delivery::Acked(Ack::Written) }
    } else {
        Mode::Unidirectional { finish_timeout, ack: Ack::Written }
    };
    // Nobody connects to it: each lane has its connection.
    let nowhere = Endpoints::One(Address::Tcp { host: String::new(), port: 0 });
    let streams = StreamsConfig {
        mode,
        handshake_timeout: subscribers.handshake_timeout,
        ..StreamsConfig::new(nowhere)
    };
    Arc::new(LaneSettings {
        buffer: output.buffer.clone(),
        streams,
        stall_timeout: Some(subscribers.stall_timeout),
        members: Vec::new(),
        ways: Vec::new(),
        renew_timeout,
        tls: None,
    })
}
