//! Files that are set aside because something in them is damaged: they get another name, and nobody reads them again
//! except a person.

use std::io;

use crate::spool::cursor::CURSOR_NAME;
use crate::spool::segment::segment_of;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;

/// Gives a file a name that ends with [`BAD_SUFFIX`], and returns it.
///
/// # Errors
/// What the system says.
pub(super) fn set_aside<S: Storage>(storage: &S, name: &str) -> io::Result<String> {
    for number in 0..BAD_NAMES_MAX {
        let aside =
            if number == 0 { format!("{name}{BAD_SUFFIX}") } else { format!("{name}.{number}{BAD_SUFFIX}") };
        match storage.rename(name, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether a file was set aside from a spool.
pub(super) fn is_set_aside(entry: &Entry) -> bool {
    let Some(name) = entry.name.strip_suffix(BAD_SUFFIX) else { return false };
    let is_cursor = name.split('.').next() == Some(CURSOR_NAME);
    entry.regular && (is_cursor || segment_of(name).is_some())
}

/// How the names of files end that were set aside.
const BAD_SUFFIX: &str = ".bad";

/// After so many files of one name that are set aside, something else is wrong.
const BAD_NAMES_MAX: u32 = 100;
