//! The certificates of a relay, read once for each input and output, and again when their files change.
//!
//! They are looked at on a thread of their own: a disk may hang. Who shakes hands takes what is there.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tracing::info;
use tracing::warn;

use crate::input::InputConfig;
use crate::output::Destination;
use crate::output::OutputConfig;
use crate::output::StreamsConfig;
use crate::relay::error::ChangeError;
use crate::transport::Address;
use crate::transport::tls::CertificateEnd;
use crate::transport::tls::Change;
use crate::transport::tls::ClientTls;
use crate::transport::tls::ReloadableClient;
use crate::transport::tls::ReloadableServer;
use crate::transport::tls::ServerTls;
use crate::transport::tls::TlsFault;
use crate::transport::tls::TlsFaults;

/// Everything that was read and is in use.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    entries: Arc<Mutex<Vec<Entry>>>,
    // Dropped, it ends the thread that looks at the files.
    looking: Mutex<Option<mpsc::Sender<()>>>,
}

/// Whose certificates they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CertificateOwner {
    Input(String),
    Output(String),
}

#[derive(Debug)]
struct Entry {
    owner: CertificateOwner,
    used: Used,
    // When it was said last that a certificate ends soon; at first: when it was read, and the configuration said so.
    warned_at: Instant,
}

/// In use for as long as somebody else has it.
#[derive(Debug)]
enum Used {
    Server(ServerTls, Weak<ReloadableServer>),
    Client(ClientTls, Weak<ReloadableClient>),
}

impl Certificates {
    /// What the `tls` addresses of an input shake hands with; `None` where it has no such address.
    ///
    /// # Errors
    /// The files cannot be used.
    pub(crate) fn of_input(&self, input: &InputConfig) -> Result<Option<Arc<ReloadableServer>>, TlsFaults> {
        if input.dial.iter().any(Address::is_tls) {
            let message = "an input does not connect over TLS yet: dial a tcp:// address".to_owned();
            return Err(TlsFault { key: "dial", message }.into());
        }
        if !input.listen.iter().any(Address::is_tls) {
            return Ok(None);
        }
        let Some(settings) = &input.tls else { return Err(no_certificate().into()) };
        let owner = CertificateOwner::Input(input.name.clone());
        let mut entries = self.entries.lock().expect(UNPOISONED);
        let in_use = entries.iter().find_map(|entry| match &entry.used {
            Used::Server(used, server) if entry.owner == owner && used == settings => server.upgrade(),
            _ => None,
        });
        if let Some(server) = in_use {
            return Ok(Some(server));
        }
        let server = Arc::new(ReloadableServer::new(settings.clone())?);
        let used = Used::Server(settings.clone(), Arc::downgrade(&server));
        entries.push(Entry { owner, used, warned_at: Instant::now() });
        drop(entries);
        self.look_from_now_on();
        Ok(Some(server))
    }

    /// What the `tls` connections of an output shake hands with; `None` where it has no such address.
    ///
    /// # Errors
    /// The files cannot be used.
    pub(crate) fn of_output(
        &self,
        output: &str,
        streams: &StreamsConfig,
    ) -> Result<Option<Arc<ReloadableClient>>, TlsFaults> {
        if !streams.endpoints.addresses().any(Address::is_tls) {
            return Ok(None);
        }
        let settings = &streams.tls;
        let owner = CertificateOwner::Output(output.to_owned());
        let mut entries = self.entries.lock().expect(UNPOISONED);
        let in_use = entries.iter().find_map(|entry| match &entry.used {
            Used::Client(used, client) if entry.owner == owner && used == settings => client.upgrade(),
            _ => None,
        });
        if let Some(client) = in_use {
            return Ok(Some(client));
        }
        let client = Arc::new(ReloadableClient::new(settings.clone())?);
        let used = Used::Client(settings.clone(), Arc::downgrade(&client));
        entries.push(Entry { owner, used, warned_at: Instant::now() });
        drop(entries);
        self.look_from_now_on();
        Ok(Some(client))
    }

    /// The same as [`of_input`](Self::of_input), for a change.
    ///
    /// # Errors
    /// [`ChangeError::Tls`].
    pub(crate) fn read_input(
        &self,
        input: &InputConfig,
    ) -> Result<Option<Arc<ReloadableServer>>, ChangeError> {
        let owner = || CertificateOwner::Input(input.name.clone()).to_string();
        self.of_input(input).map_err(|faults| ChangeError::Tls { owner: owner(), faults })
    }

    /// What the `tls` connections of an output shake hands with, for a change.
    ///
    /// # Errors
    /// [`ChangeError::Tls`].
    pub(crate) fn read_output(
        &self,
        output: &OutputConfig,
    ) -> Result<Option<Arc<ReloadableClient>>, ChangeError> {
        let Destination::Streams(streams) = &output.to else { return Ok(None) };
        let owner = || CertificateOwner::Output(output.name.clone()).to_string();
        let tls = self.of_output(&output.name, streams);
        tls.map_err(|faults| ChangeError::Tls { owner: owner(), faults })
    }

    /// Looks at every file now. Returns whether any was read again.
    ///
    /// # Errors
    /// Those that have changed and cannot be used: what was read before stays in use.
    pub(crate) fn look(&self) -> Result<bool, Vec<(CertificateOwner, TlsFaults)>> {
        look(&self.entries)
    }

    fn look_from_now_on(&self) {
        let mut looking = self.looking.lock().expect(UNPOISONED);
        if looking.is_some() {
            return;
        }
        let (alive, ended) = mpsc::channel::<()>();
        let entries = Arc::clone(&self.entries);
        let run = move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                // What is wrong has been told.
                let _ = look(&entries);
                warn_of_ends(&entries, Instant::now());
            }
        };
        match thread::Builder::new().name("tapster-tls".to_owned()).spawn(run) {
            Ok(_) => *looking = Some(alive),
            Err(error) => warn!("certificates are not read again when they change: no thread: {error}"),
        }
    }
}

fn look(entries: &Mutex<Vec<Entry>>) -> Result<bool, Vec<(CertificateOwner, TlsFaults)>> {
    let mut entries = entries.lock().expect(UNPOISONED);
    entries.retain(|entry| entry.used.is_in_use());
    let (mut was_read, mut faults) = (false, Vec::new());
    for entry in entries.iter() {
        let owner = &entry.owner;
        match entry.used.look() {
            Change::None => {}
            Change::Read => {
                was_read = true;
                info!(
                    "{owner}: the files of its certificate have changed: new connections see what is in them now"
                );
            }
            Change::Kept(fault) => {
                warn!("{owner}: {fault}; the certificate that was read before stays in use");
                faults.push((owner.clone(), fault));
            }
        }
    }
    if faults.is_empty() { Ok(was_read) } else { Err(faults) }
}

/// Once a day for each that ends soon.
fn warn_of_ends(entries: &Mutex<Vec<Entry>>, now: Instant) {
    for entry in entries.lock().expect(UNPOISONED).iter_mut() {
        if now.saturating_duration_since(entry.warned_at) >= WARN_EVERY {
            entry.warned_at = now;
            if let Some(words) = entry.used.end().and_then(|end| end.warning(SystemTime::now())) {
                warn!("{}: {words}", entry.owner);
            }
        }
    }
}

impl Used {
    fn is_in_use(&self) -> bool {
        match self {
            Self::Server(_, server) => server.strong_count() > 0,
            Self::Client(_, client) => client.strong_count() > 0,
        }
    }

    fn look(&self) -> Change {
        match self {
            Self::Server(_, server) => server.upgrade().map_or(Change::None, |server| server.look()),
            Self::Client(_, client) => client.upgrade().map_or(Change::None, |client| client.look()),
        }
    }

    fn end(&self) -> Option<CertificateEnd> {
        match self {
            Self::Server(_, server) => server.upgrade()?.end(),
            Self::Client(_, client) => client.upgrade()?.end(),
        }
    }
}

impl fmt::Display for CertificateOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(name) => write!(f, "input `{name}`"),
            Self::Output(name) => write!(f, "output `{name}`"),
        }
    }
}

fn no_certificate() -> TlsFault {
    TlsFault {
        key: "cert",
        message: "is missing: a tls:// address needs a certificate and its key".to_owned(),
    }
}

/// How often the files are looked at. Kubernetes swaps a link, which no notification tells.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A panic in there would be one of a library that reads certificates.
const UNPOISONED: &str = "no panic while it is held";
