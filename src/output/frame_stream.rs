//! An output over connections: one loop that runs the delivery, and has its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::batch::Batch;
use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::lifecycle::Phase;
use crate::lifecycle::Phases;
use crate::lifecycle::Scope;
use crate::observability::output_log::OutputEvent;
use crate::observability::told_reasons::ToldReasons;
use crate::output::deadline::Deadline;
use crate::output::links::LinkEvent;
use crate::output::links::Links;
use crate::output::settings::LaneSettings;
use crate::output::stream_lane::StreamLane;
use crate::output::streams::StreamsConfig;
use crate::protocol::WriterConfig;
use crate::queue::WhenFull;
use crate::queue::channel::QueueEnd;
use crate::session::write::WriteStream;
use crate::session::write_fault::WriteFault;
use crate::transport::Backend;
use crate::transport::socket::ConnectOptions;

/// Runs the lane until its queue is closed and written, or the output is over. For the worker that owns it. A lane that
/// fails begins again.
pub(crate) async fn run(lane: StreamLane, backend: Backend, scope: Scope) {
    let lane = Arc::new(lane);
    let reconnect = lane.settings.borrow().streams.reconnect;
    let task = || async {
        // What one driver has left when other settings came, the next one begins with.
        let mut left = Vec::new();
        loop {
            match Driver::new(Arc::clone(&lane), backend, &scope, left).run().await {
                DriverEnd::Over => return,
                DriverEnd::Renewed(batches) => left = batches,
            }
        }
    };
    lane.source.run(&scope, reconnect, task).await;
}

/// Serves the reader that has opened this connection, until it leaves, or the queue is closed and written, or the output is over.
/// Whatever is left then is lost.
pub(crate) async fn serve(lane: StreamLane, open: WriteStream, backend: Backend, scope: Scope) {
    let lane = Arc::new(lane);
    let mut driver = Driver::new(Arc::clone(&lane), backend, &scope, Vec::new());
    driver.adopt(open, Instant::now());
    driver.run().await;
}

/// How a loop ended.
enum DriverEnd {
    /// With its output.
    Over,
    /// Other settings need other connections. These batches were taken from the queue, and are not through.
    Renewed(Vec<Batch>),
}

/// The loop at work.
struct Driver {
    lane: Arc<StreamLane>,
    // Those that its connections were opened with, or serve as well.
    settings: Arc<LaneSettings>,
    news: watch::Receiver<Arc<LaneSettings>>,
    // Other settings need other connections: until then these may take for their end.
    renews_by: Option<Instant>,
    // Of the readers, for the log.
    names: Vec<String>,
    writer: Arc<WriterConfig>,
    backend: Backend,
    delivery: DeliveryMachine,
    links: Links,
    scope: Scope,
    phases: Phases,
    deadline: Deadline,
    // Of ways that turn out to lead back here.
    loop_news: watch::Receiver<()>,
    // For each member: why it cannot be reached.
    told: Vec<ToldReasons>,
    // The address of each member whose last connection did not last.
    brief: Vec<Option<SocketAddr>>,
}

impl Driver {
    /// A loop that begins with these batches, which were taken from the queue.
    fn new(lane: Arc<StreamLane>, backend: Backend, scope: &Scope, left: Vec<Batch>) -> Self {
        let mut news = lane.settings.clone();
        let settings = Arc::clone(&news.borrow_and_update());
        let mode = settings.streams.mode;
        let writer = Arc::new(WriterConfig {
            content_types: lane.content_type.clone().into_iter().collect(),
            bidirectional: mode.is_bidirectional(),
            handshake_timeout: settings.streams.handshake_timeout,
            finish_timeout: mode.finish_timeout(),
        });
        let account = Arc::clone(&lane.source.account);
        let (config, now) = (lane.delivery_config(&settings), Instant::now());
        let mut delivery = DeliveryMachine::new(config, account, &settings.members, now);
        left.into_iter().for_each(|batch| delivery.handle_batch(batch, now));
        let names = match &lane.subscriber {
            Some(name) => vec![name.clone()],
            None => settings.streams.endpoints.addresses().map(ToString::to_string).collect(),
        };
        Self {
            told: names.iter().map(|_| ToldReasons::default()).collect(),
            brief: vec![None; names.len()],
            names,
            writer,
            backend,
            delivery,
            links: Links::default(),
            phases: scope.phases(),
            deadline: Deadline::default(),
            loop_news: lane.loops.news(),
            scope: scope.clone(),
            renews_by: None,
            news,
            settings,
            lane,
        }
    }

    async fn run(mut self) -> DriverEnd {
        let lane = Arc::clone(&self.lane);
        let queue = &lane.source.queue;
        loop {
            let end = self.turn(Instant::now());
            if self.delivery.is_over() {
                break;
            }
            let wants = self.delivery.wants_batch() && self.renews_by.is_none();
            // Once this time has come, nothing more is due for it.
            let renews_by = self.renews_by.filter(|by| *by > Instant::now());
            let due = [self.delivery.poll_timeout(), renews_by].into_iter().flatten().min();
            // The same arms at every turn, and one of them is the end: no wait can forget it.
            tokio::select! {
                biased;
                phase = self.phases.next() => self.delivery.handle_phase(phase, Instant::now()),
                Ok(()) = self.news.changed() => self.take_settings(Instant::now()),
                (stream, event) = self.links.next() => self.handle(stream, event, Instant::now()),
                () = queue.news(wants, end) => {}
                _ = self.loop_news.changed() => self.leave_loops(Instant::now()),
                () = self.deadline.reached(due) => self.delivery.handle_timeout(Instant::now()),
            }
        }
        self.links.all_closed().await;
        if self.renews_by.is_some() && self.phases.seen() < Phase::Over {
            // The readers of the former settings are nobody's concern any more.
            let absences = &self.lane.source.account.absences;
            self.names.iter().for_each(|name| absences.is_there(name));
            return DriverEnd::Renewed(self.delivery.into_remaining().collect());
        }
        if self.lane.subscriber.is_some() && self.scope.phase() < Phase::Over {
            self.lane.source.account.unsubscribe();
        }
        self.lane.source.leave(self.delivery.into_remaining());
        DriverEnd::Over
    }

    /// Goes on with other settings. Where they need other connections, the present ones end with STOP and FINISH first.
    fn take_settings(&mut self, now: Instant) {
        let settings = Arc::clone(&self.news.borrow_and_update());
        // A subscriber keeps its connection: others get it as it is configured now.
        let connects_like = self.lane.subscriber.is_some() || settings.connects_like(&self.settings);
        if self.renews_by.is_none() && connects_like {
            self.delivery.reconfigure(self.lane.delivery_config(&settings), now);
            self.settings = settings;
        } else {
            self.renews_by.get_or_insert(now + settings.renew_timeout);
        }
    }

    /// Takes nothing out of the queue any more: the connections end.
    fn end_connections(&mut self, by: Instant, now: Instant) {
        // Who is away need not be waited for.
        if by <= now || self.links.open_streams().next().is_none() {
            self.delivery.handle_phase(Phase::Over, now);
        } else {
            self.delivery.handle_source(true, true, now);
        }
    }

    /// Takes batches and does what the delivery asks, until neither is left. Returns how far the end of the queue has
    /// come.
    fn turn(&mut self, now: Instant) -> QueueEnd {
        let lane = Arc::clone(&self.lane);
        let queue = &lane.source.queue;
        loop {
            let end = match self.renews_by {
                None => lane.source.feed(&mut self.delivery, now),
                Some(by) => {
                    self.end_connections(by, now);
                    queue.end()
                }
            };
            while let Some(action) = self.delivery.poll_action() {
                self.act(action, now);
            }
            if !self.delivery.wants_batch() || queue.is_empty() || self.renews_by.is_some() {
                self.delivery.tell_ages(now);
                lane.source.acknowledge(self.delivery.poll_acknowledged());
                self.tell_refused(now);
                return end;
            }
        }
    }

    fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Connect(stream) => self.open(stream),
            Action::Write(stream) => match self.links.write(stream, self.delivery.buffers(stream)) {
                Ok(Some(count)) => self.delivery.handle_written(stream, count, now),
                Ok(None) => {}
                Err(fault) => self.lost(stream, &fault.to_string(), now),
            },
            Action::Interrupt(stream) => {
                if let Some(open) = self.links.get(stream) {
                    open.interrupt();
                }
            }
            Action::Probe(stream) => {
                let arrived = self.links.get(stream).and_then(|open| open.arrived_bytes());
                self.delivery.handle_progress(stream, arrived, now);
            }
            Action::Stop(stream) => {
                if let Some(open) = self.links.get(stream) {
                    open.stop();
                }
            }
            Action::Close(stream, reason) => self.close(stream, reason, now),
        }
    }

    fn open(&mut self, stream: StreamId) {
        let lane = Arc::clone(&self.lane);
        let (writer, backend) = (Arc::clone(&self.writer), self.backend);
        let settings = Arc::clone(&self.settings);
        let Some(address) = settings.streams.endpoints.addresses().nth(stream.member).cloned() else {
            return;
        };
        let unsent_max = self.unsent_max();
        let brief = self.brief[stream.member];
        let scope = self.scope.clone();
        let opening = async move {
            let StreamsConfig { handshake_timeout, user_timeout, send_proxy, .. } = settings.streams;
            let way = &settings.ways[stream.member];
            if let Some(led_back) = lane.loops.leads_back(way, &scope).await {
                return Err(WriteFault::Loop(led_back));
            }
            let options = ConnectOptions { timeout: handshake_timeout, user_timeout, send_proxy };
            let tls = settings.tls.as_deref();
            let open = WriteStream::open(&address, brief, &options, tls, &lane.own, writer, backend).await?;
            if let Some(bytes) = unsent_max {
                open.set_unsent_max(bytes);
            }
            Ok(open)
        };
        self.links.open(stream, Box::pin(opening));
    }

    /// How much a socket may take that its reader has no room for, where the queue is sampled: the queue would fall at once by
    /// what the socket takes at once.
    fn unsent_max(&self) -> Option<usize> {
        let buffer = &self.settings.buffer;
        (buffer.policy() == WhenFull::Sample).then(|| buffer.memory() / SAMPLE_SOCKET_PART / self.names.len())
    }

    /// The first connection that is wanted is this one.
    fn adopt(&mut self, open: WriteStream, now: Instant) {
        if let Some(bytes) = self.unsent_max() {
            open.set_unsent_max(bytes);
        }
        if let Some(Action::Connect(stream)) = self.delivery.poll_action() {
            self.links.adopt(stream, open);
            self.handle(stream, LinkEvent::Connected, now);
        }
    }

    fn handle(&mut self, stream: StreamId, event: LinkEvent, now: Instant) {
        match event {
            LinkEvent::Connected => {
                self.told[stream.member].clear();
                let remark = self.links.get(stream).map(|open| open.remark().to_owned()).unwrap_or_default();
                let (output, to, account) =
                    (self.output(), self.to(stream).to_owned(), &self.lane.source.account);
                account.absences.is_there(&to);
                if let Some(left_out) = account.log.admit(OutputEvent::Connected, &to, now) {
                    if self.lane.subscriber.is_some() {
                        info!(output, to, left_out, "subscribed");
                    } else if remark.is_empty() {
                        info!(output, to, left_out, "connected");
                    } else {
                        info!(output, to, left_out, "connected; passed over {remark}");
                    }
                }
                self.delivery.handle_connected(stream, now);
                self.lane.loops.output_connected(now);
                self.leave_loops(now);
            }
            LinkEvent::Refused(fault) => {
                self.tell_refusal(stream, &fault, now);
                self.delivery.handle_refused(stream, now);
            }
            LinkEvent::Written(count) => self.delivery.handle_written(stream, count, now),
            LinkEvent::Finished => {
                self.tell_finished(stream, now);
                self.delivery.handle_finish(stream, true, now);
            }
            LinkEvent::Lost(fault) => self.lost(stream, &fault.to_string(), now),
        }
    }

    /// The connection has ended, by the reader or the network, or because it led into a loop.
    fn lost(&mut self, stream: StreamId, words: &str, now: Instant) {
        if let Some(open) = self.links.get(stream) {
            let arrived = open.arrived_bytes();
            let bytes_unconfirmed = open.unconfirmed_bytes();
            self.brief[stream.member] = open.brief_peer(now);
            self.delivery.handle_progress(stream, arrived, now);
            self.tell_end(stream, bytes_unconfirmed, words, now);
        }
        self.delivery.handle_lost(stream, now);
    }

    /// Ends the connections that lead back to an input of this relay through others.
    fn leave_loops(&mut self, now: Instant) {
        let open: Vec<StreamId> = self.links.open_streams().collect();
        for stream in open {
            if let Some(led_back) = self.settings.ways.get(stream.member).and_then(|way| way.led_back()) {
                self.tell_refusal(stream, &WriteFault::Loop(led_back), now);
                self.lost(stream, "tapster ends it, because it is part of a loop", now);
            }
        }
    }

    fn close(&mut self, stream: StreamId, reason: CloseReason, now: Instant) {
        let settings = Arc::clone(&self.settings);
        let streams = &settings.streams;
        let words = match reason {
            CloseReason::Ended => None,
            CloseReason::ConnectTimeout => {
                let late = io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
                self.tell_refusal(stream, &WriteFault::Connect(late), now);
                None
            }
            CloseReason::FinishTimeout => {
                Some(format!("the reader sent no FINISH within {:?}", streams.mode.finish_timeout()))
            }
            CloseReason::Stalled => {
                settings.stall_timeout.map(|timeout| format!("the reader took nothing for {timeout:?}"))
            }
            CloseReason::Over => Some("tapster ends before the reader has answered".to_owned()),
        };
        if let (Some(words), Some(open)) = (words, self.links.get(stream)) {
            let bytes_unconfirmed = open.unconfirmed_bytes();
            self.tell_end(stream, bytes_unconfirmed, &words, now);
        }
        self.links.close(stream);
    }

    fn tell_finished(&self, stream: StreamId, now: Instant) {
        let (output, to) = (self.output(), self.to(stream).to_owned());
        if let Some(left_out) = self.lane.source.account.log.admit(OutputEvent::Finished, &to, now) {
            debug!(output, to, left_out, "finished");
        }
    }

    /// Tells that a stream ended without FINISH, and what that may cost.
    fn tell_end(&self, stream: StreamId, bytes_unconfirmed: u64, words: &str, now: Instant) {
        let bytes_unconfirmed = bytes_unconfirmed.saturating_sub(self.delivery.cut_len(stream) as u64);
        let (output, to, account) = (self.output(), self.to(stream).to_owned(), &self.lane.source.account);
        let keeps = self.settings.streams.mode.keeps_unacknowledged();
        if !keeps {
            account.unconfirmed(bytes_unconfirmed);
        }
        let Some(left_out) = account.log.admit(OutputEvent::Broken, &to, now) else { return };
        if self.lane.subscriber.is_some() {
            // Its own affair.
            info!(output, to, bytes_unconfirmed, left_out, "connection ended: {words}");
        } else if keeps {
            let frames_unacknowledged = account.unacknowledged_now();
            warn!(output, to, frames_unacknowledged, left_out, "connection ended: {words}");
        } else {
            warn!(output, to, bytes_unconfirmed, left_out, "connection ended: {words}");
        }
    }

    /// Tells that a reader cannot be reached: once for each reason until it is there. It is away, unless another connection to
    /// it is open.
    fn tell_refusal(&mut self, stream: StreamId, fault: &WriteFault, now: Instant) {
        let (to, words, account) = (self.to(stream).to_owned(), fault.to_string(), &self.lane.source.account);
        let is_own_input = matches!(fault, WriteFault::OwnInput(_) | WriteFault::Loop(_));
        if is_own_input {
            account.own_input();
        }
        if !self.links.is_open_to(stream.member) {
            account.absences.failed(&to, &words, now);
        }
        if !self.told[stream.member].is_new(&words) {
            return;
        }
        let Some(left_out) = account.log.admit(OutputEvent::Unreachable, &to, now) else { return };
        if is_own_input {
            error!(output = self.output(), to, left_out, "{words}");
        } else {
            warn!(output = self.output(), to, left_out, "{words}; tapster tries again");
        }
    }

    fn tell_refused(&mut self, now: Instant) {
        let (output, account) = (&self.lane.source.output, &self.lane.source.account);
        for refused in self.delivery.poll_refused() {
            let (payload_len, connections) = (refused.len, refused.breaks);
            let Some(left_out) = account.log.admit(OutputEvent::FrameRefused, "", now) else { continue };
            warn!(
                output,
                payload_len,
                connections,
                left_out,
                "the collector ended every one of these connections at the same frame, and tapster leaves the frame out; \
                 compare the limits of the collector with `frame_len_max`"
            );
        }
    }

    fn output(&self) -> &str {
        &self.lane.source.output
    }

    fn to(&self, stream: StreamId) -> &str {
        &self.names[stream.member]
    }
}

/// The part of a sampled queue that sockets may take.
const SAMPLE_SOCKET_PART: usize = 16;
