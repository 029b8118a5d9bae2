//! A FIFO, a device or stdout, written in place.
//!
//! A FIFO whose reader is slow must not hold up the thread: writes take what there is room for, and the rest goes when there is
//! more. Regular files and devices that never wait are written at once.

use std::collections::VecDeque;
use std::fs::File;
use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::io::IoSlice;
use std::io::Write;
use std::io::stdout;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use bytes::Buf;
use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::output::place::Place;
use crate::output::place::is_in_place;
use crate::output::place::is_trusted;
use crate::output::stream_file::FileFailure;
use crate::protocol::ContentType;
use crate::protocol::FileWriter;

/// What is written in place.
pub(crate) struct InPlace {
    pub(crate) path: PathBuf,
    target: Target,
    format: FileWriter,
    // Begun, and not wholly written.
    rest: VecDeque<Bytes>,
    // Bytes of `rest` that are no data: START at its front, or STOP alone.
    control_len: usize,
    // Bytes of data that were written.
    data_len: u64,
    // STOP was begun.
    stops: bool,
}

enum Target {
    /// A FIFO, a terminal: tells when it takes more, and when its reader has gone.
    Waits(pipe::Sender),
    /// Takes everything at once, or holds up the thread: a file, a device that knows no waiting, a socket that is stdout.
    Takes(File),
}

impl InPlace {
    /// Opens what has this name, and begins with START.
    ///
    /// # Errors
    /// There is nothing to be written to: a FIFO has no reader.
    pub(crate) fn open(
        name: &Path,
        place: Place,
        content_type: Option<ContentType>,
    ) -> Result<Self, FileFailure> {
        let file = if place == Place::Stdout { open_stdout() } else { open(name) };
        let file = file.map_err(|source| FileFailure::new("open", name, source))?;
        let format = FileWriter::new(content_type);
        let header = format.header();
        Ok(Self {
            path: name.to_owned(),
            target: Target::of(file).map_err(|source| FileFailure::new("open", name, source))?,
            format,
            control_len: header.len(),
            rest: VecDeque::from([header]),
            data_len: 0,
            stops: false,
        })
    }

    /// Bytes of data that were written.
    pub(crate) fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Writes `buffers`, or goes on with those that were begun. Returns how many bytes of them went; fewer than all:
    /// [`InPlace::ready`] tells when more may go.
    ///
    /// # Errors
    /// The failure, and how many bytes went before it.
    pub(crate) fn write(
        &mut self,
        buffers: impl Iterator<Item = Bytes>,
    ) -> Result<usize, (usize, FileFailure)> {
        if self.rest_len() == self.control_len {
            self.rest.extend(buffers);
        }
        self.push()
    }

    /// Begins to write STOP, once. See [`InPlace::is_stopped`].
    ///
    /// # Errors
    /// Nobody takes it.
    pub(crate) fn stop(&mut self) -> Result<(), FileFailure> {
        let trailer = self.format.trailer();
        self.stops = true;
        self.control_len += trailer.len();
        self.rest.push_back(trailer);
        self.push().map(drop).map_err(|(_, failure)| failure)
    }

    /// Goes on with what was begun. Returns how many bytes of data went.
    ///
    /// # Errors
    /// The failure, and how many bytes went before it.
    pub(crate) fn push(&mut self) -> Result<usize, (usize, FileFailure)> {
        let mut data = 0;
        while !self.is_written() {
            let slices: Vec<_> = self.rest.iter().take(SLICES_MAX).map(|bytes| IoSlice::new(bytes)).collect();
            let result = match &self.target {
                Target::Waits(pipe) => pipe.try_write_vectored(&slices),
                Target::Takes(file) => (&*file).write_vectored(&slices),
            };
            match result {
                Ok(count) if count > 0 => data += self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => {
                    let source = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    return Err((data, FileFailure::new("write to", &self.path, source)));
                }
            }
        }
        Ok(data)
    }

    /// Drops what was written. Returns how much of it is data.
    fn advance(&mut self, mut count: usize) -> usize {
        let control = self.control_len.min(count);
        self.control_len -= control;
        let data = count - control;
        self.data_len += data as u64;
        while count > 0
            && let Some(first) = self.rest.front_mut()
        {
            let taken = first.len().min(count);
            first.advance(taken);
            count -= taken;
            if first.is_empty() {
                self.rest.pop_front();
            }
        }
        data
    }

    /// Whether everything that was begun is written.
    pub(crate) fn is_written(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether STOP is written.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stops && self.is_written()
    }

    fn rest_len(&self) -> usize {
        self.rest.iter().map(Bytes::len).sum()
    }

    /// Waits until more can be written of what was begun; with nothing begun: until the reader has gone. Cancel-safe.
    pub(crate) async fn ready(&self) {
        let Target::Waits(pipe) = &self.target else { return pending().await };
        let interest = if self.is_written() { Interest::ERROR } else { Interest::WRITABLE };
        // A failure shows at the next write.
        let _ = pipe.ready(interest).await;
    }
}

impl Target {
    fn of(file: File) -> io::Result<Self> {
        if !is_nonblocking(&file)? {
            return Ok(Self::Takes(file));
        }
        // What cannot be waited for never waits: `/dev/full`.
        let pipe = pipe::Sender::from_file_unchecked(file.try_clone()?);
        Ok(pipe.map_or(Self::Takes(file), Self::Waits))
    }
}

fn is_nonblocking(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fcntl_getfl(file)?.contains(rustix::fs::OFlags::NONBLOCK))
}

/// Opens a FIFO or a device without waiting.
fn open(name: &Path) -> io::Result<File> {
    let file = match open_now(name) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(io::Error::new(error.kind(), "no process reads it"));
        }
        result => result?,
    };
    let found = file.metadata()?;
    if !is_in_place(&found) {
        return Err(io::Error::other("it has changed"));
    }
    if !is_trusted(&found, name) {
        return Err(io::Error::other(
            "it belongs to another user, in a folder that other users can write to: nothing is given away",
        ));
    }
    Ok(file)
}

fn open_now(name: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(name)
}

/// Opens stdout. Its flags are shared with the processes that have it too, so a pipe or a terminal is opened once more: only so
/// does no write wait.
fn open_stdout() -> io::Result<File> {
    let own = File::from(stdout().as_fd().try_clone_to_owned()?);
    if is_in_place(&own.metadata()?)
        && let Ok(again) = open_now(Path::new("/proc/self/fd/1"))
    {
        return Ok(again);
    }
    Ok(own)
}

/// Most buffers of one write.
const SLICES_MAX: usize = 1024;
