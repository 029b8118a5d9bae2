//! One open Frame Streams file.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::IoSlice;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use jiff::Zoned;
use jiff::fmt::strtime;

use crate::protocol::ContentType;
use crate::protocol::FileWriter;
use crate::protocol::FrameBatch;

/// One open file. It holds whole frames only: what a failed write left of a frame is cut off.
pub(crate) struct OutputFile {
    pub(crate) path: PathBuf,
    file: File,
    format: FileWriter,
    pub(crate) len: u64,
    // Length without what a failed write has left of a frame: whole_len <= len.
    whole_len: u64,
    pub(crate) has_frames: bool,
    pub(crate) opened: Instant,
    // Ended with STOP, or given up.
    ended: bool,
}

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(crate) struct FileFailure {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl OutputFile {
    /// Creates the file of this moment, and the folders above it. A name that is taken gets a number: older files are
    /// never overwritten.
    pub(crate) fn create(pattern: &str, content_type: Option<ContentType>) -> Result<Self, FileFailure> {
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
        let opened = Instant::now();
        let mut output =
            Self { path, file, format, len: 0, whole_len: 0, has_frames: false, opened, ended: false };
        if let Err((_, failure)) = output.append(&[header]) {
            output.give_up();
            return Err(failure);
        }
        Ok(output)
    }

    /// Appends whole frames; they are with the system when this returns, not in a buffer of ours.
    ///
    /// # Errors
    /// The failure, and how many bytes went before it.
    pub(crate) fn write(&mut self, buffers: &[Bytes]) -> Result<usize, (usize, FileFailure)> {
        let before = self.len;
        let result = self.append(buffers);
        self.has_frames |= !buffers.is_empty();
        self.whole_len = match &result {
            Ok(_) => self.len,
            Err((written, _)) => before + whole_frames_len(buffers, *written) as u64,
        };
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

    /// Ends the file with STOP. Returns its length in bytes.
    pub(crate) fn close(mut self) -> Result<u64, FileFailure> {
        let trailer = self.format.trailer();
        self.append(&[trailer]).map_err(|(_, failure)| failure)?;
        self.ended = true;
        Ok(self.len)
    }

    /// Ends a file that cannot be written any more, as dropping it does.
    pub(crate) fn give_up(self) {}
}

impl Drop for OutputFile {
    /// What is there of the last, partial frame goes, STOP is tried, and a file without frames is removed. Nothing can be
    /// done where that fails too.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let good = self.whole_len;
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
