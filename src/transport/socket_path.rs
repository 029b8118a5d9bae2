//! The path of a unix socket that is listened on: bound, looked after, bound again, and removed.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Uid;
use rustix::io::Errno;
use socket2::Domain;
use socket2::SockAddr;
use socket2::Type;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::unbounded_channel;

use crate::transport::local_id::LocalId;
use crate::transport::local_id::entries;
use crate::transport::safe_path::refuse_foreign_links;

/// A path that is listened on. Dropped, its socket file is removed, unless a file of somebody else has taken its place.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    config: SocketFileConfig,
    file: SocketFile,
    // What is bound there.
    socket: OwnedFd,
    // To the listener of each worker: sockets to go on with.
    workers: Vec<UnboundedSender<OwnedFd>>,
}

/// Whose a socket file is, and who may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketFileConfig {
    /// Permission bits; `None` leaves them to the umask.
    pub mode: Option<u32>,
    /// Its owner; `None`: the user of this process.
    pub user: Option<LocalId>,
    /// Its group; `None`: the group of this process, or of the folder.
    pub group: Option<LocalId>,
}

/// What is at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtPath {
    /// The socket file that tapster bound.
    Ours,
    /// Nothing.
    Nothing,
    /// A file of somebody else.
    Another,
    /// It cannot be told now.
    Unknown,
}

/// A listening socket for one worker, and the ones that take its place when the path is bound again.
pub(crate) type Listening = (OwnedFd, UnboundedReceiver<OwnedFd>);

impl SocketPath {
    /// Binds `path` for `workers` workers, which share one socket. A socket that nobody listens on is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another process listens there, whether it takes connections or not; what is in the way, whose it is,
    /// and what to do; what the system says.
    pub(crate) fn bind(
        path: &Path,
        workers: usize,
        config: &SocketFileConfig,
    ) -> io::Result<(Self, Vec<Listening>)> {
        let (socket, file) = bind(path, config)?;
        let config = config.clone();
        let mut path = Self { path: path.to_owned(), config, file, socket, workers: Vec::new() };
        let listening = path.listeners(workers)?;
        Ok((path, listening))
    }

    /// The socket for `workers` workers, in place of those that had it before.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn listeners(&mut self, workers: usize) -> io::Result<Vec<Listening>> {
        let mut listening = Vec::new();
        self.workers.clear();
        for _ in 0..workers {
            let (sender, renewals) = unbounded_channel();
            self.workers.push(sender);
            listening.push((self.socket.try_clone()?, renewals));
        }
        Ok(listening)
    }

    /// A path that another process has bound, with its socket. The file stays that of the other process until it is [ours](Self::own).
    ///
    /// # Errors
    /// Nothing is at the path.
    pub(crate) fn adopt(path: &Path, socket: OwnedFd, config: &SocketFileConfig) -> io::Result<Self> {
        let file = SocketFile { path: path.to_owned(), id: FileId::of(path)?, stays: true };
        Ok(Self { path: path.to_owned(), config: config.clone(), file, socket, workers: Vec::new() })
    }

    /// Another descriptor of the socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// The other process has let go: the file is removed with this value.
    pub(crate) fn own(&mut self) {
        self.file.stays = false;
    }

    /// Leaves the file: another process listens there.
    pub(crate) fn leave(mut self) {
        self.file.stays = true;
    }

    /// Gives the socket file this owner and these permission bits.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn reconfigure(&mut self, config: &SocketFileConfig) -> io::Result<()> {
        config.clone_into(&mut self.config);
        self.file.set_owner(config)?;
        config.mode.map_or(Ok(()), |mode| self.file.set_mode(mode))
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks what is at the path. Blocks as long as the file system does.
    pub(crate) fn look(&self) -> AtPath {
        self.file.id.look_at(&self.path)
    }

    /// Binds the path once more, when the socket file is not there any more. Workers take what waits at the old socket, and
    /// go on with the new one.
    ///
    /// # Errors
    /// As when it was bound first.
    pub(crate) fn bind_again(&mut self) -> io::Result<()> {
        let (socket, file) = bind(&self.path, &self.config)?;
        self.file = file;
        self.socket = socket;
        for worker in &self.workers {
            // A worker that is gone needs none.
            let _ = worker.send(self.socket.try_clone()?);
        }
        Ok(())
    }
}

fn bind(path: &Path, config: &SocketFileConfig) -> io::Result<(OwnedFd, SocketFile)> {
    refuse_foreign_links(path)?;
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    if config.mode.is_some() {
        // The file begins with these bits, less the umask of the process.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile { path: path.to_owned(), id: FileId::of(path)?, stays: false };
    // Nobody can connect before the socket listens.
    file.set_owner(config)?;
    if let Some(mode) = config.mode {
        file.set_mode(mode)?;
    }
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// A socket file of ours: removed when dropped, unless a file of somebody else has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: FileId,
    // Another process listens there.
    stays: bool,
}

impl SocketFile {
    /// Gives this file and no other to its owner and group.
    fn set_owner(&self, SocketFileConfig { user, group, .. }: &SocketFileConfig) -> io::Result<()> {
        if user.is_none() && group.is_none() {
            return Ok(());
        }
        let owner = user.as_ref().map(|user| Uid::from_raw(user.id()));
        let owner_group = group.as_ref().map(|group| Gid::from_raw(group.id()));
        rustix::fs::chownat(&self.id.0, "", owner, owner_group, AtFlags::EMPTY_PATH).map_err(|error| {
            let user = user.as_ref().map(|user| format!("user {user}"));
            let group = group.as_ref().map(|group| format!("group {group}"));
            let whom = [user, group].into_iter().flatten().collect::<Vec<_>>().join(" and ");
            let words = format!(
                "cannot give the socket file to {whom} ({error}): only root can give files away, and others can choose a group \
                 that they are in"
            );
            io::Error::new(io::Error::from(error).kind(), words)
        })
    }

    /// Sets the permission bits of this file and no other, whatever is at the path now.
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        let permissions = fs::Permissions::from_mode(mode);
        let file = format!("/proc/self/fd/{}", self.id.0.as_raw_fd());
        match fs::set_permissions(file, permissions.clone()) {
            // Without /proc there is the path alone.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.id.look_at(&self.path) == AtPath::Ours =>
            {
                fs::set_permissions(&self.path, permissions)
            }
            result => result,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays && self.id.look_at(&self.path) == AtPath::Ours {
            // Nothing to be done about a failure: the next start removes a stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file itself, not the socket behind it: while it is open the file system gives its inode number to no other file.
#[derive(Debug)]
struct FileId(OwnedFd);

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Looks whether this file is at the path.
    fn look_at(&self, path: &Path) -> AtPath {
        match (rustix::fs::fstat(&self.0), rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)) {
            (Ok(ours), Ok(there)) if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) => {
                AtPath::Ours
            }
            (Ok(_), Ok(_)) => AtPath::Another,
            (_, Err(Errno::NOENT | Errno::NOTDIR)) => AtPath::Nothing,
            _ => AtPath::Unknown,
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    let in_use = |words| Err(io::Error::new(io::ErrorKind::AddrInUse, words));
    let stale = FileId::of(path)?;
    // It does not wait for an owner that takes no connections.
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let refused = match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => return in_use("another process listens on this socket"),
        Err(error) => error,
    };
    match Errno::from_io_error(&refused) {
        Some(Errno::CONNREFUSED) => {}
        Some(Errno::WOULDBLOCK) => {
            return in_use(
                "another process listens on this socket, and takes no connections: its backlog is full",
            );
        }
        Some(Errno::PROTOTYPE) => return in_use("another process has a socket of another type there"),
        Some(Errno::NOENT) => return Ok(()),
        Some(Errno::ACCESS | Errno::PERM) => {
            return Err(in_the_way(
                "a socket file is in the way, and tapster may not connect to it to see whether somebody listens",
                metadata.uid(),
                &refused,
            ));
        }
        _ => return Err(refused),
    }
    if stale.look_at(path) != AtPath::Ours {
        return in_use("another process binds this path at the same time");
    }
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(in_the_way(
            "a socket file that nobody listens on is in the way, and tapster may not remove it",
            metadata.uid(),
            &error,
        )),
    })
}

fn in_the_way(what: &str, owner: u32, error: &io::Error) -> io::Error {
    let (owner, own) = (user(owner), user(rustix::process::geteuid().as_raw()));
    let words = format!(
        "{what} ({error}); the file belongs to {owner}, tapster runs as {own}: remove the file as {owner} or root, or listen \
         on another path"
    );
    io::Error::new(error.kind(), words)
}

/// A user by number, and by name where `/etc/passwd` has one.
fn user(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = entries(&passwd).find(|(_, number)| *number == uid).map(|(name, _)| name);
    name.map_or_else(|| format!("user {uid}"), |name| format!("user {name} ({uid})"))
}

/// Connections that may wait to be accepted, at a path or a port.
pub(super) const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(bits: u32) -> SocketFileConfig {
        SocketFileConfig { mode: Some(bits), ..SocketFileConfig::default() }
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_not_and_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (bound, listening) = SocketPath::bind(&path, 2, &mode(0o600)).unwrap();
        assert_eq!(listening.len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop((bound, listening));
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert_eq!(
            SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn an_owner_that_hangs_with_a_full_backlog_is_in_use_and_waited_for_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let owner = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        owner.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        owner.listen(0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        let error = SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("backlog is full"), "{error}");
        let datagrams = folder.path().join("d.sock");
        let _owner = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert_eq!(
            SocketPath::bind(&datagrams, 1, &SocketFileConfig::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        assert!(path.exists() && datagrams.exists());
    }

    /// Many file systems give the number of a removed inode to the next file.
    #[test]
    fn a_file_that_took_the_place_of_ours_is_another_one_whatever_its_inode_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let (bound, listening) = SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap();
        assert_eq!(bound.look(), AtPath::Ours);
        // The process stops listening, and keeps its path in mind.
        drop(listening);
        fs::remove_file(&path).unwrap();
        assert_eq!(bound.look(), AtPath::Nothing);
        for _ in 0..20 {
            let (next, _listening) = SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap();
            assert_eq!((bound.look(), next.look()), (AtPath::Another, AtPath::Ours));
        }
        let next = SocketPath::bind(&path, 1, &SocketFileConfig::default()).unwrap();
        drop(bound);
        assert_eq!(next.0.look(), AtPath::Ours);
    }

    #[test]
    fn a_path_that_is_bound_again_gives_every_worker_a_new_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/s.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let (mut bound, mut listening) = SocketPath::bind(&path, 2, &mode(0o660)).unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(bound.look(), AtPath::Nothing);
        assert_eq!(bound.bind_again().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(path.parent().unwrap()).unwrap();
        bound.bind_again().unwrap();
        assert_eq!(bound.look(), AtPath::Ours);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let renewed: Vec<_> =
            listening.iter_mut().map(|(_, renewals)| renewals.try_recv().unwrap()).collect();
        assert_eq!(renewed.len(), 2);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_file_has_the_owner_and_mode_of_the_configuration_when_it_is_bound_again_too() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let config =
            SocketFileConfig { user: LocalId::user("53"), group: LocalId::group("54"), ..mode(0o620) };
        let (mut bound, _listening) = SocketPath::bind(&path, 1, &config).unwrap();
        let is_right = || {
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (53, 54, 0o620));
        };
        is_right();
        fs::remove_file(&path).unwrap();
        bound.bind_again().unwrap();
        is_right();
        drop(bound);
        let config = SocketFileConfig { group: LocalId::group("54"), ..SocketFileConfig::default() };
        let _bound = SocketPath::bind(&path, 1, &config).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (0, 54));
    }

    #[test]
    fn users_have_names() {
        assert_eq!(user(0), "user root (0)");
        assert_eq!(user(4_000_000_000), "user 4000000000");
    }
}
