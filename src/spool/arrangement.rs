//! Which files of a folder are the segments of the spool, and in which order: one rule, for those who look and for a recovery.

use std::collections::BTreeMap;

use crate::spool::limits::FRAME_SEQ_MAX;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::segment_name;
use crate::spool::storage::Entry;
use crate::spool::summary::Summary;

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSegment {
    /// The file.
    pub file: Entry,
    /// Its number: by its header or, where that is damaged, by its name.
    pub number: u64,
    /// Its header; `None` where that is damaged.
    pub header: Option<SegmentHeader>,
    /// The version of the format, where it is one that is not known here: then nothing of the file can be read.
    pub other_version: Option<u32>,
    /// Number of the frame after its last; `None` where it was not closed in order, or is written to now.
    pub frame_seq_end: Option<u64>,
    /// When its youngest frame was read, in nanoseconds of Unix time; `None` as above.
    pub(super) footer_youngest: Option<u64>,
    /// What its records tell; `None` where header and footer tell enough, or the file cannot be read.
    pub(super) summary: Option<Summary>,
    /// The file cannot be read now, or is gone: nothing is known of it.
    pub(super) unread: bool,
}

impl InspectedSegment {
    /// Number of its first frame; `None` where nothing tells.
    pub fn first_frame(&self) -> Option<u64> {
        let first = self.header.as_ref().map(|header| header.frame_seq);
        first.or_else(|| self.summary.as_ref().and_then(|summary| summary.first))
    }

    /// Number of the frame after its last one.
    pub fn end(&self) -> u64 {
        let summary = self.summary.as_ref().map_or(0, |summary| summary.end);
        self.frame_seq_end.unwrap_or(0).max(summary).max(self.first_frame().unwrap_or(0))
    }

    /// Whether it has no record, not even a footer: it was begun, and nothing has come yet or is left.
    pub(super) fn has_no_records(&self) -> bool {
        self.summary.as_ref().is_some_and(|summary| summary.first.is_none())
    }

    /// When its youngest frame was read, in nanoseconds of Unix time; `None` where it has none, or nothing tells.
    pub fn youngest(&self) -> Option<u64> {
        let of_records =
            || self.summary.as_ref().map(|summary| summary.youngest).filter(|youngest| *youngest > 0);
        self.footer_youngest.or_else(of_records)
    }

    /// The file, with the time of its youngest frame where that is known, whatever has touched the file since.
    pub(super) fn into_dated(self) -> Entry {
        Entry { modified: self.youngest().unwrap_or(self.file.modified), ..self.file }
    }

    /// Whether the file has the name of another segment.
    pub(super) fn is_misnamed(&self) -> bool {
        self.file.name != segment_name(self.number)
    }
}

/// Why a file with the name of a segment is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// It is a folder, a link or a device.
    NotRegular,
    /// It is shorter than a header, and never had a record.
    Short,
    /// It is of a version of the format that is not known here.
    OtherVersion(u32),
    /// Nobody can have written so many segments, or so many frames.
    OutOfReach,
    /// It is of another spool.
    OtherSpool,
    /// Its header is damaged, and there is no sound record.
    NoRecords,
    /// It is the same segment as another file, which has the right name or comes before.
    Copy,
    /// Its frames come before those of a segment with a lower number.
    OutOfOrder,
}

impl LeftOut {
    /// In words, of a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRegular => "not a regular file",
            Self::Short => "it ends within its header",
            Self::OtherVersion(_) => "it is of another version of the spool format",
            Self::OutOfReach => "its number is out of reach",
            Self::OtherSpool => "it is of another spool",
            Self::NoRecords => "there is no sound record in it",
            Self::Copy => "it has the name of another segment",
            Self::OutOfOrder => "its frames are out of order",
        }
    }
}

/// The segments of a spool, and what is none.
#[derive(Debug, Default)]
pub(super) struct Arrangement {
    /// In order.
    pub(super) segments: Vec<InspectedSegment>,
    /// What is not read, and why.
    pub(super) left_out: Vec<(InspectedSegment, LeftOut)>,
    /// A number that is above those of all frames.
    pub(super) head: u64,
}

/// Arranges the segment files of the spool `id`.
///
/// A spool has one file for each number, and the frames of a segment begin no earlier than those of the segment before. They may
/// overlap: after a failed sync, and when a segment is shortened, frames are written again, under the same numbers, into the next one.
/// So the head is above the frames of every segment, not of the last alone.
pub(super) fn arrange(mut found: Vec<InspectedSegment>, id: Option<[u8; 16]>) -> Arrangement {
    let mut arrangement = Arrangement::default();
    // Of copies, the one counts that has the right name.
    found.sort_by(|one, other| {
        (one.is_misnamed(), &one.file.name).cmp(&(other.is_misnamed(), &other.file.name))
    });
    let mut by_number = BTreeMap::new();
    for segment in found {
        let reason = reason_against(&segment, id)
            .or_else(|| by_number.contains_key(&segment.number).then_some(LeftOut::Copy));
        match reason {
            Some(reason) => arrangement.left_out.push((segment, reason)),
            None => drop(by_number.insert(segment.number, segment)),
        }
    }
    let mut last = 0;
    for segment in by_number.into_values() {
        let (first, end) = (segment.first_frame(), segment.end());
        if end > FRAME_SEQ_MAX / 2 || first.is_some_and(|first| first < last) {
            arrangement.left_out.push((segment, LeftOut::OutOfOrder));
            continue;
        }
        last = first.unwrap_or(last);
        arrangement.head = arrangement.head.max(end);
        arrangement.segments.push(segment);
    }
    arrangement.left_out.sort_by(|(one, _), (other, _)| one.file.name.cmp(&other.file.name));
    arrangement
}

/// What speaks against a file, whatever else there is.
fn reason_against(segment: &InspectedSegment, id: Option<[u8; 16]>) -> Option<LeftOut> {
    if !segment.file.regular {
        return Some(LeftOut::NotRegular);
    }
    if segment.unread {
        return None;
    }
    if segment.file.len < SEGMENT_HEADER_LEN as u64 {
        return Some(LeftOut::Short);
    }
    if let Some(version) = segment.other_version {
        return Some(LeftOut::OtherVersion(version));
    }
    if segment.number > SEGMENT_MAX / 2 {
        return Some(LeftOut::OutOfReach);
    }
    match &segment.header {
        Some(header) => (Some(header.spool) != id).then_some(LeftOut::OtherSpool),
        None => segment.has_no_records().then_some(LeftOut::NoRecords),
    }
}
