//! Ways out: connections that run Frame Streams writers, and files.

pub(crate) mod backlog;
pub(crate) mod backoff;
pub(crate) mod balance;
pub(crate) mod config;
pub(crate) mod config_error;
pub(crate) mod file;
pub(crate) mod frame_stream;
pub(crate) mod group;
pub(crate) mod lane;
pub(crate) mod rollover;
pub(crate) mod stall;
pub(crate) mod streams;
pub(crate) mod watch;
pub(crate) mod window;

pub use balance::Balance;
pub use config::Buffer;
pub use config::Destination;
pub use config::FileConfig;
pub use config::Lanes;
pub use config::OutputConfig;
pub use config::Rotate;
pub use config_error::ConfigError;
pub use streams::Ack;
pub use streams::Checkpoint;
pub use streams::Delivery;
pub use streams::Endpoints;
pub use streams::GroupConfig;
pub use streams::Member;
pub use streams::Mode;
pub use streams::Order;
pub use streams::Reconnect;
pub use streams::StreamsConfig;
