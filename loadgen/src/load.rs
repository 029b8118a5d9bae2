//! The load, as it is written on the command line.

use clap::Args;

use crate::payload::Sizes;
use crate::schedule::Rate;
use crate::units;

/// The load, as `send` makes it and `bench` has it made.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Sending connections, all from one thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// Frames per second, all connections together (1000, 200k, 1.5M), or max
    #[arg(long, value_name = "R|max", default_value = "max")]
    pub(crate) rate: Rate,
    /// Payload sizes: a size, `dnstap` for the mix of a busy resolver (60 to 1400 bytes, median 130), or a Frame
    /// Streams file whose frames' sizes to take
    #[arg(long, value_name = "N|dnstap|FILE", default_value = "dnstap")]
    pub(crate) sizes: Sizes,
    /// Bytes of one write, in whole frames; a small value gives one frame per write
    #[arg(long, value_name = "BYTES", default_value = "64KiB", value_parser = units::size)]
    pub(crate) write_size: usize,
}

impl LoadArgs {
    /// The same, to be passed on.
    pub(crate) fn to_args(&self) -> [String; 4] {
        [
            format!("--connections={}", self.connections),
            format!("--rate={}", self.rate),
            format!("--sizes={}", self.sizes),
            format!("--write-size={}", self.write_size),
        ]
    }
}
