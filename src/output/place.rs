//! What stands where a file output is to write, and whether other users could have put it there.

use std::fs::Metadata;
use std::fs::metadata;
use std::fs::symlink_metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

/// What an output finds under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The name stands for the stdout of this process.
    Stdout,
    /// A FIFO or a character device: it is written in place.
    Device,
    /// An empty file of nobody: logrotate makes one, for us to write.
    EmptyFile,
    /// Something else, which stays as it is.
    Taken,
    /// Nothing.
    Free,
}

impl Place {
    /// Looks at what has this name.
    ///
    /// # Errors
    /// The name cannot be looked at, or leads through a link that another user may have made.
    pub(crate) fn at(name: &Path) -> io::Result<Self> {
        if STDOUT.iter().any(|stdout| name == Path::new(stdout)) {
            return Ok(Self::Stdout);
        }
        let own = match symlink_metadata(name) {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Free),
            Err(error) => return Err(error),
        };
        if !own.is_symlink() {
            return Ok(Self::of(&own, name));
        }
        // A link to a file is a name that is taken; what it leads to is not ours.
        let Some(target) = metadata(name).ok().filter(is_in_place) else { return Ok(Self::Taken) };
        if is_shared(folder_of(name)) {
            return Err(io::Error::other(
                "it is a link in a folder that other users can write to, and tapster does not follow it",
            ));
        }
        Ok(Self::of(&target, name))
    }

    fn of(found: &Metadata, name: &Path) -> Self {
        if is_in_place(found) {
            Self::Device
        } else if found.is_file() && found.len() == 0 && is_trusted(found, name) {
            Self::EmptyFile
        } else {
            Self::Taken
        }
    }
}

/// Whether something is written in place: a FIFO or a character device.
pub(crate) fn is_in_place(found: &Metadata) -> bool {
    found.file_type().is_fifo() || found.file_type().is_char_device()
}

/// Whether what was found under this name is ours, or cannot have been put there by another user.
pub(crate) fn is_trusted(found: &Metadata, name: &Path) -> bool {
    found.uid() == geteuid().as_raw() || !is_shared(folder_of(name))
}

/// The folder that a name is in.
pub(crate) fn folder_of(name: &Path) -> &Path {
    match name.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether other users can put something into this folder: it is writable by group or others, and not ours or for everybody's
/// files (the sticky bit).
pub(crate) fn is_shared(folder: &Path) -> bool {
    let Ok(folder) = metadata(folder) else { return true };
    folder.mode() & 0o022 != 0 && (folder.uid() != geteuid().as_raw() || folder.mode() & 0o1000 != 0)
}

/// Whether two outputs with these names would write into one stream: stdout, or the same FIFO. A device such as `/dev/null` has
/// no reader who could mistake them.
pub(crate) fn is_one_stream(one: &Path, other: &Path) -> bool {
    match (Place::at(one), Place::at(other)) {
        (Ok(Place::Stdout), Ok(Place::Stdout)) => true,
        (Ok(Place::Device), Ok(Place::Device)) => match (metadata(one), metadata(other)) {
            (Ok(one), Ok(other)) => {
                one.file_type().is_fifo() && (one.dev(), one.ino()) == (other.dev(), other.ino())
            }
            _ => false,
        },
        _ => false,
    }
}

/// Names of the stdout of this process.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
