//! Loops that lead through other relays: out of an output, into a relay, and back in here.
//!
//! Frames that come in again and again raise suspicion ([`echoes`]). Then the relay asks on every way of its outputs whether
//! it leads back ([`probe`]). Every relay that is asked asks on; a question that comes back to the relay that asked it is
//! the proof. Whoever has no suspicion asks nothing, so that a collector that is not tapster sees questions only where
//! frames repeat themselves. What leads back at the first step is known without a question: `transport/own_listeners`.

pub(crate) mod echoes;
pub(crate) mod probe;

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::loops::echoes::Echoes;
use crate::loops::probe::LoopProbe;
use crate::loops::probe::ProbeId;
use crate::observability::peer_name::PeerName;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::transport::Address;
use crate::transport::dial::Dial;
use crate::transport::proxy_header::ProxyVersion;
use crate::transport::socket::ConnectOptions;
use crate::transport::tls::ReloadableClient;

/// What one relay knows about loops that it is on.
#[derive(Debug)]
pub(crate) struct Loops {
    relay: u64,
    started: Instant,
    // Nanoseconds since then: frames that were read before need not be looked at.
    resting_until: AtomicU64,
    echoes: Mutex<Echoes>,
    ways: Mutex<Vec<Arc<Way>>>,
    numbers: AtomicU32,
    // Changes when a way turns out to lead back.
    news: watch::Sender<()>,
    // Questions of others that were asked on, the last of them.
    asked_on: Mutex<VecDeque<ProbeId>>,
    asking_on: AtomicUsize,
}

/// Where outputs of one content type lead.
#[derive(Debug)]
pub(crate) struct Way {
    index: u32,
    content_type: Option<ContentType>,
    address: Address,
    send_proxy: Option<ProxyVersion>,
    // What it speaks TLS with.
    tls: Mutex<Option<Arc<ReloadableClient>>>,
    led_back: Mutex<Option<LedBack>>,
}

/// The proof that a way leads back: where a question came in that had left on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LedBack {
    number: u32,
    input: String,
    // The last relay before this one.
    relay: String,
}

impl fmt::Display for LedBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, relay, .. } = self;
        write!(
            f,
            "this address leads back to input `{input}` of this same tapster through other relays (the last of them: {relay}), \
             so that every frame would go round without end; no frame is written there while it does; change an output \
             on the way"
        )
    }
}

impl Loops {
    /// Of a relay that begins.
    pub(crate) fn new() -> Arc<Self> {
        let started = Instant::now();
        Arc::new(Self {
            relay: fastrand::u64(..),
            started,
            resting_until: AtomicU64::new(0),
            echoes: Mutex::new(Echoes::new(started)),
            ways: Mutex::default(),
            numbers: AtomicU32::new(0),
            news: watch::Sender::new(()),
            asked_on: Mutex::default(),
            asking_on: AtomicUsize::new(0),
        })
    }

    /// An output of this content type leads there, and sends a PROXY header where it is told to. It speaks TLS with `tls`, where it
    /// does.
    pub(crate) fn way(
        &self,
        content_type: Option<&ContentType>,
        address: &Address,
        send_proxy: Option<ProxyVersion>,
        tls: Option<&Arc<ReloadableClient>>,
    ) -> Arc<Way> {
        let mut ways = self.ways.lock().expect(UNPOISONED);
        let is_it = |way: &&Arc<Way>| {
            way.takes(content_type) && way.address == *address && way.send_proxy == send_proxy
        };
        if let Some(way) = ways.iter().find(is_it) {
            *way.tls.lock().expect(UNPOISONED) = tls.cloned();
            return Arc::clone(way);
        }
        let way = Arc::new(Way {
            index: ways.len() as u32, // as many as an operator writes
            content_type: content_type.cloned(),
            address: address.clone(),
            send_proxy,
            tls: Mutex::new(tls.cloned()),
            led_back: Mutex::default(),
        });
        ways.push(Arc::clone(&way));
        way
    }

    /// An output has a new connection, which may have closed a loop.
    pub(crate) fn output_connected(&self, now: Instant) {
        let mut echoes = self.echoes.lock().expect(UNPOISONED);
        echoes.output_connected(now);
        self.look_again(&echoes);
    }

    /// Takes frames that have come in, and go to outputs. Returns whether to [`ask`](Self::ask).
    pub(crate) fn is_suspicious(&self, batch: &FrameBatch) -> bool {
        // Most of the time this comparison is all.
        let read_at = batch.read_at();
        if self.nanoseconds(read_at) < self.resting_until.load(Relaxed) {
            return false;
        }
        let mut echoes = self.echoes.lock().expect(UNPOISONED);
        let suspicious = echoes.hear(batch.bytes(), read_at);
        self.look_again(&echoes);
        suspicious
    }

    fn look_again(&self, echoes: &Echoes) {
        let until = echoes.resting_until().map_or(0, |until| self.nanoseconds(until));
        self.resting_until.store(until, Relaxed);
    }

    fn nanoseconds(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Asks on every way of this content type whether it leads back. Cancel-safe.
    pub(crate) async fn ask(&self, content_type: Option<&ContentType>) {
        let probe = |way: &Way| self.question(way);
        ask_on(self.ways_of(content_type), probe).await;
    }

    fn question(&self, way: &Way) -> LoopProbe {
        let id = ProbeId { relay: self.relay, way: way.index, number: self.numbers.fetch_add(1, Relaxed) };
        LoopProbe { id, hops: HOPS_MAX, content_type: way.content_type.clone() }
    }

    /// Takes a question that has come in at `input`, which would take the streams that it is about as `content_type`: notes
    /// what it proves, or asks it on. Cancel-safe.
    pub(crate) async fn take(
        &self,
        probe: LoopProbe,
        content_type: Option<&ContentType>,
        input: &str,
        peer: &PeerName,
    ) {
        if probe.id.relay == self.relay {
            self.came_back(probe.id, content_type, input, peer);
            return;
        }
        let Some(hops) = probe.hops.checked_sub(1) else { return };
        let Some(_one) = self.is_new(probe.id).then(|| AskingOn::begin(&self.asking_on)).flatten() else {
            return;
        };
        let probe = LoopProbe { id: probe.id, hops, content_type: content_type.cloned() };
        ask_on(self.ways_of(content_type), |_| probe.clone()).await;
    }

    fn came_back(&self, id: ProbeId, content_type: Option<&ContentType>, input: &str, peer: &PeerName) {
        let way = self.ways.lock().expect(UNPOISONED).get(id.way as usize).cloned();
        // Frames that come back as another type do not go round.
        let Some(way) = way.filter(|way| way.takes(content_type)) else { return };
        let relay = name_of(peer);
        way.set(Some(LedBack { number: id.number, input: input.to_owned(), relay }));
        self.news.send_replace(());
    }

    fn is_new(&self, id: ProbeId) -> bool {
        let mut asked_on = self.asked_on.lock().expect(UNPOISONED);
        let new = !asked_on.contains(&id);
        if new {
            asked_on.truncate(ASKED_ON_KEPT - 1);
            asked_on.push_front(id);
        }
        new
    }

    fn ways_of(&self, content_type: Option<&ContentType>) -> Vec<Arc<Way>> {
        let ways = self.ways.lock().expect(UNPOISONED);
        ways.iter().filter(|way| way.takes(content_type)).cloned().collect()
    }

    /// Sees when a way turns out to lead back.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Whether a way leads back. One that did is asked once more. At the end of `scope` nobody takes a question any more, and the
    /// way is taken for what it was. Cancel-safe.
    pub(crate) async fn leads_back(&self, way: &Arc<Way>, scope: &Scope) -> Option<LedBack> {
        way.led_back()?;
        let (mut news, mut phases) = (self.news(), scope.phases());
        let probe = self.question(way);
        let mut asking = pin!(ask_on(vec![Arc::clone(way)], |_| probe.clone()));
        let mut late = pin!(tokio::time::sleep(COMING_BACK_MAX));
        let mut asked = false;
        loop {
            let led_back = way.led_back();
            if led_back.as_ref().is_none_or(|led_back| led_back.number >= probe.id.number) {
                return led_back;
            }
            tokio::select! {
                biased;
                () = phases.reached(Phase::Draining) => return led_back,
                _ = news.changed() => {}
                () = &mut asking, if !asked => asked = true,
                () = &mut late => way.set(None),
            }
        }
    }
}

impl Way {
    /// The proof that this way leads back, if there is one.
    pub(crate) fn led_back(&self) -> Option<LedBack> {
        self.led_back.lock().expect(UNPOISONED).clone()
    }

    fn set(&self, led_back: Option<LedBack>) {
        *self.led_back.lock().expect(UNPOISONED) = led_back;
    }

    fn takes(&self, content_type: Option<&ContentType>) -> bool {
        self.content_type.as_ref() == content_type
    }
}

/// A relay by what stays the same from one question to the next: no port.
fn name_of(peer: &PeerName) -> String {
    let process = peer.process().and_then(|process| Some((process.program.as_deref()?, process.pid?)));
    match (peer.ip(), process) {
        (Some(ip), _) => ip.to_string(),
        (None, Some((program, pid))) => format!("{program}, process {pid}"),
        (None, None) => "a process of this host".to_owned(),
    }
}

/// One of the questions that are being asked on.
struct AskingOn<'a>(&'a AtomicUsize);

impl<'a> AskingOn<'a> {
    /// `None`: there are as many as there may be.
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let one = Self(count);
        (count.fetch_add(1, Relaxed) < ASKING_ON_MAX).then_some(one)
    }
}

impl Drop for AskingOn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Asks on all of these ways at the same time.
async fn ask_on(ways: Vec<Arc<Way>>, probe: impl Fn(&Way) -> LoopProbe) {
    let mut asking = JoinSet::new();
    for way in ways {
        if let Some(ready) = probe(&way).ready() {
            asking.spawn_local(async move { timeout(ASKING_MAX, deliver(&way, &ready)).await });
        }
    }
    while asking.join_next().await.is_some() {}
}

/// Connects and asks, at each address that the name has. Another relay ends the connection once it has the question.
async fn deliver(way: &Way, ready: &[u8]) {
    let (address, send_proxy) = (&way.address, way.send_proxy);
    let connector = way.tls.lock().expect(UNPOISONED).as_ref().map(|tls| tls.current());
    let options = ConnectOptions { timeout: ANSWER_MAX, user_timeout: ANSWER_MAX, send_proxy };
    let Ok(mut dial) = Dial::new(address, options, None).await else { return };
    while dial.has_more()
        && let Ok(mut socket) = dial.next().await
    {
        if let Some(version) = send_proxy
            && socket.send_proxy_header(version).await.is_err()
        {
            continue;
        }
        if address.is_tls() {
            let Some(connector) = &connector else { return };
            let Some(name) = connector.server_name(address) else { return };
            let Ok(encrypted) = socket.connect_tls(connector, name).await else { continue };
            socket = encrypted;
        }
        if socket.write_all(ready).await.is_ok() {
            let _ = timeout(ANSWER_MAX, socket.read_buf(&mut BytesMut::with_capacity(64))).await;
        }
    }
}

/// So many relays may ask one question on.
const HOPS_MAX: u8 = 32;
/// Questions of others that are remembered, so that none is asked on twice.
const ASKED_ON_KEPT: usize = 256;
/// Questions of others that are asked on at the same time.
const ASKING_ON_MAX: usize = 32;
/// How long a connection with a question waits for its end.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a question takes to come back.
const COMING_BACK_MAX: Duration = Duration::from_secs(5);
/// How long a question takes on one way, at all its addresses.
const ASKING_MAX: Duration = Duration::from_secs(5);

const UNPOISONED: &str = "no panic while it is held";
