//! What the connections of a measurement are made of.

use std::net::TcpListener;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use tapster::transport::Address;

use crate::floor;

/// What connections are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Unix stream sockets
    #[default]
    Unix,
    /// TCP over loopback
    Tcp,
}

impl Transport {
    /// Most bytes of one read of the floor, as [`floor`] chooses it by itself.
    pub(crate) fn floor_read_size(self) -> usize {
        match self {
            Self::Unix => floor::READ_SIZE_UNIX,
            Self::Tcp => floor::READ_SIZE_TCP,
        }
    }
}

/// An address on which nobody listens yet.
pub(crate) fn free_address(transport: Transport, folder: &Path) -> Result<Address> {
    Ok(match transport {
        Transport::Unix => Address::Unix(folder.join("in.sock")),
        Transport::Tcp => {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            Address::Tcp { host: "127.0.0.1".to_owned(), port }
        }
    })
}
