//! A file system of a few MiB, to be filled.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::skips::Cause;
use crate::skips::skip;

/// A mounted tmpfs, which goes with this.
#[derive(Debug)]
pub(crate) struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one of so many bytes below `folder`; `None`, said on stderr, where that is not allowed.
    pub(crate) fn mount(folder: &Path, bytes: u64) -> Option<Self> {
        Self::mount_with(folder, &format!("size={bytes}"))
    }

    /// The same with these options of the file system.
    pub(crate) fn mount_with(folder: &Path, options: &str) -> Option<Self> {
        let path = folder.join("tmpfs");
        std::fs::create_dir(&path).expect("a folder to write to");
        Self::mount_over_with(path, options)
    }

    /// Mounts one over a folder.
    pub(crate) fn mount_over(path: PathBuf, bytes: u64) -> Option<Self> {
        Self::mount_over_with(path, &format!("size={bytes}"))
    }

    fn mount_over_with(path: PathBuf, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { path }),
            _ => {
                skip(Cause::Missing, "a tmpfs cannot be mounted here");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}
