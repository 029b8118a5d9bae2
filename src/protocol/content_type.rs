//! Content types: at most 256 bytes, compared as bytes.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// The content type of a stream: at most [`ContentType::LEN_MAX`] bytes, not assumed to be UTF-8.
///
/// Two types are equal when their bytes are: there is no folding of case and no trimming. The empty type is a
/// type, and differs from no type at all.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentType(Bytes);

impl ContentType {
    /// Longest content type, in bytes.
    ///
    /// Source: fstrm `control.h`, `FSTRM_CONTROL_FIELD_CONTENT_TYPE_LENGTH_MAX`.
    pub const LEN_MAX: usize = 256;

    /// The content type of dnstap.
    pub const DNSTAP: Self = Self(Bytes::from_static(b"protobuf:dnstap.Dnstap"));

    /// The bytes of the type.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for ContentType {
    type Error = ContentTypeTooLong;

    fn try_from(bytes: Bytes) -> Result<Self, ContentTypeTooLong> {
        if bytes.len() > Self::LEN_MAX {
            return Err(ContentTypeTooLong { len: bytes.len() });
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<&[u8]> for ContentType {
    type Error = ContentTypeTooLong;

    /// Copies the bytes, so that a type never keeps a read buffer alive.
    fn try_from(bytes: &[u8]) -> Result<Self, ContentTypeTooLong> {
        if bytes.len() > Self::LEN_MAX {
            return Err(ContentTypeTooLong { len: bytes.len() });
        }
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }
}

impl TryFrom<&str> for ContentType {
    type Error = ContentTypeTooLong;

    fn try_from(text: &str) -> Result<Self, ContentTypeTooLong> {
        Self::try_from(text.as_bytes())
    }
}

impl FromStr for ContentType {
    type Err = ContentTypeTooLong;

    fn from_str(text: &str) -> Result<Self, ContentTypeTooLong> {
        Self::try_from(text)
    }
}

impl fmt::Display for ContentType {
    /// Printable ASCII as it is, every other byte escaped: safe in a log, whatever a peer sends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A content type longer than [`ContentType::LEN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content type of {len} bytes exceeds the limit of {}", ContentType::LEN_MAX)]
pub struct ContentTypeTooLong {
    /// Its length in bytes.
    pub len: usize,
}

/// Content types that a reader takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentTypes {
    /// Any type, and streams without one.
    Any,
    /// These, in order of preference; at least one.
    Only(Vec<ContentType>),
}

impl ContentTypes {
    /// Whether streams of `content_type` are taken.
    pub fn contains(&self, content_type: &ContentType) -> bool {
        match self {
            Self::Any => true,
            Self::Only(types) => types.contains(content_type),
        }
    }

    /// The types by name; empty for [`ContentTypes::Any`].
    pub fn as_slice(&self) -> &[ContentType] {
        match self {
            Self::Any => &[],
            Self::Only(types) => types,
        }
    }
}

/// `[a, b]`, for error messages.
pub(super) struct Listed<'a>(pub(super) &'a [ContentType]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_has_at_most_256_bytes() {
        assert!(ContentType::try_from(&[b'x'; 256][..]).is_ok());
        assert_eq!(ContentType::try_from(&[b'x'; 257][..]), Err(ContentTypeTooLong { len: 257 }));
        assert_eq!(ContentType::try_from(Bytes::from(vec![0; 300])), Err(ContentTypeTooLong { len: 300 }));
        assert_eq!("x".repeat(257).parse::<ContentType>(), Err(ContentTypeTooLong { len: 257 }));
    }

    #[test]
    fn content_types_are_compared_as_bytes() {
        assert_eq!("protobuf:dnstap.Dnstap".parse(), Ok(ContentType::DNSTAP));
        for other in ["Protobuf:dnstap.Dnstap", "protobuf:dnstap.Dnsta", "protobuf:dnstap.Dnstap\0", ""] {
            assert_ne!(other.parse(), Ok(ContentType::DNSTAP));
        }
    }

    #[test]
    fn a_content_type_is_shown_without_control_characters() {
        let content_type = ContentType::try_from(&b"a\x1b[2J\xff\n"[..]).unwrap();
        assert_eq!(content_type.to_string(), r"a\x1b[2J\xff\n");
        assert_eq!(Listed(&[ContentType::DNSTAP]).to_string(), r#"["protobuf:dnstap.Dnstap"]"#);
    }

    #[test]
    fn a_reader_of_any_type_takes_every_type() {
        assert!(ContentTypes::Any.contains(&ContentType::DNSTAP));
        let only = ContentTypes::Only(vec![ContentType::DNSTAP]);
        assert!(only.contains(&ContentType::DNSTAP));
        assert!(!only.contains(&"other".parse().unwrap()));
    }
}
