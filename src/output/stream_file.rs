//! One open Frame Streams file.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use tracing::info;

use crate::output::file_config::FileConfig;
use crate::output::file_name::numbered;
use crate::output::file_name::with_suffix;
use crate::output::new_file;
use crate::output::place::Place;
use crate::output::standing::Change;
use crate::output::standing::Standing;
use crate::protocol::ContentType;
use crate::protocol::FileWriter;
use crate::protocol::FrameBatch;

/// One open file. It holds whole frames only: what a failed write left of a frame is cut off.
pub(crate) struct OutputFile {
    /// The name as long as it is written.
    pub(crate) path: PathBuf,
    // The name once it is complete, where that is another one.
    final_name: Option<PathBuf>,
    file: File,
    format: FileWriter,
    standing: Standing,
    pub(crate) len: u64,
    // Length without what a failed write has left of a frame: header_len <= whole_len <= len.
    whole_len: u64,
    header_len: u64,
    // Length at the last look that found the file in its place: looked_len <= len.
    looked_len: u64,
    pub(crate) opened: Instant,
    // Made by us, and not found empty.
    created: bool,
    // Ended with STOP, or not ours to mend any more.
    ended: bool,
}

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(crate) struct FileFailure {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

impl FileFailure {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// The failure without the name of the file: what a log that is not to repeat itself compares.
    pub(crate) fn kind(&self) -> String {
        format!("{} {}", self.action, self.source)
    }

    /// Whether the file, and not the disk, takes no more: it has reached a limit of the process or of the file system.
    pub(crate) fn is_full_file(&self) -> bool {
        self.source.kind() == io::ErrorKind::FileTooLarge
    }
}

impl OutputFile {
    /// Creates the file of this name, and the folders above it. A name that is taken gets a number: older files are never
    /// overwritten. An empty file of this name is taken, as logrotate leaves one to be written.
    pub(crate) fn create(
        name: &Path,
        place: Place,
        config: &FileConfig,
        content_type: Option<ContentType>,
    ) -> Result<Self, FileFailure> {
        if let Some(folder) = name.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| FileFailure::new("create the folder of", name, source))?;
        }
        let suffix = config.rotate.partial_suffix.as_deref();
        let empty = place == Place::EmptyFile && suffix.is_none();
        let taken = empty.then(|| new_file::take_empty(name)).flatten();
        let created = taken.is_none();
        let (path, final_name, file) = match taken {
            Some(file) => (name.to_owned(), None, file),
            None => Self::create_numbered(name, suffix, config.mode)
                .map_err(|source| FileFailure::new("create", name, source))?,
        };
        let standing =
            Standing::of(&file, &path).map_err(|source| FileFailure::new("look at", &path, source))?;
        let format = FileWriter::new(content_type);
        let opened = Instant::now();
        let mut output = Self {
            path,
            final_name,
            file,
            format,
            standing,
            len: 0,
            whole_len: 0,
            header_len: 0,
            looked_len: 0,
            opened,
            created,
            ended: false,
        };
        output.begin()?;
        Ok(output)
    }

    /// Creates the first file whose name is free, now and when it is complete.
    fn create_numbered(
        name: &Path,
        suffix: Option<&str>,
        mode: u32,
    ) -> io::Result<(PathBuf, Option<PathBuf>, File)> {
        for number in 0..SAME_NAMES_MAX {
            let name = numbered(name, number);
            let result = match suffix {
                None => new_file::create(&name, mode).map(|file| (name, None, file)),
                Some(_) if name.symlink_metadata().is_ok() => continue,
                Some(suffix) => {
                    let path = with_suffix(&name, suffix);
                    new_file::create(&path, mode).map(|file| (path, Some(name), file))
                }
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes START.
    fn begin(&mut self) -> Result<(), FileFailure> {
        (self.len, self.whole_len, self.header_len) = (0, 0, 0);
        let header = self.format.header();
        self.append(&[header]).map_err(|(_, failure)| failure)?;
        (self.whole_len, self.header_len, self.looked_len) = (self.len, self.len, self.len);
        Ok(())
    }

    /// Bytes of whole data frames.
    pub(crate) fn data_len(&self) -> u64 {
        self.whole_len - self.header_len
    }

    /// Whether it holds a frame.
    pub(crate) fn has_frames(&self) -> bool {
        self.data_len() > 0
    }

    /// Appends whole frames; they are with the system when this returns, not in a buffer of ours.
    ///
    /// # Errors
    /// The failure, and the bytes of the frames that stay before it: STOP finds room behind them.
    pub(crate) fn write(&mut self, buffers: &[Bytes]) -> Result<usize, (usize, FileFailure)> {
        match self.append(buffers) {
            Ok(written) => {
                self.whole_len += written as u64;
                Ok(written)
            }
            Err((written, failure)) => {
                let room = written.saturating_sub(self.format.trailer().len());
                let whole = whole_frames_len(buffers, room);
                self.whole_len += whole as u64;
                Err((whole, failure))
            }
        }
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
                    return Err((written, FileFailure::new("write to", &self.path, source)));
                }
            }
        }
        Ok(written)
    }

    /// Looks whether the file is still where it was made, and as long as it was written. `None`: it is, and everything that was
    /// written can be read.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub(crate) fn look(&mut self) -> Result<Option<Change>, FileFailure> {
        let change = self
            .standing
            .look(&self.file, &self.path, self.len)
            .map_err(|source| FileFailure::new("look at", &self.path, source))?;
        if change.is_none_or(|change| change == Change::Moved) {
            self.looked_len = self.len;
        }
        Ok(change)
    }

    /// Begins the file anew, which another process has cut to `len` bytes. `Ok(None)`: there is more in it than this output can
    /// have written since the last look, and the file stays as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn begin_anew(mut self, len: u64) -> Result<Option<Self>, FileFailure> {
        if len > self.len - self.looked_len {
            self.ended = true;
            return Ok(None);
        }
        if let Err(source) = self.file.set_len(0) {
            self.ended = true;
            return Err(FileFailure::new("write to", &self.path, source));
        }
        self.opened = Instant::now();
        self.begin()?;
        Ok(Some(self))
    }

    /// Writes STOP.
    pub(crate) fn stop(&mut self) -> Result<(), FileFailure> {
        let trailer = self.format.trailer();
        self.append(&[trailer]).map_err(|(_, failure)| failure)?;
        Ok(())
    }

    /// Ends a file that has its STOP, and gives it its final name. Returns that name, and the length of the file in bytes.
    ///
    /// # Errors
    /// The file is complete, and cannot be renamed.
    pub(crate) fn close(mut self) -> Result<(PathBuf, u64), FileFailure> {
        self.ended = true;
        self.rename()?;
        Ok((std::mem::take(&mut self.path), self.len))
    }

    /// Gives a complete file its final name, or that with a number where it is taken.
    fn rename(&mut self) -> Result<(), FileFailure> {
        // A file that somebody has moved has the name that it should have.
        let Some(name) = self.final_name.take().filter(|_| !self.standing.has_moved()) else { return Ok(()) };
        for number in 0..SAME_NAMES_MAX {
            let name = numbered(&name, number);
            match new_file::rename(&self.path, &name) {
                Ok(()) => {
                    self.path = name;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(FileFailure::new("give its final name to", &self.path, source)),
            }
        }
        Err(FileFailure::new("give its final name to", &self.path, io::ErrorKind::AlreadyExists.into()))
    }

    /// Leaves a file as it is: nobody can read it any more.
    pub(crate) fn forget(mut self) {
        self.ended = true;
    }
}

impl Drop for OutputFile {
    /// What is there of the last, partial frame goes, STOP is tried, and a file without frames is emptied, or removed where it is
    /// still ours. Nothing can be done where that fails too.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.has_frames() {
            let good = self.whole_len;
            // Whatever others have cut stays cut: no hole takes its place.
            let cut = || match self.file.metadata()?.len() < good {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => self.file.set_len(good),
            };
            if cut().is_err() {
                return;
            }
            if self.stop().is_err() {
                let _ = self.file.set_len(good);
            } else if self.rename().is_ok() {
                info!(file = %self.path.display(), bytes = self.len, "closed");
            }
        } else if let Ok(None) = self.look()
            && !self.standing.has_moved()
        {
            let _ = self.file.set_len(0);
            if self.created {
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }
}

/// Bytes of the frames that lie wholly within the first `written` bytes of these buffers.
fn whole_frames_len(buffers: &[Bytes], written: usize) -> usize {
    let mut whole = 0;
    for buffer in buffers {
        let rest = written - whole;
        if buffer.len() <= rest {
            whole += buffer.len();
            continue;
        }
        // The buffers of a batch hold whole frames.
        let batch = FrameBatch::parse(buffer.clone(), u32::MAX, Instant::now());
        return whole
            + batch.map_or(0, |mut batch| {
                batch.advance(rest);
                buffer.len() - batch.byte_len()
            });
    }
    whole
}

/// Files of one name before the pattern is at fault.
const SAME_NAMES_MAX: u32 = 100_000;
