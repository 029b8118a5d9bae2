//! Frame Streams as pure functions of bytes.

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
pub use reader::SessionEnd;
pub use writer::WriterConfig;
pub use writer::WriterEvent;
pub use writer::WriterSession;

#[cfg(test)]
mod tests;
