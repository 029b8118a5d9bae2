//! The PROXY header, in which a balancer says for whom it connects: parsed and written, without I/O.
//!
//! ```text
//! v1   PROXY TCP4 192.0.2.1 198.51.100.1 40000 6000 \r \n              at most 107 bytes
//!
//!      ┌───────────────┬─────────┬────────┬────────┬───────────┬──────┐
//! v2   │ signature, 12 │ command │ family │ len, 2 │ addresses │ TLVs │
//!      └───────────────┴─────────┴────────┴────────┴───────────┴──────┘
//!                                                  └── len bytes ─────┘
//! ```
//!
//! Source: `doc/proxy-protocol.txt` of HAProxy.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::str::FromStr;

/// A PROXY header at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Who connected to the balancer. `None`: the balancer speaks for itself (LOCAL), or for a peer without an address (UNKNOWN,
    /// a unix socket): the peer of the connection is the one that counts.
    pub source: Option<SocketAddr>,
    /// Bytes of the header. What follows belongs to the stream.
    pub len: usize,
}

/// The version of a header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Why bytes are no PROXY header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// Neither version begins like this.
    #[error("the peer begins without a PROXY header")]
    NotProxy,
    /// No end of the line within the longest line.
    #[error("the line of a PROXY header of version 1 has more than {V1_LEN_MAX} bytes")]
    LineTooLong,
    /// Not a line as it ought to be.
    #[error("the line of a PROXY header of version 1 is not `PROXY TCP4|TCP6 ADDRESS ADDRESS PORT PORT`")]
    Line,
    /// A version or command that does not exist.
    #[error("a PROXY header with the unknown version and command {0:#04x}")]
    Command(u8),
    /// A family or protocol that does not exist.
    #[error("a PROXY header with the unknown address family {0:#04x}")]
    Family(u8),
    /// More than a header needs.
    #[error("a PROXY header of {len} bytes behind its first 16: tapster takes {V2_BODY_LEN_MAX}")]
    TooLong {
        /// Bytes announced.
        len: usize,
    },
    /// The header ends within its addresses, or within a TLV.
    #[error("a PROXY header that ends too early")]
    Truncated,
    /// The checksum in the header is another one.
    #[error("a PROXY header whose checksum is wrong")]
    Checksum,
}

/// Takes the header at the beginning of `bytes`.
///
/// Returns `None` until all of it has arrived.
///
/// # Errors
/// [`ProxyHeaderError`], as soon as the bytes cannot become a header.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    if begins_like(bytes, V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if begins_like(bytes, V1_BEGIN) {
        return parse_v1(bytes);
    }
    Err(ProxyHeaderError::NotProxy)
}

/// Whether these bytes, four or more, begin like a header. Frame Streams never do.
pub(crate) fn is_begun_by(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && (begins_like(bytes, V1_BEGIN) || begins_like(bytes, V2_SIGNATURE))
}

/// The header for a connection between these two ends, which the one that sends it has opened for itself: it tells of this
/// connection. `None` where the ends have no addresses.
pub fn encode(version: ProxyVersion, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let ends = ends.map(|(local, peer)| (canonical(local), canonical(peer)));
    let ends = ends.filter(|(local, peer)| local.is_ipv4() == peer.is_ipv4());
    match version {
        ProxyVersion::V1 => encode_v1(ends),
        ProxyVersion::V2 => encode_v2(ends),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn encode_v1(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((local, peer)) = ends else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let family = if local.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}\r\n", local.ip(), peer.ip(), local.port(), peer.port()).into_bytes()
}

fn encode_v2(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let (command, family, addresses) = match ends {
        None => (LOCAL, UNSPECIFIED, Vec::new()),
        Some((local, peer)) => {
            let octets = |address: SocketAddr| match address.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let ports = [local.port().to_be_bytes(), peer.port().to_be_bytes()].concat();
            let family = if local.is_ipv4() { TCP4 } else { TCP6 };
            (PROXY, family, [octets(local), octets(peer), ports].concat())
        }
    };
    let len = u16::try_from(addresses.len()).expect("addresses have at most 36 bytes");
    [V2_SIGNATURE, &[command, family], &len.to_be_bytes(), &addresses].concat()
}

/// Whether `bytes` begin with all of `signature`, or are a part of it.
fn begins_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, expected)| byte == expected)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let line = bytes.get(..V1_LEN_MAX).unwrap_or(bytes);
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if line.len() < V1_LEN_MAX { Ok(None) } else { Err(ProxyHeaderError::LineTooLong) };
    };
    let words = line.get(V1_BEGIN.len()..end).and_then(|words| std::str::from_utf8(words).ok());
    let words: Vec<&str> = words.ok_or(ProxyHeaderError::Line)?.splitn(6, ' ').collect();
    let source = match words[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, from, to] => {
            Some(ends_v1::<Ipv4Addr>([source, destination], [from, to])?)
        }
        ["TCP6", source, destination, from, to] => {
            Some(ends_v1::<Ipv6Addr>([source, destination], [from, to])?)
        }
        _ => return Err(ProxyHeaderError::Line),
    };
    Ok(Some(ProxyHeader { source, len: end + 2 }))
}

/// The first of two ends. Both must be right.
fn ends_v1<A: FromStr + Into<IpAddr>>(
    addresses: [&str; 2],
    ports: [&str; 2],
) -> Result<SocketAddr, ProxyHeaderError> {
    let end = |address: &str, port: &str| {
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let address: A = address.parse().ok()?;
        Some(SocketAddr::new(address.into(), port.parse().ok().filter(|_| is_number)?))
    };
    let ([source, destination], [from, to]) = (addresses, ports);
    end(destination, to).and_then(|_| end(source, from)).ok_or(ProxyHeaderError::Line)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let Some(([.., command, family, len_high, len_low], rest)) = bytes.split_first_chunk::<V2_HEAD_LEN>()
    else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([*len_high, *len_low]));
    let is_local = match *command {
        LOCAL => true,
        PROXY => false,
        other => return Err(ProxyHeaderError::Command(other)),
    };
    if len > V2_BODY_LEN_MAX {
        return Err(ProxyHeaderError::TooLong { len });
    }
    let Some(body) = rest.get(..len) else { return Ok(None) };
    let header = |source| Ok(Some(ProxyHeader { source, len: V2_HEAD_LEN + len }));
    // The sender may put anything behind these two.
    if is_local || *family == UNSPECIFIED {
        return header(None);
    }
    let addresses_len = match (family >> 4, family & 0x0f) {
        (0, 0..=2) => 0,
        (1, 0..=2) => 12,
        (2, 0..=2) => 36,
        (3, 0..=2) => 216,
        _ => return Err(ProxyHeaderError::Family(*family)),
    };
    let (addresses, tlvs) = body.split_at_checked(addresses_len).ok_or(ProxyHeaderError::Truncated)?;
    let whole = bytes.get(..V2_HEAD_LEN + len).ok_or(ProxyHeaderError::Truncated)?;
    check_tlvs(whole, tlvs)?;
    header(match *family {
        TCP4 => source_v2::<4>(addresses),
        TCP6 => source_v2::<16>(addresses),
        // Not over TCP, or without an address.
        _ => None,
    })
}

/// Source and destination, then their ports.
fn source_v2<const N: usize>(addresses: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = addresses.split_first_chunk::<N>()?;
    let (_, ports) = rest.split_first_chunk::<N>()?;
    let (port, _) = ports.split_first_chunk::<2>()?;
    Some(SocketAddr::new((*source).into(), u16::from_be_bytes(*port)))
}

/// Walks what stands behind the addresses, at the end of the whole header, and verifies the checksum if there is one.
fn check_tlvs(whole: &[u8], tlvs: &[u8]) -> Result<(), ProxyHeaderError> {
    let mut rest = tlvs;
    while !rest.is_empty() {
        let ([kind, len @ ..], behind) = rest.split_first_chunk::<3>().ok_or(ProxyHeaderError::Truncated)?;
        let len = usize::from(u16::from_be_bytes(*len));
        let (value, next) = behind.split_at_checked(len).ok_or(ProxyHeaderError::Truncated)?;
        if *kind == TLV_CRC32C {
            let stated = <[u8; 4]>::try_from(value).map_err(|_| ProxyHeaderError::Truncated)?;
            let (before, after) =
                whole.split_at_checked(whole.len() - behind.len()).ok_or(ProxyHeaderError::Truncated)?;
            let after = after.get(stated.len()..).ok_or(ProxyHeaderError::Truncated)?;
            // The checksum itself counts as zeros.
            let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
            if crc32c::crc32c_append(sum, after) != u32::from_be_bytes(stated) {
                return Err(ProxyHeaderError::Checksum);
            }
        }
        rest = next;
    }
    Ok(())
}

const V1_BEGIN: &[u8] = b"PROXY ";
const V1_LEN_MAX: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const V2_HEAD_LEN: usize = 16;
/// Certificates within TLVs make headers of some KiB; nobody sends more.
const V2_BODY_LEN_MAX: usize = 4096;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const TLV_CRC32C: u8 = 0x03;

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &len, body].concat()
    }

    const ADDRESSES: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 1, 0x9c, 0x40, 0x17, 0x70];

    /// With its checksum, behind a TLV that nobody knows, and before another one.
    fn with_checksum() -> Vec<u8> {
        let tlvs = [&[0xe0, 0, 2, 7, 7][..], &[TLV_CRC32C, 0, 4, 0, 0, 0, 0], &[4, 0, 0]].concat();
        let mut header = v2(PROXY, TCP4, &[ADDRESSES, &tlvs].concat());
        let sum = crc32c::crc32c(&header).to_be_bytes();
        let at = header.len() - 7;
        header[at..at + 4].copy_from_slice(&sum);
        header
    }

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 15], &[1], &[0, 80, 0, 81]].concat();
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 6000\r\n".to_vec(), Some("192.0.2.1:40000")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 65535\r\n".to_vec(), Some("[2001:db8::1]:80")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 0\r\n".to_vec(), Some("[::ffff:192.0.2.1]:0")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN 2001:db8::1 what ever\xc3\xb6 80\r\n".to_vec(), None),
            (v2(PROXY, TCP4, ADDRESSES), Some("192.0.2.1:40000")),
            (v2(PROXY, TCP6, &six), Some("[2001:db8::1]:80")),
            (v2(PROXY, TCP4, &[ADDRESSES, &[4, 1, 0], &[0; 256]].concat()), Some("192.0.2.1:40000")),
            (with_checksum(), Some("192.0.2.1:40000")),
            (v2(LOCAL, UNSPECIFIED, &[]), None),
            (v2(LOCAL, TCP4, ADDRESSES), None),
            (v2(LOCAL, 0xff, &[9; 4096]), None),
            (v2(PROXY, UNSPECIFIED, &[9, 9]), None),
            // UDP over IPv4, and a unix stream.
            (v2(PROXY, 0x12, ADDRESSES), None),
            (v2(PROXY, 0x31, &[b'/'; 216]), None),
        ]
    }

    #[test]
    fn a_header_is_taken_at_every_split_point_and_nothing_behind_it() {
        for (header, source) in headers() {
            let source = source.map(|text| text.parse().unwrap());
            for len in 0..header.len() {
                assert_eq!(parse(&header[..len]), Ok(None), "{len} of {header:02x?}");
            }
            let expected = Ok(Some(ProxyHeader { source, len: header.len() }));
            assert_eq!(parse(&header), expected, "{header:02x?}");
            for behind in [&b"\0"[..], b"PROXY ", &header, &[0xff; 5000]] {
                assert_eq!(parse(&[&header, behind].concat()), expected, "{header:02x?}");
            }
            assert!(is_begun_by(&header[..4]));
        }
    }

    #[test]
    fn what_is_no_header_is_known_as_soon_as_it_can_be() {
        for (bytes, known_at, fault) in [
            (&b"\0\0\0\0"[..], 1, ProxyHeaderError::NotProxy),
            (b"PROXX TCP4", 5, ProxyHeaderError::NotProxy),
            (b"\r\n\r\n\0\r\nQUIX\n", 11, ProxyHeaderError::NotProxy),
            (&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 93]].concat(), 107, ProxyHeaderError::LineTooLong),
            (&[V2_SIGNATURE, &[0x11, 0, 0, 0]].concat(), 16, ProxyHeaderError::Command(0x11)),
            (&[V2_SIGNATURE, &[0x22, 0, 0, 0]].concat(), 16, ProxyHeaderError::Command(0x22)),
            (&[V2_SIGNATURE, &[PROXY, TCP4, 16, 1]].concat(), 16, ProxyHeaderError::TooLong { len: 4097 }),
            (&[V2_SIGNATURE, &[LOCAL, 0, 255, 255]].concat(), 16, ProxyHeaderError::TooLong { len: 65535 }),
        ] {
            for len in 0..known_at {
                assert_eq!(parse(&bytes[..len]), Ok(None), "{len} of {bytes:02x?}");
            }
            for len in known_at..=bytes.len() {
                assert_eq!(parse(&bytes[..len]), Err(fault.clone()), "{len} of {bytes:02x?}");
            }
        }
        assert!(!is_begun_by(b"PRO") && !is_begun_by(&[0; 12]) && !is_begun_by(b"POST"));
    }

    #[test]
    fn lines_that_are_nearly_right_are_wrong() {
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 6000 1",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 6000 ",
            "PROXY TCP4  192.0.2.1 198.51.100.1 40000 6000",
            "PROXY TCP4 ::1 198.51.100.1 40000 6000",
            "PROXY TCP4 192.0.2.1 ::1 40000 6000",
            "PROXY TCP6 192.0.2.1 192.0.2.1 40000 6000",
            "PROXY TCP4 192.0.2 198.51.100.1 40000 6000",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +40000 6000",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 6000",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 ",
            "PROXY tcp4 192.0.2.1 198.51.100.1 40000 6000",
            "PROXY UNKNOWNS",
            "PROXY ",
        ] {
            assert_eq!(parse(format!("{line}\r\n").as_bytes()), Err(ProxyHeaderError::Line), "{line}");
        }
        assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(ProxyHeaderError::Line));
        assert_eq!(parse(b"PROXY UNKNOWN\n"), Ok(None));
    }

    #[test]
    fn binary_headers_that_are_nearly_right_are_wrong() {
        use ProxyHeaderError::Checksum;
        use ProxyHeaderError::Family;
        use ProxyHeaderError::Truncated;
        for (header, fault) in [
            (v2(PROXY, TCP4, &ADDRESSES[..11]), Truncated),
            (v2(PROXY, TCP6, ADDRESSES), Truncated),
            (v2(PROXY, 0x31, ADDRESSES), Truncated),
            (v2(PROXY, 0x41, ADDRESSES), Family(0x41)),
            (v2(PROXY, 0x13, ADDRESSES), Family(0x13)),
            (v2(PROXY, TCP4, &[ADDRESSES, &[4, 0]].concat()), Truncated),
            (v2(PROXY, TCP4, &[ADDRESSES, &[4, 0, 1]].concat()), Truncated),
            (v2(PROXY, TCP4, &[ADDRESSES, &[TLV_CRC32C, 0, 3, 0, 0, 0]].concat()), Truncated),
            (v2(PROXY, TCP4, &[ADDRESSES, &[TLV_CRC32C, 0, 4, 1, 2, 3, 4]].concat()), Checksum),
        ] {
            assert_eq!(parse(&header), Err(fault), "{header:02x?}");
        }
        let right = with_checksum();
        for bit in 0..8 * right.len() {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let source = parse(&wrong).ok().flatten().and_then(|header| header.source);
            assert!(source.is_none_or(|source| source.to_string() == "192.0.2.1:40000"), "bit {bit}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let end = |text: &str| -> SocketAddr { text.parse().unwrap() };
        for (local, peer, source) in [
            ("192.0.2.1:40000", "198.51.100.1:6000", Some("192.0.2.1:40000")),
            ("[2001:db8::1]:1", "[::1]:65535", Some("[2001:db8::1]:1")),
            ("[::ffff:192.0.2.1]:40000", "198.51.100.1:6000", Some("192.0.2.1:40000")),
            ("[2001:db8::1]:1", "198.51.100.1:6000", None),
        ] {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let header = encode(version, Some((end(local), end(peer))));
                let expected = ProxyHeader { source: source.map(end), len: header.len() };
                assert_eq!(parse(&header), Ok(Some(expected)), "{version:?} {local}");
            }
        }
        assert_eq!(encode(ProxyVersion::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(encode(ProxyVersion::V2, None), v2(LOCAL, UNSPECIFIED, &[]));
        let longest = end("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535");
        assert!(encode(ProxyVersion::V1, Some((longest, longest))).len() < V1_LEN_MAX);
    }
}
