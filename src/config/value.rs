//! One value as written to one value that is right, or a sentence that says what to write.
//!
//! Numbers and flags may be given as text too: in the query of an address everything is text.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use crate::config::raw::Value;
use crate::config::units::format_duration;
use crate::config::units::format_size;
use crate::config::units::parse_duration;
use crate::config::units::parse_size;
use crate::config::words::ANY_TYPE;
use crate::config::words::Words;
use crate::output::FileConfig;
use crate::protocol::ContentType;
use crate::transport::Address;
use crate::transport::AddressError;

/// What an output writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OutputAddress {
    Socket(Address),
    /// The pattern of its name.
    File(String),
}

impl OutputAddress {
    /// The address, unless it is a file.
    pub(super) fn socket(&self) -> Option<&Address> {
        match self {
            Self::Socket(address) => Some(address),
            Self::File(_) => None,
        }
    }
}

impl fmt::Display for OutputAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => write!(f, "{address}"),
            Self::File(pattern) => write!(f, "{}", FileConfig::new(pattern)),
        }
    }
}

/// Longest path of a unix socket: `sun_path` of `sockaddr_un`, less its closing zero (unix(7)).
const UNIX_PATH_LEN_MAX: usize = 107;

/// A text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) if text.is_empty() => Err("must not be empty".to_owned()),
        Value::Text(text) if text.chars().any(char::is_control) => {
            Err(format!("{text:?} must not have control characters in it"))
        }
        Value::Text(text) => Ok(text.clone()),
        other => Err(format!("must be a text in quotes, not {}", other.kind())),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        other => Err(format!("must be true or false, not {}", shown(other))),
    }
}

/// A whole number within `range`.
pub(super) fn integer(range: RangeInclusive<usize>) -> impl Fn(&Value) -> Result<usize, String> {
    move |value| {
        let number = match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            format!("must be a whole number from {min} to {max}, not {}", shown(value))
        })
    }
}

/// A size within `range`, in bytes.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<u64, String> {
    move |value| {
        let written = match value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            other => return Err(format!("must be a size as in \"64MiB\", not {}", other.kind())),
        };
        let bytes = parse_size(&written).map_err(|error| error.to_string())?;
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        let (min, max) = (format_size(*range.start()), format_size(*range.end()));
        Err(format!("must be from {min} to {max}, not {written}"))
    }
}

/// A time within `range`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let written = match value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            other => return Err(format!("must be a time as in \"10s\", not {}", other.kind())),
        };
        let duration = parse_duration(&written).map_err(|error| error.to_string())?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let (min, max) = (format_duration(*range.start()), format_duration(*range.end()));
        Err(format!("must be from {min} to {max}, not {written}"))
    }
}

/// The word of a value.
pub(super) fn word<T: Words>(value: &Value) -> Result<T, String> {
    choice(T::WORDS)(value)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let written = text(value)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == written) {
            return Ok(*meaning);
        }
        let names = words.iter().map(|(word, _)| *word);
        Err(match nearest(&written, names.clone()) {
            Some(word) => {
                format!("`{written}` is unknown; did you mean `{word}`? There are {}", list(names, "and"))
            }
            None => format!("`{written}` is unknown: write {}", list(names, "or")),
        })
    }
}

/// An address to listen on.
pub(super) fn listen_address(value: &Value) -> Result<Address, String> {
    match address(value)? {
        OutputAddress::File(_) => {
            Err("an input cannot listen on a file: `tapster replay` sends one".to_owned())
        }
        OutputAddress::Socket(address) => Ok(address),
    }
}

/// An address to answer at.
pub(super) fn admin_address(value: &Value) -> Result<Address, String> {
    match listen_address(value)? {
        Address::Systemd(_) => {
            Err("a socket that the service manager passes is for inputs: write tcp://HOST:PORT or unix:PATH"
                .to_owned())
        }
        Address::Tls { .. } => {
            Err("admin addresses do not speak TLS yet: write tcp://HOST:PORT or unix:PATH, and let a proxy in front of it speak TLS"
                .to_owned())
        }
        address => Ok(address),
    }
}

/// An address of a producer that listens.
pub(super) fn dial_address(value: &Value) -> Result<Address, String> {
    match address(value)? {
        OutputAddress::File(_) => {
            Err("an input cannot connect to a file: `tapster replay` sends one".to_owned())
        }
        OutputAddress::Socket(Address::Systemd(_)) => {
            Err("a socket that the service manager passes is listened on: write `listen`".to_owned())
        }
        OutputAddress::Socket(address) if address.has_any_port() => Err(PORT_0.to_owned()),
        OutputAddress::Socket(address) if address.is_tls() => {
            Err("an input does not connect over TLS yet: use tcp://, through stunnel or haproxy where the way is not trusted".to_owned())
        }
        OutputAddress::Socket(address) => Ok(address),
    }
}

/// An address to write to.
pub(super) fn output_address(value: &Value) -> Result<OutputAddress, String> {
    let address = address(value)?;
    match &address {
        OutputAddress::Socket(Address::Systemd(_)) => {
            Err("a socket that the service manager passes is for an input: write tcp://HOST:PORT, unix:PATH or file:PATH".to_owned())
        }
        OutputAddress::Socket(socket) if socket.has_any_port() => Err(PORT_0.to_owned()),
        OutputAddress::File(pattern) => {
            FileConfig::check_pattern(pattern).map(|()| address).map_err(|error| error.to_string())
        }
        OutputAddress::Socket(_) => Ok(address),
    }
}

/// A content type by name.
pub(super) fn content_type(value: &Value) -> Result<ContentType, String> {
    let name = text(value)?;
    if name == ANY_TYPE {
        return Err(format!("`{name}` stands alone, in `content_types` of an input: [\"{name}\"]"));
    }
    let (len, len_max) = (name.len(), ContentType::LEN_MAX);
    name.parse::<ContentType>().map_err(|_| format!("has {len} bytes, a content type at most {len_max}"))
}

/// Permission bits in octal, `"0660"`.
pub(super) fn permission_bits(value: &Value) -> Result<u32, String> {
    let refuse = |written: &str| format!("must be permission bits in octal, as in \"0660\", not {written}");
    let Value::Text(written) = value else {
        return Err(refuse(&format!("{}: put them in quotes", shown(value))));
    };
    let octal = !written.is_empty() && written.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let bits = if octal { u32::from_str_radix(written, 8).ok() } else { None };
    bits.filter(|bits| *bits <= 0o777).ok_or_else(|| refuse(written))
}

/// The candidate that `written` most likely stands for, if any is near.
pub(super) fn nearest(
    written: &str,
    candidates: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    let folded = written.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&folded, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// `a, b or c`.
pub(super) fn list(words: impl IntoIterator<Item = &'static str>, conjunction: &str) -> String {
    let words: Vec<_> = words.into_iter().collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        other => other.kind().to_owned(),
    }
}

fn address(value: &Value) -> Result<OutputAddress, String> {
    let written = text(value)?;
    match written.parse() {
        Ok(address) => {
            if let Address::Unix(path) = &address {
                check_socket_path(path)?;
            }
            Ok(OutputAddress::Socket(address))
        }
        Err(AddressError::File(pattern)) => Ok(OutputAddress::File(pattern)),
        Err(_) if written.contains('?') => {
            Err(format!("`{written}` is no address; in a file its keys are written on lines of their own"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn check_socket_path(path: &Path) -> Result<(), String> {
    match path.as_os_str().len() {
        0..=UNIX_PATH_LEN_MAX => Ok(()),
        len => Err(format!(
            "the path of a unix socket has at most {UNIX_PATH_LEN_MAX} bytes, this one has {len}: \
             choose a shorter one, as in unix:/run/tapster/dnstap.sock"
        )),
    }
}

const PORT_0: &str = "nothing can be reached on port 0";

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn numbers_and_flags_may_be_text() {
        assert_eq!(integer(0..=8)(&written("4")), Ok(4));
        assert_eq!(integer(0..=8)(&Value::Integer(4)), Ok(4));
        assert_eq!(boolean(&written("false")), Ok(false));
        assert_eq!(boolean(&Value::Boolean(true)), Ok(true));
    }

    #[test]
    fn what_is_out_of_range_is_told_the_range() {
        assert_eq!(
            integer(1..=8)(&Value::Integer(-1)).unwrap_err(),
            "must be a whole number from 1 to 8, not -1"
        );
        assert_eq!(
            size(1024..=1 << 20)(&written("2MiB")).unwrap_err(),
            "must be from 1KiB to 1MiB, not 2MiB"
        );
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        assert_eq!(duration(range)(&written("1ms")).unwrap_err(), "must be from 100ms to 1h, not 1ms");
    }

    #[test]
    fn a_misspelt_word_is_told_the_nearest() {
        let words = [("drop_oldest", 0), ("drop_newest", 1), ("block", 2)];
        assert_eq!(
            choice(&words)(&written("drop-oldst")).unwrap_err(),
            "`drop-oldst` is unknown; did you mean `drop_oldest`? There are drop_oldest, drop_newest and block"
        );
        assert_eq!(
            choice(&words)(&written("zzz")).unwrap_err(),
            "`zzz` is unknown: write drop_oldest, drop_newest or block"
        );
    }

    #[test]
    fn addresses_that_cannot_serve_are_refused() {
        for address in ["file:a.fstrm", "tls://a", "a:1", "unix:", &format!("unix:/{}", "x".repeat(107))] {
            assert!(listen_address(&written(address)).is_err(), "{address}");
            assert!(dial_address(&written(address)).is_err(), "{address}");
        }
        assert!(dial_address(&written("tls://a:1")).is_err());
        for address in [
            "tcp://a:0",
            "tls://a:0",
            "tcp://a:1?queue=1MiB",
            "file:100%",
            "file:a/",
            "unix:a\0b",
            "systemd:a",
        ] {
            assert!(output_address(&written(address)).is_err(), "{address}");
        }
        assert!(listen_address(&written("systemd:a")).is_ok());
        assert!(admin_address(&written("systemd:a")).is_err());
        assert!(admin_address(&written("tls://a:1")).is_err());
        assert!(dial_address(&written("tcp://a:0")).is_err() && dial_address(&written("unix:a")).is_ok());
        assert!(output_address(&written("file:tapster-%Y%m%dT%H%M%S.fstrm")).is_ok());
    }

    #[test]
    fn permission_bits_are_octal() {
        assert_eq!(permission_bits(&written("0660")), Ok(0o660));
        for bits in ["", "0o660", "888", "1777", "rw", "+660"] {
            assert!(permission_bits(&written(bits)).is_err(), "{bits}");
        }
        assert!(permission_bits(&Value::Integer(660)).unwrap_err().contains("quotes"));
    }

    #[test]
    fn content_types_have_at_most_256_bytes() {
        assert!(content_type(&written(&"x".repeat(256))).is_ok());
        assert!(content_type(&written(&"x".repeat(257))).unwrap_err().contains("257 bytes"));
        assert!(content_type(&written("*")).is_err());
    }
}
