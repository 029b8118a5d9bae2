//! Opening a spool: from whatever is in the folder to a queue that goes on.
//!
//! What is there is decided where a look decides it: in [`inspect`](crate::spool::inspect()). Here it is mended.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;

use crate::batch::connection::ConnectionId;
use crate::protocol::ContentType;
use crate::spool::arrangement::InspectedSegment;
use crate::spool::arrangement::LeftOut;
use crate::spool::aside::set_aside;
use crate::spool::config::SpoolConfig;
use crate::spool::config::SyncPolicy;
use crate::spool::cursor::CURSOR_NAME;
use crate::spool::cursor::Cursor;
use crate::spool::cursor::CursorSlot;
use crate::spool::error::SpoolError;
use crate::spool::inspect::Inspected;
use crate::spool::inspect::inspect_strictly;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::log::Log;
use crate::spool::log::LogFiles;
use crate::spool::moment::Moment;
use crate::spool::progress::Progress;
use crate::spool::record::RecordHeader;
use crate::spool::segment::Segment;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_of;
use crate::spool::segment::segment_start;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;
use crate::spool::storage::write_all;
use crate::spool::summary::Summary;
use crate::spool::summary::patiently;

/// What was found in the folder of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Frames that wait to be delivered. Some of them may turn out to be lost when they are read.
    pub frames: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Segments with frames.
    pub segments: usize,
    /// Whether a sound cursor was found: otherwise frames may come that were delivered before.
    pub cursor_found: bool,
    /// Bytes that a crash had left of records at the ends of segments.
    pub torn_bytes: u64,
    /// Files that were set aside now.
    pub set_aside: Vec<SetAside>,
    /// Files set aside, now or before, that are still there.
    pub bad_files: usize,
    /// Names in the folder that are not those of a spool. They are left alone.
    pub foreign: usize,
    /// What an operator should know about the folder.
    pub remarks: Vec<String>,
}

/// A file that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The name that it had.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A spool as it was found.
pub(super) struct Recovered<S: Storage> {
    pub(super) log: Log<S>,
    pub(super) progress: Progress<S::File>,
    /// What was found; the caller fills in what is left after the delivered segments are removed.
    pub(super) report: RecoveryReport,
}

/// Finds out what is in the folder of a spool, and mends it.
///
/// # Errors
/// [`SpoolError::Io`], [`SpoolError::OtherVersion`] and [`SpoolError::OtherContentType`]; never for what is damaged.
pub(super) fn recover<S: Storage>(
    storage: S,
    config: SpoolConfig,
    content_type: Option<ContentType>,
    now: Moment,
) -> Result<Recovered<S>, SpoolError> {
    let inspected = inspect_strictly(&storage)?;
    if let Some(refusal) = inspected.refusal(content_type.as_ref()) {
        return Err(refusal);
    }
    // From here on files are renamed and removed: not before tapster knows that the spool is one for it.
    let id = inspected.spool.unwrap_or_else(|| fastrand::u128(..).to_le_bytes());
    let segment_next = segment_next(&inspected);
    let first_waiting = inspected.first_waiting();
    let Inspected { cursor: slot, cursor_damaged, segments, left_out, head, bad, foreign, .. } = inspected;
    let report = RecoveryReport {
        remarks: storage.remarks(),
        cursor_found: slot.is_some(),
        foreign: foreign.len(),
        ..RecoveryReport::default()
    };
    let mut recovery = Recovery { storage, report, bad, segment_next };
    recovery.put_aside(left_out);
    let segments = recovery.name_segments(segments)?;
    let segments = recovery.end_segments(segments)?;
    let watermark = slot.map_or_else(
        || {
            let first = segments.front().map_or(recovery.segment_next, |first| first.number);
            segment_start(first, first_waiting.unwrap_or(head))
        },
        |slot| slot.position,
    );
    let newest = slot.unwrap_or(CursorSlot { generation: 0, position: watermark, spool: id });
    let durable = config.sync != SyncPolicy::None;
    let cursor = match slot {
        Some(slot) => {
            let file = patiently(|| recovery.storage.open(CURSOR_NAME));
            Cursor::new(file.map_err(SpoolError::io("open", CURSOR_NAME))?, slot)
        }
        None => recovery.create_cursor(cursor_damaged, newest, durable)?,
    };
    let Recovery { storage, report, mut bad, segment_next } = recovery;
    let mut segments = segments;
    for segment in &mut segments {
        (segment.created, segment.youngest) =
            (now.plausible(segment.created), now.plausible(segment.youngest));
    }
    bad.iter_mut().for_each(|entry| entry.modified = now.plausible(entry.modified));
    bad.sort_by_key(|entry| entry.modified);
    let progress = Progress::new(cursor, watermark, config.sync);
    let files = LogFiles { id, content_type, segments, segment_next, aside: bad.into(), head };
    Ok(Recovered { log: Log::new(storage, config, files), progress, report })
}

/// Higher than the number of any segment that was ever here, as far as can be seen.
fn segment_next(inspected: &Inspected) -> u64 {
    let Inspected { segments, left_out, bad, foreign, .. } = inspected;
    let files = segments.iter().chain(left_out.iter().map(|(segment, _)| segment));
    let named = files.clone().map(|segment| &segment.file).chain(bad).chain(foreign);
    let named = named.filter_map(|entry| segment_of(&entry.name));
    let numbers = named.chain(files.map(|segment| segment.number));
    // The last segment may have been acknowledged, and be gone.
    let acknowledged = inspected.cursor.map_or(0, |slot| slot.position.segment);
    numbers.filter(|number| *number <= SEGMENT_MAX / 2).fold(acknowledged, u64::max) + 1
}

/// A spool that is being opened.
struct Recovery<S: Storage> {
    storage: S,
    report: RecoveryReport,
    bad: Vec<Entry>,
    segment_next: u64,
}

impl<S: Storage> Recovery<S> {
    /// Sets aside what is no segment of this spool.
    fn put_aside(&mut self, left_out: Vec<(InspectedSegment, LeftOut)>) {
        for (segment, reason) in left_out {
            if reason == LeftOut::Short {
                // A crash can leave a file that never had a record.
                let _ = self.storage.unlink(&segment.file.name);
            } else {
                self.set_aside(segment.into_dated(), reason.as_str());
            }
        }
    }

    /// Gives segments back their names. Where two have each other's, one of them gets a new name first: names may be wrong, and a
    /// crash in between does no harm.
    fn name_segments(
        &mut self,
        mut segments: Vec<InspectedSegment>,
    ) -> Result<Vec<InspectedSegment>, SpoolError> {
        while let Some(misnamed) = segments.iter().position(InspectedSegment::is_misnamed) {
            let is_taken = |name: &str| segments.iter().any(|segment| segment.file.name == name);
            let names = segments.iter().enumerate().filter(|(_, segment)| segment.is_misnamed());
            let mut free = names.map(|(index, segment)| (index, segment_name(segment.number)));
            let (index, name) = free.find(|(_, name)| !is_taken(name)).unwrap_or_else(|| {
                self.segment_next += 1;
                (misnamed, segment_name(self.segment_next - 1))
            });
            let Some(segment) = segments.get_mut(index) else { break };
            match self.storage.rename(&segment.file.name, &name) {
                Ok(()) => segment.file.name = name,
                // Something that is no segment has come there.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let segment = segments.remove(index);
                    self.set_aside(segment.into_dated(), LeftOut::Copy.as_str());
                }
                Err(error) => return Err(SpoolError::io("rename", segment.file.name.clone())(error)),
            }
        }
        Ok(segments)
    }

    /// Ends in order the segments that were not. Those without records are removed.
    fn end_segments(&mut self, found: Vec<InspectedSegment>) -> Result<VecDeque<Segment>, SpoolError> {
        let mut segments = VecDeque::new();
        for found in found {
            let (number, frame_seq_end) = (found.number, found.end());
            let (first, is_closed, youngest) =
                (found.first_frame(), found.frame_seq_end.is_some(), found.youngest());
            let InspectedSegment { file, header, summary, .. } = found;
            let mut segment = Segment {
                number,
                frame_seq: first.unwrap_or(frame_seq_end),
                frame_seq_end,
                len: file.len,
                created: header.as_ref().map_or(youngest.unwrap_or(file.modified), |header| header.created),
                youngest: youngest.unwrap_or(file.modified),
                clock_moved_by: 0,
                damaged: header.is_none() || summary.as_ref().is_some_and(|summary| summary.damaged),
            };
            let unclosed = summary.filter(|_| !is_closed);
            let is_kept = unclosed.map_or(Ok(true), |summary| self.seal(&mut segment, &summary))?;
            if !is_kept {
                continue;
            }
            segments.push_back(segment);
        }
        Ok(segments)
    }

    /// Cuts off what a crash left behind the last record, and ends the segment in order, so that the next start is
    /// quick. Returns whether the segment is worth keeping.
    fn seal(&mut self, segment: &mut Segment, summary: &Summary) -> Result<bool, SpoolError> {
        self.report.torn_bytes += segment.len - summary.len;
        segment.len = summary.len;
        let name = segment_name(segment.number);
        if summary.first.is_none() {
            // A failure leaves a segment of no records, which costs nothing.
            let _ = self.storage.unlink(&name);
            return Ok(false);
        }
        let file = patiently(|| self.storage.open(&name)).map_err(SpoolError::io("open", name))?;
        let footer = RecordHeader {
            len: 0,
            segment: segment.number,
            frame_seq: summary.end,
            frames: 0,
            footer: true,
            connection: ConnectionId::default(),
            received: summary.youngest,
        };
        let footer = footer.encode(&[]);
        let sealed = self.storage.truncate(&file, segment.len).and_then(|()| {
            write_all(&self.storage, &file, &mut [IoSlice::new(&footer)], segment.len)?;
            self.storage.sync(&file)
        });
        if sealed.is_ok() {
            segment.len += footer.len() as u64;
        }
        Ok(true)
    }

    fn set_aside(&mut self, entry: Entry, reason: &'static str) {
        if let Ok(name) = set_aside(&self.storage, &entry.name)
            && entry.regular
        {
            self.bad.push(Entry { name, ..entry.clone() });
        }
        self.report.set_aside.push(SetAside { name: entry.name, reason });
    }

    /// A cursor file that begins with `newest`. A file that has no sound cursor is set aside.
    fn create_cursor(
        &mut self,
        is_damaged: bool,
        newest: CursorSlot,
        durable: bool,
    ) -> Result<Cursor<S::File>, SpoolError> {
        let failed = || SpoolError::io("write", "the cursor");
        if is_damaged {
            let entry = Entry { name: CURSOR_NAME.to_owned(), regular: false, len: 0, modified: 0 };
            self.set_aside(entry, "there is no sound cursor in it");
        }
        let file = self.storage.create(CURSOR_NAME).map_err(failed())?;
        let mut cursor = Cursor::new(file, newest);
        cursor.commit(&self.storage, newest.position, durable).map_err(failed())?;
        if durable {
            self.storage.sync_folder().map_err(failed())?;
        }
        Ok(cursor)
    }
}
