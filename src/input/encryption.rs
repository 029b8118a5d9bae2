//! What a connection to a `tls://` address passes behind its admission: the TLS handshake, and who it is by its certificate.

use std::sync::Arc;
use std::time::Instant;

use crate::admission::Refusal;
use crate::input::InputConfig;
use crate::input::admission::NotAdmitted;
use crate::input::connection::OpenConnection;
use crate::input::handshake_limit::Handshake;
use crate::protocol::ReaderSession;
use crate::session::read::ReadEnd;
use crate::transport::socket::Socket;
use crate::transport::tls::ReloadableServer;
use crate::transport::tls::handshake::HandshakeFault;
use crate::transport::tls::names_of;

/// A connection that is encrypted.
pub(super) struct Encrypted {
    pub(super) socket: Socket,
    /// What is said of it in the log.
    pub(super) remark: String,
}

/// Lets a connection in that was accepted at a `tls` address, or says why not.
pub(super) async fn enter_encrypted(
    mut socket: Socket,
    session: &mut ReaderSession,
    connection: &mut OpenConnection<'_>,
    handshake: Handshake,
) -> Result<Encrypted, NotAdmitted> {
    connection.admit(&mut socket, session).await?;
    let config = Arc::clone(&connection.input.config.borrow());
    let server = connection.input.tls.borrow().clone();
    // An input with a `tls` address has what it shakes hands with: both come from one configuration.
    let Some(server) = server else { return Err(ReadEnd::NoStream.into()) };
    encrypt(socket, &config, &server, session, handshake).await
}

/// Shakes hands; `handshake` ends with that. TLS has the time of the handshake of `session`. The connection is given up when this future is dropped.
async fn encrypt(
    socket: Socket,
    config: &InputConfig,
    server: &ReloadableServer,
    session: &mut ReaderSession,
    handshake: Handshake,
) -> Result<Encrypted, NotAdmitted> {
    let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
    // What was read last: later connections may see another certificate.
    let acceptor = server.current();
    let accepting = socket.accept_tls(&acceptor);
    let accepted = tokio::time::timeout_at(deadline.into(), accepting).await;
    // The next one may begin.
    drop(handshake);
    let socket = match accepted {
        Ok(Ok(socket)) => socket,
        Ok(Err(fault)) => return Err(end_of(fault).await.into()),
        Err(_) => {
            let result = session.handle_timeout(deadline);
            return Err(result.map_or_else(ReadEnd::Protocol, |()| ReadEnd::NoStream).into());
        }
    };
    let allow = config.tls.as_ref().map_or(&[][..], |tls| &tls.allow_names);
    let name = match socket.peer_certificate() {
        Some(certificate) => {
            names_of(certificate, allow).map_err(|names| NotAdmitted::Refused(Refusal::Name { names }))?
        }
        None => None,
    };
    let version = socket.tls_version().unwrap_or_default();
    let remark = match name {
        Some(name) => format!(", {version}, certificate of {name}"),
        None => format!(", {version}"),
    };
    Ok(Encrypted { socket, remark })
}

async fn end_of(fault: HandshakeFault) -> ReadEnd {
    match fault {
        HandshakeFault::NoByte => ReadEnd::NoByte,
        HandshakeFault::Refused(words, parting) => {
            if let Some(parting) = parting {
                parting.end().await;
            }
            ReadEnd::Tls(words)
        }
        HandshakeFault::Connection(error) => ReadEnd::Tls(format!("the connection broke: {error}")),
    }
}
