//! The file system operations that a spool is made of, all within its one folder.

use std::io;
use std::io::IoSlice;

/// One folder and its files. Names are plain: no path leads out of the folder, no link is followed. A thread of its own
/// may have it.
///
/// [`Folder`](crate::spool::Folder) is the kernel's; [`SimFolder`](crate::spool::SimFolder) forgets, fails and tears on request.
pub trait Storage: Send {
    /// An open regular file.
    type File: Send;

    /// What an operator should know about the folder.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the folder is still where it was opened.
    ///
    /// # Errors
    /// What the system says: then nobody knows.
    fn standing(&self) -> io::Result<Standing>;

    /// Whether an open file has this name in the folder.
    ///
    /// # Errors
    /// What the system says.
    fn has_name(&self, file: &Self::File, name: &str) -> io::Result<bool>;

    /// What is in the folder, in any order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Creates a file that did not exist, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`; what the system says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a regular file: for reading, and for writing where the folder is.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a regular file; what the system says.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file a name that is free.
    ///
    /// # Errors
    /// `AlreadyExists`; what the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: what was created, renamed and removed.
    ///
    /// # Errors
    /// What the system says.
    fn sync_folder(&self) -> io::Result<()>;

    /// Bytes that the file system still has for us.
    ///
    /// # Errors
    /// What the system says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Length of a file, in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self, file: &Self::File) -> io::Result<u64>;

    /// Reads at `offset`. May be short; 0 at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, file: &Self::File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at `offset`. May be short.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, file: &Self::File, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Sets aside room for the first `len` bytes of a file, whose length stays: they are written with less work. A
    /// truncation gives back what is not used.
    ///
    /// # Errors
    /// What the system says. Nothing depends on it.
    fn reserve(&self, file: &Self::File, len: u64) -> io::Result<()>;

    /// Cuts the file to `len` bytes.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, file: &Self::File, len: u64) -> io::Result<()>;

    /// Makes what was written to the file durable.
    ///
    /// # Errors
    /// What the system says. Then nothing that was written since the last success can be relied on.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
}

/// How the folder of a spool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is where it was opened.
    InPlace,
    /// Nothing is there now: it was moved, or its file system is away.
    Away,
    /// It was removed, or another folder is there: nobody finds its files any more.
    Gone,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name; names that are not UTF-8 are none of ours, and written with replacement characters.
    pub name: String,
    /// Whether it is a regular file: not a folder, a link or a device.
    pub regular: bool,
    /// Its length, in bytes.
    pub len: u64,
    /// When it was last written, in nanoseconds of Unix time.
    pub modified: u64,
}

/// Writes all of `buffers` at `offset`.
///
/// # Errors
/// What the system says; any part of the buffers may have been written.
pub(super) fn write_all<S: Storage>(
    storage: &S,
    file: &S::File,
    mut buffers: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    while !buffers.is_empty() {
        let front = buffers.get(..BUFFERS_MAX).unwrap_or(buffers);
        match storage.write_at(file, front, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                offset += count as u64;
                IoSlice::advance_slices(&mut buffers, count);
            }
        }
    }
    Ok(())
}

/// Reads at `offset` until `buffer` is full or the file ends. Returns how much was read.
///
/// # Errors
/// What the system says.
pub(super) fn read_full<S: Storage>(
    storage: &S,
    file: &S::File,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match storage.read_at(file, rest, offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Most buffers of one write: `IOV_MAX` of Linux.
const BUFFERS_MAX: usize = 1024;
