//! Files: streams that begin with START and end with STOP, one or several in a row.

use std::collections::VecDeque;
use std::sync::Arc;
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
    Clean,
    /// Before STOP, or even before START was complete: its frames are good, and there may have been more.
    Truncated {
        /// Bytes of the frame that was cut; 0 between two frames.
        bytes: usize,
    },
    /// With bytes that are not Frame Streams: the frames before them are good.
    Damaged(ProtocolError),
    /// With bytes behind STOP that begin no other stream: the frames before them are good, and none seems to be missing.
    Garbage,
}

/// How far a file has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilePosition {
    /// Bytes of whole frames, control frames too. What is truncated or damaged begins at this offset.
    pub offset: u64,
    /// Whole data frames. What is damaged is the frame behind them.
    pub frames: u64,
    /// Streams that have begun, each with a START of its own.
    pub streams: u64,
}

/// Reads a file of any content type, in which streams may follow each other, as `cat a b` makes them.
///
/// Give it what was read from the file, in pieces of any length, and take the events: for each stream `Started`, then
/// `Data`, then `Finished` if there is a STOP.
#[derive(Debug)]
pub struct FileReader {
    config: Arc<ReaderConfig>,
    session: ReaderSession,
    events: VecDeque<ReaderEvent>,
    position: FilePosition,
    /// Whether the present stream has begun.
    started: bool,
    fault: Option<ProtocolError>,
}

impl FileReader {
    /// A reader of data frames up to `frame_len_max` payload bytes.
    pub fn new(frame_len_max: u32, now: Instant) -> Self {
        let config = Arc::new(ReaderConfig {
            content_types: ContentTypes::Any,
            bidirectional: false,
            unidirectional: true,
            frame_len_max,
            oversize: Oversize::Close,
            handshake_timeout: Duration::MAX,
        });
        Self {
            session: ReaderSession::new(Arc::clone(&config), now),
            config,
            events: VecDeque::new(),
            position: FilePosition::default(),
            started: false,
            fault: None,
        }
    }

    /// Takes what is whole off the front of `bytes`, and leaves a partial frame in it for the caller to append to.
    /// `now` becomes the time of the batches.
    ///
    /// # Errors
    /// What is wrong with the file. Frames before the fault are still delivered; [`FileReader::handle_eof`] repeats
    /// the fault.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        while self.fault.is_none() {
            let len = bytes.len();
            let result = self.session.handle_bytes_to_stop(now, bytes);
            self.position.offset += (len - bytes.len()) as u64;
            self.take_events();
            if let Err(fault) = result {
                self.position.offset -= self.session.faulty_control_len() as u64;
                self.fault = Some(fault);
            } else if self.session.is_finished() && !bytes.is_empty() {
                self.session = ReaderSession::new(Arc::clone(&self.config), now);
                self.started = false;
            } else {
                return Ok(());
            }
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Tells that the file ends. `rest` is what [`FileReader::handle_bytes`] left.
    pub fn handle_eof(&mut self, rest: &[u8]) -> FileStatus {
        let behind_stop = !self.started && self.position.streams > 0;
        if let Some(fault) = &self.fault {
            return if behind_stop { FileStatus::Garbage } else { FileStatus::Damaged(fault.clone()) };
        }
        // A stream begins with an escape, which is zeros.
        let begins_none = rest.iter().take(ESCAPE_LEN).any(|byte| *byte != 0);
        match self.session.handle_eof(rest) {
            SessionEnd::Finished => FileStatus::Clean,
            SessionEnd::InHandshake if behind_stop && begins_none => FileStatus::Garbage,
            SessionEnd::Unclean | SessionEnd::Truncated { .. } | SessionEnd::InHandshake => {
                FileStatus::Truncated { bytes: rest.len() }
            }
        }
    }

    /// The next thing that was found.
    pub fn poll_event(&mut self) -> Option<ReaderEvent> {
        self.events.pop_front()
    }

    /// How far the file has been read. The events may lag behind.
    pub fn position(&self) -> FilePosition {
        self.position
    }

    fn take_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match &event {
                ReaderEvent::Started { .. } => {
                    self.started = true;
                    self.position.streams += 1;
                }
                ReaderEvent::Data(batch) => self.position.frames += u64::from(batch.frames()),
                ReaderEvent::Finished => {}
            }
            self.events.push_back(event);
        }
    }
}

const ESCAPE_LEN: usize = 4;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ControlType;
    use crate::protocol::FRAME_LEN_MAX_DEFAULT;
    use crate::protocol::FrameBatch;
    use crate::protocol::tests::D;
    use crate::protocol::tests::O;
    use crate::protocol::tests::all_splits;
    use crate::protocol::tests::content_type;
    use crate::protocol::tests::control_raw;
    use crate::protocol::tests::data;
    use crate::protocol::tests::golden_file;
    use crate::protocol::tests::golden_payloads;
    use crate::protocol::tests::ready;
    use crate::protocol::tests::start;
    use crate::protocol::tests::stop;

    /// The content type, the payloads, and how the file ends.
    type Contents = (Option<Option<ContentType>>, Vec<Bytes>, FileStatus);

    fn read_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Contents {
        let now = Instant::now();
        let mut reader = FileReader::new(FRAME_LEN_MAX_DEFAULT, now);
        let mut bytes = BytesMut::new();
        let mut started = None;
        let mut payloads = Vec::new();
        for piece in pieces {
            bytes.extend_from_slice(piece);
            let result = reader.handle_bytes(now, &mut bytes);
            while let Some(event) = reader.poll_event() {
                match event {
                    ReaderEvent::Started { content_type, .. } => started = Some(content_type),
                    ReaderEvent::Data(batch) => payloads.extend(batch.payloads()),
                    ReaderEvent::Finished => {}
                }
            }
            if result.is_err() {
                break;
            }
        }
        (started, payloads, reader.handle_eof(&bytes))
    }

    fn read(file: &[u8]) -> Contents {
        let whole = read_pieces([file]);
        for pieces in all_splits(file) {
            assert_eq!(read_pieces(pieces), whole);
        }
        whole
    }

    #[test]
    fn f01_the_golden_file_is_read() {
        assert_eq!(golden_file().len(), 242);
        let (started, payloads, status) = read(&golden_file());
        assert_eq!(started, Some(Some(content_type(b"test:hello"))));
        assert_eq!(payloads, golden_payloads());
        assert_eq!(status, FileStatus::Clean);
    }

    #[test]
    fn f01_the_golden_file_is_written() {
        let writer = FileWriter::new(Some(content_type(b"test:hello")));
        let batch = FrameBatch::from_payloads(golden_payloads(), Instant::now()).unwrap();
        let file = [writer.header(), batch.into_bytes(), writer.trailer()].concat();
        assert_eq!(file, golden_file());
    }

    #[test]
    fn f02_a_file_cut_anywhere_is_truncated_and_its_whole_frames_are_read() {
        for len in 0..242 {
            let (started, payloads, status) = read_pieces([&golden_file()[..len]]);
            let frames = (len.saturating_sub(30) / 20).min(10);
            assert_eq!(started.is_some(), len >= 30, "START has 30 bytes");
            assert_eq!(payloads, golden_payloads()[..frames], "{len} bytes");
            let bytes = match len {
                0..30 => len,
                30..230 => (len - 30) % 20,
                _ => len - 230,
            };
            assert_eq!(status, FileStatus::Truncated { bytes });
        }
    }

    #[test]
    fn f03_a_file_without_a_type_is_read() {
        let (started, payloads, status) = read(&[start(&[]), data(b"a"), stop()].concat());
        assert_eq!((started, payloads), (Some(None), vec![Bytes::from_static(b"a")]));
        assert_eq!(status, FileStatus::Clean);
        assert_eq!(&FileWriter::new(None).header()[..], start(&[]));
    }

    #[test]
    fn f03_a_socket_stream_is_not_a_file() {
        let error = ProtocolError::UnexpectedControl { expected: "START", got: ControlType::Ready };
        assert_eq!(read(&ready(&[D])), (None, Vec::new(), FileStatus::Damaged(error)));
    }

    #[test]
    fn f03_streams_behind_each_other_are_read_one_after_the_other() {
        let first = [start(&[D]), data(b"a"), stop()].concat();
        let second = [start(&[O]), data(b"b"), data(b"c"), stop()].concat();
        let both = [first.clone(), second.clone()].concat();
        let (started, payloads, status) = read(&both);
        assert_eq!((started, status), (Some(Some(content_type(O))), FileStatus::Clean));
        assert_eq!(payloads, ["a", "b", "c"]);
        // What is lost of the last stream is lost of the file.
        for len in first.len() + 1..both.len() {
            let (_, _, status) = read_pieces([&both[..len]]);
            assert!(matches!(status, FileStatus::Truncated { .. }), "{len}: {status:?}");
        }
    }

    #[test]
    fn f03_bytes_behind_stop_that_begin_no_stream_are_garbage() {
        let file = [start(&[D]), data(b"a"), stop()].concat();
        for garbage in [&[7; 16][..], b"\n", b"\0\0\n", &[0; 8], &data(b"b"), &stop(), &ready(&[D])] {
            let (_, payloads, status) = read(&[&file[..], garbage].concat());
            assert_eq!(
                (payloads, status),
                (vec![Bytes::from_static(b"a")], FileStatus::Garbage),
                "{garbage:?}"
            );
        }
    }

    #[test]
    fn the_position_is_where_the_damage_begins() {
        let (opened, frame) = (start(&[D]), data(b"a"));
        let too_long = [&[0xff; 4][..], b"b"].concat();
        let unknown_then = [control_raw(b"\0\0\0\x09"), too_long.clone()].concat();
        for (damage, before) in
            [(start(&[D]), 0), (ready(&[D]), 0), (control_raw(b"\0\0"), 0), (too_long, 0), (unknown_then, 12)]
        {
            let file = [opened.clone(), frame.clone(), damage, frame.clone()].concat();
            for pieces in all_splits(&file) {
                let mut reader = FileReader::new(FRAME_LEN_MAX_DEFAULT, Instant::now());
                let mut bytes = BytesMut::new();
                for piece in pieces {
                    bytes.extend_from_slice(piece);
                    if reader.handle_bytes(Instant::now(), &mut bytes).is_err() {
                        break;
                    }
                }
                let offset = (opened.len() + frame.len() + before) as u64;
                assert_eq!(reader.position(), FilePosition { offset, frames: 1, streams: 1 }, "{file:?}");
                assert!(matches!(reader.handle_eof(&bytes), FileStatus::Damaged(_)));
            }
        }
    }

    #[test]
    fn f04_a_frame_above_the_limit_is_damage() {
        let longest = vec![7; 1 << 20];
        let file = [start(&[O]), data(&longest), data(&[7; (1 << 20) + 1]), stop()].concat();
        let (_, payloads, status) = read_pieces(file.chunks(64 * 1024));
        assert_eq!(payloads, [longest]);
        let error = ProtocolError::FrameTooLong { len: (1 << 20) + 1, len_max: 1 << 20 };
        assert_eq!(status, FileStatus::Damaged(error));
    }

    #[test]
    fn frames_before_the_damage_are_read() {
        let file = [start(&[D]), data(b"a"), control_raw(b"\0\0\0\x04"), data(b"b")].concat();
        let (_, payloads, status) = read(&file);
        assert_eq!(payloads, ["a"]);
        assert!(matches!(status, FileStatus::Damaged(ProtocolError::UnexpectedControl { .. })));
    }
}
