//! Frame Streams files from disk or stdin, in pieces of bounded size.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use bytes::BytesMut;
use tapster::protocol::FileReader;
use tapster::protocol::FileStatus;
use tapster::protocol::ProtocolError;
use tapster::protocol::ReaderEvent;

/// A file being read. It needs memory for one frame and [`READ_LEN`] bytes.
pub(crate) struct FrameFile {
    source: Box<dyn Read>,
    reader: FileReader,
    buffer: BytesMut,
    read: u64,
    end: Option<FileStatus>,
}

impl FrameFile {
    /// Opens `path`; `-` is stdin.
    pub(crate) fn open(path: &Path, frame_len_max: u32) -> io::Result<Self> {
        let source: Box<dyn Read> =
            if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
        let reader = FileReader::new(frame_len_max, Instant::now());
        Ok(Self { source, reader, buffer: BytesMut::new(), read: 0, end: None })
    }

    /// The next thing that was found; after `None`, [`FrameFile::end`] tells how the file ends.
    pub(crate) fn next(&mut self) -> io::Result<Option<ReaderEvent>> {
        loop {
            if let Some(event) = self.reader.poll_event() {
                return Ok(Some(event));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            let len = self.read()?;
            let damage = self.reader.handle_bytes(Instant::now(), &mut self.buffer).is_err();
            if len == 0 || damage {
                self.end = Some(self.reader.handle_eof(&self.buffer));
            }
        }
    }

    /// How the file ends, if it has been read to its end.
    pub(crate) fn end(&self) -> Option<&FileStatus> {
        self.end.as_ref()
    }

    /// Whether the file has no bytes at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.read == 0
    }

    fn read(&mut self) -> io::Result<usize> {
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
        self.read += len as u64;
        result
    }
}

/// What is to be said about the end of a file; `None` if it ends with STOP and nothing follows.
pub(crate) fn end_in_words(end: &FileStatus, started: bool, empty: bool) -> Option<String> {
    match end {
        FileStatus::Clean { trailing: 0 } => None,
        FileStatus::Clean { trailing } => Some(format!(
            "has {trailing} bytes behind STOP, which were not looked at: files put together do not make a file"
        )),
        FileStatus::Truncated { .. } if empty => Some("is empty".to_owned()),
        FileStatus::Truncated { .. } if !started => Some("ends before START is complete".to_owned()),
        FileStatus::Truncated { bytes: 0 } => Some("ends without STOP".to_owned()),
        FileStatus::Truncated { bytes } => {
            Some(format!("ends within a frame, {bytes} bytes of it are there"))
        }
        // A length near 2^32 is a stream out of step; a moderate one may be a frame.
        FileStatus::Damaged(fault @ ProtocolError::FrameTooLong { len, .. }) if *len < 1 << 31 => {
            Some(format!("is damaged: {fault}; if frames may be so long, allow it with frame_len_max"))
        }
        FileStatus::Damaged(fault) => Some(format!("is damaged: {fault}")),
    }
}

const READ_LEN: usize = 128 << 10;

/// `1 frame`, `2 frames`.
pub(crate) fn count_frames(count: u64) -> String {
    counted(count, "frame")
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
