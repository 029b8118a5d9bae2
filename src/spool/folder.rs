//! The folder of a spool on a file system of the kernel.

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
use rustix::io::Errno;

use crate::spool::error::SpoolError;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;

/// A folder of the kernel's.
#[derive(Debug)]
pub struct Folder {
    folder: OwnedFd,
    access: OFlags,
}

impl Folder {
    /// Opens a folder to write to, which is created where it is missing (mode 0700; its parent must be there), and
    /// locks it against a second spool, in this process or another.
    ///
    /// # Errors
    /// [`SpoolError::InUse`], and [`SpoolError::Io`] with what the system says.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let failed = |action| {
            move |errno: Errno| SpoolError::Io { action, name: path.to_owned(), source: errno.into() }
        };
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) => sync_parent(path).map_err(failed("make durable the parent of"))?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("create the folder")(errno)),
        }
        let folder = open_folder(path).map_err(failed("open the folder"))?;
        lock(&folder, path)?;
        fs::fchmod(&folder, Mode::RWXU).map_err(failed("restrict the access to"))?;
        Ok(Self { folder, access: OFlags::RDWR })
    }

    /// Whether a spool could be opened at `path` now, without creating or changing anything. Returns how many bytes the
    /// file system has for us.
    ///
    /// # Errors
    /// As for [`Folder::open`].
    pub fn probe(path: &Path) -> Result<u64, SpoolError> {
        let failed = |action, name: &Path| {
            let name = name.to_owned();
            move |errno: Errno| SpoolError::Io { action, name, source: errno.into() }
        };
        let (folder, parent) = match open_folder(path) {
            Err(Errno::NOENT) => {
                let parent = parent_of(path);
                let folder =
                    fs::open(&parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
                (folder.map_err(failed("open the parent of the folder,", &parent))?, parent)
            }
            opened => {
                let folder = opened.map_err(failed("open the folder", path))?;
                // Gone with the descriptor.
                lock(&folder, path)?;
                (folder, path.to_owned())
            }
        };
        fs::access(&parent, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(failed("write to the folder", &parent))?;
        let stat = fs::fstatvfs(&folder).map_err(failed("look at the file system of", path))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Opens a folder to look at. Takes no lock: a spool in use can be looked at.
    ///
    /// # Errors
    /// [`SpoolError::Io`] with what the system says.
    pub fn open_to_inspect(path: &Path) -> Result<Self, SpoolError> {
        let folder = open_folder(path).map_err(|errno| SpoolError::Io {
            action: "open the folder",
            name: path.to_owned(),
            source: errno.into(),
        })?;
        Ok(Self { folder, access: OFlags::RDONLY })
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Locks a folder for as long as it is open.
fn lock(folder: &OwnedFd, path: &Path) -> Result<(), SpoolError> {
    match fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(SpoolError::InUse { folder: path.to_owned() }),
        Err(errno) => {
            Err(SpoolError::Io { action: "lock the folder", name: path.to_owned(), source: errno.into() })
        }
    }
}

fn parent_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

fn sync_parent(path: &Path) -> Result<(), Errno> {
    fs::fsync(fs::open(parent_of(path), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Storage for Folder {
    type File = OwnedFd;

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
        let result = fs::renameat_with(&self.folder, from, &self.folder, to, RenameFlags::NOREPLACE);
        Ok(result?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.folder)?)
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
        Ok(fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len)?)
    }

    fn truncate(&self, file: &OwnedFd, len: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| fs::ftruncate(file, len))?)
    }

    fn sync(&self, file: &OwnedFd) -> io::Result<()> {
        Ok(fs::fdatasync(file)?)
    }
}
