//! The generator: many connections on one thread, frames written from the wheel where they lie.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::event::epoll::EventFlags;
use tapster::protocol::WriterConfig;

use crate::clock::NANOS_PER_SECOND;
use crate::clock::now_ns;
use crate::connection::Connection;
use crate::latency::Latency;
use crate::latency::Recorder;
use crate::mark::Mark;
use crate::payload::Wheel;
use crate::poller::Poller;
use crate::report::SendReport;
use crate::schedule::Rate;
use crate::schedule::Schedule;
use crate::schedule::share;
use crate::socket::connect;
use crate::target::Target;

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) to: Target,
    pub(crate) connections: u16,
    pub(crate) amount: Amount,
    pub(crate) rate: Rate,
    pub(crate) bidirectional: bool,
    /// Most bytes of one write; at least one frame is written.
    pub(crate) write_size: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) finish_timeout: Duration,
    /// How long the peer may take nothing at all.
    pub(crate) give_up: Duration,
}

/// How much to send, all connections together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Frames(u64),
    Duration(Duration),
}

/// What other threads see of a running generator, and how they end it.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) frames: AtomicU64,
    pub(crate) stop: AtomicBool,
}

/// Connects, sends everything, and ends every connection with STOP.
pub(crate) fn run(plan: &Plan, wheel: Wheel, live: Arc<Live>) -> Result<SendReport> {
    // Sleeps end when they should: latency counts from the intended time.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut generator = Generator::connect(plan, wheel, live)?;
    generator.send()?;
    generator.finish()
}

struct Generator<'a> {
    plan: &'a Plan,
    live: Arc<Live>,
    run: u16,
    wheel: Wheel,
    /// The next frame of the wheel.
    cursor: usize,
    connections: Vec<Connection>,
    /// Connections that have neither sent all nor been given up.
    active: usize,
    poller: Poller,
    schedule: Schedule,
    /// Frames that the schedule has released so far, all connections together.
    released: u64,
    /// Connections that may have something to write, each once.
    queue: VecDeque<usize>,
    late_max_ns: u64,
    report: SendReport,
}

/// What became of a connection's turn.
enum Turn {
    Wrote,
    /// Nothing is due.
    Idle,
    /// The peer takes no more for now.
    Blocked,
}

impl<'a> Generator<'a> {
    /// Connects everything and does the handshakes: all READY first, so that they overlap.
    fn connect(plan: &'a Plan, wheel: Wheel, live: Arc<Live>) -> Result<Self> {
        let config = Arc::new(WriterConfig {
            bidirectional: plan.bidirectional,
            handshake_timeout: plan.connect_timeout,
            finish_timeout: plan.finish_timeout,
            ..WriterConfig::default()
        });
        let poller = Poller::new()?;
        let mut connections = Vec::with_capacity(plan.connections.into());
        for _ in 0..plan.connections {
            let socket = connect(&plan.to.address, plan.connect_timeout)?;
            socket.set_read_timeout(Some(plan.connect_timeout))?;
            socket.set_write_timeout(Some(plan.finish_timeout))?;
            let stream = plan.to.stream(socket)?;
            let begun = Connection::begin(stream, Arc::clone(&config));
            connections.push(begun.with_context(|| format!("handshake with {}", plan.to))?);
        }
        for (index, connection) in connections.iter_mut().enumerate() {
            connection
                .await_start()
                .with_context(|| format!("handshake on connection {index} to {}", plan.to))?;
            // Edge-triggered: an event tells that a socket which had been full has room again.
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            poller.add(connection.socket(), index as u64, flags)?;
        }
        Ok(Self {
            plan,
            live,
            run: process::id() as u16,
            wheel,
            cursor: 0,
            active: connections.len(),
            queue: VecDeque::with_capacity(connections.len()),
            connections,
            poller,
            schedule: Schedule::new(plan.rate, now_ns()),
            released: 0,
            late_max_ns: 0,
            report: SendReport { connections: plan.connections.into(), ..SendReport::default() },
        })
    }

    /// Sends every frame.
    fn send(&mut self) -> Result<()> {
        let start_ns = now_ns();
        self.schedule = Schedule::new(self.plan.rate, start_ns);
        let (total, mut end_ns) = match self.plan.amount {
            Amount::Frames(frames) => (Some(frames), None),
            Amount::Duration(duration) => match self.schedule.frames_in(duration) {
                Some(frames) => (Some(frames), None),
                None => (None, Some(start_ns + duration.as_nanos() as u64)),
            },
        };
        if let Some(total) = total {
            self.set_targets(|index, _| share(total, index, self.plan.connections.into()));
        }
        let mut progress = (start_ns, 0);
        while self.active > 0 {
            let now = now_ns();
            if end_ns.is_some_and(|end_ns| now >= end_ns) || self.live.stop.swap(false, Relaxed) {
                // One more frame each, to say that it is the last.
                self.set_targets(|_, connection| connection.target.min(connection.sequence + 1));
                self.release(u64::MAX);
                end_ns = None;
            }
            self.release(self.schedule.due(now).min(total.unwrap_or(u64::MAX)));
            for _ in 0..TURNS_BETWEEN_POLLS {
                let Some(index) = self.queue.pop_front() else { break };
                self.turn(index);
            }
            let frames = self.report.frames;
            self.live.frames.store(frames, Relaxed);
            if frames > progress.1 || frames == self.released {
                progress = (now, frames);
            } else if now.saturating_sub(progress.0) > self.plan.give_up.as_nanos() as u64 {
                bail!("{} has taken nothing for {:?}: given up", self.plan.to, self.plan.give_up);
            }
            self.poll(end_ns)?;
        }
        self.report.seconds = (now_ns() - start_ns) as f64 / NANOS_PER_SECOND as f64;
        Ok(())
    }

    fn set_targets(&mut self, target: impl Fn(u64, &Connection) -> u64) {
        for (index, connection) in (0..).zip(&mut self.connections) {
            connection.target = target(index, connection);
        }
        self.active = self.connections.iter().filter(|connection| connection.is_active()).count();
    }

    /// Gives turns to the connections of the frames up to `due`: frame `n` goes to connection `n % connections`.
    fn release(&mut self, due: u64) {
        let connections = self.connections.len() as u64;
        let released = due.saturating_sub(self.released);
        for frame in self.released..self.released + released.min(connections) {
            self.enqueue((frame % connections) as usize);
        }
        self.released += released;
    }

    fn enqueue(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.queued && !connection.blocked && connection.is_active() {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn turn(&mut self, index: usize) {
        self.connections[index].queued = false;
        match self.write(index) {
            Ok(Turn::Wrote) => {
                if self.connections[index].is_active() {
                    self.enqueue(index);
                } else {
                    self.active -= 1;
                }
            }
            Ok(Turn::Idle) => {}
            Ok(Turn::Blocked) => self.connections[index].blocked = true,
            Err(error) => self.give_up(index, &error.into()),
        }
    }

    /// One write on one connection.
    fn write(&mut self, index: usize) -> io::Result<Turn> {
        let connections = self.connections.len() as u64;
        let connection = &mut self.connections[index];
        if connection.has_pending() {
            return Ok(if connection.write_pending()? { Turn::Wrote } else { Turn::Blocked });
        }
        let released = share(self.released, index as u64, connections).min(connection.target);
        let frames_max = released.saturating_sub(connection.sequence);
        if frames_max == 0 {
            return Ok(Turn::Idle);
        }

        let now = now_ns();
        let (frames, start, end) = self.wheel.run(self.cursor, frames_max, self.plan.write_size);
        for offset in 0..frames {
            let sequence = connection.sequence + offset as u64;
            let intended_ns = self.schedule.intended_ns(sequence * connections + index as u64, now);
            let last = sequence + 1 == connection.target;
            let mark = Mark { run: self.run, connection: index as u16, sequence, last, intended_ns };
            self.wheel.mark(self.cursor + offset, &mark);
            if offset == 0 {
                self.late_max_ns = self.late_max_ns.max(now.saturating_sub(intended_ns));
            }
        }
        // A write that is not taken at all leaves everything as it was: its frames are marked anew later.
        if !connection.write(self.wheel.bytes(start, end))? {
            return Ok(Turn::Blocked);
        }
        connection.sequence += frames as u64;
        self.cursor = (self.cursor + frames) % self.wheel.frames();
        self.report.frames += frames as u64;
        self.report.bytes += (end - start) as u64;
        Ok(if connection.has_pending() { Turn::Blocked } else { Turn::Wrote })
    }

    /// Waits for room, for the schedule or for the end, and learns which connections have died.
    fn poll(&mut self, end_ns: Option<u64>) -> Result<()> {
        let timeout = if self.active == 0 || !self.queue.is_empty() {
            Duration::ZERO
        } else {
            let now = now_ns();
            let due_ns = self.schedule.intended_ns(self.released, u64::MAX);
            let wake_ns = due_ns.min(end_ns.unwrap_or(u64::MAX)).min(now + LOOK_EVERY_NS);
            Duration::from_nanos(wake_ns.saturating_sub(now))
        };
        self.poller.wait(Some(timeout))?;
        for event in 0..self.poller.len() {
            let (token, flags) = self.poller.event(event);
            let index = token as usize;
            if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
                && self.connections[index].is_active()
                && let Err(error) = self.connections[index].check_silence()
            {
                self.give_up(index, &error);
            }
            if flags.contains(EventFlags::OUT) {
                self.connections[index].blocked = false;
                self.enqueue(index);
            }
        }
        Ok(())
    }

    fn give_up(&mut self, index: usize, error: &anyhow::Error) {
        let connection = &mut self.connections[index];
        if connection.is_active() {
            self.active -= 1;
        }
        let sent = connection.sequence;
        connection.problem = Some(format!("connection {index}, after {sent} frames: {error:#}"));
    }

    /// Ends every connection: all STOP first, then every FINISH as it comes.
    fn finish(mut self) -> Result<SendReport> {
        let poller = Poller::new()?;
        let mut stopped_ns = vec![0; self.connections.len()];
        let mut waiting = 0;
        for (index, connection) in self.connections.iter_mut().enumerate() {
            if connection.problem.is_some() {
                continue;
            }
            stopped_ns[index] = now_ns();
            match connection.stop() {
                Ok(true) => {
                    poller.add(connection.socket(), index as u64, EventFlags::IN | EventFlags::RDHUP)?;
                    waiting += 1;
                }
                Ok(false) => {}
                Err(error) => connection.problem = Some(format!("connection {index}, at STOP: {error:#}")),
            }
        }
        let finish = self.await_finish(poller, &stopped_ns, waiting)?;

        let mut report = self.report;
        report.finish = finish;
        report.frames_per_second = report.frames as f64 / report.seconds.max(1e-9);
        report.late_max_us = self.late_max_ns as f64 / 1e3;
        report
            .problems
            .extend(self.connections.iter_mut().filter_map(|connection| connection.problem.take()));
        report.ok = report.problems.is_empty();
        Ok(report)
    }

    fn await_finish(
        &mut self,
        mut poller: Poller,
        stopped_ns: &[u64],
        mut waiting: usize,
    ) -> Result<Latency> {
        let mut latency = Recorder::new();
        let deadline_ns = now_ns() + self.plan.finish_timeout.as_nanos() as u64;
        while waiting > 0 {
            let left = deadline_ns.saturating_sub(now_ns());
            poller.wait(Some(Duration::from_nanos(left)))?;
            if poller.len() == 0 && left == 0 {
                break;
            }
            for event in 0..poller.len() {
                let index = poller.event(event).0 as usize;
                let connection = &mut self.connections[index];
                let result = connection.read_finish();
                if let Ok(false) = result {
                    continue;
                }
                if result.is_ok() {
                    latency.record(now_ns() - stopped_ns[index]);
                }
                connection.problem =
                    result.err().map(|error| format!("connection {index}, after STOP: {error:#}"));
                poller.remove(connection.socket())?;
                waiting -= 1;
            }
        }
        if waiting > 0 {
            let timeout = self.plan.finish_timeout;
            self.report
                .problems
                .push(format!("no FINISH within {timeout:?} of STOP on {waiting} connections"));
        }
        Ok(Latency::of(latency.histogram(), false))
    }
}

/// Writes between two looks at what the sockets have to say.
const TURNS_BETWEEN_POLLS: usize = 64;
/// How soon a stop is noticed.
const LOOK_EVERY_NS: u64 = NANOS_PER_SECOND / 20;
