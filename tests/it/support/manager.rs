//! A service manager as tapster sees it: it hears messages, keeps descriptors, and starts processes with sockets.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::JoinHandle;

use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use tempfile::TempDir;

use super::process::TapsterCommand;
use super::stream::folder;
use super::wait::eventually;
use super::wait::millis;

/// A descriptor, and its name.
pub(crate) type Named = (String, OwnedFd);

/// The service manager, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Manager {
    folder: TempDir,
    heard: Arc<Mutex<Heard>>,
    ended: Arc<AtomicBool>,
    hearing: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    messages: Vec<String>,
    store: Vec<Named>,
    // Descriptors that the store may have.
    store_max: usize,
}

impl Manager {
    pub(crate) fn start() -> Self {
        let folder = folder();
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(millis(20))).expect("a timeout");
        let heard = Heard { store_max: 4096, ..Heard::default() };
        let (heard, ended) = (Arc::new(Mutex::new(heard)), Arc::<AtomicBool>::default());
        let (hears, until) = (Arc::clone(&heard), Arc::clone(&ended));
        let hearing = thread::spawn(move || {
            while !until.load(Relaxed) {
                hear(&socket, &hears);
            }
        });
        Self { folder, heard, ended, hearing: Some(hearing) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    /// The store takes no more descriptors than these, and closes others without a word.
    pub(crate) fn limit_store(&self, descriptors: usize) {
        self.heard.lock().unwrap().store_max = descriptors;
    }

    /// Everything that was said, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.messages.iter().flat_map(|message| message.lines().map(str::to_owned)).collect()
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.heard.lock().unwrap().messages.clone()
    }

    /// Waits until somebody says such a line.
    #[track_caller]
    pub(crate) fn wait_for(&self, begin: &str) {
        eventually(&format!("the manager hears {begin}: {:?}", self.lines()), || {
            self.lines().iter().any(|line| line.starts_with(begin))
        });
    }

    /// Forgets what was said.
    pub(crate) fn forget(&self) {
        self.heard.lock().unwrap().messages.clear();
    }

    /// The names of the descriptors in the store.
    pub(crate) fn stored(&self) -> Vec<String> {
        self.heard.lock().unwrap().store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Whether so many descriptors of this name are in the store.
    pub(crate) fn has_stored(&self, name: &str, count: usize) -> bool {
        self.stored().iter().filter(|stored| *stored == name).count() == count
    }

    /// Changes the store.
    pub(crate) fn with_store(&self, change: impl FnOnce(&mut Vec<Named>)) {
        change(&mut self.heard.lock().unwrap().store);
    }

    /// The command, as the service manager starts it: with these sockets, and with what is in the store behind them.
    pub(crate) fn manages(&self, command: TapsterCommand, sockets: &[(&str, &OwnedFd)]) -> TapsterCommand {
        let heard = self.heard.lock().unwrap();
        let stored = heard.store.iter().map(|(name, descriptor)| (&name[..], descriptor));
        let all: Vec<_> = sockets.iter().copied().chain(stored).collect();
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        let command = command.with_descriptors(all.iter().map(|(_, descriptor)| descriptor.as_fd()));
        let command = command.env("NOTIFY_SOCKET", self.socket().to_str().expect("UTF-8"));
        command.env("LISTEN_FDS", &all.len().to_string()).env("LISTEN_FDNAMES", &names.join(":"))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let heard = self.hearing.take().map(JoinHandle::join);
        if thread::panicking() {
            eprintln!("--- the service manager heard ---\n{:?}\nand has {:?}", self.lines(), self.stored());
        }
        drop(heard);
    }
}

/// Hears one message, if one comes soon.
fn hear(socket: &UnixDatagram, heard: &Mutex<Heard>) {
    let mut space = [MaybeUninit::uninit(); 2048];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 4096];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let Ok(received) = received else { return };
    assert!(!received.flags.contains(ReturnFlags::CTRUNC), "descriptors were lost");
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    let text = String::from_utf8(buffer[..received.bytes].to_vec()).expect("UTF-8");
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let mut heard = heard.lock().unwrap();
    let name = value("FDNAME=").unwrap_or("stored".to_owned());
    if text.lines().any(|line| line == "FDSTORE=1") {
        for descriptor in descriptors {
            if heard.store.iter().any(|(_, stored)| is_same(stored, &descriptor)) {
                continue;
            }
            if heard.store.len() < heard.store_max {
                heard.store.push((name.clone(), descriptor));
            }
        }
    }
    if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        heard.store.retain(|(stored, _)| *stored != name);
    }
    heard.messages.push(text);
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let [one, other] =
        [one, other].map(|descriptor| rustix::fs::fstat(descriptor).expect("an open descriptor"));
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
