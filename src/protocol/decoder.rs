//! Frames out of bytes: all at once with [`scan`], one by one with [`Decoder`].

use std::collections::VecDeque;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::ControlError;
use crate::protocol::ControlFrame;
use crate::protocol::Frame;
use crate::protocol::ProtocolError;
use crate::protocol::frame::Head;

/// What [`scan`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Whole data frames at the front.
    pub frames: u32,
    /// Their length in bytes, with the length words.
    pub bytes: usize,
    /// Payload bytes of the longest of them; 0 without frames.
    pub payload_len_max: u32,
    /// What follows them.
    pub stop: ScanStop,
}

/// What ended a [`scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// The bytes end, maybe within a frame.
    Incomplete {
        /// Bytes missing at least before there is more to see: of the length word, or of the frame.
        missing: usize,
    },
    /// An escape: a control frame follows.
    Escape,
    /// A length word above the limit.
    TooLong {
        /// Announced payload bytes.
        len: u32,
    },
}

/// Counts the whole data frames at the front of `bytes`, of at most `frame_len_max` payload bytes each.
///
/// Reads one length word per frame and no payload: this is all that a relay does for a frame.
pub fn scan(bytes: &[u8], frame_len_max: u32) -> Scan {
    let mut frames = 0u32;
    let mut payload_len_max = 0;
    let mut rest = bytes;
    let stop = loop {
        let Some((word, tail)) = rest.split_first_chunk() else {
            break ScanStop::Incomplete { missing: 4 - rest.len() };
        };
        let len = u32::from_be_bytes(*word);
        // One comparison for both ends of 1..=frame_len_max: 0 wraps to the largest number.
        if len.wrapping_sub(1) >= frame_len_max {
            break if len == 0 { ScanStop::Escape } else { ScanStop::TooLong { len } };
        }
        let Some(tail) = tail.get(len as usize..) else {
            break ScanStop::Incomplete { missing: len as usize - tail.len() };
        };
        // frames <= bytes.len() / 5, which is far from wrapping in any memory of today.
        frames = frames.wrapping_add(1);
        payload_len_max = payload_len_max.max(len);
        rest = tail;
    };
    Scan { frames, bytes: bytes.len() - rest.len(), payload_len_max, stop }
}

/// Takes frames one by one out of bytes fed in any pieces.
///
/// Knows frames and nothing of sessions: for those there are [`ReaderSession`](crate::protocol::ReaderSession) and
/// [`WriterSession`](crate::protocol::WriterSession).
///
/// ```
/// use bytes::Bytes;
/// use tapster::protocol::{ControlFrame, Decoder, Frame};
///
/// let mut decoder = Decoder::new(tapster::protocol::FRAME_LEN_MAX_DEFAULT);
/// decoder.feed(Bytes::from_static(b"\0\0\0\x05hel"));
/// assert_eq!(decoder.next_frame()?, None);
/// assert_eq!(decoder.bytes_missing(), 2);
/// decoder.feed(Bytes::from_static(b"lo\0\0\0\0\0\0\0\x04\0\0\0\x03"));
/// assert_eq!(decoder.next_frame()?, Some(Frame::Data(Bytes::from_static(b"hello"))));
/// assert_eq!(decoder.next_frame()?, Some(Frame::Control(ControlFrame::stop())));
/// # Ok::<(), tapster::protocol::ProtocolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    frame_len_max: u32,
    /// The beginning of a frame, collected from pieces that ended within it.
    partial: BytesMut,
    /// Pieces that follow `partial`, none empty.
    pieces: VecDeque<Bytes>,
    /// `partial.len()` and the lengths of `pieces`.
    buffered: usize,
    fault: Option<ProtocolError>,
}

impl Decoder {
    /// A decoder of data frames up to `frame_len_max` payload bytes.
    pub fn new(frame_len_max: u32) -> Self {
        Self { frame_len_max, partial: BytesMut::new(), pieces: VecDeque::new(), buffered: 0, fault: None }
    }

    /// Appends bytes. A frame that lies within one piece is not copied; it shares the memory of the piece.
    ///
    /// Take frames until there is none before feeding more: then at most one frame is kept, and no piece.
    pub fn feed(&mut self, bytes: Bytes) {
        if !bytes.is_empty() && self.fault.is_none() {
            self.buffered += bytes.len();
            self.pieces.push_back(bytes);
        }
    }

    /// Takes the next frame; `None` until all of it has been fed.
    ///
    /// # Errors
    /// [`ProtocolError::FrameTooLong`] and [`ProtocolError::ControlLength`] as soon as the length has arrived,
    /// [`ProtocolError::Control`] for a control frame that does not decode. An error stays until
    /// [`Decoder::reset`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let frame = self.take_frame();
        if let Err(fault) = &frame {
            self.reset();
            self.fault = Some(fault.clone());
        }
        frame
    }

    /// How many bytes must be fed at least before [`Decoder::next_frame`] has something to return: 0 when a frame
    /// is complete or the stream is broken.
    pub fn bytes_missing(&self) -> usize {
        if self.fault.is_some() {
            return 0;
        }
        match self.head() {
            Ok(Head::Incomplete { missing }) => missing,
            Ok(Head::Data { len }) => (4 + len as usize).saturating_sub(self.buffered),
            Ok(Head::Control { len }) => (Head::LEN_MAX + len as usize).saturating_sub(self.buffered),
            Err(_) => 0,
        }
    }

    /// Bytes fed and not yet taken.
    pub fn bytes_buffered(&self) -> usize {
        self.buffered
    }

    /// Forgets everything fed and every error: what is fed next begins with a frame.
    pub fn reset(&mut self) {
        *self = Self::new(self.frame_len_max);
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let frame_len = match self.head()? {
            Head::Incomplete { missing } => self.buffered + missing,
            Head::Data { len } => 4 + len as usize,
            Head::Control { len } => Head::LEN_MAX + len as usize,
        };
        if self.buffered < frame_len {
            // Copied, so that what a slow peer sends byte by byte does not keep as many read buffers alive.
            self.gather(self.buffered);
            return Ok(None);
        }
        let mut frame = self.take(frame_len);
        if let Head::Data { .. } = Head::parse(&frame)? {
            frame.advance(4);
            return Ok(Some(Frame::Data(frame)));
        }
        frame.advance(Head::LEN_MAX);
        match ControlFrame::decode(&frame) {
            Ok(control) => Ok(Some(Frame::Control(control))),
            Err(ControlError::UnknownType(control_type)) => {
                frame.advance(4);
                Ok(Some(Frame::UnknownControl { control_type, payload: frame }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The head of the next frame, with the length of a data frame checked.
    fn head(&self) -> Result<Head, ProtocolError> {
        let mut head = [0; Head::LEN_MAX];
        let mut head_len = 0;
        for piece in std::iter::once(&self.partial[..]).chain(self.pieces.iter().map(|piece| &piece[..])) {
            for (to, from) in head.iter_mut().skip(head_len).zip(piece) {
                *to = *from;
                head_len += 1;
            }
            if head_len == head.len() {
                break;
            }
        }
        match Head::parse(head.get(..head_len).unwrap_or_default())? {
            Head::Data { len } if len > self.frame_len_max => {
                Err(ProtocolError::FrameTooLong { len, len_max: self.frame_len_max })
            }
            head => Ok(head),
        }
    }

    /// Takes `len` of the buffered bytes, without copying where they are in one piece.
    fn take(&mut self, len: usize) -> Bytes {
        // len <= self.buffered
        let bytes = match self.pieces.front_mut() {
            Some(piece) if self.partial.is_empty() && piece.len() >= len => piece.split_to(len),
            _ => {
                self.gather(len);
                self.partial.split().freeze()
            }
        };
        if self.pieces.front().is_some_and(Bytes::is_empty) {
            self.pieces.pop_front();
        }
        self.buffered -= len;
        bytes
    }

    /// Copies from the pieces until `partial` has `len` bytes.
    fn gather(&mut self, len: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let copied = piece.len().min(len - self.partial.len());
            self.partial.extend_from_slice(&piece[..copied]);
            piece.advance(copied);
            if !piece.is_empty() {
                break;
            }
            self.pieces.pop_front();
        }
    }
}
