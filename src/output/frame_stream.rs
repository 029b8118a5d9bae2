//! An output over a connection: connect, shake hands, write batches, have them acknowledged, begin again when it dies.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::task::spawn_local;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::drain::DrainSignal;
use crate::drain::Over;
use crate::drain::Phase;
use crate::observability::MemberState;
use crate::output::Mode;
use crate::output::Order;
use crate::output::OutputConfig;
use crate::output::backlog::Backlog;
use crate::output::backoff::Backoff;
use crate::output::rollover::Rollover;
use crate::output::rollover::joined;
use crate::output::stall::Stall;
use crate::output::watch::Watch;
use crate::protocol::WriterConfig;
use crate::queue::WhenFull;
use crate::session::write::WriteFault;
use crate::session::write::WriteSession;
use crate::transport::Backend;
use crate::transport::socket::ConnectOptions;
use crate::transport::sys::SendList;

/// Runs a lane until its queue is closed and written, or the relay is over. For the worker that owns the lane.
pub(crate) async fn run(config: Arc<OutputConfig>, backlog: Backlog, backend: Backend, drain: DrainSignal) {
    let writer = Arc::new(writer_config(&config));
    let rollover = Rollover::new(&config, &backlog);
    let lane = Lane { config, writer, backend, backlog, drain, rollover, ending: None, patience: None };
    lane.run().await;
}

/// The consumer of one queue.
struct Lane {
    config: Arc<OutputConfig>,
    writer: Arc<WriterConfig>,
    backend: Backend,
    backlog: Backlog,
    drain: DrainSignal,
    // `None` without checkpoints.
    rollover: Option<Rollover>,
    // The stream before the present one, which waits for FINISH.
    ending: Option<JoinHandle<Result<(), WriteFault>>>,
    // Dropped, it waits no longer.
    patience: Option<oneshot::Sender<()>>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With everything that there will ever be.
    Finished,
    /// With everything that there will ever be written, and not acknowledged.
    Unfinished,
    /// To have acknowledged what was written so far.
    Checkpoint,
    /// Before that.
    Broken,
    /// Given up by us, before that.
    Stalled,
}

impl Lane {
    async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.reconnect);
        let mut attempts = Attempts::default();
        let mut over = Over::new(self.drain.clone());
        let mut unfinished = false;
        loop {
            let opened = tokio::select! {
                opened = open(&self.config, Arc::clone(&self.writer), self.backend) => opened,
                () = over.reached() => break,
                () = self.backlog.written_by_others() => break,
            };
            match opened {
                Ok(session) => {
                    let mut stalled = false;
                    attempts.succeeded(&self.config);
                    self.backlog.connected();
                    let since = Instant::now();
                    match self.relay(session, &mut over).await {
                        End::Finished if self.backlog.nothing_to_come() => break,
                        // Other members of the group have left something.
                        End::Finished => {}
                        End::Checkpoint => continue,
                        // What is not acknowledged has been sent again, once.
                        End::Unfinished if unfinished => break,
                        End::Unfinished => unfinished = true,
                        End::Broken => {}
                        End::Stalled => {
                            stalled = true;
                            // Nor does its reader send FINISH: others get that stream too.
                            self.patience = None;
                        }
                    }
                    if !stalled {
                        backoff.session_lasted(since);
                    }
                }
                Err(fault) => {
                    attempts.failed(&self.config, &fault);
                    self.backlog.disconnected(MemberState::Down);
                }
            }
            self.look_at_ended_stream().await;
            self.backlog.give_back();
            // A collector that is away when the relay ends gets one more attempt; under `block`, where no spool keeps the
            // frames, all that time allows.
            let promised = self.config.when_full == WhenFull::Block && self.config.spool.is_none();
            let last = self.drain.requested() && !promised;
            if last || self.backlog.nothing_to_come() {
                break;
            }
            let pause = backoff.pause();
            let pause = if self.drain.requested() { pause.min(DRAIN_PAUSE_MAX) } else { pause };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.drain.changed() => {}
                () = self.backlog.written_by_others() => break,
                finished = joined(&mut self.ending) => {
                    self.stream_ended(finished);
                    self.backlog.give_back();
                }
            }
        }
        if self.ending.is_some() {
            let finished = joined(&mut self.ending).await;
            self.stream_ended(finished);
        }
        let frames_unacknowledged = self.backlog.abandon();
        if frames_unacknowledged > 0 {
            let (output, to) = (&self.config.name, &self.config.to);
            warn!(output, %to, frames_unacknowledged, "ended, and nobody has acknowledged these frames");
        }
    }

    /// Writes until the connection ends.
    async fn relay(&mut self, mut session: WriteSession, over: &mut Over) -> End {
        let mut list = SendList::new();
        let mut watch = Watch::new(&self.config, &self.backlog);
        let stall_timeout = self.config.group.as_ref().map(|group| group.stall_timeout);
        let mut stall = stall_timeout.map(|timeout| Stall::new(timeout, Instant::now()));
        if let Some(rollover) = &mut self.rollover {
            rollover.begin_stream();
        }
        let result = loop {
            if list.is_empty() {
                if self.rollover.is_some() {
                    if self.roll_over(&mut session).await {
                        break Ok(());
                    }
                    if self.config.order == Order::Strict && self.ending.is_some() {
                        tokio::select! {
                            biased;
                            finished = joined(&mut self.ending) => self.stream_ended(finished),
                            fault = session.closed() => break Err(fault),
                        }
                        continue;
                    }
                }
                self.backlog.fill();
                list.extend(self.backlog.buffers());
            }
            if list.is_empty() {
                if self.backlog.nothing_to_come() {
                    break Ok(());
                }
                let arrival = watch.as_mut().and_then(|watch| watch.look(&mut session, &mut self.backlog));
                let taking = match look_for_stall(&mut stall, &mut session, false) {
                    Ok(look_after) => look_after,
                    Err(fault) => break Err(fault),
                };
                let look_after = [arrival, taking].into_iter().flatten().min();
                let may_roll = self.ending.is_none();
                tokio::select! {
                    biased;
                    () = self.backlog.ready() => {}
                    fault = session.closed() => break Err(fault),
                    finished = joined(&mut self.ending) => self.stream_ended(finished),
                    () = Rollover::progress(&mut self.rollover, &self.backlog, may_roll) => {}
                    () = sleep_if(look_after) => {}
                }
                if taking.is_none()
                    && let Some(stall) = &mut stall
                {
                    // It had nothing to take until now.
                    stall.begin(Instant::now());
                }
                continue;
            }
            if let Err(fault) = look_for_stall(&mut stall, &mut session, true) {
                break Err(fault);
            }
            let limit = stall.as_ref().map(Stall::look_at);
            let (written, result, back) = self.write(&mut session, limit, list, over).await;
            list = back;
            list.advance(written);
            self.backlog.written(written);
            match result {
                // Waits on: not too long as yet.
                Err(fault)
                    if limit.is_some() && fault.is_cancelled() && self.drain.phase() != Phase::Over => {}
                Err(fault) => break Err(fault),
                Ok(()) => {}
            }
            if let Some(watch) = &mut watch {
                watch.look_if_much_was_written(&mut session, &mut self.backlog);
            }
        };
        if let Some(rollover) = &mut self.rollover
            && rollover.give_up().await
        {
            self.backlog.metrics.connected();
        }
        self.end(session, result, watch, over).await
    }

    /// Writes as [`WriteSession::write_before`] does. FINISH of the stream before is taken meanwhile: a reader that stalls in
    /// the present one does not keep the queue full of what it has acknowledged.
    async fn write(
        &mut self,
        session: &mut WriteSession,
        limit: Option<Instant>,
        list: SendList,
        over: &mut Over,
    ) -> (usize, Result<(), WriteFault>, SendList) {
        let mut write = std::pin::pin!(session.write_before(limit, list, over));
        loop {
            tokio::select! {
                biased;
                done = &mut write => return done,
                finished = joined(&mut self.ending) => self.stream_ended(finished),
            }
        }
    }

    /// Ends a session: with STOP if all is written, else as it is.
    async fn end(
        &mut self,
        mut session: WriteSession,
        written: Result<(), WriteFault>,
        mut watch: Option<Watch>,
        over: &mut Over,
    ) -> End {
        let last = written.is_ok() && self.backlog.nothing_to_come();
        let stalled = matches!(written, Err(WriteFault::Stalled(_)));
        if written.is_ok() {
            // Whatever others leave from now on is not for this connection.
            self.backlog.disconnected(if last { MemberState::Finished } else { MemberState::Connecting });
        }
        let finished = match written {
            Ok(()) => {
                let finished = session.finish(over).await;
                if let Some(rollover) = &mut self.rollover {
                    rollover.answered(finished.is_ok());
                }
                finished
            }
            Err(fault) => Err(fault),
        };
        let mut acknowledged = finished.is_ok();
        if let Some(watch) = &mut watch {
            watch.look(&mut session, &mut self.backlog);
            if finished.is_ok() && self.config.mode == Mode::Unidirectional {
                acknowledged = self.wait_for_arrival(&mut session, watch, over).await;
            }
        }
        let keeps_margin = self.config.mode == Mode::Unidirectional && watch.is_some();
        if acknowledged && !keeps_margin {
            self.backlog.finished();
        } else {
            self.backlog.connection_lost();
            self.backlog.disconnected(if stalled { MemberState::Stalled } else { MemberState::Down });
        }
        let (output, to) = (&self.config.name, &self.config.to);
        match &finished {
            Ok(()) => {
                self.backlog.metrics.finished();
                info!(output, %to, "finished");
            }
            Err(fault) if self.config.keeps_unacknowledged() => {
                let frames_unacknowledged = self.backlog.metrics.unacknowledged_now();
                warn!(output, %to, frames_unacknowledged, "connection ended: {fault}");
            }
            Err(fault) => {
                let bytes_unconfirmed = session.unconfirmed_bytes();
                self.backlog.metrics.unconfirmed(bytes_unconfirmed);
                warn!(output, %to, bytes_unconfirmed, "connection ended: {fault}");
            }
        }
        session.close().await;
        match (acknowledged, last) {
            _ if stalled => End::Stalled,
            (true, true) => End::Finished,
            (true, false) => End::Checkpoint,
            (false, true) => End::Unfinished,
            (false, false) => End::Broken,
        }
    }

    /// Without FINISH: waits until everything has arrived, as long as FINISH would be waited for. Returns whether it has.
    async fn wait_for_arrival(
        &mut self,
        session: &mut WriteSession,
        watch: &mut Watch,
        over: &mut Over,
    ) -> bool {
        let deadline = Instant::now() + self.config.finish_timeout;
        while let Some(pause) = watch.look(session, &mut self.backlog) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = session.closed() => {
                    return watch.look(session, &mut self.backlog).is_none();
                }
                () = over.reached() => return false,
            }
        }
        true
    }

    /// Goes on with a checkpoint as far as it does without waiting. For the moment between two writes. Returns whether
    /// the present stream has to end first, because no second connection is to be had and much waits for FINISH.
    async fn roll_over(&mut self, session: &mut WriteSession) -> bool {
        self.look_at_ended_stream().await;
        let Some(rollover) = &mut self.rollover else { return false };
        match rollover.opened().await {
            Some(Ok(next)) => {
                self.backlog.metrics.connected();
                self.backlog.end_stream();
                let old = std::mem::replace(session, next);
                let (patience, until) = oneshot::channel();
                self.patience = Some(patience);
                self.ending = Some(spawn_local(end_stream(old, Over::sooner(self.drain.clone(), until))));
                rollover.begin_stream();
            }
            Some(Err(fault)) => {
                let next_after = rollover.no_connection();
                let (output, to) = (&self.config.name, &self.config.to);
                warn!(output, %to, ?next_after, "no checkpoint, the next connection could not be had: {fault}");
            }
            None => {}
        }
        if self.ending.is_none() && rollover.is_due(&self.backlog) {
            let (config, writer, backend) =
                (Arc::clone(&self.config), Arc::clone(&self.writer), self.backend);
            rollover.open(async move { open(&config, writer, backend).await });
        }
        rollover.stream_must_end(&self.backlog)
    }

    async fn look_at_ended_stream(&mut self) {
        if self.ending.as_ref().is_some_and(JoinHandle::is_finished) {
            let finished = joined(&mut self.ending).await;
            self.stream_ended(finished);
        }
    }

    /// FINISH of the stream before the present one has come, or will not.
    fn stream_ended(&mut self, finished: Result<(), WriteFault>) {
        let (output, to) = (&self.config.name, &self.config.to);
        let next_after = self.rollover.as_mut().map(|rollover| rollover.answered(finished.is_ok()));
        match finished {
            Ok(()) => {
                self.backlog.metrics.finished();
                self.backlog.ended_stream_finished();
                debug!(output, %to, "checkpoint");
            }
            Err(fault) => {
                self.backlog.ended_stream_lost();
                warn!(output, %to, ?next_after, "no checkpoint, frames are sent again: {fault}");
            }
        }
    }
}

/// Looks whether the reader of a group's member still takes something; see [`Stall::look`].
fn look_for_stall(
    stall: &mut Option<Stall>,
    session: &mut WriteSession,
    more: bool,
) -> Result<Option<Duration>, WriteFault> {
    stall.as_mut().map_or(Ok(None), |stall| stall.look(session, more))
}

/// Opens a session.
async fn open(
    config: &OutputConfig,
    writer: Arc<WriterConfig>,
    backend: Backend,
) -> Result<WriteSession, WriteFault> {
    let options = ConnectOptions { user_timeout: config.user_timeout };
    let session = WriteSession::open(&config.to, &options, writer, backend).await?;
    if config.policy() == WhenFull::Sample {
        // The queue would fall at once by what the socket takes at once.
        session.set_unsent_max(config.queue / SAMPLE_SOCKET_PART / config.addresses().len());
    }
    Ok(session)
}

/// Ends a stream that another follows.
async fn end_stream(mut session: WriteSession, mut over: Over) -> Result<(), WriteFault> {
    let finished = session.finish(&mut over).await;
    session.close().await;
    finished
}

/// Sleeps; for ever where there is no time.
async fn sleep_if(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn writer_config(config: &OutputConfig) -> WriterConfig {
    WriterConfig {
        content_types: config.stream_type().into_iter().collect(),
        bidirectional: config.mode == Mode::Bidirectional,
        handshake_timeout: config.handshake_timeout,
        finish_timeout: config.finish_timeout,
    }
}

/// The part of a sampled queue that sockets may take.
const SAMPLE_SOCKET_PART: usize = 16;

/// Longest pause between attempts while the relay ends.
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Says once that an output cannot be reached and why, again when the reason changes, and when it can.
#[derive(Default)]
struct Attempts {
    reason: Option<String>,
}

impl Attempts {
    fn failed(&mut self, config: &OutputConfig, fault: &WriteFault) {
        let reason = fault.to_string();
        if self.reason.as_ref() != Some(&reason) {
            warn!(output = config.name, to = %config.to, "{reason}; trying again");
            self.reason = Some(reason);
        }
    }

    fn succeeded(&mut self, config: &OutputConfig) {
        self.reason = None;
        info!(output = config.name, to = %config.to, "connected");
    }
}
