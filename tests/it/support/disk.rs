//! A disk that hangs: an ext4 file system in a file, which can be frozen.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::skips::Cause;
use crate::skips::skip;

/// A file system on a disk of its own, mounted until this is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

/// Whoever writes to the disk sits in the kernel until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen<'a>(&'a Path);

impl Disk {
    /// Mounts one of 64 MiB below `folder`; `None`, said on stderr, where that is not allowed.
    pub(crate) fn mount(folder: &Path) -> Option<Self> {
        let (image, path) = (folder.join("image"), folder.join("disk"));
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skip(Cause::Missing, "a disk that hangs needs root and loop devices");
            return None;
        }
        File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a file of 64 MiB");
        fs::create_dir(&path).expect("a folder to write to");
        let made = run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        // The loop device is detached with the last mount.
        let mounted = made && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path));
        if !mounted {
            skip(Cause::Missing, "an ext4 image cannot be mounted here");
        }
        mounted.then_some(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Freezes the file system; `None`, said on stderr, where that is not allowed.
    pub(crate) fn freeze(&self) -> Option<Frozen<'_>> {
        if run(Command::new("fsfreeze").arg("--freeze").arg(&self.path)) {
            return Some(Frozen(&self.path));
        }
        skip(Cause::Missing, "a file system cannot be frozen here");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !run(Command::new("fsfreeze").arg("--unfreeze").arg(self.0)) {
            eprintln!("{} is still frozen: fsfreeze --unfreeze", self.0.display());
        }
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
