//! The PROXY header, as whoever connects first sends it.

use tapster::transport::ProxyVersion;
use tapster::transport::proxy_header::ProxyHeader;
use tapster::transport::proxy_header::encode;
use tapster::transport::proxy_header::parse;

use super::memory::no_more_than_given;

/// The longest header that is taken, bytes.
const LEN_MAX: usize = 16 + 4096;

/// However the bytes are cut, they are the same header, or the same fault. An answer that was given stays.
pub(crate) fn proxy(input: &[u8]) {
    let whole = no_more_than_given(input.len(), || parse(input));
    let known_at = (0..=input.len().min(LEN_MAX)).find(|len| parse(&input[..*len]) != Ok(None));
    match known_at {
        Some(known_at) => {
            for len in [known_at, (known_at + 1).min(input.len()), input.len()] {
                assert_eq!(parse(&input[..len]), whole, "{len} bytes");
            }
            assert!(known_at > 0, "nothing is known of no bytes");
        }
        None => assert!(whole == Ok(None) && input.len() < LEN_MAX, "nothing known of {} bytes", input.len()),
    }
    let Ok(Some(ProxyHeader { source, len })) = whole else { return };
    assert_eq!(Some(len), known_at, "all of the header, and nothing behind it");
    let Some(source) = source else { return };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let header = encode(version, Some((source, source)));
        let again = parse(&header).ok().flatten().expect("what tapster writes it reads");
        assert_eq!(again.len, header.len());
        let again = again.source.expect("an address");
        assert_eq!((again.ip(), again.port()), (source.ip().to_canonical(), source.port()));
    }
}
