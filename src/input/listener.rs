//! Connections of one input on one worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::faults;
use crate::input::admission::NotAdmitted;
use crate::input::connection::Arrival;
use crate::input::connection::OpenConnection;
use crate::input::connection::WorkerInput;
use crate::input::encryption::Encrypted;
use crate::input::encryption::enter_encrypted;
use crate::input::handing::HandedConnection;
use crate::input::handing::Offer;
use crate::input::handshake_limit::Handshake;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::loops::probe::LoopProbe;
use crate::observability::input_account::InputAccount;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::peer_name::PeerName;
use crate::protocol::ContentType;
use crate::protocol::ContentTypes;
use crate::protocol::FrameBatch;
use crate::protocol::ReaderSession;
use crate::protocol::ReaderStage;
use crate::queue::block_limit::BlockLimit;
use crate::route::Route;
use crate::route::Routes;
use crate::session::read;
use crate::session::read::ReadEnd;
use crate::session::read::Reading;
use crate::session::read::Started;
use crate::session::read_coalescer::ReadCoalescer;
use crate::session::read_handle::ReadHandle;
use crate::session::read_turns::ReadTurns;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::buffer::ReadBuffer;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;

/// What the connections of one worker have in common.
pub(crate) struct Readers {
    pub(crate) backend: Backend,
    /// The lanes that this worker feeds.
    pub(crate) routes: Rc<Routes>,
    pub(crate) buffer: RefCell<ReadBuffer>,
    block_limit: Arc<BlockLimit>,
    pub(crate) coalescer: ReadCoalescer,
    // One for each content type that an output takes, and one for what nobody takes.
    turns: RefCell<BTreeMap<Option<ContentType>, Rc<ReadTurns>>>,
    unrouted_turns: Rc<ReadTurns>,
    streaming: RefCell<Vec<Streaming>>,
    loops: Arc<Loops>,
    // Where connections are offered to the next process, once it takes them.
    offers: RefCell<Option<UnboundedSender<Offer>>>,
    offers_asked: Notify,
}

/// A connection in its data phase, its input, and the scope of its listener.
struct Streaming {
    handle: Weak<ReadHandle>,
    account: Arc<InputAccount>,
    scope: Scope,
}

impl Readers {
    pub(crate) fn new(backend: Backend, block_limit: Arc<BlockLimit>, loops: Arc<Loops>) -> Self {
        Self {
            backend,
            turns: RefCell::default(),
            unrouted_turns: Rc::new(ReadTurns::new(backend)),
            routes: Rc::default(),
            buffer: RefCell::new(ReadBuffer::new(block_limit.in_use().clone())),
            block_limit,
            coalescer: ReadCoalescer::new(Instant::now()),
            streaming: RefCell::default(),
            loops,
            offers: RefCell::default(),
            offers_asked: Notify::new(),
        }
    }

    /// The turns of connections with this content type, which some output takes or none: they write to the same outputs, and
    /// wait for the same consumers.
    fn turns(&self, content_type: &Option<ContentType>, is_routed: bool) -> Rc<ReadTurns> {
        if !is_routed {
            return Rc::clone(&self.unrouted_turns);
        }
        let mut turns = self.turns.borrow_mut();
        let turns = turns.entry(content_type.clone());
        Rc::clone(turns.or_insert_with(|| Rc::new(ReadTurns::new(self.backend))))
    }

    /// Tells every connection of a listener that its scope is in this phase.
    pub(crate) fn enter(&self, scope: &Scope, phase: Phase) {
        let streaming = self.streaming.borrow();
        let theirs = streaming.iter().filter(|streaming| streaming.scope.is(scope));
        for handle in theirs.filter_map(|streaming| streaming.handle.upgrade()) {
            handle.enter(phase);
        }
    }

    /// Offers every connection to the next process from now on; `None`: it takes them no more.
    pub(crate) fn offer_all(self: &Rc<Self>, offers: Option<UnboundedSender<Offer>>) {
        let asked = offers.is_some();
        self.offers.replace(offers);
        if asked {
            spawn_local(Rc::clone(self).offer_in_turn());
            self.offers_asked.notify_waiters();
        }
    }

    /// Offers a few connections at a time, so that none waits for thousands of others, and those that bring frames last: until
    /// then the outputs of this process have them.
    async fn offer_in_turn(self: Rc<Self>) {
        let mut handles: Vec<_> =
            self.streaming.borrow().iter().map(|streaming| streaming.handle.clone()).collect();
        handles.sort_by_cached_key(|handle| handle.upgrade().and_then(|handle| handle.last_read()));
        let turns = Arc::new(Semaphore::new(OFFERED_AT_ONCE));
        let mut in_turn = true;
        for handle in handles {
            // Where outputs block so many that no turn ends, the rest is offered at once.
            let turn = if in_turn {
                timeout(OFFER_WAIT, Arc::clone(&turns).acquire_owned()).await.ok()
            } else {
                None
            };
            in_turn = turn.is_some();
            if self.offers.borrow().is_none() {
                return;
            }
            if let Some(handle) = handle.upgrade() {
                handle.hand_over(turn.and_then(Result::ok));
            }
        }
    }

    /// Waits until a connection in its handshake is to be offered. Cancel-safe.
    async fn offers_asked(&self) {
        let asked = self.offers_asked.notified();
        if self.offers.borrow().is_none() {
            asked.await;
        }
    }

    /// Offers a connection. Returns whether the next process has it.
    async fn offer(
        &self,
        (input, dial, peer): (&WorkerInput, Option<&Address>, &PeerName),
        socket: io::Result<OwnedFd>,
        stage: Option<ReaderStage>,
        content_type: Option<&ContentType>,
        received: Bytes,
    ) -> bool {
        let name = input.config.borrow().name.clone();
        let Some(offers) = self.offers.borrow().clone() else { return false };
        match Offer::new(socket, (&name, dial, peer), stage, content_type, received) {
            Some((offer, answer)) => offers.send(offer).is_ok() && answer.await.unwrap_or(false),
            None => false,
        }
    }

    /// Called at regular intervals: frees what nobody needed since the last call.
    pub(crate) fn free_unused(&self) {
        self.buffer.borrow_mut().free_unused();
        self.streaming.borrow_mut().retain(|streaming| streaming.handle.strong_count() > 0);
    }

    /// Called at regular intervals: ends connections that are as old as they may become.
    pub(crate) fn retire(&self, now: Instant) {
        for handle in self.streaming.borrow().iter().filter_map(|streaming| streaming.handle.upgrade()) {
            handle.look_at_age(now);
        }
    }

    /// Called at regular intervals: notes for each input how long outputs have held up one of its connections.
    pub(crate) fn note_held<'a>(&self, inputs: impl Iterator<Item = &'a Rc<WorkerInput>>) {
        let mut oldest = BTreeMap::new();
        for Streaming { handle, account, .. } in self.streaming.borrow().iter() {
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

    fn register(&self, stream: Stream, connection: &OpenConnection<'_>, scope: &Scope) -> Rc<ReadHandle> {
        let input = connection.input;
        let accepted = connection.dialled.is_none();
        let retires_at = input.config.borrow().retirement(Instant::now()).filter(|_| accepted);
        let handle = Rc::new(ReadHandle::new(stream, retires_at));
        let account = Arc::clone(&input.account);
        let streaming = Streaming { handle: Rc::downgrade(&handle), account, scope: scope.clone() };
        self.streaming.borrow_mut().push(streaming);
        let phase = scope.phase();
        if phase != Phase::Running {
            handle.enter(phase);
        }
        if self.offers.borrow().is_some() {
            handle.hand_over(None);
        }
        handle
    }
}

/// Serves one connection from its beginning, or from where another process has left it, to its end. `scope` is that of its
/// listener, or of the address that was dialled.
pub(crate) async fn serve(
    readers: Rc<Readers>,
    input: Rc<WorkerInput>,
    socket: Socket,
    log: Arc<ListenerLog>,
    arrival: Arrival,
    scope: Scope,
) {
    let Arrival { peer, dialled, handshake, handed } = arrival;
    let mut connection = OpenConnection::new(&input, &log, (peer, dialled), handed.is_none());
    let end = match run_session(&readers, &input, socket, (handshake, handed), &scope, &mut connection).await
    {
        Ok(end) | Err(NotAdmitted::Ended(end)) => end,
        Err(NotAdmitted::Refused(refusal)) => {
            connection.end = "refused";
            input.account.rejected(refusal.reason());
            let event = Event::Refused(refusal.reason());
            log.tell(event, Some(&connection.peer), || format!("refused: {refusal}"));
            return;
        }
    };
    connection.end = end.name();
    if matches!(end, ReadEnd::HandedOver) {
        return;
    }
    let event = match &end {
        ReadEnd::MaxAge => Event::Retired,
        end if end.is_whole() => Event::Ended,
        ReadEnd::NoByte if connection.dialled.is_none() => Event::Probed,
        ReadEnd::LoopProbe(_) => Event::Asked,
        _ => Event::Failed,
    };
    log.tell(event, Some(&connection.peer), || format!("connection ended: {end}"));
    if let ReadEnd::LoopProbe(probe) = end {
        let peer = connection.peer.clone();
        drop(connection);
        take_probe(&readers.loops, &input, probe, &peer, &scope).await;
    }
}

/// Another relay asks whether its frames come back to it, or this one did.
async fn take_probe(loops: &Loops, input: &WorkerInput, probe: LoopProbe, peer: &PeerName, scope: &Scope) {
    let config = Arc::clone(&input.config.borrow());
    let content_type = match (&config.content_types, &probe.content_type) {
        (ContentTypes::Only(ours), None) => ours.first().cloned(),
        (ours, Some(theirs)) if !ours.contains(theirs) => return,
        (_, theirs) => theirs.clone(),
    };
    let mut phases = scope.phases();
    tokio::select! {
        () = loops.take(probe, content_type.as_ref(), &config.name, peer) => {}
        () = phases.reached(Phase::Draining) => {}
    }
}

/// Asks whether frames come back that go to outputs of this content type.
fn ask_about_loops(loops: &Arc<Loops>, scope: &Scope, content_type: Option<ContentType>) {
    let (loops, mut phases) = (Arc::clone(loops), scope.phases());
    scope.spawn_local("loop probe", async move {
        tokio::select! {
            () = loops.ask(content_type.as_ref()) => {}
            () = phases.reached(Phase::Draining) => {}
        }
    });
}

async fn run_session(
    readers: &Readers,
    input: &WorkerInput,
    mut socket: Socket,
    (handshake, handed): (Option<Handshake>, Option<Box<HandedConnection>>),
    scope: &Scope,
    connection: &mut OpenConnection<'_>,
) -> Result<ReadEnd, NotAdmitted> {
    let config = Arc::clone(&input.reader.borrow());
    let mut received = BytesMut::new();
    let is_handed = handed.is_some();
    let (mut session, mut started) = match handed {
        None => (ReaderSession::new(config, Instant::now()), None),
        Some(handed) => {
            let HandedConnection { stage, content_type, received: bytes, .. } = *handed;
            received.extend_from_slice(&bytes);
            let streams = matches!(stage, ReaderStage::Streaming { .. });
            let started = streams.then(|| Started::resumed(content_type, std::mem::take(&mut received)));
            (ReaderSession::resume(config, stage, Instant::now()), started)
        }
    };
    // Who may connect says nothing of those that tapster connects to.
    let (is_new, mut is_admitted) = (started.is_none(), is_handed || connection.dialled.is_some());
    // With TLS its keys stay in this process.
    let may_pass = handshake.is_none();
    let mut phases = scope.phases();
    let drained = async {
        phases.reached(Phase::Draining).await;
        tokio::time::sleep(DRAIN_GRACE).await;
    };
    let mut drained = pin!(drained);
    let mut remark = String::new();
    if let Some(handshake) = handshake {
        // In memory of its own, as below.
        let encrypting = Box::pin(enter_encrypted(socket, &mut session, connection, handshake));
        let encrypted = tokio::select! {
            biased;
            encrypted = encrypting => encrypted?,
            () = &mut drained => return Ok(ReadEnd::Drained),
        };
        Encrypted { socket, remark } = encrypted;
        is_admitted = true;
    }
    while started.is_none() {
        // Until then this process alone decides.
        let may_be_offered = is_admitted && may_pass;
        let opening = async {
            if !is_admitted {
                connection.admit(&mut socket, &mut session).await?;
                is_admitted = true;
                return Ok(None);
            }
            let began = read::handshake(&mut socket, &mut session, &mut received).await;
            began.map(Some).map_err(NotAdmitted::Ended)
        };
        let result = tokio::select! {
            biased;
            result = opening => Some(result),
            () = &mut drained => return Ok(ReadEnd::Drained),
            () = readers.offers_asked(), if may_be_offered => None,
        };
        connection.count(session.counters());
        match result {
            Some(result) => started = result?,
            None => {
                let bytes = Bytes::copy_from_slice(&received);
                let offer = readers.offer(
                    (input, connection.dial(), &connection.peer),
                    socket.duplicate(),
                    session.stage(),
                    None,
                    bytes,
                );
                // In memory of its own: every connection has room for its longest wait, and most are idle.
                if Box::pin(offer).await {
                    return Ok(ReadEnd::HandedOver);
                }
            }
        }
    }
    let Some(started) = started else { return Ok(ReadEnd::NoStream) };
    let route = Route::new(&readers.routes, started.content_type.clone());
    // Its text escapes what is not printable.
    let content_type = || started.content_type.as_ref().map_or("(none)".to_owned(), ToString::to_string);
    if is_new {
        let began = || format!("connection: content type {}{remark}", content_type());
        connection.log.tell(Event::Began, Some(&connection.peer), began);
    }
    if route.fanout().is_empty() {
        connection.log.tell(Event::Unrouted, Some(&connection.peer), || {
            format!("no output takes content type {}: its frames are counted as unrouted", content_type())
        });
    }
    let socket_len_max = socket.read_len_max();
    let read_len_max = || socket_len_max.min(route.fanout().batch_len_max());
    let stream = match socket.into_stream(readers.backend) {
        Ok(stream) => stream,
        Err(error) => return Ok(ReadEnd::Connection(error)),
    };
    let started_type = started.content_type.clone();
    let (peer, dial) = (connection.peer.clone(), connection.dial().cloned());
    let dial = dial.as_ref();
    let name = input.config.borrow().name.clone();
    let deliver = async |batch: FrameBatch| {
        faults::point("connection", &name);
        input.account.taken(u64::from(batch.frames()), batch.byte_len() as u64);
        let fanout = route.fanout();
        if fanout.is_empty() {
            input.account.unrouted(u64::from(batch.frames()));
        } else if readers.loops.is_suspicious(&batch) {
            ask_about_loops(&readers.loops, scope, started_type.clone());
        }
        fanout.deliver(readers.within_block_limit(batch)).await
    };
    let renew = |session: &mut ReaderSession| {
        let config = input.reader.borrow();
        if !Arc::ptr_eq(session.config(), &config) {
            session.set_config(Arc::clone(&config));
        }
    };
    let offer = async |stream: &Stream, stage, received| {
        let content_type = started_type.as_ref();
        let taken =
            Box::pin(readers.offer((input, dial, &peer), stream.duplicate(), stage, content_type, received))
                .await;
        if !taken {
            stream.take_back();
        }
        taken
    };
    let wait_for_consumers = async || route.fanout().wait_for_consumers().await;
    let handle = readers.register(stream, connection, scope);
    let (buffer, coalescer) = (&readers.buffer, &readers.coalescer);
    let turns = readers.turns(&started.content_type, !route.fanout().is_empty());
    let turns = &*turns;
    let connection = RefCell::new(connection);
    let count = |counters| connection.borrow_mut().count(counters);
    let reading =
        Reading { buffer, coalescer, turns, read_len_max, renew, offer, deliver, wait_for_consumers, count };
    Ok(read::read_frames(&handle, &mut session, started, reading).await)
}

/// When the end is asked for, a handshake that has arrived may still be taken, with the frames behind it.
const DRAIN_GRACE: Duration = Duration::from_millis(200);
/// Blocks that are looked at before a batch is copied: some may have become free.
const LOOK_FOR_FREE: usize = 16;
/// So many connections of a worker wait at a time for the next process to go on with them: half of what one message passes.
const OFFERED_AT_ONCE: usize = 100;
/// So long a turn is waited for.
const OFFER_WAIT: Duration = Duration::from_millis(200);
