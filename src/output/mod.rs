//! Ways out: connections that run Frame Streams writers, and files.

pub(crate) mod config;
pub(crate) mod config_error;
mod deadline;
pub(crate) mod file;
pub(crate) mod frame_stream;
pub(crate) mod lane;
mod links;
mod stream_file;
pub(crate) mod streams;

pub use config::Buffer;
pub use config::Destination;
pub use config::FileConfig;
pub use config::Lanes;
pub use config::OutputConfig;
pub use config::Rotate;
pub use config_error::ConfigError;
pub use streams::Ack;
pub use streams::Delivery;
pub use streams::Endpoints;
pub use streams::GroupConfig;
pub use streams::Member;
pub use streams::Mode;
pub use streams::StreamsConfig;

pub use crate::delivery::balance::Balance;
pub use crate::delivery::config::Checkpoint;
pub use crate::delivery::config::Order;
pub use crate::delivery::config::Reconnect;
