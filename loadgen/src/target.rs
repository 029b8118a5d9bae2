//! Addresses with what TLS needs behind them: `tls://HOST:PORT?tls.ca=ca.pem`.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use socket2::Socket;
use tapster::config::Options;
use tapster::config::resolve;
use tapster::config::resolve_output;
use tapster::output::Destination;
use tapster::transport::Address;
use tapster::transport::tls::ClientConnector;
use tapster::transport::tls::ServerAcceptor;

use crate::stream::Stream;

/// Where a reader listens.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    tls: Option<ClientConnector>,
}

/// Where a consumer listens.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: Address,
    tls: Option<ServerAcceptor>,
}

impl Target {
    /// TLS over a connected socket, where there is TLS.
    pub(crate) fn stream(&self, socket: Socket) -> Result<Stream> {
        let Some(connector) = &self.tls else { return Ok(Stream::new(socket, None)) };
        let name = connector.server_name(&self.address).context("set tls.server_name")?;
        let tls = rustls::ClientConnection::new(connector.config(), name)?;
        Ok(Stream::new(socket, Some(tls.into())))
    }
}

impl Place {
    /// The same, over a socket that was accepted.
    pub(crate) fn stream(&self, socket: Socket) -> Result<Stream> {
        let Some(acceptor) = &self.tls else { return Ok(Stream::new(socket, None)) };
        let tls = rustls::ServerConnection::new(acceptor.config())?;
        Ok(Stream::new(socket, Some(tls.into())))
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self { address, tls: None }
    }
}

impl From<Address> for Place {
    fn from(address: Address) -> Self {
        Self { address, tls: None }
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    /// The keys are those of an output.
    fn from_str(text: &str) -> Result<Self> {
        let address = address_of(text)?;
        if !address.is_tls() {
            return Ok(address.into());
        }
        let output = resolve_output(text)?.config;
        let Destination::Streams(streams) = output.to else { bail!("`{text}` is no address of a reader") };
        Ok(Self { address, tls: Some(streams.tls.load().map_err(anyhow::Error::msg)?) })
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    /// The keys are those of an input.
    fn from_str(text: &str) -> Result<Self> {
        let address = address_of(text)?;
        if !address.is_tls() {
            return Ok(address.into());
        }
        let options = Options { listen: vec![text.to_owned()], ..Options::default() };
        let input = resolve(&options)?.config.inputs.swap_remove(0);
        let tls = input.tls.context("a tls:// address needs tls.cert and tls.key")?;
        Ok(Self { address, tls: Some(tls.load().map_err(anyhow::Error::msg)?) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

fn address_of(text: &str) -> Result<Address> {
    let (address, keys) = text.split_once('?').unwrap_or((text, ""));
    let address: Address = address.parse()?;
    if !address.is_tls() && !keys.is_empty() {
        bail!("`{text}`: only tls:// addresses have keys here");
    }
    Ok(address)
}
