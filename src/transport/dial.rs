//! Connecting to an address: every address of a name is tried, staggered as RFC 8305 says.
//!
//! ```text
//! look up ─► 1st address ──────────── 5 s ────► given up
//!              250 ms ─► 2nd address ──────────── 5 s ────► given up
//!                          250 ms ─► 3rd address ─► connected: the others are given up
//! ```
//!
//! An address that fails at once does not keep the next one waiting. Whoever shakes hands on a connection and fails asks for
//! the next one: the addresses that are left are tried then.
//!
//! Whoever wants a connection to every address of a name, and not to one of them, asks for its [`sites`] and connects to
//! [each](connect).

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::transport::Address;
use crate::transport::proxy_header::ProxyVersion;
use crate::transport::resolve::resolve;
use crate::transport::socket::ConnectOptions;
use crate::transport::socket::Socket;

/// So long an address is tried alone, before the next one is tried too.
///
/// Source: RFC 8305, "Connection Attempt Delay".
const STAGGER: Duration = Duration::from_millis(250);
/// Most addresses of one name that one dial tries.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// The addresses that may lead to a reader, and have not been tried.
pub(crate) struct Dial {
    options: ConnectOptions,
    path: Option<PathBuf>,
    addresses: VecDeque<SocketAddr>,
    // What was wrong with those that were tried, in the order in which they failed.
    failed: Vec<(SocketAddr, io::Error)>,
}

/// One place that an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// An address of a name, or one that was written.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Every site that an address leads to now, each once, in the order of the answer. Cancel-safe.
///
/// # Errors
/// Of the lookup; `TimedOut` when it takes longer than `limit`.
pub(crate) async fn sites(address: &Address, limit: Duration) -> io::Result<Vec<Site>> {
    let mut sites = Vec::new();
    match address {
        Address::Unix(path) => sites.push(Site::Unix(path.clone())),
        Address::Systemd(_) => {}
        Address::Tcp { host, port } | Address::Tls { host, port } => {
            for address in look_up(host, *port, limit).await?.iter() {
                let site = Site::Tcp(*address);
                if !sites.contains(&site) {
                    sites.push(site);
                }
            }
        }
    }
    Ok(sites)
}

/// Connects to one site. Cancel-safe.
///
/// # Errors
/// What the system says; `TimedOut` when an answer takes longer than the time of the options.
pub(crate) async fn connect(site: &Site, options: &ConnectOptions) -> io::Result<Socket> {
    match site {
        Site::Unix(path) => Socket::connect_unix(path).await,
        Site::Tcp(address) => Ok(Socket::connected_tcp(attempt(*address, options.timeout).await?, options)),
    }
}

async fn look_up(host: &str, port: u16, limit: Duration) -> io::Result<Arc<[SocketAddr]>> {
    timeout(limit, resolve(host, port)).await.unwrap_or_else(|_| {
        let text = format!("the name servers did not answer for {limit:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// What is tried at the same time, each under its key.
pub(crate) type Attempts<K, T> = Vec<(K, Pin<Box<dyn Future<Output = T>>>)>;

type Attempt = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

impl Dial {
    /// Looks the name up, where there is one. Cancel-safe. `last` is tried after all others.
    ///
    /// # Errors
    /// Of the lookup; `TimedOut` when it takes longer than one address may take.
    pub(crate) async fn new(
        address: &Address,
        options: ConnectOptions,
        last: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let mut dial = Self { options, path: None, addresses: VecDeque::new(), failed: Vec::new() };
        match address {
            Address::Unix(path) => dial.path = Some(path.clone()),
            Address::Systemd(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "nothing connects to a listener by name",
                ));
            }
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                dial.addresses = in_turn(&look_up(host, *port, options.timeout).await?, last);
            }
        }
        Ok(dial)
    }

    /// These addresses, as of a name.
    #[cfg(test)]
    pub(crate) fn to(addresses: &[SocketAddr], options: ConnectOptions) -> Self {
        Self { options, path: None, addresses: in_turn(addresses, None), failed: Vec::new() }
    }

    /// The PROXY header that connections begin with.
    pub(crate) fn send_proxy(&self) -> Option<ProxyVersion> {
        self.options.send_proxy
    }

    /// Whether [`Dial::next`] has something left to try.
    pub(crate) fn has_more(&self) -> bool {
        self.path.is_some() || !self.addresses.is_empty()
    }

    /// The next connection. Cancel-safe.
    ///
    /// # Errors
    /// No address is left: the fault of the only one, or those of all of them.
    pub(crate) async fn next(&mut self) -> io::Result<Socket> {
        if let Some(path) = self.path.take() {
            return Socket::connect_unix(&path).await;
        }
        let mut attempts: Attempts<SocketAddr, io::Result<TcpStream>> = Vec::new();
        let mut next_at = Instant::now();
        loop {
            if (attempts.is_empty() || next_at <= Instant::now())
                && let Some(address) = self.addresses.pop_front()
            {
                attempts.push((address, attempt(address, self.options.timeout)));
                next_at = Instant::now() + STAGGER;
            }
            if attempts.is_empty() {
                return Err(self.fault());
            }
            let ended = tokio::select! {
                biased;
                ended = first(&mut attempts) => ended,
                () = sleep_until(next_at), if !self.addresses.is_empty() => continue,
            };
            match ended {
                (_, Ok(stream)) => {
                    // Should this one come to nothing, they are tried again.
                    for (address, _) in attempts.into_iter().rev() {
                        self.addresses.push_front(address);
                    }
                    return Ok(Socket::connected_tcp(stream, &self.options));
                }
                (address, Err(error)) => {
                    next_at = Instant::now();
                    self.failed.push((address, error));
                }
            }
        }
    }

    /// A connection came to nothing after all.
    pub(crate) fn failed(&mut self, peer: Option<SocketAddr>, why: &str) {
        if let Some(peer) = peer {
            self.failed.push((peer, io::Error::other(why.to_owned())));
        }
    }

    /// Addresses that were tried and not used, each with its reason. Empty where the first one will do.
    pub(crate) fn remark(&self) -> String {
        let faults: Vec<_> =
            self.failed.iter().map(|(address, error)| format!("{address}: {}", explain(error))).collect();
        faults.join("; ")
    }

    fn fault(&mut self) -> io::Error {
        if self.failed.len() > 1 {
            let kind = self.failed.last().map_or(io::ErrorKind::Other, |(_, error)| error.kind());
            return io::Error::new(kind, self.remark());
        }
        self.failed.pop().map_or_else(|| io::ErrorKind::AddrNotAvailable.into(), |(_, error)| error)
    }
}

/// Words for an error, with what it means where the system's words do not say it.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENETUNREACH) => {
            format!("this host has no way to such an address ({error})")
        }
        _ => error.to_string(),
    }
}

/// The first family of addresses and the other one in turn, so that a family without a way delays nobody.
///
/// Source: RFC 8305, "Sorting Addresses".
fn in_turn(addresses: &[SocketAddr], last: Option<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut ours, mut theirs): (VecDeque<_>, VecDeque<_>) =
        addresses.iter().partition(|address| address.is_ipv6() == first_family);
    let mut all = VecDeque::new();
    while let Some(address) = ours.pop_front().or_else(|| theirs.pop_front()) {
        if !all.contains(&address) {
            all.push_back(address);
        }
        std::mem::swap(&mut ours, &mut theirs);
    }
    if let Some(index) = all.iter().position(|address| Some(*address) == last)
        && let Some(address) = all.remove(index)
    {
        all.push_back(address);
    }
    all.truncate(ADDRESSES_MAX);
    all
}

fn attempt(address: SocketAddr, limit: Duration) -> Attempt {
    Box::pin(async move {
        let Ok(stream) = timeout(limit, TcpStream::connect(address)).await else {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")));
        };
        not_itself(stream?)
    })
}

/// Where nobody listens on a port that the kernel gives to those who connect, it may connect a socket with itself.
fn not_itself(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        let text = "nobody listens there (the kernel connected the socket with itself)";
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
    }
    Ok(stream)
}

/// The attempt that ends first, and what it came to; the others go on. Cancel-safe. Never ready where there is none.
pub(crate) async fn first<K, T>(attempts: &mut Attempts<K, T>) -> (K, T) {
    poll_fn(|context| {
        for index in 0..attempts.len() {
            if let Poll::Ready(result) = attempts[index].1.as_mut().poll(context) {
                let (key, _) = attempts.remove(index);
                return Poll::Ready((key, result));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::transport::epoll;
    use crate::transport::process::AcceptedPeer;

    const OPTIONS: ConnectOptions = ConnectOptions {
        timeout: Duration::from_secs(2),
        user_timeout: Duration::from_secs(30),
        send_proxy: None,
    };

    fn dial(addresses: &[SocketAddr]) -> Dial {
        Dial::to(addresses, OPTIONS)
    }

    /// Nobody listens there: it is bound, and no more.
    fn nowhere() -> (socket2::Socket, SocketAddr) {
        let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = bound.local_addr().unwrap().as_socket().unwrap();
        (bound, address)
    }

    /// An address that does not answer: its backlog is full.
    fn silent() -> (Vec<socket2::Socket>, SocketAddr) {
        let socket = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut kept = vec![listener];
        for _ in 0..4 {
            let stuffing = socket();
            let _ = stuffing.connect(&address);
            kept.push(stuffing);
        }
        (kept, address.as_socket().unwrap())
    }

    #[test]
    fn every_address_of_a_name_is_tried_and_a_refusal_does_not_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let (_bound, refused) = nowhere();
        let (_other, refused_too) = nowhere();
        epoll::runtime().unwrap().block_on(async {
            let mut dial_there = dial(&[refused, there, refused_too]);
            assert_eq!(dial_there.next().await.unwrap().peer(), Some(there));
            assert!(dial_there.remark().starts_with(&format!("{refused}: ")), "{}", dial_there.remark());
            let error = dial(&[refused]).next().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            let error = dial(&[refused, refused_too]).next().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(error.to_string().contains(&refused_too.to_string()), "{error}");
        });
    }

    #[test]
    fn every_site_of_an_address_can_be_connected_to_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let (_bound, refused) = nowhere();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let _local = std::os::unix::net::UnixListener::bind(&path).unwrap();
        epoll::runtime().unwrap().block_on(async {
            let limit = OPTIONS.timeout;
            let sites_of = async |text: &str| sites(&text.parse().unwrap(), limit).await.unwrap();
            assert_eq!(sites_of(&format!("tcp://{there}")).await, [Site::Tcp(there)]);
            assert_eq!(sites_of(&format!("unix:{}", path.display())).await, [Site::Unix(path.clone())]);
            let local = sites_of("tcp://localhost:53").await;
            assert!(local.iter().all(|site| local.iter().filter(|other| site == *other).count() == 1));
            let connected = connect(&Site::Tcp(there), &OPTIONS).await.unwrap();
            assert_eq!(connected.far_end().unwrap(), AcceptedPeer::Tcp(there));
            let connected = connect(&Site::Unix(path.clone()), &OPTIONS).await.unwrap();
            assert!(matches!(connected.far_end().unwrap(), AcceptedPeer::Unix(Some(_))));
            let error = connect(&Site::Tcp(refused), &OPTIONS).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn an_address_that_does_not_answer_delays_the_next_by_the_stagger_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let (_kept, silent) = silent();
        epoll::runtime().unwrap().block_on(async {
            let began = Instant::now();
            let mut dial = dial(&[silent, there]);
            assert_eq!(dial.next().await.unwrap().peer(), Some(there));
            assert!(began.elapsed() >= STAGGER);
            assert!(dial.has_more(), "the first address was not waited for to its end");
            // The connection came to nothing: the first address is tried to its own end.
            dial.failed(Some(there), "reset");
            let error = dial.next().await.unwrap_err().to_string();
            assert!(
                error.contains(&format!("{there}: reset")) && error.contains("no answer within"),
                "{error}"
            );
            assert!(!dial.has_more());
        });
    }

    #[test]
    fn families_are_tried_in_turn_and_an_address_that_failed_comes_last() {
        let addresses =
            ["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.1:1"].map(|text| text.parse().unwrap());
        let texts = |last: Option<&str>| -> Vec<String> {
            let last = last.map(|text| text.parse().unwrap());
            in_turn(&addresses, last).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(None), ["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(texts(Some("[::1]:1")), ["1.0.0.1:1", "[::2]:1", "[::3]:1", "[::1]:1"]);
        let many: Vec<SocketAddr> = (1..100).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        assert_eq!(in_turn(&many, None).len(), ADDRESSES_MAX);
    }

    #[test]
    fn a_socket_that_is_connected_with_itself_is_refused() {
        let (bound, address) = nowhere();
        bound.connect(&address.into()).unwrap();
        bound.set_nonblocking(true).unwrap();
        epoll::runtime().unwrap().block_on(async {
            let connected = TcpStream::from_std(bound.into()).unwrap();
            assert_eq!(connected.local_addr().unwrap(), connected.peer_addr().unwrap());
            assert_eq!(not_itself(connected).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
