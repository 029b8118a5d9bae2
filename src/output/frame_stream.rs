//! An output over connections: one loop that runs the delivery, and has its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
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
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::lifecycle::Phase;
use crate::lifecycle::Phases;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::observability::output_log::OutputEvent;
use crate::observability::told_reasons::ToldReasons;
use crate::output::config::Buffer;
use crate::output::deadline::Deadline;
use crate::output::lane::Source;
use crate::output::links::LinkEvent;
use crate::output::links::Links;
use crate::output::settings::LaneSettings;
use crate::output::streams::Endpoints;
use crate::output::streams::StreamsConfig;
use crate::protocol::ContentType;
use crate::protocol::WriterConfig;
use crate::queue::WhenFull;
use crate::queue::channel::QueueEnd;
use crate::session::write::WriteFault;
use crate::session::write::WriteStream;
use crate::transport::Address;
use crate::transport::Backend;
use crate::transport::dial::ADDRESSES_MAX;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::socket::ConnectOptions;

/// One lane over connections: to one reader, or to those of a group.
#[derive(Clone, Debug)]
pub(crate) struct StreamLane {
    pub(crate) source: Source,
    /// The content type of START.
    pub(crate) content_type: Option<ContentType>,
    /// They change while the lane runs.
    pub(crate) settings: watch::Receiver<Arc<LaneSettings>>,
    /// Where no output may lead.
    pub(crate) own: Arc<OwnListeners>,
    /// Which ways of outputs lead back through other relays.
    pub(crate) loops: Arc<Loops>,
}

impl StreamLane {
    /// Runs the lane until its queue is closed and written, or the output is over. For the worker that owns it. A lane that
    /// fails begins again.
    pub(crate) async fn run(self, backend: Backend, scope: Scope) {
        let lane = Arc::new(self);
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

    fn delivery_config(&self, settings: &LaneSettings) -> DeliveryConfig {
        let StreamsConfig { endpoints, mode, .. } = &settings.streams;
        let queue = &self.source.queue;
        let (queue_max, write_len_max) = (queue.budget().max(), queue.write_len_max());
        let member_max = queue_max / endpoints.addresses().count();
        let acknowledge = match (mode.checkpoint(), mode.margin()) {
            (Some(checkpoint), _) => Acknowledge::Finish { checkpoint, order: mode.order() },
            (None, None) => Acknowledge::Written,
            (None, Some(margin)) => Acknowledge::Progress {
                margin: margin as u64,
                // Where little is written at once, little is to be let go of at once.
                probe_len: (member_max / 8).min(write_len_max).min(PROBE_LEN) as u64,
                probe_pause: PROBE_PAUSE,
            },
        };
        let group = match endpoints {
            Endpoints::One(_) => None,
            Endpoints::Group(group) => Some(group),
        };
        DeliveryConfig {
            weights: group
                .map_or(vec![1], |group| group.members.iter().map(|member| member.weight).collect()),
            balance: group.map(|group| group.balance).unwrap_or_default(),
            acknowledge,
            answers: mode.is_bidirectional(),
            // The opening has limits of its own, for each address, and says what it waited for.
            connect_timeout: settings.streams.handshake_timeout.saturating_mul(OPENING_PARTS),
            finish_timeout: mode.finish_timeout(),
            stall_timeout: group.map(|group| group.stall_timeout),
            slow_start: group.map_or(Duration::ZERO, |group| group.slow_start),
            reconnect: settings.streams.reconnect,
            // Nothing may be lost that could be delivered: the queue blocks, and no spool keeps the frames.
            tries_to_the_end: matches!(settings.buffer, Buffer::Memory { when_full: WhenFull::Block, .. }),
            queue_max,
            held_max: queue.budget().held_max(),
            write_len_max,
            max_age: self.source.max_age,
            seed: fastrand::u64(..),
        }
    }
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
    addresses: Vec<Address>,
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
        let addresses: Vec<_> = settings.streams.endpoints.addresses().cloned().collect();
        Self {
            told: addresses.iter().map(|_| ToldReasons::default()).collect(),
            brief: vec![None; addresses.len()],
            addresses,
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
            self.addresses.iter().for_each(|address| absences.is_there(&address.to_string()));
            return DriverEnd::Renewed(self.delivery.into_remaining().collect());
        }
        self.lane.source.leave(self.delivery.into_remaining());
        DriverEnd::Over
    }

    /// Goes on with other settings. Where they need other connections, the present ones end with STOP and FINISH first.
    fn take_settings(&mut self, now: Instant) {
        let settings = Arc::clone(&self.news.borrow_and_update());
        if self.renews_by.is_none() && settings.connects_like(&self.settings) {
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
        let address = self.addresses[stream.member].clone();
        let settings = Arc::clone(&self.settings);
        let unsent_max = (settings.buffer.policy() == WhenFull::Sample)
            .then(|| settings.buffer.memory() / SAMPLE_SOCKET_PART / self.addresses.len());
        let brief = self.brief[stream.member];
        let scope = self.scope.clone();
        let opening = async move {
            let StreamsConfig { handshake_timeout, user_timeout, send_proxy, .. } = settings.streams;
            let way = &settings.ways[stream.member];
            if let Some(led_back) = lane.loops.leads_back(way, &scope).await {
                return Err(WriteFault::Loop(led_back));
            }
            let options = ConnectOptions { timeout: handshake_timeout, user_timeout, send_proxy };
            let open = WriteStream::open(&address, brief, &options, &lane.own, writer, backend).await?;
            if let Some(bytes) = unsent_max {
                // The queue would fall at once by what the socket takes at once.
                open.set_unsent_max(bytes);
            }
            Ok(open)
        };
        self.links.open(stream, Box::pin(opening));
    }

    fn handle(&mut self, stream: StreamId, event: LinkEvent, now: Instant) {
        match event {
            LinkEvent::Connected => {
                self.told[stream.member].clear();
                let remark = self.links.get(stream).map(|open| open.remark().to_owned()).unwrap_or_default();
                let (output, to, account) =
                    (self.output(), self.to(stream).to_string(), &self.lane.source.account);
                account.absences.is_there(&to);
                if let Some(left_out) = account.log.admit(OutputEvent::Connected, &to, now) {
                    if remark.is_empty() {
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
            if let Some(led_back) = self.settings.ways[stream.member].led_back() {
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
            CloseReason::Stalled => match &streams.endpoints {
                Endpoints::Group(group) => {
                    Some(format!("the reader took nothing for {:?}", group.stall_timeout))
                }
                Endpoints::One(_) => None,
            },
            CloseReason::Over => Some("tapster ends before the reader has answered".to_owned()),
        };
        if let (Some(words), Some(open)) = (words, self.links.get(stream)) {
            let bytes_unconfirmed = open.unconfirmed_bytes();
            self.tell_end(stream, bytes_unconfirmed, &words, now);
        }
        self.links.close(stream);
    }

    fn tell_finished(&self, stream: StreamId, now: Instant) {
        let (output, to) = (self.output(), self.to(stream).to_string());
        if let Some(left_out) = self.lane.source.account.log.admit(OutputEvent::Finished, &to, now) {
            debug!(output, to, left_out, "finished");
        }
    }

    /// Tells that a stream ended without FINISH, and what that may cost.
    fn tell_end(&self, stream: StreamId, bytes_unconfirmed: u64, words: &str, now: Instant) {
        let bytes_unconfirmed = bytes_unconfirmed.saturating_sub(self.delivery.cut_len(stream) as u64);
        let (output, to, account) = (self.output(), self.to(stream).to_string(), &self.lane.source.account);
        let keeps = self.settings.streams.mode.keeps_unacknowledged();
        if !keeps {
            account.unconfirmed(bytes_unconfirmed);
        }
        let Some(left_out) = account.log.admit(OutputEvent::Broken, &to, now) else { return };
        if keeps {
            let frames_unacknowledged = account.unacknowledged_now();
            warn!(output, to, frames_unacknowledged, left_out, "connection ended: {words}");
        } else {
            warn!(output, to, bytes_unconfirmed, left_out, "connection ended: {words}");
        }
    }

    /// Tells that a reader cannot be reached: once for each reason until it is there. It is away, unless another connection to
    /// it is open.
    fn tell_refusal(&mut self, stream: StreamId, fault: &WriteFault, now: Instant) {
        let (to, words, account) =
            (self.to(stream).to_string(), fault.to_string(), &self.lane.source.account);
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

    fn to(&self, stream: StreamId) -> &Address {
        &self.addresses[stream.member]
    }
}

/// How often what has arrived is looked at: after so many bytes.
const PROBE_LEN: usize = 256 << 10;
/// And so long after a write, at the latest.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// The part of a sampled queue that sockets may take.
const SAMPLE_SOCKET_PART: usize = 16;

/// An opening ends by itself: after a lookup, and for each address a connect and a handshake, each within the same time.
const OPENING_PARTS: u32 = 1 + 2 * (ADDRESSES_MAX as u32 + 1);
