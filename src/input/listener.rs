//! Connections of one input on one worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::rc::Weak;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::faults;
use crate::input::InputConfig;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::observability::input_account::InputAccount;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::PeerName;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::protocol::ReaderConfig;
use crate::protocol::ReaderCounters;
use crate::protocol::ReaderSession;
use crate::queue::block_limit::BlockLimit;
use crate::route::Fanout;
use crate::route::Inlet;
use crate::session::read;
use crate::session::read::ReadEnd;
use crate::session::read::ReadHandle;
use crate::session::read::Reading;
use crate::session::read_coalescer::ReadCoalescer;
use crate::session::read_turns::ReadTurns;
use crate::transport::Backend;
use crate::transport::buffer::ReadBuffer;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;

/// What the connections of one worker have in common.
pub(crate) struct Readers {
    pub(crate) backend: Backend,
    /// Entrances of the lanes that this worker feeds.
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) buffer: RefCell<ReadBuffer>,
    block_limit: Arc<BlockLimit>,
    pub(crate) coalescer: ReadCoalescer,
    // One for each content type that an output takes, and one for what nobody takes.
    turns: BTreeMap<Option<ContentType>, ReadTurns>,
    unrouted_turns: ReadTurns,
    streaming: RefCell<Vec<Streaming>>,
}

/// A connection in its data phase, and its input.
struct Streaming {
    handle: Weak<ReadHandle>,
    account: Arc<InputAccount>,
}

/// One input, as one worker serves it.
pub(crate) struct WorkerInput {
    pub(crate) config: Arc<InputConfig>,
    pub(crate) reader: Arc<ReaderConfig>,
    pub(crate) account: Arc<InputAccount>,
    /// Connections of this input on all workers.
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) scope: Scope,
}

impl Readers {
    pub(crate) fn new(backend: Backend, inlets: Vec<Inlet>, block_limit: Arc<BlockLimit>) -> Self {
        let turns = inlets.iter().map(|inlet| (inlet.content_type.clone(), ReadTurns::new(backend)));
        Self {
            backend,
            turns: turns.collect(),
            unrouted_turns: ReadTurns::new(backend),
            inlets,
            buffer: RefCell::new(ReadBuffer::new(block_limit.in_use().clone())),
            block_limit,
            coalescer: ReadCoalescer::new(Instant::now()),
            streaming: RefCell::default(),
        }
    }

    /// The turns of connections with this content type: they write to the same outputs, and wait for the same consumers.
    fn turns(&self, content_type: &Option<ContentType>) -> &ReadTurns {
        self.turns.get(content_type).unwrap_or(&self.unrouted_turns)
    }

    /// Tells every connection of the phase of its input.
    pub(crate) fn enter(&self, phase: Phase) {
        for handle in self.streaming.borrow().iter().filter_map(|streaming| streaming.handle.upgrade()) {
            handle.enter(phase);
        }
    }

    /// Called at regular intervals: frees what nobody needed since the last call.
    pub(crate) fn free_unused(&self) {
        self.buffer.borrow_mut().free_unused();
        self.streaming.borrow_mut().retain(|streaming| streaming.handle.strong_count() > 0);
    }

    /// Called at regular intervals: notes for each input how long outputs have held up one of its connections.
    pub(crate) fn note_held(&self, inputs: &[Rc<WorkerInput>]) {
        let mut oldest = BTreeMap::new();
        for Streaming { handle, account } in self.streaming.borrow().iter() {
            if let Some(read_at) = handle.upgrade().and_then(|handle| handle.held_since()) {
                let input = oldest.entry(Arc::as_ptr(account)).or_insert(read_at);
                *input = read_at.min(*input);
            }
        }
        for input in inputs {
            input.account.held.set(oldest.get(&Arc::as_ptr(&input.account)).copied());
        }
    }

    /// Copies the batch out of its block while blocks have more than they may.
    fn within_block_limit(&self, batch: FrameBatch) -> FrameBatch {
        if self.block_limit.is_exceeded() {
            self.buffer.borrow_mut().look_for_free(LOOK_FOR_FREE);
            if self.block_limit.is_exceeded() {
                return batch.compact();
            }
        }
        batch
    }

    fn register(&self, stream: Stream, input: &WorkerInput) -> Rc<ReadHandle> {
        let handle = Rc::new(ReadHandle::new(stream));
        let account = Arc::clone(&input.account);
        self.streaming.borrow_mut().push(Streaming { handle: Rc::downgrade(&handle), account });
        let phase = input.scope.phase();
        if phase != Phase::Running {
            handle.enter(phase);
        }
        handle
    }
}

/// One connection in the accounts of its input. Dropped, it has ended, in whatever way.
struct OpenConnection<'a> {
    input: &'a WorkerInput,
    log: &'a ListenerLog,
    peer: &'a PeerName,
    end: &'static str,
    counted: ReaderCounters,
}

impl<'a> OpenConnection<'a> {
    /// `None`: there are as many as there may be.
    fn new(input: &'a WorkerInput, log: &'a ListenerLog, peer: &'a PeerName) -> Result<Self, Self> {
        input.account.connected();
        let before = input.open.fetch_add(1, Ordering::Relaxed);
        // What is not replaced tells of a task that failed.
        let connection = Self { input, log, peer, end: "internal", counted: ReaderCounters::default() };
        if before < input.config.connections_max { Ok(connection) } else { Err(connection) }
    }

    /// Counts what the session has left out since the last call.
    fn count(&mut self, now: ReaderCounters) {
        if now != self.counted {
            if now.frames_oversize > self.counted.frames_oversize {
                self.input.account.oversize_from(&self.peer.to_string());
            }
            self.input.account.left_out(
                now.frames_oversize - self.counted.frames_oversize,
                now.control_frames_ignored - self.counted.control_frames_ignored,
                now.bytes_after_stop - self.counted.bytes_after_stop,
            );
            self.counted = now;
        }
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.input.open.fetch_sub(1, Ordering::Relaxed);
        self.input.account.ended(self.end);
    }
}

/// Serves one connection from accept to its end. `peer` names it in the log.
pub(crate) async fn serve(
    readers: Rc<Readers>,
    input: Rc<WorkerInput>,
    socket: Socket,
    log: Arc<ListenerLog>,
    peer: PeerName,
) {
    let mut connection = match OpenConnection::new(&input, &log, &peer) {
        Ok(connection) => connection,
        Err(mut refused) => {
            log.tell(Event::Refused, Some(&peer), || {
                let max = input.config.connections_max;
                format!("refused: {max} connections are open; raise `connections_max` of this input")
            });
            refused.end = "refused";
            return;
        }
    };
    let end = run_session(&readers, &input, socket, &mut connection).await;
    connection.end = end.name();
    let event = match &end {
        end if end.is_whole() => Event::Ended,
        ReadEnd::NoByte => Event::Probed,
        _ => Event::Failed,
    };
    log.tell(event, Some(&peer), || format!("connection ended: {end}"));
}

async fn run_session(
    readers: &Readers,
    input: &WorkerInput,
    mut socket: Socket,
    connection: &mut OpenConnection<'_>,
) -> ReadEnd {
    let mut session = ReaderSession::new(Arc::clone(&input.reader), Instant::now());
    let mut phases = input.scope.phases();
    let drained = async {
        phases.reached(Phase::Draining).await;
        tokio::time::sleep(DRAIN_GRACE).await;
    };
    let started = tokio::select! {
        biased;
        started = read::handshake(&mut socket, &mut session) => started,
        () = drained => return ReadEnd::Drained,
    };
    connection.count(session.counters());
    let started = match started {
        Ok(started) => started,
        Err(end) => return end,
    };
    let fanout = Fanout::new(&readers.inlets, started.content_type.as_ref());
    // Its text escapes what is not printable.
    let content_type = || started.content_type.as_ref().map_or("(none)".to_owned(), ToString::to_string);
    connection
        .log
        .tell(Event::Began, Some(connection.peer), || format!("connection: content type {}", content_type()));
    if fanout.is_empty() {
        connection.log.tell(Event::Unrouted, Some(connection.peer), || {
            format!("no output takes content type {}: its frames are counted as unrouted", content_type())
        });
    }
    let read_len_max = socket.read_len_max().min(fanout.batch_len_max());
    let stream = match socket.into_stream(readers.backend) {
        Ok(stream) => stream,
        Err(error) => return ReadEnd::Connection(error),
    };
    let deliver = async |batch: FrameBatch| {
        faults::point("connection", &input.config.name);
        input.account.taken(u64::from(batch.frames()), batch.byte_len() as u64);
        if fanout.is_empty() {
            input.account.unrouted(u64::from(batch.frames()));
        }
        fanout.deliver(readers.within_block_limit(batch)).await
    };
    let wait_for_consumers = async || fanout.wait_for_consumers().await;
    let handle = readers.register(stream, input);
    let (buffer, coalescer) = (&readers.buffer, &readers.coalescer);
    let turns = readers.turns(&started.content_type);
    let connection = RefCell::new(connection);
    let count = |counters| connection.borrow_mut().count(counters);
    let reading = Reading { buffer, coalescer, turns, read_len_max, deliver, wait_for_consumers, count };
    read::read_frames(&handle, &mut session, started, reading).await
}

/// When the end is asked for, a handshake that has arrived may still be taken, with the frames behind it.
const DRAIN_GRACE: Duration = Duration::from_millis(200);
/// Blocks that are looked at before a batch is copied: some may have become free.
const LOOK_FOR_FREE: usize = 16;
