//! What can be wrong with a dnstap frame.

/// Why a payload is not a dnstap message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DnstapError {
    /// It ends within a field.
    #[error("the protocol buffer ends within a field")]
    Truncated,
    /// A number of more than 64 bits.
    #[error("the protocol buffer has a number of more than 64 bits")]
    Varint,
    /// A wire type that dnstap does not use.
    #[error("the protocol buffer has a field of unknown wire type, tag {tag}")]
    WireType {
        /// Field number and wire type as they came.
        tag: u64,
    },
    /// No field `message` in it.
    #[error("the dnstap frame holds no message")]
    NoMessage,
}
