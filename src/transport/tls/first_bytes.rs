//! What a peer speaks that does not speak what it should: told by its first bytes.

/// Whether TLS begins like this: a record of a handshake.
///
/// Source: RFC 8446, 5.1.
pub(crate) fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 0x03, ..])
}

/// Whether TLS answers like this: a handshake, or an alert.
pub(crate) fn is_tls_answer(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 0x03, ..])
}

/// Why a listener for TLS cannot serve a peer that begins with this byte, in words; `None`: it may be TLS.
pub(crate) fn explain_no_tls(first: u8) -> Option<String> {
    match first {
        0x16 => None,
        // The escape before a control frame.
        0x00 => Some(
            "the writer speaks Frame Streams without TLS, and this is a tls:// address: let the writer use TLS, or give it a \
             tcp:// address"
                .to_owned(),
        ),
        // What openssl sends of SSL 2 began like this.
        other => Some(format!(
            "the peer does not speak TLS (its first byte is 0x{other:02x}), and this is a tls:// address"
        )),
    }
}
