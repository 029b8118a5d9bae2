//! Frame Streams files that commands write.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufWriter;
use std::io::IntoInnerError;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use tapster::protocol::ContentType;
use tapster::protocol::FileWriter;

/// A file that begins with START and, once it is finished, ends with STOP.
pub(crate) struct FileSink {
    format: FileWriter,
    out: BufWriter<File>,
}

impl FileSink {
    /// Opens what is written to; `-` is stdout. No file is overwritten.
    pub(crate) fn create(path: &Path, content_type: Option<ContentType>) -> io::Result<Self> {
        let format = FileWriter::new(content_type);
        let mut out = BufWriter::with_capacity(WRITE_LEN, open(path)?);
        out.write_all(&format.header())?;
        Ok(Self { format, out })
    }

    /// Writes whole data frames.
    pub(crate) fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        self.out.write_all(frames)
    }

    /// Hands what was written to the system: a reader of a pipe waits for it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// STOP. Everything is on disk when this returns, if it is a file on one.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&self.format.trailer())?;
        let file = self.out.into_inner().map_err(IntoInnerError::into_error)?;
        if file.metadata()?.is_file() {
            file.sync_all()?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        return Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    }
    let is_file = path.metadata().map_or(true, |metadata| metadata.is_file());
    OpenOptions::new().write(true).create_new(is_file).open(path)
}

/// Frames are written at once from this length on, in bytes; shorter ones are gathered.
const WRITE_LEN: usize = 128 << 10;
