//! Into a folder, as every command does first.

use std::path::Path;

use tapster::spool::Folder;
use tapster::spool::Inspected;
use tapster::spool::SpoolError;
use tapster::spool::inspect;

/// Why a folder is not looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("there is no spool in it")]
    NoSpool,
}

/// Opens the folder of a spool, without a lock, and lists what is in it.
pub(crate) fn look(path: &Path) -> Result<(Folder, Inspected), LookError> {
    let folder = Folder::open_to_inspect(path)?;
    let inspected = inspect(&folder)?;
    if inspected.is_no_spool() { Err(LookError::NoSpool) } else { Ok((folder, inspected)) }
}
