//! Files: a stream that begins with START and ends with STOP.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ContentType;
use crate::protocol::ContentTypes;
use crate::protocol::ControlType;
use crate::protocol::Oversize;
use crate::protocol::ProtocolError;
use crate::protocol::ReaderConfig;
use crate::protocol::ReaderEvent;
use crate::protocol::ReaderSession;
use crate::protocol::SessionEnd;
use crate::protocol::control::encode_short;

/// How a file ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStatus {
    /// With STOP.
    Clean {
        /// Bytes behind STOP, which were not looked at: a second file, maybe, for concatenated files are not one.
        trailing: u64,
    },
    /// Before STOP, or even before START was complete: its frames are good, and there may have been more.
    Truncated {
        /// Bytes of the frame that was cut; 0 between two frames.
        bytes: usize,
    },
    /// With bytes that are not Frame Streams: the frames before them are good.
    Damaged(ProtocolError),
}

/// Reads a file of any content type.
///
/// Give it what was read from the file, in pieces of any length, and take the events: `Started`, then `Data`, then
/// `Finished` if there is a STOP.
#[derive(Debug)]
pub struct FileReader {
    session: ReaderSession,
    fault: Option<ProtocolError>,
}

impl FileReader {
    /// A reader of data frames up to `frame_len_max` payload bytes.
    pub fn new(frame_len_max: u32, now: Instant) -> Self {
        let config = ReaderConfig {
            content_types: ContentTypes::Any,
            bidirectional: false,
            unidirectional: true,
            frame_len_max,
            oversize: Oversize::Close,
            handshake_timeout: Duration::MAX,
        };
        Self { session: ReaderSession::new(config, now), fault: None }
    }

    /// Takes what is whole off the front of `bytes`, and leaves a partial frame in it for the caller to append to.
    /// `now` becomes the time of the batches.
    ///
    /// # Errors
    /// What is wrong with the file. Frames before the fault are still delivered; [`FileReader::handle_eof`] repeats
    /// the fault.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        let result = self.session.handle_bytes(now, bytes);
        if let Err(fault) = &result {
            self.fault = Some(fault.clone());
        }
        result
    }

    /// Tells that the file ends. `rest` is what [`FileReader::handle_bytes`] left.
    pub fn handle_eof(&mut self, rest: &[u8]) -> FileStatus {
        if let Some(fault) = &self.fault {
            return FileStatus::Damaged(fault.clone());
        }
        match self.session.handle_eof(rest) {
            SessionEnd::Finished => FileStatus::Clean { trailing: self.session.counters().bytes_after_stop },
            SessionEnd::Unclean | SessionEnd::Truncated { .. } | SessionEnd::InHandshake => {
                FileStatus::Truncated { bytes: rest.len() }
            }
        }
    }

    /// The next thing that was found.
    pub fn poll_event(&mut self) -> Option<ReaderEvent> {
        self.session.poll_event()
    }
}

/// What goes around the batches of a file.
///
/// ```
/// use std::time::Instant;
/// use tapster::protocol::{ContentType, FileWriter, FrameBatch};
///
/// let writer = FileWriter::new(Some(ContentType::DNSTAP));
/// let batch = FrameBatch::from_payloads(["hello"], Instant::now())?;
/// let file = [writer.header(), batch.into_bytes(), writer.trailer()].concat();
/// assert_eq!(file.len(), 42 + 9 + 12);
/// # Ok::<(), tapster::protocol::ProtocolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileWriter {
    content_type: Option<ContentType>,
}

impl FileWriter {
    /// A writer of files of `content_type`; `None`: without a type.
    pub fn new(content_type: Option<ContentType>) -> Self {
        Self { content_type }
    }

    /// START: what every file begins with. The bytes of the batches follow as they are.
    pub fn header(&self) -> Bytes {
        encode_short(ControlType::Start, self.content_type.as_ref())
    }

    /// STOP: what every file ends with.
    pub fn trailer(&self) -> Bytes {
        encode_short(ControlType::Stop, None)
    }
}
