//! A correct reader that keeps all it gets, and that can stall, die and return.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tapster::transport::Address;
use tapster::transport::tls::ServerAcceptor;

use super::peer::is_timeout;
use super::stream::Listener;
use super::stream::Stream;
use super::stream::Transport;
use super::wait::eventually;
use super::wait::eventually_within;
use super::wait::millis;
use super::wire;
use super::wire::D;
use super::wire::Frame;

/// A collector in threads of its own.
#[derive(Debug)]
pub(crate) struct CollectingReader {
    address: Address,
    content_type: Vec<u8>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    // What it speaks TLS with.
    tls: Option<ServerAcceptor>,
}

/// What one connection brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    /// Whole data frames, length words included, end to end.
    pub(crate) encoded: Vec<u8>,
    /// How many.
    pub(crate) frames: usize,
    /// How many frames were there at which moment.
    pub(crate) arrivals: Vec<(usize, Instant)>,
    /// Bytes of a frame that had not wholly come when the connection ended.
    pub(crate) cut: usize,
    /// Whether it ended with STOP.
    pub(crate) stopped: bool,
    /// Whether it ended at all.
    pub(crate) ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stalled: bool,
    /// Connections of an older generation end.
    generation: u64,
    closing: bool,
    receive_buffer: Option<usize>,
    sessions: Vec<Session>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no collector thread has panicked")
    }
}

impl CollectingReader {
    /// A collector of dnstap.
    pub(crate) fn start(transport: Transport, folder: &Path) -> Self {
        Self::of_type(D, transport, folder)
    }

    pub(crate) fn tcp() -> Self {
        Self::start(Transport::Tcp, Path::new("unused"))
    }

    /// A collector of dnstap that listens here.
    pub(crate) fn at(address: &Address) -> Self {
        Self::of_type_at(D, address)
    }

    pub(crate) fn of_type(content_type: &[u8], transport: Transport, folder: &Path) -> Self {
        Self::of_type_at(content_type, &transport.fresh_address(folder))
    }

    fn of_type_at(content_type: &[u8], address: &Address) -> Self {
        let listener = Listener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
        Self::over(content_type, listener, None)
    }

    /// A collector of dnstap over TLS.
    pub(crate) fn over_tls(acceptor: ServerAcceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self::over(D, Listener::Tls(listener, acceptor.clone()), Some(acceptor))
    }

    fn over(content_type: &[u8], listener: Listener, tls: Option<ServerAcceptor>) -> Self {
        let mut reader = Self {
            address: listener.address(),
            content_type: content_type.to_vec(),
            shared: Arc::default(),
            acceptor: None,
            tls,
        };
        reader.listen(listener);
        reader
    }

    /// Receives through a buffer of so many bytes from the next connection on.
    pub(crate) fn with_receive_buffer(self, bytes: usize) -> Self {
        self.shared.state().receive_buffer = Some(bytes);
        self
    }

    /// Accepts, but reads nothing until [`Self::resume`].
    pub(crate) fn stalled(self) -> Self {
        self.stall();
        self
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(crate) fn content_type(&self) -> &[u8] {
        &self.content_type
    }

    /// Stops reading; connections stay open.
    pub(crate) fn stall(&self) {
        self.shared.state().stalled = true;
    }

    pub(crate) fn resume(&self) {
        self.shared.state().stalled = false;
        self.shared.changed.notify_all();
    }

    /// Closes every connection with RST, and the listener.
    pub(crate) fn die(&mut self) {
        {
            let mut state = self.shared.state();
            state.generation += 1;
            self.shared.changed.notify_all();
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the collector ends well");
        }
    }

    /// Listens again where it listened before.
    pub(crate) fn revive(&mut self) {
        assert!(self.acceptor.is_none(), "still alive");
        let mut listener = None;
        eventually("the address can be bound again", || {
            listener = match &self.tls {
                None => Listener::bind(&self.address).ok(),
                Some(tls) => {
                    let bound = TcpListener::bind(self.address.host_port().expect("a port"));
                    bound.ok().map(|bound| Listener::Tls(bound, tls.clone()))
                }
            };
            listener.is_some()
        });
        self.listen(listener.expect("just bound"));
    }

    /// Frames of all sessions so far.
    pub(crate) fn frames(&self) -> usize {
        self.shared.state().sessions.iter().map(|session| session.frames).sum()
    }

    /// Sessions that reached START.
    pub(crate) fn session_count(&self) -> usize {
        self.shared.state().sessions.len()
    }

    /// Sessions that have not ended.
    pub(crate) fn sessions_open(&self) -> usize {
        self.shared.state().sessions.iter().filter(|session| !session.ended).count()
    }

    #[track_caller]
    pub(crate) fn wait_for_frames(&self, count: usize) {
        self.wait_for_frames_within(super::wait::PATIENCE, count);
    }

    #[track_caller]
    pub(crate) fn wait_for_frames_within(&self, limit: Duration, count: usize) -> Duration {
        eventually_within(limit, &format!("{count} frames at {}", self.address), || self.frames() >= count)
    }

    /// Waits until the sessions after the first `sessions` have brought so many frames.
    #[track_caller]
    pub(crate) fn wait_for_frames_after(&self, sessions: usize, count: usize) {
        eventually(&format!("{count} frames at {}", self.address), || {
            let state = self.shared.state();
            state.sessions.iter().skip(sessions).map(|session| session.frames).sum::<usize>() >= count
        });
    }

    #[track_caller]
    pub(crate) fn wait_for_sessions(&self, count: usize) {
        eventually(&format!("{count} sessions at {}", self.address), || self.session_count() >= count);
    }

    /// What came so far.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.shared.state().sessions.clone()
    }

    /// Ends, and hands out what came.
    pub(crate) fn close(mut self) -> Collected {
        self.end();
        Collected { sessions: std::mem::take(&mut self.shared.state().sessions) }
    }

    fn end(&mut self) {
        {
            let mut state = self.shared.state();
            state.closing = true;
            state.generation += 1;
            state.stalled = false;
            self.shared.changed.notify_all();
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the collector ends well");
        }
    }

    fn listen(&mut self, listener: Listener) {
        let shared = self.shared.clone();
        let content_type = self.content_type.clone();
        let generation = shared.state().generation;
        self.acceptor = Some(thread::spawn(move || {
            let mut connections = Vec::new();
            while shared.state().generation == generation {
                let Some(stream) = listener.poll_accept() else {
                    thread::sleep(millis(2));
                    continue;
                };
                let shared = shared.clone();
                let content_type = content_type.clone();
                connections.push(thread::spawn(move || read(stream, &content_type, &shared, generation)));
            }
            drop(listener);
            for connection in connections {
                connection.join().expect("the connection's thread ends well");
            }
        }));
    }
}

impl Drop for CollectingReader {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.end();
        }
    }
}

/// All that a collector got.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) sessions: Vec<Session>,
}

impl Collected {
    /// Payloads in order of arrival, session after session.
    pub(crate) fn payloads(&self) -> Vec<&[u8]> {
        self.sessions.iter().flat_map(|session| wire::payloads(&session.encoded)).collect()
    }

    pub(crate) fn frames(&self) -> u64 {
        self.sessions.iter().map(|session| session.frames as u64).sum()
    }

    /// Bytes of whole data frames, length words included.
    pub(crate) fn bytes(&self) -> u64 {
        self.sessions.iter().map(|session| session.encoded.len() as u64).sum()
    }
}

/// After so long without a byte nothing more is expected of a connection whose end has not come.
const A_PAUSE: Duration = Duration::from_millis(500);

/// One connection: handshake, data, FINISH after STOP.
fn read(mut stream: Stream, content_type: &[u8], shared: &Shared, generation: u64) {
    if let Some(bytes) = shared.state().receive_buffer {
        stream.set_receive_buffer(bytes);
    }
    stream.set_read_timeout(Duration::from_secs(5));
    let Ok(Frame::Control(ready)) = Frame::read(&mut stream) else { return };
    // No reader that is not tapster understands that.
    if wire::asks_about_loops(&ready) {
        return;
    }
    assert_eq!(ready, wire::ready(&[content_type])[8..], "the relay offers something else");
    if stream.write_all(&wire::accept(&[content_type])).is_err() {
        return;
    }
    let Ok(Frame::Control(start)) = Frame::read(&mut stream) else { return };
    assert_eq!(start, wire::start(&[content_type])[8..], "the relay starts something else");

    let index = {
        let mut state = shared.state();
        state.sessions.push(Session::default());
        state.sessions.len() - 1
    };
    let left = read_data(&mut stream, shared, generation, index);
    {
        let mut state = shared.state();
        let session = &mut state.sessions[index];
        session.cut = left.len();
        session.ended = true;
    }
    if shared.state().sessions[index].stopped {
        let _ = stream.write_all(&wire::finish());
    } else {
        stream.reset();
    }
}

/// Reads until STOP, the end of the stream or the end of the generation; returns the bytes of a cut frame.
fn read_data(stream: &mut Stream, shared: &Shared, generation: u64, index: usize) -> Vec<u8> {
    stream.set_read_timeout(millis(20));
    let mut unparsed = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    let mut last_arrival = Instant::now();
    loop {
        {
            let mut state = shared.state();
            while state.stalled && state.generation == generation {
                state = shared.changed.wait(state).expect("no collector thread has panicked");
            }
            // A reader that closes takes what is there or on its way, one that dies does not.
            if state.generation != generation && !state.closing {
                return unparsed;
            }
        }
        let len = match stream.read(&mut buffer) {
            Ok(0) => return unparsed,
            Ok(len) => len,
            Err(error) if is_timeout(&error) => {
                if shared.state().generation != generation && last_arrival.elapsed() > A_PAUSE {
                    return unparsed;
                }
                continue;
            }
            Err(_) => return unparsed,
        };
        let arrived_at = Instant::now();
        last_arrival = arrived_at;
        unparsed.extend_from_slice(&buffer[..len]);
        let (whole, frames, stopped) = whole_frames(&unparsed);
        let mut state = shared.state();
        let session = &mut state.sessions[index];
        session.encoded.extend_from_slice(&unparsed[..whole]);
        session.frames += frames;
        if frames > 0 {
            session.arrivals.push((session.frames, arrived_at));
        }
        unparsed.drain(..whole);
        if stopped {
            session.stopped = true;
            assert_eq!(unparsed, wire::stop(), "something after STOP");
            return Vec::new();
        }
    }
}

/// How many bytes of `bytes` are whole data frames, how many those are, and whether STOP follows.
fn whole_frames(bytes: &[u8]) -> (usize, usize, bool) {
    let (mut at, mut frames) = (0, 0);
    while let Some(word) = bytes[at..].first_chunk() {
        let len = u32::from_be_bytes(*word) as usize;
        if len == 0 {
            let control = &bytes[at..];
            assert!(control.len() > 12 || wire::stop().starts_with(control), "not a STOP: {control:02x?}");
            return (at, frames, control.len() >= 12);
        }
        assert!(len <= 1 << 24, "a length word of {len}: the stream is out of step");
        if bytes.len() - at < 4 + len {
            break;
        }
        at += 4 + len;
        frames += 1;
    }
    (at, frames, false)
}
