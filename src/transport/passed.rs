//! Descriptors that the service manager passes to this process: listening sockets, each with a name.
//!
//! Source: sd_listen_fds(3): LISTEN_FDS descriptors from 3 on, for the process LISTEN_PID, with the names LISTEN_FDNAMES.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::net::AddressFamily;
use rustix::net::SocketType;
use rustix::net::sockopt;
use socket2::SockRef;

use crate::transport::Address;
use crate::transport::detached::Kind;
use crate::transport::listener::Bound;
use crate::transport::listener::host_of;
use crate::transport::sys::take_inherited;

/// A descriptor, and the name that the service manager gives it.
pub(crate) type Named = (String, OwnedFd);

/// Takes what the service manager passes to this process. Once, and before the process opens anything.
///
/// # Errors
/// The variables do not fit each other, or what is open.
pub(crate) fn take_passed() -> io::Result<Vec<Named>> {
    let variable = |name| env::var(name).ok();
    let passed = parse(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"))
        .map_err(|words| io::Error::new(io::ErrorKind::InvalidInput, words))?;
    let count = RawFd::try_from(passed.len()).unwrap_or(RawFd::MAX);
    let descriptors = take_inherited(FIRST, count).map_err(|error| {
        let words = format!("LISTEN_FDS says {count} descriptors, and not all of them are open: {error}");
        io::Error::new(io::ErrorKind::InvalidInput, words)
    })?;
    Ok(passed.into_iter().zip(descriptors).collect())
}

/// Variables that are for the process that the service manager started, and for no child of it.
pub const PASSED_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The names of the descriptors that are passed to this process.
fn parse(pid: Option<String>, count: Option<String>, names: Option<String>) -> Result<Vec<String>, String> {
    // Those of a process that has started this one are its own.
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(Vec::new()) };
    if pid.parse() != Ok(std::process::id()) {
        return Ok(Vec::new());
    }
    let Some(count) = count.parse().ok().filter(|count| *count <= COUNT_MAX) else {
        return Err(format!("LISTEN_FDS is `{count}`, and not a number of descriptors"));
    };
    let names: Vec<String> = match names {
        Some(names) if count > 0 => names.split(':').map(str::to_owned).collect(),
        _ => vec![UNNAMED.to_owned(); count],
    };
    if names.len() != count {
        return Err(format!("LISTEN_FDNAMES has {} names for {count} descriptors", names.len()));
    }
    Ok(names)
}

/// The listening sockets that the service manager passed, in its order. They stay open: what is not listened on now may be after
/// a reload.
#[derive(Debug, Default)]
pub(crate) struct PassedListeners(Vec<Named>);

/// A descriptor that the service manager passes, as a configuration sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedSocket {
    /// Its name.
    pub name: String,
    /// Why no input can listen on it; `None`: one can.
    pub fault: Option<String>,
}

impl PassedListeners {
    /// These sockets, in this order.
    pub(crate) fn new(sockets: Vec<Named>) -> Self {
        Self(sockets)
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> &[Named] {
        &self.0
    }

    /// What can be said of each of them.
    pub(crate) fn describe(&self) -> Vec<PassedSocket> {
        let describe = |(name, socket): &Named| {
            let fault = kind(socket).err().map(|error| error.to_string());
            PassedSocket { name: name.clone(), fault }
        };
        self.0.iter().map(describe).collect()
    }

    /// The listeners of this name for `workers` workers, in the order in which they were passed; without a name the first one.
    ///
    /// # Errors
    /// There is none; one is no listening stream socket of unix or TCP; no descriptor is left.
    pub(crate) fn listen(&self, name: Option<&str>, workers: usize) -> io::Result<Vec<Bound>> {
        if let Some(fault) = passed_fault(&self.describe(), name) {
            return Err(io::Error::new(io::ErrorKind::NotFound, fault));
        }
        self.named(name).map(|(_, socket)| bound(socket, workers)).collect()
    }

    fn named<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Named> {
        let count = if name.is_none() { 1 } else { usize::MAX };
        self.0.iter().filter(move |(other, _)| name.is_none_or(|name| name == other)).take(count)
    }
}

/// Why no input can listen at `systemd:NAME`, or at `systemd` where there is no name; `None`: one can.
pub fn passed_fault(passed: &[PassedSocket], name: Option<&str>) -> Option<String> {
    let mut ours = passed.iter().filter(|socket| name.is_none_or(|name| name == socket.name)).peekable();
    if ours.peek().is_some() {
        let count = if name.is_none() { 1 } else { usize::MAX };
        let socket = ours.take(count).find(|socket| socket.fault.is_some())?;
        return Some(format!("{} is {}", socket.name, socket.fault.as_deref()?));
    }
    if passed.is_empty() {
        return Some(
            "the service manager passes no socket: start tapster by its socket unit, which has the service in Service=".to_owned(),
        );
    }
    let names: Vec<_> = passed.iter().map(|socket| &socket.name[..]).collect();
    Some(format!(
        "the service manager passes no socket of this name: it passes {}; a socket unit names its sockets with FileDescriptorName=",
        names.join(", ")
    ))
}

/// What kind of listener it is.
fn kind(socket: &OwnedFd) -> io::Result<Kind> {
    let fault = |words| Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    let Ok(family) = sockopt::socket_domain(socket) else {
        return fault("no socket: tapster listens on what ListenStream= makes");
    };
    let kind = match family {
        AddressFamily::INET | AddressFamily::INET6 => Kind::Tcp,
        AddressFamily::UNIX => Kind::Unix,
        _ => {
            return fault(
                "a socket that is neither of TCP nor of unix: write ListenStream= with a port or a path",
            );
        }
    };
    if sockopt::socket_type(socket)? != SocketType::STREAM {
        return fault("a socket that is no stream: write ListenStream=");
    }
    if !sockopt::socket_acceptconn(socket)? {
        return fault("a connection, and not a socket that listens: write Accept=no");
    }
    Ok(kind)
}

fn bound(socket: &OwnedFd, workers: usize) -> io::Result<Bound> {
    let (kind, reference) = (kind(socket)?, SockRef::from(socket));
    reference.set_nonblocking(true)?;
    let local = reference.local_addr()?;
    let (address, dual_stack) = match local.as_socket() {
        Some(address) => {
            let dual_stack = address.is_ipv6() && address.ip().is_unspecified() && !reference.only_v6()?;
            (Address::Tcp { host: host_of(address), port: address.port() }, dual_stack)
        }
        None => {
            let path = local.as_pathname().map(Path::to_owned);
            let name = || local.as_abstract_namespace().map(|name| format!("@{}", name.escape_ascii()));
            (Address::Unix(path.or_else(|| name().map(PathBuf::from)).unwrap_or_default()), false)
        }
    };
    Bound::shared(address, socket, kind, workers, dual_stack)
}

/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// More descriptors than any process may have.
const COUNT_MAX: usize = 1 << 20;
/// The name of descriptors where no names are passed.
const UNNAMED: &str = "unknown";

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn descriptors_are_for_the_process_that_the_variables_name() {
        let own = std::process::id().to_string();
        let of = |pid: &str, count: &str, names| parse(text(pid), text(count), names);
        assert_eq!(of(&own, "2", text("a:b")).unwrap(), ["a", "b"]);
        assert_eq!(of(&own, "2", None).unwrap(), [UNNAMED; 2]);
        assert_eq!(of(&own, "0", text("")).unwrap(), [""; 0]);
        assert_eq!(of("1", "2", text("a:b")).unwrap(), [""; 0]);
        assert_eq!(parse(None, text("2"), None).unwrap(), [""; 0]);
        assert!(of(&own, "-1", None).is_err());
        assert!(of(&own, "3", text("a:b")).unwrap_err().contains("2 names for 3"));
    }

    #[test]
    fn all_sockets_of_a_name_are_taken_and_without_a_name_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("s")).unwrap();
        let tcp = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|index| tcp[index].local_addr().unwrap().port());
        let [first, second] = tcp;
        let passed = PassedListeners::new(vec![
            ("dns".to_owned(), unix.into()),
            ("tcp".to_owned(), first.into()),
            ("tcp".to_owned(), second.into()),
        ]);
        let bound = passed.listen(Some("tcp"), 3).unwrap();
        let address = |port| Address::Tcp { host: "127.0.0.1".to_owned(), port };
        assert_eq!(bound.iter().map(|bound| bound.address.clone()).collect::<Vec<_>>(), ports.map(address));
        assert!(bound.iter().all(|bound| bound.listeners.len() == 3 && bound.path.is_none()));
        let bound = passed.listen(None, 1).unwrap();
        assert_eq!(bound[0].address, Address::Unix(folder.path().join("s")));
        assert_eq!(bound.len(), 1);
        let error = passed.listen(Some("other"), 1).unwrap_err().to_string();
        assert!(error.contains("it passes dns, tcp, tcp;"), "{error}");
        let error = PassedListeners::default().listen(None, 1).unwrap_err().to_string();
        assert!(error.contains("passes no socket"), "{error}");
    }

    #[test]
    fn what_is_no_listening_stream_is_refused() {
        let named = |fd: OwnedFd| PassedListeners::new(vec![("a".to_owned(), fd)]).listen(None, 1);
        let error = |fd| named(fd).unwrap_err().to_string();
        assert!(
            error(UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("is a socket that is no stream")
        );
        assert!(error(UnixStream::pair().unwrap().0.into()).contains("Accept=no"));
        assert!(error(tempfile::tempfile().unwrap().into()).contains("no socket"));
    }
}
