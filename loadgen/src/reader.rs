//! A consumer: one listener whose connections run Frame Streams readers, and everything they bring checked.

use std::collections::HashMap;
use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use bytes::BytesMut;
use hdrhistogram::Histogram;
use rustix::event::epoll::EventFlags;
use tapster::protocol::ContentTypes;
use tapster::protocol::ProtocolError;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderEvent;
use tapster::protocol::ReaderSession;
use tapster::protocol::SessionEnd;
use tapster::transport::Address;

use crate::clock::NANOS_PER_SECOND;
use crate::clock::now_ns;
use crate::poller::Poller;
use crate::report::ConsumerReport;
use crate::socket::Listener;
use crate::stream::Stream;
use crate::tally::Tally;
use crate::target::Place;
use crate::verify::Verifier;

/// How a consumer behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// Bytes per second, if it is slow.
    pub(crate) read_rate: Option<usize>,
    /// After so many frames it reads nothing for so long.
    pub(crate) stall: Option<(u64, Duration)>,
    /// After so many frames it closes everything, and listens again so much later.
    pub(crate) die: Option<(u64, Duration)>,
}

/// What other threads see of a running consumer, and how they end it.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) frames: AtomicU64,
    pub(crate) connections_open: AtomicU64,
    /// Sending connections whose last frame has come.
    pub(crate) streams_finished: AtomicU64,
    /// When the last bytes came, on the monotonic clock; 0: none yet.
    pub(crate) read_at_ns: AtomicU64,
    /// Latency of 99 % of the frames, updated now and then.
    pub(crate) p99_ns: AtomicU64,
    pub(crate) stalled: AtomicBool,
    pub(crate) dead: AtomicBool,
    pub(crate) stop: AtomicBool,
}

/// One listener with its connections.
pub(crate) struct Consumer {
    place: Place,
    behaviour: Behaviour,
    live: Arc<Live>,
    poller: Poller,
    listener: Option<Listener>,
    connections: HashMap<u64, Connection>,
    next_token: u64,
    reader_config: Arc<ReaderConfig>,
    /// Where every connection reads into; what a frame lacks waits in the connection.
    buffer: Vec<u8>,
    tally: Tally,
    latency_published_ns: u64,
    report: ConsumerReport,
}

/// What a consumer has received in all.
pub(crate) struct Received {
    pub(crate) report: ConsumerReport,
    pub(crate) latency: Histogram<u64>,
    pub(crate) verifier: Verifier,
}

struct Connection {
    stream: Stream,
    session: ReaderSession,
    started: bool,
    /// The beginning of a frame.
    rest: BytesMut,
}

impl Consumer {
    /// Listens; connections are taken by [`Consumer::run`].
    pub(crate) fn bind(place: Place, behaviour: Behaviour) -> Result<Self> {
        let mut consumer = Self {
            place,
            behaviour,
            live: Arc::default(),
            poller: Poller::new()?,
            listener: None,
            connections: HashMap::new(),
            next_token: LISTENER + 1,
            reader_config: Arc::new(ReaderConfig {
                content_types: ContentTypes::Any,
                frame_len_max: FRAME_LEN_MAX,
                ..ReaderConfig::default()
            }),
            buffer: vec![0; READ_SIZE],
            tally: Tally::new(),
            latency_published_ns: 0,
            report: ConsumerReport::default(),
        };
        consumer.listen()?;
        Ok(consumer)
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> &Address {
        &self.place.address
    }

    /// What other threads may see.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Reads and checks until its owner asks it to stop.
    pub(crate) fn run(mut self) -> Result<Received> {
        while !self.live.stop.load(Relaxed) {
            self.poller.wait(Some(TICK))?;
            for index in 0..self.poller.len() {
                match self.poller.event(index).0 {
                    LISTENER => self.accept()?,
                    token => while self.read(token) {},
                }
                self.publish();
                self.misbehave()?;
            }
        }
        Ok(self.into_received())
    }

    fn listen(&mut self) -> Result<()> {
        let listener = Listener::bind(&self.place.address)?;
        listener.socket().set_nonblocking(true)?;
        self.poller.add(listener.socket(), LISTENER, EventFlags::IN)?;
        // The next one, after a death, listens on the same port.
        self.place.address = listener.address().clone();
        self.listener = Some(listener);
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        while let Some(listener) = &self.listener {
            let socket = match listener.accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The peer has gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            socket.set_nonblocking(true)?;
            let token = self.next_token;
            self.next_token += 1;
            self.poller.add(&socket, token, EventFlags::IN)?;
            let session = ReaderSession::new(Arc::clone(&self.reader_config), Instant::now());
            let stream = self.place.stream(socket)?;
            self.connections
                .insert(token, Connection { stream, session, started: false, rest: BytesMut::new() });
            self.report.connections += 1;
        }
        Ok(())
    }

    /// Reads once. A connection that has ended is closed and forgotten. Returns whether there is more to be read that no event
    /// tells of.
    fn read(&mut self, token: u64) -> bool {
        // A death in this turn may have closed it.
        let Some(connection) = self.connections.get_mut(&token) else { return false };
        let rest_len = connection.rest.len();
        let read_len =
            self.behaviour.read_rate.map_or(READ_SIZE, |rate| (rate / READS_PER_SECOND).clamp(1, READ_SIZE));
        if self.buffer.len() < rest_len + read_len {
            self.buffer.resize(rest_len + read_len, 0);
        }
        self.buffer[..rest_len].copy_from_slice(&connection.rest);
        let read_len = match connection.stream.read(&mut self.buffer[rest_len..rest_len + read_len]) {
            Ok(read_len) => read_len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            // A reset ends a session as a close does.
            Err(_) => 0,
        };
        let goes_on = if read_len == 0 {
            let end = connection.session.handle_eof(&connection.rest);
            self.ended(end);
            false
        } else {
            self.take(token, rest_len + read_len)
        };
        if !goes_on {
            self.connections.remove(&token);
            return false;
        }
        self.connections.get_mut(&token).is_some_and(|connection| connection.stream.has_decrypted())
    }

    /// Takes the first `len` bytes of the buffer as what a connection has brought; `false` ends the connection.
    fn take(&mut self, token: u64, len: usize) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return false };
        let now = now_ns();
        let bytes = &self.buffer[..len];
        let taken = if connection.started { self.tally.take(bytes, now) } else { 0 };
        connection.rest.clear();
        connection.rest.extend_from_slice(&bytes[taken..]);
        if connection.started && is_data_or_nothing(&connection.rest) {
            return true;
        }
        // Only control frames, and what follows them in the same read, come here.
        let result = connection.session.handle_bytes(Instant::now(), &mut connection.rest);
        let mut end = None;
        while let Some(event) = connection.session.poll_event() {
            match event {
                ReaderEvent::Started { .. } => connection.started = true,
                ReaderEvent::Data(batch) => {
                    self.tally.take(batch.bytes(), now);
                }
                ReaderEvent::Finished => end = Some(SessionEnd::Finished),
            }
        }
        while let Some(answer) = connection.session.poll_transmit() {
            // A few bytes always fit, unless the writer has gone.
            if connection.stream.write_all(&answer).is_err() {
                end = Some(SessionEnd::Unclean);
            }
        }
        match (result, end) {
            (Err(error), _) => self.protocol_error(&error),
            (Ok(()), Some(end)) => self.ended(end),
            (Ok(()), None) => return true,
        }
        false
    }

    fn ended(&mut self, end: SessionEnd) {
        match end {
            SessionEnd::Finished => self.report.sessions_finished += 1,
            SessionEnd::Unclean => self.report.sessions_unclean += 1,
            SessionEnd::Truncated { .. } => self.report.sessions_truncated += 1,
            // Somebody looked whether we listen.
            SessionEnd::InHandshake => {}
        }
    }

    fn protocol_error(&mut self, error: &ProtocolError) {
        if self.report.protocol_errors.len() < PROTOCOL_ERRORS_MAX {
            self.report.protocol_errors.push(error.to_string());
        }
    }

    fn publish(&mut self) {
        let live = &self.live;
        let read_at_ns = self.tally.last_read_ns();
        live.frames.store(self.tally.frames(), Relaxed);
        live.connections_open.store(self.connections.len() as u64, Relaxed);
        live.streams_finished.store(self.tally.streams_finished(), Relaxed);
        live.read_at_ns.store(read_at_ns, Relaxed);
        if read_at_ns > self.latency_published_ns + PUBLISH_LATENCY_EVERY_NS {
            self.latency_published_ns = read_at_ns;
            live.p99_ns.store(self.tally.latency().value_at_quantile(0.99), Relaxed);
        }
    }

    /// Is slow, stalls or dies when the time for it has come.
    fn misbehave(&mut self) -> Result<()> {
        if let Some(rate) = self.behaviour.read_rate
            && self.tally.frames() > 0
        {
            let due_ns = (self.tally.bytes() as f64 / rate as f64 * NANOS_PER_SECOND as f64) as u64;
            let ahead_ns = (self.tally.first_read_ns() + due_ns).saturating_sub(now_ns());
            self.sleep(Duration::from_nanos(ahead_ns));
        }
        let frames = self.tally.frames();
        if let Some((_, time)) = self.behaviour.stall.take_if(|(after, _)| frames >= *after) {
            self.live.stalled.store(true, Relaxed);
            self.sleep(time);
            self.live.stalled.store(false, Relaxed);
        }
        if let Some((_, time)) = self.behaviour.die.take_if(|(after, _)| frames >= *after) {
            self.live.dead.store(true, Relaxed);
            self.listener = None;
            for (_, connection) in self.connections.drain() {
                // A reset, as the kernel sends one for a process that was killed with data unread.
                let _ = connection.stream.socket().set_linger(Some(Duration::ZERO));
                self.report.sessions_unclean += 1;
            }
            self.publish();
            self.sleep(time);
            if !self.live.stop.load(Relaxed) {
                self.listen()?;
            }
            self.live.dead.store(false, Relaxed);
        }
        Ok(())
    }

    /// Sleeps, but not past the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.live.stop.load(Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(TICK));
        }
    }

    fn into_received(mut self) -> Received {
        self.report.address = self.place.address.to_string();
        self.tally.report(&mut self.report);
        let latency = self.tally.latency().clone();
        Received { report: self.report, latency, verifier: self.tally.into_verifier() }
    }
}

/// Whether what comes next is a data frame of a length that we take, as far as can be told.
fn is_data_or_nothing(rest: &[u8]) -> bool {
    rest.first_chunk().is_none_or(|len| (1..=FRAME_LEN_MAX).contains(&u32::from_be_bytes(*len)))
}

const LISTENER: u64 = 0;
const READ_SIZE: usize = 256 << 10;
/// How finely a slow consumer spreads its reads.
const READS_PER_SECOND: usize = 50;
/// How soon a stop is noticed.
const TICK: Duration = Duration::from_millis(20);
const FRAME_LEN_MAX: u32 = 64 << 20;
const PROTOCOL_ERRORS_MAX: usize = 10;
const PUBLISH_LATENCY_EVERY_NS: u64 = 250_000_000;
