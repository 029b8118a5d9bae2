//! Files that are read again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::RwLock;

use crate::transport::tls::client::ClientConnector;
use crate::transport::tls::expiry::CertificateEnd;
use crate::transport::tls::fault::TlsFaults;
use crate::transport::tls::server::ServerAcceptor;
use crate::transport::tls::settings::ClientTls;
use crate::transport::tls::settings::ServerTls;

/// What was read, and is read again when a file has changed. Whoever shakes hands takes what is there at that moment.
#[derive(Debug)]
pub(crate) struct Reloadable<S, L> {
    settings: S,
    loaded: RwLock<Arc<L>>,
    // The files, when they were read last, or could not be.
    seen: Mutex<Vec<Option<Seen>>>,
}

/// Of listeners.
pub(crate) type ReloadableServer = Reloadable<ServerTls, ServerAcceptor>;

/// Of connections.
pub(crate) type ReloadableClient = Reloadable<ClientTls, ClientConnector>;

/// How the files of some settings are read.
pub(crate) trait Load {
    /// What becomes of them.
    type Loaded;

    fn files(&self) -> Vec<&Path>;
    fn load(&self) -> Result<Self::Loaded, TlsFaults>;
    fn end(loaded: &Self::Loaded) -> Option<&CertificateEnd>;
}

impl Load for ServerTls {
    type Loaded = ServerAcceptor;

    fn files(&self) -> Vec<&Path> {
        self.files()
    }

    fn load(&self) -> Result<ServerAcceptor, TlsFaults> {
        self.load()
    }

    fn end(loaded: &ServerAcceptor) -> Option<&CertificateEnd> {
        loaded.end()
    }
}

impl Load for ClientTls {
    type Loaded = ClientConnector;

    fn files(&self) -> Vec<&Path> {
        self.files()
    }

    fn load(&self) -> Result<ClientConnector, TlsFaults> {
        self.load()
    }

    fn end(loaded: &ClientConnector) -> Option<&CertificateEnd> {
        loaded.end()
    }
}

/// What identifies the content of a file as far as its name does not: device, inode, length, and when it was written, in
/// nanoseconds.
type Seen = (u64, u64, u64, i64, i64);

/// What a look at the files has brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// They are as they were.
    None,
    /// They have changed, and were read.
    Read,
    /// They have changed, and cannot be used: those that were read before stay.
    Kept(TlsFaults),
}

impl<S: Load<Loaded = L>, L> Reloadable<S, L> {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be used.
    pub(crate) fn new(settings: S) -> Result<Self, TlsFaults> {
        // What changes while they are read is read again.
        let seen = look_at(&settings);
        let loaded = settings.load()?;
        Ok(Self { settings, loaded: RwLock::new(Arc::new(loaded)), seen: Mutex::new(seen) })
    }

    /// What was read last.
    pub(crate) fn current(&self) -> Arc<L> {
        Arc::clone(&self.loaded.read().expect(UNPOISONED))
    }

    /// Reads the files again if one of them has changed. May wait for a disk.
    pub(crate) fn look(&self) -> Change {
        let now = look_at(&self.settings);
        let mut seen = self.seen.lock().expect(UNPOISONED);
        if *seen == now {
            return Change::None;
        }
        *seen = now;
        match self.settings.load() {
            Ok(loaded) => {
                *self.loaded.write().expect(UNPOISONED) = Arc::new(loaded);
                Change::Read
            }
            Err(faults) => Change::Kept(faults),
        }
    }

    /// When the certificate ends that was read last.
    pub(crate) fn end(&self) -> Option<CertificateEnd> {
        S::end(&self.current()).cloned()
    }
}

fn look_at(settings: &impl Load) -> Vec<Option<Seen>> {
    let seen = |path: &Path| {
        let found = path.metadata().ok()?;
        Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    settings.files().into_iter().map(seen).collect()
}

/// No panic is possible while a lock is held, but one of the libraries that read certificates.
const UNPOISONED: &str = "no panic while it is held";
