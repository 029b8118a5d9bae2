//! Whether an open file is still where it was made: files are removed, renamed, cut, and hidden by what is mounted over them.

use std::fs::File;
use std::fs::Metadata;
use std::fs::metadata;
use std::fs::symlink_metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::output::place::folder_of;

/// What has become of a file that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has no name any more: what is written to it is lost.
    Removed,
    /// It has another name.
    Moved,
    /// Another file system is mounted over its folder.
    Hidden,
    /// Somebody has cut it: it is shorter than what was written.
    Cut {
        /// Its length now.
        len: u64,
    },
}

/// What identifies a file, and its place.
#[derive(Debug)]
pub(crate) struct Standing {
    file: Identity,
    // Device of its folder. `None`: the file system gives its files no lasting numbers, and only the length is looked at.
    folder_device: Option<u64>,
    moved: bool,
}

/// Device and inode.
type Identity = (u64, u64);

impl Standing {
    /// That of a file that was just opened under this name.
    pub(crate) fn of(file: &File, path: &Path) -> io::Result<Self> {
        let own = identity(&file.metadata()?);
        let there = symlink_metadata(path).is_ok_and(|there| identity(&there) == own);
        let folder_device = if there { Some(metadata(folder_of(path))?.dev()) } else { None };
        Ok(Self { file: own, folder_device, moved: false })
    }

    /// Looks what has become of the file, to which `len` bytes were written. A move is reported once.
    pub(crate) fn look(&mut self, file: &File, path: &Path, len: u64) -> io::Result<Option<Change>> {
        let own = file.metadata()?;
        if own.nlink() == 0 {
            return Ok(Some(Change::Removed));
        }
        if own.len() < len {
            return Ok(Some(Change::Cut { len: own.len() }));
        }
        let Some(folder_device) = self.folder_device.filter(|_| !self.moved) else { return Ok(None) };
        match symlink_metadata(path) {
            Ok(there) if identity(&there) == self.file => return Ok(None),
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            // It cannot be told.
            Err(_) => return Ok(None),
        }
        if metadata(folder_of(path)).is_ok_and(|folder| folder.dev() != folder_device) {
            return Ok(Some(Change::Hidden));
        }
        self.moved = true;
        Ok(Some(Change::Moved))
    }

    /// Whether the file was seen to have another name.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved
    }
}

fn identity(found: &Metadata) -> Identity {
    (found.dev(), found.ino())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
