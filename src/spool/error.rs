//! What can go wrong with a spool.

use std::io;
use std::path::PathBuf;

use crate::observability::printable;
use crate::protocol::ContentType;
use crate::spool::segment::VERSION;

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
    /// The folder belongs to another user, who can change what is in it.
    #[error(
        "the spool folder {} belongs to user {user}, and tapster runs as user {us}: chown it, give it to a group of tapster with mode \
         2770, or choose a folder of tapster's own",
        folder.display()
    )]
    OtherOwner {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        user: u32,
        /// Our effective user.
        us: u32,
    },
    /// The folder is not where it was opened.
    #[error("the spool folder is not there any more")]
    Away,
    /// The folder was removed, or another is in its place: what was in it is lost to us.
    #[error(
        "the spool folder was removed, or another folder is in its place; tapster cannot find the frames that were in it"
    )]
    Gone,
    /// A file is of a version of the format that this program does not know.
    #[error(
        "{} is of version {version} of the spool format, and this tapster knows version {known} alone: it leaves the spool as it is; \
         run the tapster that wrote it, or give this output a folder of its own",
        name.display()
    )]
    OtherVersion {
        /// The file.
        name: PathBuf,
        /// Its version.
        version: u32,
        /// The version that is known here.
        known: u32,
    },
    /// The frames are of another content type than those of the output.
    #[error(
        "the spool holds frames of {found}, in {}, and this output has {wanted}: tapster leaves the spool as it is; give this output a \
         folder of its own, or deliver the frames first (`tapster replay DIR --to ADDRESS`)",
        name.display()
    )]
    OtherContentType {
        /// The first such file.
        name: PathBuf,
        /// The content type of its frames, for people.
        found: String,
        /// The content type of the output, for people.
        wanted: String,
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
    pub(super) fn other_version(name: &str, version: u32) -> Self {
        Self::OtherVersion { name: name.into(), version, known: VERSION }
    }

    pub(super) fn other_content_type(
        name: &str,
        found: Option<&ContentType>,
        wanted: Option<&ContentType>,
    ) -> Self {
        let words = |content_type: Option<&ContentType>| match content_type {
            Some(name) => format!("content type `{name}`"),
            None => "no content type".to_owned(),
        };
        Self::OtherContentType { name: name.into(), found: words(found), wanted: words(wanted) }
    }

    pub(super) fn io(action: &'static str, name: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        move |source| Self::Io { action, name, source }
    }
}
