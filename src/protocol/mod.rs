//! Frame Streams as pure functions of bytes.

pub mod batch;
pub mod content_type;

pub use batch::FrameBatch;
pub use content_type::ContentType;
