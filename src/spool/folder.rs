//! The folder of a spool on a file system of the kernel.

use std::ffi::OsString;
use std::io;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs;
use rustix::fs::Access;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FallocateFlags;
use rustix::fs::FileType;
use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::process::getegid;
use rustix::process::geteuid;
use rustix::process::getgroups;

use crate::faults;
use crate::spool::error::SpoolError;
use crate::spool::storage::Entry;
use crate::spool::storage::Standing;
use crate::spool::storage::Storage;

/// A folder of the kernel's.
#[derive(Debug)]
pub struct Folder {
    folder: OwnedFd,
    access: OFlags,
    path: PathBuf,
    /// Device and inode of the folder.
    id: (u64, u64),
    remarks: Vec<String>,
}

/// A folder in which a spool could be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Bytes that the file system has for us.
    pub free: u64,
    /// What an operator should know about the folder.
    pub remarks: Vec<String>,
}

impl Folder {
    /// Opens a folder to write to, which is created where it is missing (mode 0700; its parent must be there), and
    /// locks it against a second spool, in this process or another. The mode of a folder that is there stays as it is.
    ///
    /// # Errors
    /// [`SpoolError::InUse`], [`SpoolError::OtherOwner`], and [`SpoolError::Io`] with what the system says.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) => sync_parent(path).map_err(failed("make durable the parent of", path))?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("create the folder", path)(errno)),
        }
        Self::take(path)
    }

    /// Opens and locks a folder that is there.
    fn take(path: &Path) -> Result<Self, SpoolError> {
        let folder = open_folder(path).map_err(failed("open the folder", path))?;
        let stat = fs::fstat(&folder).map_err(failed("look at the folder", path))?;
        let mut remarks = Vec::new();
        check_owner(path, &stat, &mut remarks)?;
        lock(&folder, path, &mut remarks)?;
        Ok(Self { folder, access: OFlags::RDWR, path: path.to_owned(), id: id_of(&stat), remarks })
    }

    /// Whether a spool could be opened at `path` now, without creating or changing anything.
    ///
    /// # Errors
    /// As for [`Folder::open`].
    pub fn probe(path: &Path) -> Result<Probed, SpoolError> {
        // Gone with the descriptor, and its lock.
        let (folder, written_to, remarks) = match Self::take(path) {
            Err(SpoolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let parent = parent_of(path);
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let folder = fs::open(&parent, flags, Mode::empty());
                (folder.map_err(failed("open the parent of the folder,", &parent))?, parent, Vec::new())
            }
            taken => taken.map(|taken| (taken.folder, taken.path, taken.remarks))?,
        };
        fs::access(&written_to, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(failed("write to the folder", &written_to))?;
        let stat = fs::fstatvfs(&folder).map_err(failed("look at the file system of", path))?;
        Ok(Probed { free: stat.f_bavail.saturating_mul(stat.f_frsize), remarks })
    }

    /// Which folder a path leads to, whether it is there or would be created: two paths to one folder have one answer. `None` where
    /// there is no such place.
    pub fn place_of(path: &Path) -> Option<(u64, u64, Option<OsString>)> {
        let place = |path: &Path, name| fs::stat(path).ok().map(|stat| (id_of(&stat), name));
        let ((device, inode), name) =
            place(path, None).or_else(|| place(&parent_of(path), Some(path.file_name()?.to_owned())))?;
        Some((device, inode, name))
    }

    /// Opens a folder to look at. Takes no lock: a spool in use can be looked at.
    ///
    /// # Errors
    /// [`SpoolError::Io`] with what the system says.
    pub fn open_to_inspect(path: &Path) -> Result<Self, SpoolError> {
        let folder = open_folder(path).map_err(failed("open the folder", path))?;
        let stat = fs::fstat(&folder).map_err(failed("look at the folder", path))?;
        let (path, id) = (path.to_owned(), id_of(&stat));
        Ok(Self { folder, access: OFlags::RDONLY, path, id, remarks: Vec::new() })
    }
}

fn failed(action: &'static str, name: &Path) -> impl FnOnce(Errno) -> SpoolError {
    let name = name.to_owned();
    move |errno| SpoolError::Io { action, name, source: errno.into() }
}

fn id_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens a folder. A link to it is followed if its owner is root or we: no other user has put it there.
fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let link = fs::lstat(path)?;
    let is_link = FileType::from_raw_mode(link.st_mode) == FileType::Symlink;
    let follow = if is_link && is_trusted(link.st_uid) { OFlags::empty() } else { OFlags::NOFOLLOW };
    fs::open(path, flags | follow, Mode::empty())
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

/// Refuses a folder of another user, who could change what is in it. One that its group may write to and that is of a group of
/// ours was given to us, as volumes are in containers.
fn check_owner(path: &Path, stat: &Stat, remarks: &mut Vec<String>) -> Result<(), SpoolError> {
    let (mode, user, group) = (Mode::from_raw_mode(stat.st_mode), stat.st_uid, stat.st_gid);
    let folder = path.display();
    let is_our_group = group == getegid().as_raw()
        || getgroups().is_ok_and(|groups| groups.iter().any(|own| own.as_raw() == group));
    let given_to_us = is_our_group && mode.contains(Mode::WGRP);
    if !is_trusted(user) && !given_to_us {
        return Err(SpoolError::OtherOwner { folder: path.to_owned(), user, us: geteuid().as_raw() });
    }
    if user != geteuid().as_raw() {
        remarks
            .push(format!("the spool folder {folder} belongs to user {user}, and tapster uses it as it is"));
    }
    if mode.intersects(Mode::ROTH | Mode::WOTH | Mode::XOTH) {
        let mode = mode.as_raw_mode() & 0o7777;
        let more =
            if mode & 0o002 == 0 { "names of files can be seen" } else { "anybody can put files into it" };
        remarks.push(format!(
            "the spool folder {folder} has mode {mode:04o}, so that {more}; tapster leaves the mode as it is: chmod 0700 {folder}"
        ));
    }
    Ok(())
}

/// Locks a folder for as long as it is open. Some file systems have no locks.
fn lock(folder: &OwnedFd, path: &Path, remarks: &mut Vec<String>) -> Result<(), SpoolError> {
    let locked =
        unless_refused("flock", path, || fs::flock(folder, FlockOperation::NonBlockingLockExclusive));
    match locked {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(SpoolError::InUse { folder: path.to_owned() }),
        // NFS cannot lock what is open to be read alone.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL | Errno::BADF) => {
            let folder = path.display();
            remarks.push(format!(
                "the file system of the spool folder {folder} has no locks: see that no other process uses the folder"
            ));
            Ok(())
        }
        Err(errno) => Err(failed("lock the folder", path)(errno)),
    }
}

fn parent_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

fn sync_parent(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(parent_of(path), flags, Mode::empty()) {
        // It may be written to, and not read.
        Err(Errno::ACCESS) => Ok(()),
        opened => sync_directory(&opened?, path),
    }
}

/// Some file systems cannot sync a folder.
fn sync_directory(folder: &OwnedFd, path: &Path) -> Result<(), Errno> {
    match unless_refused("fsync of a folder", path, || fs::fsync(folder)) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        synced => synced,
    }
}

/// A call that some file systems refuse; a test asks for that, for the folder at `path`.
fn unless_refused(call: &str, path: &Path, make: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if faults::hit(call, &path.to_string_lossy()) { Err(Errno::INVAL) } else { make() }
}

impl Storage for Folder {
    type File = OwnedFd;

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn standing(&self) -> io::Result<Standing> {
        match fs::fstat(&self.folder) {
            Err(Errno::STALE) => return Ok(Standing::Gone),
            Ok(stat) if stat.st_nlink == 0 => return Ok(Standing::Gone),
            stat => drop(stat?),
        }
        match fs::stat(&self.path) {
            Ok(stat) if id_of(&stat) == self.id => Ok(Standing::InPlace),
            Ok(_) => Ok(Standing::Gone),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Standing::Away),
            Err(errno) => Err(errno.into()),
        }
    }

    fn has_name(&self, file: &OwnedFd, name: &str) -> io::Result<bool> {
        let own = fs::fstat(file)?;
        match fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok(id_of(&named) == id_of(&own)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue, // removed since
                stat => stat?,
            };
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
                len: u64::try_from(stat.st_size).unwrap_or(0),
                modified: seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            });
        }
        Ok(entries)
    }

    fn create(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = self.access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR)?)
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        // NONBLOCK: opening a FIFO does not wait for its other end.
        let flags = self.access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = fs::openat(&self.folder, name, flags, Mode::empty())?;
        match FileType::from_raw_mode(fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let renamed = unless_refused("rename without replacing", &self.path, || {
            fs::renameat_with(&self.folder, from, &self.folder, to, RenameFlags::NOREPLACE)
        });
        match renamed {
            // NFS, 9p and FUSE do not know the flag. The folder is ours: nobody takes the name meanwhile.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match fs::statat(&self.folder, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST.into()),
                    Err(Errno::NOENT) => Ok(fs::renameat(&self.folder, from, &self.folder, to)?),
                    Err(errno) => Err(errno.into()),
                }
            }
            renamed => Ok(renamed?),
        }
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(sync_directory(&self.folder, &self.path)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fs::fstatvfs(&self.folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn len(&self, file: &OwnedFd) -> io::Result<u64> {
        Ok(u64::try_from(fs::fstat(file)?.st_size).unwrap_or(0))
    }

    fn read_at(&self, file: &OwnedFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buffer, offset))?)
    }

    fn write_at(&self, file: &OwnedFd, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwritev(file, buffers, offset))?)
    }

    fn reserve(&self, file: &OwnedFd, len: u64) -> io::Result<()> {
        Ok(unless_refused("fallocate", &self.path, || {
            fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len)
        })?)
    }

    fn truncate(&self, file: &OwnedFd, len: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| fs::ftruncate(file, len))?)
    }

    fn sync(&self, file: &OwnedFd) -> io::Result<()> {
        Ok(fs::fdatasync(file)?)
    }
}
