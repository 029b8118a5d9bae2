//! Ways out: connections that run Frame Streams writers, and files.

pub(crate) mod config;
pub(crate) mod config_error;
mod deadline;
mod failure_log;
pub(crate) mod file;
mod file_config;
mod file_name;
pub(crate) mod frame_stream;
mod in_place;
mod keep;
pub(crate) mod lane;
mod links;
mod new_file;
pub(crate) mod place;
pub(crate) mod settings;
mod standing;
mod stream_file;
pub(crate) mod streams;

pub use config::Buffer;
pub use config::Destination;
pub use config::Lanes;
pub use config::OutputConfig;
pub use config_error::ConfigError;
pub use file_config::FileConfig;
pub use file_config::Keep;
pub use file_config::Rotate;
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
