//! Connections of one input on one worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::rc::Weak;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tracing::info;
use tracing::warn;

use crate::drain::DrainSignal;
use crate::drain::Phase;
use crate::input::InputConfig;
use crate::observability::metrics::InputMetrics;
use crate::protocol::FrameBatch;
use crate::protocol::ReaderConfig;
use crate::protocol::ReaderSession;
use crate::route::Fanout;
use crate::route::Inlet;
use crate::session::gather::Gather;
use crate::session::read;
use crate::session::read::ReadEnd;
use crate::session::read::ReadHandle;
use crate::session::read::Reading;
use crate::transport::Backend;
use crate::transport::buffer::ReadBuffer;
use crate::transport::socket::Socket;
use crate::transport::stream::Stream;

/// What the connections of one worker have in common.
pub(crate) struct Readers {
    pub(crate) backend: Backend,
    pub(crate) drain: DrainSignal,
    /// Entrances of the lanes that this worker feeds.
    pub(crate) inlets: Vec<Inlet>,
    pub(crate) buffer: RefCell<ReadBuffer>,
    pub(crate) gather: Gather,
    streaming: RefCell<Vec<Weak<ReadHandle>>>,
}

/// One input, as one worker serves it.
pub(crate) struct WorkerInput {
    pub(crate) config: Arc<InputConfig>,
    pub(crate) reader: Arc<ReaderConfig>,
    pub(crate) metrics: Arc<InputMetrics>,
    /// Connections of this input on all workers.
    pub(crate) open: Arc<AtomicUsize>,
}

impl Readers {
    pub(crate) fn new(backend: Backend, drain: DrainSignal, inlets: Vec<Inlet>) -> Self {
        Self {
            backend,
            drain,
            inlets,
            buffer: RefCell::default(),
            gather: Gather::new(Instant::now()),
            streaming: RefCell::default(),
        }
    }

    /// Asks every connection to take what has arrived and end.
    pub(crate) fn drain_all(&self) {
        for handle in self.streaming.borrow().iter().filter_map(Weak::upgrade) {
            handle.drain();
        }
    }

    /// Called at regular intervals: frees what nobody needed since the last call.
    pub(crate) fn free_unused(&self) {
        self.buffer.borrow_mut().free_unused();
        self.streaming.borrow_mut().retain(|handle| handle.strong_count() > 0);
    }

    fn register(&self, stream: Stream) -> Rc<ReadHandle> {
        let handle = Rc::new(ReadHandle::new(stream));
        self.streaming.borrow_mut().push(Rc::downgrade(&handle));
        if self.drain.requested() {
            handle.drain();
        }
        handle
    }
}

/// Serves one connection from accept to its end. `listener` and `peer` name it in the log.
pub(crate) async fn serve(
    readers: Rc<Readers>,
    input: Rc<WorkerInput>,
    socket: Socket,
    listener: Rc<str>,
    peer: String,
) {
    input.metrics.connected();
    let name = input.config.name.as_str();
    if input.open.fetch_add(1, Ordering::Relaxed) >= input.config.connections_max {
        warn!(input = name, listener = &*listener, peer, "refused: connections_max is reached");
        input.metrics.ended("refused", 0, 0, 0);
    } else {
        info!(input = name, listener = &*listener, peer, "connection");
        let mut session = ReaderSession::new(Arc::clone(&input.reader), Instant::now());
        let end = run_session(&readers, &input, socket, &mut session, &peer).await;
        let left_out = session.counters();
        input.metrics.ended(
            end.name(),
            left_out.frames_oversize,
            left_out.control_frames_ignored,
            left_out.bytes_after_stop,
        );
        if end.is_regular() {
            info!(input = name, listener = &*listener, peer, "connection ended: {end}");
        } else {
            warn!(input = name, listener = &*listener, peer, "connection ended: {end}");
        }
    }
    input.open.fetch_sub(1, Ordering::Relaxed);
}

async fn run_session(
    readers: &Readers,
    input: &WorkerInput,
    mut socket: Socket,
    session: &mut ReaderSession,
    peer: &str,
) -> ReadEnd {
    let mut drain = readers.drain.clone();
    let drained = async {
        drain.wait(|phase| *phase != Phase::Running).await;
        tokio::time::sleep(DRAIN_GRACE).await;
    };
    let started = tokio::select! {
        biased;
        started = read::handshake(&mut socket, session) => started,
        () = drained => return ReadEnd::Drained,
    };
    let started = match started {
        Ok(started) => started,
        Err(end) => return end,
    };
    let fanout = Fanout::new(&readers.inlets, started.content_type.as_ref());
    if fanout.is_empty() {
        let content_type = started.content_type.as_ref().map_or("(none)".to_owned(), ToString::to_string);
        warn!(
            input = input.config.name,
            peer, "no output takes content type {content_type}: its frames are counted as unrouted"
        );
    }
    let read_len_max = socket.read_len_max().min(fanout.batch_len_max());
    let stream = match socket.into_stream(readers.backend) {
        Ok(stream) => stream,
        Err(error) => return ReadEnd::Connection(error),
    };
    let deliver = async |batch: FrameBatch| {
        input.metrics.taken(u64::from(batch.frames()), batch.byte_len() as u64);
        if fanout.is_empty() {
            input.metrics.unrouted(u64::from(batch.frames()));
        }
        fanout.deliver(batch).await;
    };
    let pace = async || fanout.pace().await;
    let handle = readers.register(stream);
    let (buffer, gather) = (&readers.buffer, &readers.gather);
    let reading = Reading { buffer, gather, read_len_max, deliver, pace };
    read::read_frames(&handle, session, started, reading).await
}

/// When the end is asked for, a handshake that has arrived may still be taken, with the frames behind it.
const DRAIN_GRACE: Duration = Duration::from_millis(100);
