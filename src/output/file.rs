//! An output into Frame Streams files, on a thread of its own: file work never holds up a worker.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tracing::error;
use tracing::info;

use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balance;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::lifecycle::Phases;
use crate::lifecycle::Scope;
use crate::observability::output_log::OutputEvent;
use crate::output::config::FileConfig;
use crate::output::deadline::Deadline;
use crate::output::lane::Source;
use crate::output::stream_file::FileFailure;
use crate::output::stream_file::OutputFile;
use crate::protocol::ContentType;
use crate::queue::channel::QueueEnd;

/// A lane into files.
#[derive(Clone, Debug)]
pub(crate) struct FileLane {
    pub(crate) source: Source,
    /// The content type of START.
    pub(crate) content_type: Option<ContentType>,
    pub(crate) config: FileConfig,
}

impl FileLane {
    /// Runs the lane until its queue is closed and written, or the output is over. Blocks its thread on file work. A lane
    /// that fails begins again.
    pub(crate) async fn run(self, scope: Scope) {
        let lane = Arc::new(self);
        let task = || async { Driver::new(Arc::clone(&lane), &scope).run().await };
        lane.source.run(&scope, lane.config.reconnect, task).await;
    }

    fn delivery_config(&self) -> DeliveryConfig {
        let queue = &self.source.queue;
        DeliveryConfig {
            weights: vec![1],
            balance: Balance::default(),
            // A file has the frames when they are written.
            acknowledge: Acknowledge::Written,
            answers: false,
            // Everything is done at once.
            connect_timeout: Duration::from_secs(3600),
            finish_timeout: Duration::from_secs(3600),
            stall_timeout: None,
            slow_start: Duration::ZERO,
            reconnect: self.config.reconnect,
            tries_to_the_end: false,
            queue_max: queue.budget().max(),
            held_max: queue.budget().held_max(),
            write_len_max: queue.write_len_max(),
            seed: fastrand::u64(..),
        }
    }
}

/// The loop at work. A file is what a connection is to other outputs.
struct Driver {
    lane: Arc<FileLane>,
    delivery: DeliveryMachine,
    file: Option<(StreamId, OutputFile)>,
    phases: Phases,
    deadline: Deadline,
    // The failure that was told last.
    told: String,
}

impl Driver {
    fn new(lane: Arc<FileLane>, scope: &Scope) -> Self {
        let account = Arc::clone(&lane.source.account);
        let delivery = DeliveryMachine::new(lane.delivery_config(), account, &[], Instant::now());
        Self {
            lane,
            delivery,
            file: None,
            phases: scope.phases(),
            deadline: Deadline::default(),
            told: String::new(),
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
            let wants = self.delivery.wants_batch();
            let due = [self.delivery.poll_timeout(), self.rotation_due()].into_iter().flatten().min();
            tokio::select! {
                biased;
                phase = self.phases.next() => self.delivery.handle_phase(phase, Instant::now()),
                () = queue.news(wants, end) => {}
                () = self.deadline.reached(due) => self.delivery.handle_timeout(Instant::now()),
            }
        }
        lane.source.leave(self.delivery.into_remaining());
    }

    /// Takes batches and does what the delivery asks, until neither is left. Returns how far the end of the queue has
    /// come.
    fn turn(&mut self, now: Instant) -> QueueEnd {
        let lane = Arc::clone(&self.lane);
        let queue = &lane.source.queue;
        loop {
            let end = lane.source.feed(&mut self.delivery, now);
            self.rotate_if_due(now);
            while let Some(action) = self.delivery.poll_action() {
                self.act(action, now);
            }
            lane.source.acknowledge(self.delivery.poll_acknowledged());
            self.delivery.tell_ages(now);
            if !self.delivery.wants_batch() || queue.is_empty() {
                return end;
            }
        }
    }

    fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Connect(stream) => self.create(stream, now),
            Action::Write(stream) => self.write(stream, now),
            Action::Stop(stream) => {
                let Some((_, file)) = self.file.take() else { return };
                match self.close(file, now) {
                    Ok(()) => self.delivery.handle_finish(stream, true, now),
                    Err(failure) => {
                        self.tell(&failure, now);
                        self.delivery.handle_finish(stream, false, now);
                    }
                }
            }
            Action::Close(_, reason) => {
                let Some((_, file)) = self.file.take() else { return };
                match reason {
                    CloseReason::Over => {
                        if let Err(failure) = self.close(file, now) {
                            self.tell(&failure, now);
                        }
                    }
                    _ => file.give_up(),
                }
            }
            // No write is ever under way, and a file has what was written.
            Action::Interrupt(_) | Action::Probe(_) => {}
        }
    }

    fn create(&mut self, stream: StreamId, now: Instant) {
        let lane = &self.lane;
        match OutputFile::create(&lane.config.pattern, lane.content_type.clone()) {
            Ok(file) => {
                if let Some(left_out) = lane.source.account.log.admit(OutputEvent::FileOpened, "", now) {
                    info!(output = lane.source.output, file = %file.path.display(), left_out, "opened");
                }
                self.file = Some((stream, file));
                self.delivery.handle_connected(stream, now);
            }
            Err(failure) => {
                self.tell(&failure, now);
                self.delivery.handle_refused(stream, now);
            }
        }
    }

    fn close(&self, file: OutputFile, now: Instant) -> Result<(), FileFailure> {
        let path = file.path.clone();
        let bytes = file.close()?;
        if let Some(left_out) = self.lane.source.account.log.admit(OutputEvent::FileClosed, "", now) {
            info!(output = self.lane.source.output, file = %path.display(), bytes, left_out, "closed");
        }
        Ok(())
    }

    fn write(&mut self, stream: StreamId, now: Instant) {
        let buffers: Vec<Bytes> = self.delivery.buffers(stream).collect();
        let Some((_, file)) = &mut self.file else { return };
        match file.write(&buffers) {
            Ok(count) => {
                if !self.told.is_empty() {
                    self.told.clear();
                    self.lane.source.account.absences.is_there(&self.lane.config.to_string());
                }
                self.delivery.handle_written(stream, count, now);
            }
            Err((count, failure)) => {
                self.tell(&failure, now);
                self.delivery.handle_written(stream, count, now);
                self.delivery.handle_lost(stream, now);
            }
        }
    }

    /// Tells a failure; the same one again is not told again until a write succeeds.
    fn tell(&mut self, failure: &FileFailure, now: Instant) {
        let (words, to, source) = (failure.to_string(), self.lane.config.to_string(), &self.lane.source);
        source.account.absences.failed(&to, &words, now);
        if self.told == words {
            return;
        }
        if let Some(left_out) = source.account.log.admit(OutputEvent::FileFailed, "", now) {
            error!(output = source.output, to, left_out, "{words}; tapster tries again");
        }
        self.told = words;
    }

    /// When the present file is old enough for another to begin. A file without frames is not: it would be an empty one.
    fn rotation_due(&self) -> Option<Instant> {
        let every = self.lane.config.rotate.every?;
        let (_, file) = self.file.as_ref().filter(|(_, file)| file.has_frames)?;
        file.opened.checked_add(every)
    }

    fn rotate_if_due(&mut self, now: Instant) {
        let Some((stream, file)) = &self.file else { return };
        let full = self.lane.config.rotate.size.is_some_and(|size| file.len >= size);
        if file.has_frames && full || self.rotation_due().is_some_and(|due| due <= now) {
            self.delivery.handle_rotate(*stream, now);
        }
    }
}
