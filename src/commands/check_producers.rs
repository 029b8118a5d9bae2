//! `tapster check --connect`: whether the producers that inputs dial are there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use tapster::input::InputConfig;
use tapster::observability::printable;
use tapster::protocol::ControlFrame;
use tapster::protocol::ReaderEvent;
use tapster::protocol::ReaderSession;
use tapster::transport::Address;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio::time::timeout_at;

/// One address that an input dials.
pub(super) struct Producer {
    input: InputConfig,
    address: Address,
}

/// Where it leads.
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The producers of an input.
pub(super) fn producers(input: &InputConfig) -> Vec<Producer> {
    input.dial.iter().map(|address| Producer { input: input.clone(), address: address.clone() }).collect()
}

impl Producer {
    /// What is found at each address of the name, in words; or what is wrong. Nothing is answered to the producer: it keeps every
    /// frame, unless it begins with START and sends at once.
    pub(super) async fn check(self) -> Vec<Result<String, String>> {
        let place = format!("input `{}`: {}", printable(&self.input.name), self.address);
        let places = match timeout(self.input.handshake_timeout, self.places()).await {
            Ok(Ok(places)) => places,
            Ok(Err(error)) => return vec![Err(format!("{place}: cannot look the name up: {error}"))],
            Err(_) => return vec![Err(format!("{place}: the name servers did not answer in time"))],
        };
        let mut found = Vec::new();
        for producer in places {
            let at = match &producer {
                Place::Tcp(peer) => format!("{place}: a producer at {peer}"),
                Place::Unix(_) => format!("{place}: a producer"),
            };
            let result = timeout(2 * self.input.handshake_timeout, self.listen_to(&producer)).await;
            found.push(match result {
                Ok(Ok(words)) => Ok(format!("{at} {words}")),
                Ok(Err(error)) => Err(format!("{at} was not found: {error}")),
                Err(_) => Err(format!("{at} was not found: no connection in time")),
            });
        }
        found
    }

    async fn places(&self) -> io::Result<Vec<Place>> {
        match &self.address {
            Address::Unix(path) => Ok(vec![Place::Unix(path.clone())]),
            Address::Systemd(_) => Ok(Vec::new()),
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                Ok(lookup_host((host.as_str(), *port)).await?.map(Place::Tcp).collect())
            }
        }
    }

    async fn listen_to(&self, place: &Place) -> Result<String, String> {
        let no_connection = |error: io::Error| format!("no connection: {error}");
        let mut stream: Box<dyn AsyncRead + Unpin> = match place {
            Place::Tcp(address) => Box::new(TcpStream::connect(address).await.map_err(no_connection)?),
            Place::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(no_connection)?),
        };
        let began = Instant::now();
        let mut session = ReaderSession::new(self.input.reader_config(), began);
        let mut received = BytesMut::new();
        loop {
            let deadline = session.poll_timeout().unwrap_or(began);
            match timeout_at(deadline.into(), stream.read_buf(&mut received)).await {
                Ok(Ok(0)) => return Err("it closed before READY and before START".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("the connection broke: {error}")),
                Err(_) => session.handle_timeout(Instant::now()).map_err(|error| error.to_string())?,
            }
            let after = milliseconds(began.elapsed());
            let result = session.handle_bytes(Instant::now(), &mut received);
            if let Some(ReaderEvent::Started { content_type, .. }) = session.poll_event() {
                let content_type = content_type.map_or_else(|| "(none)".to_owned(), |name| name.to_string());
                return Ok(format!("sends content type {content_type} (START after {after})"));
            }
            result.map_err(|error| error.to_string())?;
            if let Some(accept) = session.poll_transmit() {
                // Behind the escape and the length.
                let accept = accept.get(8..).and_then(|payload| ControlFrame::decode(payload).ok());
                let content_type =
                    accept.and_then(|accept| accept.content_types.first().map(ToString::to_string));
                let content_type = content_type.unwrap_or_else(|| "(none)".to_owned());
                return Ok(format!("offers content type {content_type} (READY after {after})"));
            }
        }
    }
}

/// A short time, for people.
pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
