//! The descriptor store of the service manager: what a process leaves there for the next one.
//!
//! ```text
//! tapster-listeners     a file in memory with the message, and the sockets; from the start on
//! tapster-connections   likewise; at the end, with the counts
//! ```
//!
//! The next process finds them among its descriptors, in any order: a record knows its socket by the cookie that the kernel gives
//! every socket. The messages are those of the hand-over. Source: sd_notify(3), FDSTORE=1.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::MemfdFlags;
use rustix::net::sockopt::socket_cookie;
use tracing::warn;

use crate::input::handing::HandedConnection;
use crate::relay::handover::message::HandedListener;
use crate::relay::handover::message::Message;
use crate::relay::handover::message::MessageError;
use crate::transport::ServiceManager;
use crate::transport::passed::Named;

/// The store, for a process that puts descriptors there.
#[derive(Debug)]
pub(crate) struct Store {
    manager: ServiceManager,
    max: usize,
    // The listeners that are there.
    listeners: Vec<u64>,
}

/// A socket in the store, and what is known of it.
pub(crate) type Stored<T> = (T, OwnedFd);

impl Store {
    /// A store with room for `max` descriptors, or fewer if the service manager says so; `None` for 0, and where no service manager
    /// is.
    pub(crate) fn of_environment(max: usize) -> Option<Self> {
        if max == 0 {
            return None;
        }
        let manager = ServiceManager::of_environment().unwrap_or_else(|error| {
            warn!("the descriptor store cannot be used: {error}");
            None
        });
        // systemd tells it from version 254 on.
        let told = env::var("FDSTORE").ok().and_then(|text| text.parse().ok());
        let max = told.map_or(max, |told: usize| told.min(max));
        Some(Self { manager: manager?, max, listeners: Vec::new() })
    }

    /// How many connections the store has room for.
    pub(crate) fn connections_max(&self) -> usize {
        self.max.saturating_sub(self.listeners.len() + MESSAGES)
    }

    /// What is there may not be what this process has put there: during an upgrade the manager listens to the old process alone.
    pub(crate) fn distrust(&mut self) {
        self.listeners.clear();
    }

    /// Puts these listeners there, in place of those that are there, unless they are the same.
    ///
    /// # Errors
    /// The manager does not take them, or there are too many.
    pub(crate) fn keep_listeners(&mut self, all: &[Stored<HandedListener>]) -> io::Result<()> {
        let cookies: Vec<_> =
            all.iter().map(|(_, socket)| socket_cookie(socket)).collect::<Result<_, _>>()?;
        if cookies == self.listeners {
            return Ok(());
        }
        if cookies.len() + MESSAGES > self.max {
            let words =
                format!("there are {} listeners, and room for {} descriptors", cookies.len(), self.max);
            return Err(io::Error::new(io::ErrorKind::StorageFull, words));
        }
        self.remove(LISTENERS)?;
        let records = all.iter().zip(&cookies).map(|((record, _), cookie)| (*cookie, record.clone()));
        let message = Message::StoredListeners { listeners: records.collect() };
        for group in all.chunks(ServiceManager::DESCRIPTORS_MAX) {
            let sockets: Vec<_> = group.iter().map(|(_, socket)| socket.as_fd()).collect();
            self.put(LISTENERS, &sockets)?;
        }
        let file = in_memory()?;
        write_message(&file, &message, &[])?;
        self.put(LISTENERS, &[file.as_fd()])?;
        self.listeners = cookies;
        Ok(())
    }

    /// Puts the file there that will tell of connections, and of the counts. It comes first, for there may not be room for all of
    /// them. Until it is [written](write_message), nobody goes on with the connections.
    ///
    /// # Errors
    /// The manager does not take it, or no descriptor is left.
    pub(crate) fn put_message(&self) -> io::Result<File> {
        let file = in_memory()?;
        self.put(CONNECTIONS, &[file.as_fd()])?;
        Ok(file)
    }

    /// Puts sockets of connections there, at most [`ServiceManager::DESCRIPTORS_MAX`].
    ///
    /// # Errors
    /// The manager does not take them.
    pub(crate) fn put_connections(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.put(CONNECTIONS, sockets)
    }

    /// Takes the connections out of the store.
    ///
    /// # Errors
    /// The manager does not take the message.
    pub(crate) fn remove_connections(&self) -> io::Result<()> {
        self.remove(CONNECTIONS)
    }

    /// Leaves nothing there.
    pub(crate) fn clear(&self) {
        for name in [LISTENERS, CONNECTIONS] {
            if let Err(error) = self.remove(name) {
                warn!("the service manager does not empty its descriptor store: {error}");
            }
        }
    }

    fn put(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // What a writer has sent before it has gone is read by the next process.
        self.manager.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), descriptors, PATIENCE)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.manager.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), PATIENCE)
    }
}

/// What a former process has left in the store.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) listeners: Vec<Stored<HandedListener>>,
    pub(crate) connections: Vec<Stored<HandedConnection>>,
    /// [`Message::StoredConnections`], without the connections.
    pub(crate) counts: Option<Message>,
    /// Whether there was anything.
    pub(crate) is_any: bool,
}

/// Empties the store of a process that does not use it any more.
pub(crate) fn clear() {
    if let Some(store) = Store::of_environment(usize::MAX) {
        store.clear();
    }
}

/// Whether a descriptor of this name is one that a former process has left in the store.
pub(crate) fn is_left(name: &str) -> bool {
    [LISTENERS, CONNECTIONS].contains(&name)
}

impl Left {
    /// Puts together what belongs together. What is not understood is told, and closed.
    pub(crate) fn new(descriptors: Vec<Named>) -> Self {
        let mut left = Self { is_any: !descriptors.is_empty(), ..Self::default() };
        let (listeners, connections) = descriptors.into_iter().partition(|(name, _)| name == LISTENERS);
        if let Err(error) = left.add(listeners).and_then(|()| left.add(connections)) {
            warn!("what a former process has left in the descriptor store is closed: {error}");
        }
        left
    }

    fn add(&mut self, descriptors: Vec<Named>) -> Result<(), LeftError> {
        let (mut sockets, mut messages) = (BTreeMap::new(), Vec::new());
        for (_, descriptor) in descriptors {
            match socket_cookie(&descriptor) {
                Ok(cookie) => drop(sockets.insert(cookie, descriptor)),
                Err(_) => messages.push(File::from(descriptor)),
            }
        }
        let Some(file) = messages.pop() else {
            // A process was killed before it could tell of them.
            return if sockets.is_empty() { Ok(()) } else { Err(LeftError::NoMessage(sockets.len())) };
        };
        let bytes = read(&file)?;
        if bytes.is_empty() {
            return Err(LeftError::NoMessage(sockets.len()));
        }
        let (message, mut behind) = Message::decode(bytes)?;
        let mut lost = 0;
        match message {
            Message::StoredListeners { listeners } => {
                for (cookie, record) in listeners {
                    match sockets.remove(&cookie) {
                        Some(socket) => self.listeners.push((record, socket)),
                        None => lost += 1,
                    }
                }
            }
            Message::StoredConnections { connections, generation, started_at, ledger } => {
                for (cookie, record) in connections {
                    let connection = record.take(&mut behind)?;
                    match sockets.remove(&cookie) {
                        Some(socket) => self.connections.push((connection, socket)),
                        None => lost += 1,
                    }
                }
                let connections = Vec::new();
                self.counts =
                    Some(Message::StoredConnections { connections, generation, started_at, ledger });
            }
            other => return Err(LeftError::Unexpected(format!("{other:?}"))),
        }
        if lost > 0 {
            warn!(
                "{lost} sockets that a former process had put into the descriptor store are not there: set FileDescriptorStoreMax= of \
                 the unit as high as `descriptor_store`"
            );
        }
        Ok(())
    }
}

/// Why nobody goes on with what is in the store.
#[derive(Debug, thiserror::Error)]
enum LeftError {
    #[error("{0} sockets, and no message about them: the process was killed before its end")]
    NoMessage(usize),
    #[error("another message was expected than {0}")]
    Unexpected(String),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the message cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Writes the message, with the bytes that belong to it.
///
/// # Errors
/// No memory is left.
pub(crate) fn write_message(file: &File, message: &Message, behind: &[Bytes]) -> io::Result<()> {
    file.write_all_at(&message.encode(behind), 0)
}

/// A file in memory.
fn in_memory() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("tapster", MemfdFlags::CLOEXEC)?))
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    let len = usize::try_from(len).ok().filter(|len| *len <= MESSAGE_MAX);
    let mut bytes = vec![0; len.ok_or_else(|| io::Error::other("it is too long"))?];
    // Whoever had the file before has written to its end.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

const LISTENERS: &str = "tapster-listeners";
const CONNECTIONS: &str = "tapster-connections";
/// Messages in the store, a descriptor each.
const MESSAGES: usize = 2;
/// Longest message taken, bytes.
const MESSAGE_MAX: usize = 256 << 20;
/// How long a message waits that the manager does not take.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::protocol::ReaderStage;
    use crate::relay::handover::message::ConnectionRecord;

    fn left(name: &str, descriptors: Vec<OwnedFd>) -> Left {
        Left::new(descriptors.into_iter().map(|descriptor| (name.to_owned(), descriptor)).collect())
    }

    fn message(sockets: &[UnixStream]) -> (Message, Vec<Bytes>) {
        let connection = |number| HandedConnection {
            input: format!("input{number}"),
            peer: None,
            dial: None,
            stage: ReaderStage::Streaming { bidirectional: true, skip: 0 },
            content_type: None,
            received: format!("residue {number}").into(),
        };
        let connections: Vec<_> = (0..sockets.len()).map(connection).collect();
        let behind = connections.iter().map(|connection| connection.received.clone()).collect();
        let record = |(socket, connection): (&UnixStream, &HandedConnection)| {
            (socket_cookie(socket).unwrap(), ConnectionRecord::of(connection))
        };
        let connections = sockets.iter().zip(&connections).map(record).collect();
        let message =
            Message::StoredConnections { connections, generation: 3, started_at: 1, ledger: Box::default() };
        (message, behind)
    }

    fn written(message: &Message, behind: &[Bytes]) -> File {
        let file = in_memory().unwrap();
        write_message(&file, message, behind).unwrap();
        file
    }

    #[test]
    fn records_find_their_sockets_in_any_order() {
        let (ours, _theirs): (Vec<_>, Vec<_>) = (0..4).map(|_| UnixStream::pair().unwrap()).unzip();
        let (message, behind) = message(&ours);
        let cookies: Vec<_> = ours.iter().map(|socket| socket_cookie(socket).unwrap()).collect();
        let mut all: Vec<OwnedFd> = ours.into_iter().map(OwnedFd::from).collect();
        all.push(written(&message, &behind).into());
        all.reverse();
        all.swap(0, 2);
        let left = left(CONNECTIONS, all);
        assert!(left.counts.is_some() && left.listeners.is_empty());
        let found: Vec<_> = left
            .connections
            .iter()
            .map(|(record, socket)| (record.input.clone(), socket_cookie(socket).unwrap()))
            .collect();
        let expected: Vec<_> =
            cookies.iter().enumerate().map(|(number, cookie)| (format!("input{number}"), *cookie)).collect();
        assert_eq!(found, expected);
        assert_eq!(left.connections[2].0.received, "residue 2");
    }

    #[test]
    fn what_is_not_understood_is_closed() {
        let pair = || UnixStream::pair().unwrap();
        let (socket, mut peer) = pair();
        let is_closed = |peer: &mut UnixStream| io::Read::read(peer, &mut [0]).unwrap() == 0;
        assert!(left(CONNECTIONS, vec![socket.into()]).connections.is_empty());
        assert!(is_closed(&mut peer));
        // The process was killed before it wrote the message.
        let (socket, mut peer) = pair();
        assert!(left(CONNECTIONS, vec![socket.into(), in_memory().unwrap().into()]).counts.is_none());
        assert!(is_closed(&mut peer));
        // Another version.
        let (socket, mut peer) = pair();
        let (message, behind) = message(std::slice::from_ref(&socket));
        let mut bytes = message.encode(&behind);
        bytes[3] = 99;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        assert!(left(CONNECTIONS, vec![socket.into(), file.into()]).counts.is_none());
        assert!(is_closed(&mut peer));
        // A socket that the store had no room for, and one that nobody knows.
        let ((lost, _peer), (unknown, mut unknown_peer)) = (pair(), pair());
        let (message, behind) = self::message(std::slice::from_ref(&lost));
        let file = written(&message, &behind);
        let left = left(CONNECTIONS, vec![file.into(), unknown.into()]);
        assert!(left.counts.is_some() && left.connections.is_empty());
        assert!(is_closed(&mut unknown_peer));
    }
}
