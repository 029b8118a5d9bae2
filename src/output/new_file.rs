//! Files that begin: created or taken over, locked for one writer, with the permission bits that were asked for.

use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::fs::FlockOperation;
use rustix::fs::RenameFlags;
use rustix::fs::flock;
use rustix::fs::renameat_with;
use rustix::io::Errno;

use crate::output::place::is_trusted;

/// Creates a file of ours.
///
/// # Errors
/// The name is taken, by a link too, or the system refuses.
pub(crate) fn create(path: &Path, mode: u32) -> io::Result<File> {
    // Appending: behind what others have cut off no hole is left.
    let file = OpenOptions::new().append(true).create_new(true).mode(mode).open(path)?;
    lock(&file)?;
    let bits = file.metadata()?.mode() & 0o7777;
    if bits != mode {
        // The umask has taken bits away. A file system without them has its own.
        let _ = file.set_permissions(Permissions::from_mode(mode));
    }
    Ok(file)
}

/// Takes over an empty file, if nobody writes it.
pub(crate) fn take_empty(path: &Path) -> Option<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).custom_flags(flags).open(path).ok()?;
    lock(&file).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.len() == 0 && is_trusted(&found, path)).then_some(file)
}

/// Keeps other outputs, of this process and of others, from taking the file over while it is empty, and from removing it.
fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::AlreadyExists.into()),
        // A file system without locks has none to lose.
        _ => Ok(()),
    }
}

/// Renames a file, and never onto another one.
///
/// # Errors
/// `AlreadyExists` where the name is taken, or what the system said.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag (NFS, 9p, FUSE).
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        result => return Ok(result?),
    }
    if to.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(from, to)
}
