//! An output into Frame Streams files, on a thread of its own: file work never holds up a worker.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::watch;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::delivery::DeliveryMachine;
use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::balance::Balance;
use crate::delivery::config::Acknowledge;
use crate::delivery::config::DeliveryConfig;
use crate::delivery::config::Retry;
use crate::lifecycle::Phases;
use crate::lifecycle::Scope;
use crate::observability::output_log::OutputEvent;
use crate::output::deadline::Deadline;
use crate::output::failure_log::FailureLog;
use crate::output::file_config::FileConfig;
use crate::output::file_name;
use crate::output::in_place::InPlace;
use crate::output::keep;
use crate::output::lane::Source;
use crate::output::place::Place;
use crate::output::standing::Change;
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
    /// It changes while the lane runs.
    pub(crate) config: watch::Receiver<Arc<FileConfig>>,
    /// Changes when the output is to end its file and to begin a new one.
    pub(crate) reopen: watch::Receiver<u64>,
}

impl FileLane {
    /// Runs the lane until its queue is closed and written, or the output is over. Blocks its thread on file work. A lane
    /// that fails begins again.
    pub(crate) async fn run(self, scope: Scope) {
        let lane = Arc::new(self);
        let reconnect = lane.config.borrow().reconnect;
        let task = || async { Driver::new(Arc::clone(&lane), &scope).run().await };
        lane.source.run(&scope, reconnect, task).await;
    }

    fn delivery_config(&self, config: &FileConfig) -> DeliveryConfig {
        let queue = &self.source.queue;
        DeliveryConfig {
            weights: vec![1],
            balance: Balance::default(),
            // A file has the frames when they are written, and it is seen afterwards that it still has a name: what is written
            // to a file that somebody has removed is lost.
            acknowledge: Acknowledge::Progress {
                margin: 0,
                probe_len: (queue.budget().max() / 8).min(queue.write_len_max()).min(LOOK_LEN) as u64,
                probe_pause: LOOK_PAUSE,
            },
            // The last look at the file is the answer to STOP.
            answers: true,
            // Everything is done at once.
            connect_timeout: Duration::from_secs(3600),
            finish_timeout: Duration::from_secs(3600),
            stall_timeout: None,
            slow_start: Duration::ZERO,
            reconnect: config.reconnect,
            retry: Retry::WhileRunning,
            queue_max: queue.budget().max(),
            held_max: queue.budget().held_max(),
            write_len_max: queue.write_len_max(),
            max_age: self.source.max_age,
            seed: fastrand::u64(..),
        }
    }
}

/// The loop at work. A file is what a connection is to other outputs.
struct Driver {
    lane: Arc<FileLane>,
    config: Arc<FileConfig>,
    news: watch::Receiver<Arc<FileConfig>>,
    delivery: DeliveryMachine,
    open: Option<(StreamId, Open)>,
    // A file that another process has cut, and that was begun anew.
    begun_anew: Option<OutputFile>,
    phases: Phases,
    reopen: watch::Receiver<u64>,
    deadline: Deadline,
    // The next look at a file that nothing is written to, and at the files that stay.
    look_at: Instant,
    keep_at: Instant,
    failures: FailureLog,
    // A file could not be written, and none was written since.
    is_absent: bool,
}

/// What is written.
enum Open {
    File(OutputFile),
    InPlace(InPlace),
}

impl Driver {
    fn new(lane: Arc<FileLane>, scope: &Scope) -> Self {
        let account = Arc::clone(&lane.source.account);
        let now = Instant::now();
        let mut news = lane.config.clone();
        let config = Arc::clone(&news.borrow_and_update());
        let delivery = DeliveryMachine::new(lane.delivery_config(&config), account, &[], now);
        let reopen = lane.reopen.clone();
        Self {
            lane,
            config,
            news,
            delivery,
            open: None,
            begun_anew: None,
            phases: scope.phases(),
            reopen,
            deadline: Deadline::default(),
            look_at: now + LOOK_EVERY,
            keep_at: now,
            failures: FailureLog::default(),
            is_absent: false,
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
            let due = [self.delivery.poll_timeout(), self.rotation_due(), Some(self.look_at)];
            let due = due.into_iter().flatten().min();
            tokio::select! {
                biased;
                phase = self.phases.next() => self.delivery.handle_phase(phase, Instant::now()),
                Ok(()) = self.news.changed() => self.take_config(Instant::now()),
                Ok(()) = self.reopen.changed() => self.reopen(Instant::now()),
                () = ready(self.open.as_ref()) => self.go_on(Instant::now()),
                () = queue.news(wants, end) => {}
                () = self.deadline.reached(due) => self.handle_timeout(Instant::now()),
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

    fn handle_timeout(&mut self, now: Instant) {
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            self.look(now);
        }
        if self.keep_at <= now {
            self.remove_old(now);
        }
        self.delivery.handle_timeout(now);
    }

    fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Connect(stream) => self.create(stream, now),
            Action::Write(stream) => self.write(stream, now),
            Action::Stop(stream) => self.stop(stream, now),
            Action::Close(stream, reason) => self.close(stream, reason, now),
            Action::Probe(_) => self.look(now),
            // Only what is written in place lets a write wait, and has told what went of it.
            Action::Interrupt(stream) => self.delivery.handle_written(stream, 0, now),
        }
    }

    fn create(&mut self, stream: StreamId, now: Instant) {
        let opened = match self.begun_anew.take() {
            Some(file) => Ok(Open::File(file)),
            None => self.open(now),
        };
        match opened {
            Ok(open) => {
                self.open = Some((stream, open));
                self.delivery.handle_connected(stream, now);
                self.remove_old(now);
            }
            Err(failure) => {
                self.tell(&failure, now);
                self.delivery.handle_refused(stream, now);
            }
        }
    }

    /// Opens whatever has the name of this moment, or makes a file.
    fn open(&self, now: Instant) -> Result<Open, FileFailure> {
        let lane = &self.lane;
        let pattern = &self.config.pattern;
        let name = file_name::of_now(pattern)
            .map_err(|error| FileFailure::new("name", Path::new(pattern), io::Error::other(error)))?;
        let place = Place::at(&name).map_err(|source| FileFailure::new("open", &name, source))?;
        let open = match place {
            Place::Stdout | Place::Device => {
                Open::InPlace(InPlace::open(&name, place, lane.content_type.clone())?)
            }
            Place::EmptyFile | Place::Taken | Place::Free => {
                Open::File(OutputFile::create(&name, place, &self.config, lane.content_type.clone())?)
            }
        };
        if let Some(left_out) = lane.source.account.log.admit(OutputEvent::FileOpened, "", now) {
            info!(output = lane.source.output, file = %open.path().display(), left_out, "opened");
        }
        Ok(open)
    }

    fn write(&mut self, stream: StreamId, now: Instant) {
        let written = match &mut self.open {
            Some((_, Open::File(file))) => file.write(&self.delivery.buffers(stream).collect::<Vec<_>>()),
            Some((_, Open::InPlace(open))) => open.write(self.delivery.buffers(stream)),
            None => return,
        };
        self.written(stream, written, now);
    }

    /// Tells what a write has brought.
    fn written(&mut self, stream: StreamId, written: Result<usize, (usize, FileFailure)>, now: Instant) {
        match written {
            // What is written in place waits.
            Ok(0) => {}
            Ok(count) => {
                if std::mem::take(&mut self.is_absent) {
                    self.lane.source.account.absences.is_there(&self.config.to_string());
                }
                self.delivery.handle_written(stream, count, now);
            }
            Err((count, failure)) => {
                self.tell(&failure, now);
                if count > 0 {
                    self.delivery.handle_written(stream, count, now);
                }
                let Some((_, open)) = self.open.take() else { return };
                self.delivery.handle_progress(stream, Some(open.data_len()), now);
                // One more file takes more, where this one has taken something.
                let at_once = failure.is_full_file() && open.data_len() > 0;
                drop(open);
                self.delivery.handle_given_up(stream, at_once, now);
            }
        }
    }

    /// What is written in place takes more, or its reader has gone.
    fn go_on(&mut self, now: Instant) {
        let Some((stream, Open::InPlace(open))) = &mut self.open else { return };
        let stream = *stream;
        if open.is_written() {
            let gone = FileFailure::new("write to", &open.path, io::ErrorKind::BrokenPipe.into());
            return self.written(stream, Err((0, gone)), now);
        }
        let written = open.push();
        let failed = written.is_err();
        let stopped = open.is_stopped();
        self.written(stream, written, now);
        if stopped {
            self.delivery.handle_finish(stream, !failed, now);
        }
    }

    fn stop(&mut self, stream: StreamId, now: Instant) {
        let result = match &mut self.open {
            Some((_, Open::File(file))) => file.stop(),
            Some((_, Open::InPlace(open))) => match open.stop() {
                Ok(()) if !open.is_written() => return,
                result => result,
            },
            None => return,
        };
        if let Err(failure) = result {
            self.tell(&failure, now);
            self.open = None;
            return self.delivery.handle_finish(stream, false, now);
        }
        self.look(now);
        let Some((_, open)) = self.open.take() else {
            return self.delivery.handle_finish(stream, false, now);
        };
        if let Open::File(file) = open
            && let Err(failure) = self.close_file(file, now)
        {
            self.tell(&failure, now);
        }
        self.delivery.handle_finish(stream, true, now);
    }

    fn close(&mut self, stream: StreamId, reason: CloseReason, now: Instant) {
        let Some((_, open)) = self.open.take_if(|(present, _)| *present == stream) else { return };
        if let Open::File(mut file) = open
            && reason == CloseReason::Over
            && file.stop().is_ok()
        {
            let _ = self.close_file(file, now);
        }
    }

    /// Gives a file its final name.
    fn close_file(&self, file: OutputFile, now: Instant) -> Result<(), FileFailure> {
        let (path, bytes) = file.close()?;
        let source = &self.lane.source;
        if let Some(left_out) = source.account.log.admit(OutputEvent::FileClosed, "", now) {
            info!(output = source.output, file = %path.display(), bytes, left_out, "closed");
        }
        Ok(())
    }

    /// Looks whether the file is where it was made, and tells the delivery what can be read of it.
    fn look(&mut self, now: Instant) {
        let Some((stream, open)) = &mut self.open else { return };
        let stream = *stream;
        let (change, data_len) = match open {
            Open::File(file) => (file.look(), file.data_len()),
            Open::InPlace(open) => (Ok(None), open.data_len()),
        };
        match change {
            Ok(None) => self.delivery.handle_progress(stream, Some(data_len), now),
            Ok(Some(Change::Moved)) => {
                let (output, file) = (&self.lane.source.output, open.path());
                info!(output, file = %file.display(), "the file was renamed or replaced; tapster ends it and begins a new one");
                self.delivery.handle_progress(stream, Some(data_len), now);
                self.delivery.handle_rotate(stream, now);
            }
            Ok(Some(change)) => self.lose(change, now),
            Err(failure) => {
                self.tell(&failure, now);
                self.open = None;
                self.delivery.handle_given_up(stream, false, now);
            }
        }
    }

    /// The file is not there any more, or not whole: what was written since the last look goes into another one.
    fn lose(&mut self, change: Change, now: Instant) {
        let Some((stream, Open::File(file))) = self.open.take() else { return };
        let (output, name) = (&self.lane.source.output, file.path.display().to_string());
        match change {
            Change::Cut { len } => match file.begin_anew(len) {
                Ok(anew) => {
                    let place = if anew.is_some() { "it" } else { "another one" };
                    info!(
                        output,
                        file = name,
                        len,
                        "somebody has cut the file; tapster begins a new stream in {place}"
                    );
                    self.begun_anew = anew;
                }
                Err(failure) => self.tell(&failure, now),
            },
            Change::Hidden => {
                warn!(
                    output,
                    file = name,
                    "another file system is mounted over the file; tapster begins a new one"
                );
                drop(file);
            }
            Change::Removed | Change::Moved => {
                warn!(
                    output,
                    file = name,
                    "the file was removed while tapster wrote it; tapster begins a new one, with what was written since its last look"
                );
                file.forget();
            }
        }
        self.delivery.handle_given_up(stream, true, now);
    }

    /// Ends the file and begins a new one.
    fn reopen(&mut self, now: Instant) {
        self.look(now);
        if let Some((stream, open)) = &self.open
            && open.data_len() > 0
        {
            self.delivery.handle_rotate(*stream, now);
        }
    }

    /// Goes on as it is configured now: in another file, where that has another name or other permissions.
    fn take_config(&mut self, now: Instant) {
        let config = Arc::clone(&self.news.borrow_and_update());
        let former = std::mem::replace(&mut self.config, config);
        self.delivery.reconfigure(self.lane.delivery_config(&self.config), now);
        let file =
            |config: &FileConfig| (config.pattern.clone(), config.mode, config.rotate.partial_suffix.clone());
        if file(&former) != file(&self.config) {
            self.lane.source.account.absences.is_there(&former.to_string());
            if let Some((stream, _)) = &self.open {
                self.delivery.handle_rotate(*stream, now);
            }
        }
    }

    fn remove_old(&mut self, now: Instant) {
        self.keep_at = now + KEEP_EVERY;
        let Some((_, Open::File(file))) = &self.open else { return };
        let (removed, failed) = keep::remove_old(&self.config, &file.path);
        if !removed.is_empty() {
            let (output, files) = (&self.lane.source.output, removed.len());
            info!(output, files, oldest = %removed[removed.len() - 1].display(), "removed old files, as `keep` says");
        }
        if let Some((path, source)) = failed {
            self.tell(&FileFailure::new("remove", &path, source), now);
        }
    }

    fn tell(&mut self, failure: &FileFailure, now: Instant) {
        let (source, to) = (&self.lane.source, self.config.to_string());
        source.account.absences.failed(&to, &failure.to_string(), now);
        self.is_absent = true;
        if self.failures.is_due(failure.kind(), now)
            && let Some(left_out) = source.account.log.admit(OutputEvent::FileFailed, "", now)
        {
            let next =
                if failure.is_full_file() { "tapster goes on in a new file" } else { "tapster tries again" };
            error!(output = source.output, to, left_out, "{failure}; {next}");
        }
    }

    /// When the present file is old enough for another to begin. A file without frames is not: it would be an empty one.
    fn rotation_due(&self) -> Option<Instant> {
        let every = self.config.rotate.every?;
        match &self.open {
            Some((_, Open::File(file))) if file.has_frames() => file.opened.checked_add(every),
            _ => None,
        }
    }

    fn rotate_if_due(&mut self, now: Instant) {
        let Some((stream, Open::File(file))) = &self.open else { return };
        let full = self.config.rotate.size.is_some_and(|size| file.len >= size);
        if file.has_frames() && full || self.rotation_due().is_some_and(|due| due <= now) {
            self.delivery.handle_rotate(*stream, now);
        }
    }
}

impl Open {
    fn path(&self) -> &Path {
        match self {
            Self::File(file) => &file.path,
            Self::InPlace(open) => &open.path,
        }
    }

    /// Bytes of data that were written.
    fn data_len(&self) -> u64 {
        match self {
            Self::File(file) => file.data_len(),
            Self::InPlace(open) => open.data_len(),
        }
    }
}

/// Waits until there is something to do for what is written in place. Cancel-safe.
async fn ready(open: Option<&(StreamId, Open)>) {
    match open {
        Some((_, Open::InPlace(open))) => open.ready().await,
        _ => std::future::pending().await,
    }
}

/// A file is looked at so often, whatever happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And after so many bytes written, or so long after a write: until then the frames are kept, to be written again.
const LOOK_LEN: usize = 256 << 10;
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How often files are looked for that have become too old.
const KEEP_EVERY: Duration = Duration::from_secs(60);
