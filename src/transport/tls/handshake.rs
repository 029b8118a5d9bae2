//! Handshakes, on tokio's sockets. Each future may be dropped: the connection is given up then.

use std::io;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;
use tokio_rustls::TlsStream;

use crate::transport::tls::client::ClientConnector;
use crate::transport::tls::counted::CountedTcp;
use crate::transport::tls::explain::explain_io;
use crate::transport::tls::first_bytes::explain_no_tls;
use crate::transport::tls::server::ServerAcceptor;

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(crate) enum HandshakeFault {
    /// The peer closed before it sent a byte.
    NoByte,
    /// The peer, or tapster, does not agree; or the peer went away. In words, and what is left of the connection.
    Refused(String, Option<Parting>),
    /// The connection broke.
    Connection(io::Error),
}

/// Shakes hands with a peer that has connected.
pub(crate) async fn accept(
    tcp: CountedTcp,
    acceptor: &ServerAcceptor,
) -> Result<Box<TlsStream<CountedTcp>>, HandshakeFault> {
    let mut first = [0];
    match tcp.stream.peek(&mut first).await {
        Ok(0) => return Err(HandshakeFault::NoByte),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(HandshakeFault::NoByte),
        Err(error) => return Err(HandshakeFault::Connection(error)),
    }
    if let Some(words) = explain_no_tls(first[0]) {
        return Err(HandshakeFault::Refused(words, None));
    }
    let accepting = TlsAcceptor::from(acceptor.config()).accept(tcp).into_fallible();
    match accepting.await {
        Ok(stream) => Ok(Box::new(TlsStream::Server(stream))),
        Err((error, tcp)) => Err(fault_of(error, tcp)),
    }
}

/// Shakes hands with a reader, which has to have this name.
pub(crate) async fn connect(
    tcp: CountedTcp,
    connector: &ClientConnector,
    name: ServerName<'static>,
) -> Result<Box<TlsStream<CountedTcp>>, HandshakeFault> {
    match TlsConnector::from(connector.config()).connect(name, tcp).into_fallible().await {
        Ok(stream) => Ok(Box::new(TlsStream::Client(stream))),
        Err((error, tcp)) => Err(fault_of(error, tcp)),
    }
}

/// The certificate of the peer, if it has shown one.
pub(crate) fn peer_certificate(stream: &TlsStream<CountedTcp>) -> Option<&CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates()?.first()
}

/// The version, for the log.
pub(crate) fn version(stream: &TlsStream<CountedTcp>) -> &'static str {
    match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    }
}

/// The connection below, and what TLS knows of it.
pub(crate) fn into_parts(stream: TlsStream<CountedTcp>) -> (CountedTcp, rustls::Connection) {
    match stream {
        TlsStream::Server(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, tls.into())
        }
        TlsStream::Client(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, tls.into())
        }
    }
}

fn fault_of(error: io::Error, tcp: CountedTcp) -> HandshakeFault {
    match explain_io(&error) {
        Some(words) => HandshakeFault::Refused(words, Some(Parting(tcp))),
        None if error.kind() == io::ErrorKind::UnexpectedEof => HandshakeFault::Refused(
            "the peer closed the connection during the TLS handshake".to_owned(),
            None,
        ),
        None => HandshakeFault::Connection(error),
    }
}

/// A connection on which an alert was sent, and nothing else will be.
#[derive(Debug)]
pub(crate) struct Parting(CountedTcp);

impl Parting {
    /// Ends the connection so that the peer gets the alert: bytes left unread would make the close a reset, which may overtake
    /// it. Takes a moment where the peer does not close.
    pub(crate) async fn end(self) {
        let Self(mut tcp) = self;
        let ended = async {
            let _ = tcp.shutdown().await;
            let mut unread = [0; 4096];
            for _ in 0..LINGER_READS {
                if !matches!(tcp.read(&mut unread).await, Ok(count) if count > 0) {
                    return;
                }
            }
        };
        let _ = timeout(LINGER, ended).await;
    }
}

const LINGER: Duration = Duration::from_millis(500);
const LINGER_READS: usize = 16;
