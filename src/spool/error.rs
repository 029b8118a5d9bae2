//! What can go wrong with a spool.

use std::io;
use std::path::PathBuf;

use crate::observability::printable;

/// Why a spool cannot be opened, or cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// Another spool has the folder.
    #[error(
        "the spool folder {} is in use by another process: stop that one, or give this output a folder of its own",
        printable(folder)
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The system refused something. It may work later.
    #[error("cannot {action} {}: {source}", printable(name))]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        name: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can be written. What was appended before and is not durable stays in memory, and is tried again.
    #[error("the spool cannot be written: {source}")]
    Degraded {
        /// What the system said.
        source: io::Error,
    },
}

impl SpoolError {
    pub(super) fn io(action: &'static str, name: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        move |source| Self::Io { action, name, source }
    }
}
