//! Frame Streams files from disk or stdin, in pieces of bounded size.

use std::io;
use std::io::Read;
use std::path::Path;
use std::time::Instant;
use std::time::SystemTime;

use bytes::BytesMut;
use tapster::protocol::FileReader;
use tapster::protocol::FileStatus;
use tapster::protocol::ReaderEvent;

use crate::commands::source::Source;
use crate::commands::verdict::Evidence;
use crate::commands::verdict::Verdict;

/// A file being read. It needs memory for one frame and [`READ_LEN`] bytes, and for zstd the window of the compressor.
pub(crate) struct FrameFile {
    source: Source,
    reader: FileReader,
    buffer: BytesMut,
    /// The first bytes, at most [`HEAD_LEN`].
    head: Vec<u8>,
    /// What is wrong with the compression.
    unpacking: Option<io::Error>,
    end: Option<FileStatus>,
}

impl FrameFile {
    /// Opens `path`; `-` is stdin. gzip and zstd are unpacked.
    pub(crate) fn open(path: &Path, frame_len_max: u32) -> io::Result<Self> {
        Ok(Self {
            source: Source::open(path)?,
            reader: FileReader::new(frame_len_max, Instant::now()),
            buffer: BytesMut::new(),
            head: Vec::new(),
            unpacking: None,
            end: None,
        })
    }

    /// The next thing that was found in what has been read.
    pub(crate) fn poll_event(&mut self) -> Option<ReaderEvent> {
        self.reader.poll_event()
    }

    /// Reads once, and waits for bytes if none are there; false at the end of the file.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        if self.end.is_some() {
            return Ok(false);
        }
        let len = match self.fill() {
            Err(error) if self.source.facts.compression.is_some() && is_of_content(&error) => {
                self.unpacking = Some(error);
                0
            }
            result => result?,
        };
        let damage = self.reader.handle_bytes(Instant::now(), &mut self.buffer).is_err();
        if len == 0 || damage {
            self.end = Some(self.reader.handle_eof(&self.buffer));
        }
        Ok(true)
    }

    /// The next thing that was found; after `None`, [`FrameFile::verdict`] tells how the file ends.
    pub(crate) fn next(&mut self) -> io::Result<Option<ReaderEvent>> {
        loop {
            if let Some(event) = self.poll_event() {
                return Ok(Some(event));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// How the file ends, once it has been read to its end.
    pub(crate) fn verdict(&self) -> Verdict {
        let truncated = FileStatus::Truncated { bytes: self.buffer.len() };
        let evidence = Evidence {
            end: self.end.as_ref().unwrap_or(&truncated),
            position: self.reader.position(),
            facts: &self.source.facts,
            head: &self.head,
            rest: &self.buffer,
            unpacking: self.unpacking.as_ref(),
        };
        Verdict::of(&evidence, SystemTime::now())
    }

    /// Bytes that were taken from the file, and its length if it has one.
    pub(crate) fn progress(&self) -> (u64, Option<u64>) {
        (self.source.taken(), self.source.facts.len)
    }

    fn fill(&mut self) -> io::Result<usize> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_LEN, 0);
        let result = loop {
            match self.source.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let len = *result.as_ref().unwrap_or(&0);
        self.buffer.truncate(filled + len);
        let room = HEAD_LEN.saturating_sub(self.head.len()).min(len);
        self.head.extend_from_slice(&self.buffer[filled..filled + room]);
        result
    }
}

/// Whether compressed bytes are wrong, and not the device that they are on.
fn is_of_content(error: &io::Error) -> bool {
    use io::ErrorKind::InvalidData;
    use io::ErrorKind::InvalidInput;
    use io::ErrorKind::UnexpectedEof;
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

const READ_LEN: usize = 128 << 10;
/// What is kept of the beginning, in bytes, to tell what a file is that is no Frame Streams file.
const HEAD_LEN: usize = 4096;
