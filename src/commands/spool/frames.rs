//! The frames of a spool within a stretch of time, for those who take them out.

use std::path::Path;
use std::time::Duration;

use tapster::observability::printable;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Content;
use tapster::spool::Contents;
use tapster::spool::Folder;
use tapster::spool::Inspected;
use tapster::spool::Moment;
use tapster::spool::Part;

use crate::cli::time::TimeRange;
use crate::commands::tell::tell;

/// Batches in order, each with the time at which the relay read it. What is wrong with the spool stands on stderr as it
/// comes.
pub(crate) struct SpoolFrames<'a> {
    path: &'a Path,
    contents: Contents<'a, Folder>,
    range: TimeRange,
    is_whole: bool,
}

impl<'a> SpoolFrames<'a> {
    /// What waits in the spool, or `all` that is still there.
    pub(crate) fn new(
        path: &'a Path,
        (folder, inspected): &'a (Folder, Inspected),
        all: bool,
        range: TimeRange,
    ) -> Self {
        let part = if all { Part::All } else { Part::Waiting };
        let contents = Contents::new(folder, inspected, part, Moment::now());
        Self { path, contents, range, is_whole: true }
    }

    /// The type that a stream of these frames has. That of dnstap, as everywhere, where nothing in the folder tells.
    pub(crate) fn content_type(&self) -> Option<ContentType> {
        self.contents.content_type().map_or(Some(ContentType::DNSTAP), Clone::clone)
    }

    /// Whether nothing that should have come is damaged or missing, until now.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }
}

impl Iterator for SpoolFrames<'_> {
    /// The time is that since the Unix epoch.
    type Item = (Duration, FrameBatch);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.contents.next()? {
                Content::Batch(header, batch) => {
                    let received = Duration::from_nanos(header.received);
                    if self.range.contains(received) {
                        return Some((received, batch));
                    }
                }
                Content::Flaw(flaw) => {
                    tell(&format_args!("{}: {flaw}", printable(self.path)));
                    self.is_whole &= !flaw.is_damage();
                }
            }
        }
    }
}
