//! An output into Frame Streams files, on a thread of its own: file work never holds up a worker.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::IoSlice;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use jiff::Zoned;
use jiff::fmt::strtime;
use tracing::error;
use tracing::info;

use crate::drain::DrainSignal;
use crate::drain::Over;
use crate::drain::Phase;
use crate::output::backlog::Backlog;
use crate::output::backoff::Backoff;
use crate::output::config::FileConfig;
use crate::protocol::ContentType;
use crate::protocol::FileWriter;

/// A lane into files: what its thread is told, and what it writes.
pub(crate) struct FileLane {
    /// The output's, for the log.
    pub(crate) name: String,
    /// The content type of START.
    pub(crate) content_type: Option<ContentType>,
    pub(crate) config: FileConfig,
    pub(crate) backlog: Backlog,
}

/// Runs a file output until its queue is closed and written, or the relay is over. Blocks its thread on file work.
pub(crate) async fn run(mut lane: FileLane, mut drain: DrainSignal) {
    let mut backoff = Backoff::new(lane.config.reconnect);
    let mut over = Over::new(drain.clone());
    let mut reason = String::new();
    loop {
        let since = Instant::now();
        let last_attempt = drain.phase().inputs_ended();
        let Err(failure) = write_files(&mut lane, &mut over).await else { break };
        // The same failure again is not told again.
        if reason != failure.to_string() {
            reason = failure.to_string();
            error!(output = lane.name, to = %lane.config, "{reason}; trying again");
        }
        if last_attempt {
            break;
        }
        backoff.session_lasted(since);
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            _ = drain.wait(Phase::inputs_ended) => {}
        }
    }
    lane.backlog.abandon();
}

/// Writes files one after the other; `Ok` when the lane has come to its end.
async fn write_files(lane: &mut FileLane, over: &mut Over) -> Result<(), FileFailure> {
    let FileLane { name, content_type, config, backlog } = lane;
    loop {
        let mut file = OutputFile::create(&config.pattern, content_type.clone())?;
        backlog.metrics.connected();
        info!(output = name, file = %file.path.display(), "opened");
        match fill_file(config, &mut file, backlog, over).await {
            Ok(last) => {
                file.close()?;
                backlog.metrics.finished();
                if last {
                    return Ok(());
                }
            }
            Err(failure) => {
                file.give_up(backlog.connection_lost());
                return Err(failure);
            }
        }
    }
}

/// Writes one file until it is to be rotated (`false`) or the lane ends (`true`).
async fn fill_file(
    config: &FileConfig,
    file: &mut OutputFile,
    backlog: &mut Backlog,
    over: &mut Over,
) -> Result<bool, FileFailure> {
    let mut over_reached = false;
    loop {
        backlog.fill();
        let buffers: Vec<Bytes> = backlog.buffers().collect();
        let result = file.write(&buffers);
        let written = *result.as_ref().unwrap_or_else(|(count, _)| count);
        backlog.written(written);
        result.map_err(|(_, failure)| failure)?;
        if over_reached || backlog.nothing_to_come() {
            return Ok(true);
        }
        // A file without frames is not rotated: it would be an empty one.
        let age_left = config.rotate.every.map(|every| every.saturating_sub(file.opened.elapsed()));
        let full = config.rotate.size.is_some_and(|size| file.len >= size);
        if file.has_frames && (full || age_left == Some(Duration::ZERO)) {
            return Ok(false);
        }
        tokio::select! {
            () = backlog.ready() => {}
            () = tokio::time::sleep(age_left.unwrap_or_default()), if age_left.is_some() && file.has_frames => {}
            () = over.reached() => over_reached = true,
        }
    }
}

/// One open file. It holds whole frames only: what a failed write left of a frame is cut off.
struct OutputFile {
    path: PathBuf,
    file: File,
    format: FileWriter,
    len: u64,
    has_frames: bool,
    opened: Instant,
}

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
struct FileFailure {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl OutputFile {
    /// Creates the file of this moment, and the folders above it. A name that is taken gets a number: older files are
    /// never overwritten.
    fn create(pattern: &str, content_type: Option<ContentType>) -> Result<Self, FileFailure> {
        let failure = |action, path: &Path| {
            let path = path.to_owned();
            move |source| FileFailure { action, path, source }
        };
        let name = strtime::format(pattern, &Zoned::now())
            .map_err(|error| failure("name", Path::new(pattern))(io::Error::other(error)))?;
        let name = Path::new(&name);
        if let Some(folder) = name.parent() {
            std::fs::create_dir_all(folder).map_err(failure("create the folder of", name))?;
        }
        let (path, file) = create_new(name).map_err(failure("create", name))?;
        let format = FileWriter::new(content_type);
        let header = format.header();
        let mut output = Self { path, file, format, len: 0, has_frames: false, opened: Instant::now() };
        if let Err((_, failure)) = output.append(&[header]) {
            output.give_up(0);
            return Err(failure);
        }
        Ok(output)
    }

    /// Appends whole frames; they are with the system when this returns, not in a buffer of ours.
    ///
    /// # Errors
    /// The failure, and how many bytes went before it.
    fn write(&mut self, buffers: &[Bytes]) -> Result<usize, (usize, FileFailure)> {
        let result = self.append(buffers);
        self.has_frames |= !buffers.is_empty();
        result
    }

    fn append(&mut self, buffers: &[Bytes]) -> Result<usize, (usize, FileFailure)> {
        let mut slices: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
        let mut rest = &mut slices[..];
        let mut written = 0;
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(count) if count > 0 => {
                    written += count;
                    self.len += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let source = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    return Err((
                        written,
                        FileFailure { action: "write to", path: self.path.clone(), source },
                    ));
                }
            }
        }
        Ok(written)
    }

    /// Ends the file with STOP.
    fn close(mut self) -> Result<(), FileFailure> {
        let trailer = self.format.trailer();
        self.append(&[trailer]).map_err(|(_, failure)| failure)?;
        info!(file = %self.path.display(), bytes = self.len, "closed");
        Ok(())
    }

    /// Ends a file that cannot be written any more: the `cut` bytes of the last, partial frame go, STOP is tried, and
    /// a file without frames is removed. Nothing can be done where that fails too.
    fn give_up(mut self, cut: usize) {
        let good = self.len.saturating_sub(cut as u64);
        if self.has_frames {
            let _ = self.file.set_len(good).and_then(|()| self.file.seek(SeekFrom::Start(good)));
            let trailer = self.format.trailer();
            if self.append(&[trailer]).is_err() {
                let _ = self.file.set_len(good);
            }
        } else {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates `name`, or `name.1`, `name.2` … where that is taken.
fn create_new(name: &Path) -> io::Result<(PathBuf, File)> {
    let mut path = name.to_owned();
    for number in 1.. {
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number <= SAME_NAMES_MAX => {
                let mut numbered = name.as_os_str().to_owned();
                numbered.push(format!(".{number}"));
                path = numbered.into();
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("the loop returns at SAME_NAMES_MAX")
}

/// Files of one name before the pattern is at fault.
const SAME_NAMES_MAX: u32 = 100_000;
