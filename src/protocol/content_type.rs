//! Content types: at most 256 bytes, compared as bytes.

use std::fmt;

use bytes::Bytes;

/// The content type of a stream: at most [`ContentType::LEN_MAX`] bytes, not assumed to be UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentType(Bytes);

impl ContentType {
    /// Longest content type, in bytes.
    pub const LEN_MAX: usize = 256;

    /// The content type of dnstap.
    pub const DNSTAP: Self = Self(Bytes::from_static(b"protobuf:dnstap.Dnstap"));

    /// The bytes of the type.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
