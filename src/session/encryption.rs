//! TLS on the connection of a writer session, before READY.

use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;

use crate::session::write_fault::WriteFault;
use crate::transport::Address;
use crate::transport::socket::Socket;
use crate::transport::tls::ClientConnector;
use crate::transport::tls::ReloadableClient;
use crate::transport::tls::handshake::HandshakeFault;

/// What the connections to one address shake hands with.
pub(super) struct Encryption {
    connector: Arc<ClientConnector>,
    name: ServerName<'static>,
}

impl Encryption {
    /// As the files are now.
    ///
    /// # Errors
    /// There is nothing to shake hands with, or no name.
    pub(super) fn new(address: &Address, tls: Option<&ReloadableClient>) -> Result<Self, WriteFault> {
        let tls = tls.ok_or_else(|| WriteFault::Tls("its certificates could not be read".to_owned()))?;
        let connector = tls.current();
        let name = connector.server_name(address).ok_or_else(|| {
            WriteFault::Tls(
                "the host of the address is no name that a certificate can have: set tls.server_name"
                    .to_owned(),
            )
        })?;
        Ok(Self { connector, name })
    }

    /// Shakes hands. The connection is given up when this future is dropped.
    pub(super) async fn encrypt(&self, socket: Socket, deadline: Instant) -> Result<Socket, WriteFault> {
        let connecting = socket.connect_tls(&self.connector, self.name.clone());
        match tokio::time::timeout_at(deadline.into(), connecting).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(fault)) => Err(fault_of(fault).await),
            Err(_) => {
                Err(WriteFault::Tls("the reader did not answer in time: does it speak TLS there?".to_owned()))
            }
        }
    }
}

async fn fault_of(fault: HandshakeFault) -> WriteFault {
    match fault {
        HandshakeFault::NoByte => WriteFault::Tls("the reader closed the connection".to_owned()),
        HandshakeFault::Refused(words, parting) => {
            if let Some(parting) = parting {
                parting.end().await;
            }
            WriteFault::Tls(words)
        }
        HandshakeFault::Connection(error) => WriteFault::Connection(error),
    }
}
