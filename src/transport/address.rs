//! Addresses as users write them: `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:PATH`, `systemd:NAME`.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// What can be listened on, and connected to.
///
/// A host name is kept as text: it is resolved anew at every connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `tcp://HOST:PORT`; an IPv6 address stands in brackets.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// `tls://HOST:PORT`: TLS over TCP.
    Tls {
        /// Name or address, without brackets.
        host: String,
        /// Port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// `unix:PATH`, a stream socket.
    Unix(PathBuf),
    /// `systemd:NAME`: the listeners of that name, which the service manager passes. `None`, written `systemd`: the first one that
    /// it passes. Nothing connects there.
    Systemd(Option<String>),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// None of the known schemes.
    #[error(
        "`{0}` has no scheme that tapster knows: write tcp://HOST:PORT, tls://HOST:PORT, unix:PATH, systemd:NAME or file:PATH"
    )]
    Scheme(String),
    /// No port, or not a number up to 65535.
    #[error("`{0}` needs a port after its host, as in tcp://127.0.0.1:6000 or tcp://[::1]:6000")]
    Port(String),
    /// No host before the port.
    #[error("`{0}` needs a host before its port, as in tcp://127.0.0.1:6000 or tcp://[::1]:6000")]
    Host(String),
    /// No path.
    #[error("`{0}` needs a path, as in unix:/run/tapster/dnstap.sock or file:tapster-%Y%m%d.fstrm")]
    Path(String),
    /// No name, or one that no socket unit can give.
    #[error(
        "`{0}` needs the name of a socket, as in systemd:dnstap for FileDescriptorName=dnstap; `systemd` alone is the first one"
    )]
    Name(String),
    /// `file:PATH`, with its path: a file is written, and neither listened on nor connected to.
    #[error("`file:{0}` is a file: write tcp://HOST:PORT, tls://HOST:PORT or unix:PATH")]
    File(String),
}

impl Address {
    /// Whether the kernel chooses the port.
    pub(crate) fn has_any_port(&self) -> bool {
        self.host_port().is_some_and(|(_, port)| port == 0)
    }

    /// Whether its connections speak TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }

    /// Host and port; `None` where there are none.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        match self {
            Self::Tcp { host, port } | Self::Tls { host, port } => Some((host, *port)),
            Self::Unix(_) | Self::Systemd(_) => None,
        }
    }

    /// The same kind of address at another host and port. One without any stays as it is.
    pub fn at(&self, host: String, port: u16) -> Self {
        match self {
            Self::Tcp { .. } => Self::Tcp { host, port },
            Self::Tls { .. } => Self::Tls { host, port },
            Self::Unix(_) | Self::Systemd(_) => self.clone(),
        }
    }

    /// The port; `None` where there is none, or the kernel chooses it.
    pub(crate) fn port(&self) -> Option<u16> {
        self.host_port().map(|(_, port)| port).filter(|port| *port != 0)
    }

    /// Whether this is another address on the port of `address` that is, or may be, one of IPv4.
    pub(crate) fn is_ipv4_beside(&self, address: &Self) -> bool {
        match (self.host_port(), address.host_port()) {
            (Some((host, port)), Some((other, other_port))) => {
                host != other && port == other_port && port != 0 && host.parse::<Ipv6Addr>().is_err()
            }
            _ => false,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix("tcp://") {
            let (host, port) = split_host_port(text, rest)?;
            return Ok(Self::Tcp { host, port });
        }
        if let Some(rest) = text.strip_prefix("tls://") {
            let (host, port) = split_host_port(text, rest)?;
            return Ok(Self::Tls { host, port });
        }
        let path = |rest: &str| {
            if rest.is_empty() { Err(AddressError::Path(text.to_owned())) } else { Ok(rest.to_owned()) }
        };
        if let Some(rest) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path(rest)?.into()));
        }
        if let Some(rest) = text.strip_prefix("file:") {
            return Err(AddressError::File(path(rest)?));
        }
        if text == "systemd" {
            return Ok(Self::Systemd(None));
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            return if is_descriptor_name(name) {
                Ok(Self::Systemd(Some(name.to_owned())))
            } else {
                Err(AddressError::Name(text.to_owned()))
            };
        }
        Err(AddressError::Scheme(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Tcp { host, port } => ("tcp", host, port),
            Self::Tls { host, port } => ("tls", host, port),
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
            Self::Systemd(Some(name)) => return write!(f, "systemd:{name}"),
            Self::Systemd(None) => return write!(f, "systemd"),
        };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// Whether a socket unit can give this name: ASCII without control characters and colons, at most 255 bytes.
///
/// Source: systemd `fdname_is_valid`.
fn is_descriptor_name(name: &str) -> bool {
    let usual = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
    (1..=255).contains(&name.len()) && name.bytes().all(usual)
}

fn split_host_port(text: &str, rest: &str) -> Result<(String, u16), AddressError> {
    let no_port = || AddressError::Port(text.to_owned());
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once("]:").ok_or_else(no_port)?,
        None => rest.rsplit_once(':').ok_or_else(no_port)?,
    };
    // A second colon outside brackets: an IPv6 address whose end cannot be told from a port.
    let bare_ipv6 = !rest.starts_with('[') && host.contains(':');
    if host.is_empty() || bare_ipv6 {
        return Err(AddressError::Host(text.to_owned()));
    }
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { port.parse().ok() } else { None };
    Ok((host.to_owned(), port.ok_or_else(no_port)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_contract_is_parsed_and_printed_as_it_was_written() {
        for text in [
            "tcp://127.0.0.1:6000",
            "tcp://[::1]:0",
            "tcp://siem.example:65535",
            "tls://siem.example:6001",
            "tls://[2001:db8::1]:6443",
            "unix:/run/tapster/dnstap.sock",
            "unix:relative.sock",
            "systemd:dnstap",
            "systemd",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_fault_is_named() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        for text in ["127.0.0.1:6000", "http://a:1", "", "tcp:/a:1", "/run/x.sock"] {
            assert!(matches!(error(text), AddressError::Scheme(_)), "{text}");
        }
        for text in
            ["tcp://a", "tcp://a:", "tcp://a:65536", "tcp://a:+1", "tcp://[::1]", "tcp://[::1:5", "tls://a"]
        {
            assert!(matches!(error(text), AddressError::Port(_)), "{text}");
        }
        for text in ["tcp://:1", "tcp://[]:1", "tcp://::1:6000", "tls://:1"] {
            assert!(matches!(error(text), AddressError::Host(_)), "{text}");
        }
        for text in ["unix:", "file:"] {
            assert!(matches!(error(text), AddressError::Path(_)), "{text}");
        }
        for text in ["systemd:", "systemd:a:b", "systemd:caf\u{e9}"] {
            assert!(matches!(error(text), AddressError::Name(_)), "{text}");
        }
        assert_eq!(error("file:a.fstrm"), AddressError::File("a.fstrm".to_owned()));
    }
}
