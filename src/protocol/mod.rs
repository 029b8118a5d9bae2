//! Frame Streams as pure functions of bytes.
//!
//! Frame Streams is the transport of dnstap: DNS servers are its *writers*, collectors its *readers*. Nothing here
//! reads, writes, waits, logs or asks for the time: bytes, events and `now` go in; frames, bytes to send and deadlines
//! come out. The same code serves any runtime, and every test of it runs without a socket.
//!
//! # On the wire
//!
//! All numbers are unsigned, 32 bits, big endian. A stream is a sequence of frames of two kinds:
//!
//! ```text
//! data frame      ┌─────────┬────────────────────┐
//!                 │ len ≥ 1 │ payload: len bytes │
//!                 └─────────┴────────────────────┘
//! control frame   ┌─────────┬─────────┬──────────────┬───────┬╌╌╌╌╌╌╌┐
//!                 │ 0       │ len     │ control type │ field │ …     ╎   type and fields: len bytes, 4 to 512
//!                 └─────────┴─────────┴──────────────┴───────┴╌╌╌╌╌╌╌┘
//!                   escape            field  ┌─────┬──────────────┬──────────────────┐
//!                                            │ 1   │ field length │ a content type:  │
//!                                            │     │ 0 to 256     │ any bytes        │
//!                                            └─────┴──────────────┴──────────────────┘
//! ```
//!
//! The length 0 is the *escape*: a control frame follows. A data frame without payload therefore does not exist. There
//! is no version, no checksum, no number and no time in a frame.
//!
//! | control type | value | sent by | content types |
//! |---|---|---|---|
//! | ACCEPT | 1 | reader | any number |
//! | START | 2 | writer | one or none |
//! | STOP | 3 | writer | none |
//! | READY | 4 | writer | any number |
//! | FINISH | 5 | reader | none |
//!
//! # Sessions
//!
//! ```text
//! bidirectional: sockets                          unidirectional: files, pipes, some sockets
//!
//! writer                          reader          writer                    reader
//!   │ READY [types] ───────────────► │              │ START [type] ─────────► │
//!   │ ◄─────────────── ACCEPT [type] │              │ data frames ──────────► │
//!   │ START [type] ────────────────► │              │ STOP ─────────────────► │
//!   │ data frames ─────────────────► │
//!   │ STOP ────────────────────────► │
//!   │ ◄─────────────────────── FINISH│
//! ```
//!
//! Only the first control frame tells which of the two it is. FINISH says that the reader has received every frame, and
//! nothing about what it did with them.
//!
//! # What to use
//!
//! | to | use |
//! |---|---|
//! | receive from a writer, with the whole session | [`ReaderSession`] |
//! | send to a reader, with the whole session | [`WriterSession`] |
//! | read or write a file | [`FileReader`], [`FileWriter`] |
//! | take frames out of bytes one by one, or forget a broken stream | [`Decoder`] |
//! | encode any frame | [`Encoder`], [`ControlFrame::encode`] |
//! | handle many frames at once, without looking at each | [`FrameBatch`], [`scan`] |
//!
//! The two sessions are driven alike:
//!
//! 1. send everything of `poll_transmit`, and handle everything of `poll_event`;
//! 2. wait for bytes, or for the time of `poll_timeout`;
//! 3. give what came to `handle_bytes`, `handle_timeout` or `handle_eof`, and begin again. After an error, handle the
//!    events that came before it, then close the connection.
//!
//! ```
//! use std::time::Instant;
//!
//! use bytes::BytesMut;
//! use tapster::protocol::{FrameBatch, ReaderConfig, ReaderEvent, ReaderSession};
//! use tapster::protocol::{WriterConfig, WriterEvent, WriterSession};
//!
//! let now = Instant::now();
//! let mut writer = WriterSession::new(WriterConfig::default(), now)?;
//! let mut reader = ReaderSession::new(ReaderConfig::default(), now);
//! let (mut to_reader, mut to_writer) = (BytesMut::new(), BytesMut::new());
//! let mut received = Vec::new();
//!
//! loop {
//!     // The writer's loop: in a program, `to_reader` is a socket.
//!     while let Some(bytes) = writer.poll_transmit() {
//!         to_reader.extend(bytes);
//!     }
//!     match writer.poll_event() {
//!         Some(WriterEvent::Started { .. }) => {
//!             to_reader.extend(FrameBatch::from_payloads(["hello", "world"], now)?.into_bytes());
//!             writer.stop(now);
//!         }
//!         Some(WriterEvent::Finished) => break,
//!         None => {}
//!     }
//!
//!     // The reader's loop.
//!     reader.handle_bytes(now, &mut to_reader)?;
//!     while let Some(event) = reader.poll_event() {
//!         if let ReaderEvent::Data(batch) = event {
//!             received.extend(batch.payloads());
//!         }
//!     }
//!     while let Some(bytes) = reader.poll_transmit() {
//!         to_writer.extend(bytes);
//!     }
//!     writer.handle_bytes(now, &mut to_writer)?;
//! }
//! assert_eq!(received, ["hello", "world"]);
//! # Ok::<(), tapster::protocol::ProtocolError>(())
//! ```
//!
//! `examples/receiver.rs` and `examples/sender.rs` do the same on sockets.
//!
//! # Limits
//!
//! Nothing is allocated because a peer announced a length, and nothing is kept but a partial frame: at most
//! `frame_len_max` payload bytes ([`FRAME_LEN_MAX_DEFAULT`]: 1 MiB) or a control frame ([`ControlFrame::LEN_MAX`]).
//! Control frames are encoded with at most [`ControlFrame::ENCODED_LEN_MAX`] bytes, which is what every known reader
//! takes.
//!
//! Source: fstrm's `control.h`, `reader.h` and `writer.h`; there is no other specification.

#![forbid(unsafe_code)]

pub mod batch;
pub mod content_type;
pub mod control;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod file;
pub mod frame;
pub mod reader;
pub mod writer;

pub use batch::FrameBatch;
pub use batch::Payloads;
pub use content_type::ContentType;
pub use content_type::ContentTypeTooLong;
pub use content_type::ContentTypes;
pub use control::ControlError;
pub use control::ControlFrame;
pub use control::ControlType;
pub use decoder::Decoder;
pub use decoder::Scan;
pub use decoder::ScanStop;
pub use decoder::scan;
pub use encoder::Encoder;
pub use error::ProtocolError;
pub use file::FilePosition;
pub use file::FileReader;
pub use file::FileStatus;
pub use file::FileWriter;
pub use frame::FRAME_LEN_MAX_DEFAULT;
pub use frame::Frame;
pub use reader::Oversize;
pub use reader::ReaderConfig;
pub use reader::ReaderCounters;
pub use reader::ReaderEvent;
pub use reader::ReaderSession;
#[cfg(feature = "relay")]
pub(crate) use reader::ReaderStage;
pub use reader::SessionEnd;
pub use writer::WriterConfig;
pub use writer::WriterEvent;
pub use writer::WriterSession;

#[cfg(test)]
mod tests;
