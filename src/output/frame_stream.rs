//! An output over connections: one loop that runs the delivery, and has its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::lifecycle::Phases;
use crate::lifecycle::Scope;
use crate::observability::member_account::MemberAccount;
use crate::observability::output_log::OutputEvent;
use crate::output::config::Buffer;
use crate::output::deadline::Deadline;
use crate::output::lane::Source;
use crate::output::links::LinkEvent;
use crate::output::links::Links;
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
    pub(crate) buffer: Buffer,
    pub(crate) streams: StreamsConfig,
    /// Accounts of the members of a group, in order; none for one reader.
    pub(crate) members: Vec<Arc<MemberAccount>>,
    /// Where no output may lead.
    pub(crate) own: Arc<OwnListeners>,
}

impl StreamLane {
    /// Runs the lane until its queue is closed and written, or the output is over. For the worker that owns it. A lane that
    /// fails begins again.
    pub(crate) async fn run(self, backend: Backend, scope: Scope) {
        let lane = Arc::new(self);
        let task = || async { Driver::new(Arc::clone(&lane), backend, &scope).run().await };
        lane.source.run(&scope, lane.streams.reconnect, task).await;
    }

    fn addresses(&self) -> Vec<Address> {
        self.streams.endpoints.addresses().cloned().collect()
    }

    fn delivery_config(&self) -> DeliveryConfig {
        let StreamsConfig { endpoints, mode, .. } = &self.streams;
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
            connect_timeout: self.streams.handshake_timeout.saturating_mul(OPENING_PARTS),
            finish_timeout: mode.finish_timeout(),
            stall_timeout: group.map(|group| group.stall_timeout),
            slow_start: group.map_or(Duration::ZERO, |group| group.slow_start),
            reconnect: self.streams.reconnect,
            // Nothing may be lost that could be delivered: the queue blocks, and no spool keeps the frames.
            tries_to_the_end: matches!(self.buffer, Buffer::Memory { when_full: WhenFull::Block, .. }),
            queue_max,
            held_max: queue.budget().held_max(),
            write_len_max,
            max_age: self.source.max_age,
            seed: fastrand::u64(..),
        }
    }
}

/// The loop at work.
struct Driver {
    lane: Arc<StreamLane>,
    addresses: Vec<Address>,
    writer: Arc<WriterConfig>,
    backend: Backend,
    delivery: DeliveryMachine,
    links: Links,
    phases: Phases,
    deadline: Deadline,
    // For each member that cannot be reached: the reasons that were told since it was there.
    told: Vec<Vec<String>>,
    // The address of each member whose last connection did not last.
    brief: Vec<Option<SocketAddr>>,
}

impl Driver {
    fn new(lane: Arc<StreamLane>, backend: Backend, scope: &Scope) -> Self {
        let mode = lane.streams.mode;
        let writer = Arc::new(WriterConfig {
            content_types: lane.content_type.clone().into_iter().collect(),
            bidirectional: mode.is_bidirectional(),
            handshake_timeout: lane.streams.handshake_timeout,
            finish_timeout: mode.finish_timeout(),
        });
        let account = Arc::clone(&lane.source.account);
        let delivery = DeliveryMachine::new(lane.delivery_config(), account, &lane.members, Instant::now());
        let addresses = lane.addresses();
        Self {
            told: vec![Vec::new(); addresses.len()],
            brief: vec![None; addresses.len()],
            addresses,
            writer,
            backend,
            delivery,
            links: Links::default(),
            phases: scope.phases(),
            deadline: Deadline::default(),
            lane,
        }
    }

    async fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        let queue = &lane.source.queue;
        loop {
            let end = self.turn(Instant::now());
            if self.delivery.is_over() {
                break;
            }
            let (wants, due) = (self.delivery.wants_batch(), self.delivery.poll_timeout());
            // The same arms at every turn, and one of them is the end: no wait can forget it.
            tokio::select! {
                biased;
                phase = self.phases.next() => self.delivery.handle_phase(phase, Instant::now()),
                (stream, event) = self.links.next() => self.handle(stream, event, Instant::now()),
                () = queue.news(wants, end) => {}
                () = self.deadline.reached(due) => self.delivery.handle_timeout(Instant::now()),
            }
        }
        self.links.all_closed().await;
        self.lane.source.leave(self.delivery.into_remaining());
    }

    /// Takes batches and does what the delivery asks, until neither is left. Returns how far the end of the queue has
    /// come.
    fn turn(&mut self, now: Instant) -> QueueEnd {
        let lane = Arc::clone(&self.lane);
        let queue = &lane.source.queue;
        loop {
            let end = lane.source.feed(&mut self.delivery, now);
            while let Some(action) = self.delivery.poll_action() {
                self.act(action, now);
            }
            if !self.delivery.wants_batch() || queue.is_empty() {
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
                Err(fault) => self.lost(stream, &fault, now),
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
        let unsent_max = (lane.buffer.policy() == WhenFull::Sample)
            .then(|| lane.buffer.memory() / SAMPLE_SOCKET_PART / self.addresses.len());
        let brief = self.brief[stream.member];
        let opening = async move {
            let StreamsConfig { handshake_timeout, user_timeout, send_proxy, .. } = lane.streams;
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
            LinkEvent::Lost(fault) => self.lost(stream, &fault, now),
        }
    }

    /// The connection has ended, by the reader or the network.
    fn lost(&mut self, stream: StreamId, fault: &WriteFault, now: Instant) {
        if let Some(open) = self.links.get(stream) {
            let arrived = open.arrived_bytes();
            let bytes_unconfirmed = open.unconfirmed_bytes();
            self.brief[stream.member] = open.brief_peer(now);
            self.delivery.handle_progress(stream, arrived, now);
            self.tell_end(stream, bytes_unconfirmed, &fault.to_string(), now);
        }
        self.delivery.handle_lost(stream, now);
    }

    fn close(&mut self, stream: StreamId, reason: CloseReason, now: Instant) {
        let streams = &self.lane.streams;
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
        let keeps = self.lane.streams.mode.keeps_unacknowledged();
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
        let is_own_input = matches!(fault, WriteFault::OwnInput(_));
        if is_own_input {
            account.own_input();
        }
        if !self.links.is_open_to(stream.member) {
            account.absences.failed(&to, &words, now);
        }
        let told = &mut self.told[stream.member];
        if told.contains(&words) {
            return;
        }
        if told.len() < REASONS_MAX {
            told.push(words.clone());
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

/// Reasons that are known as told. Others are told as often as the log has room for them.
const REASONS_MAX: usize = 16;

/// How often what has arrived is looked at: after so many bytes.
const PROBE_LEN: usize = 256 << 10;
/// And so long after a write, at the latest.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// The part of a sampled queue that sockets may take.
const SAMPLE_SOCKET_PART: usize = 16;

/// An opening ends by itself: after a lookup, and for each address a connect and a handshake, each within the same time.
const OPENING_PARTS: u32 = 1 + 2 * (ADDRESSES_MAX as u32 + 1);
