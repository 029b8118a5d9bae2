//! Opening a spool: from whatever is in the folder to a queue that goes on.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::IoSlice;

use crate::batch::connection::ConnectionId;
use crate::protocol::ContentType;
use crate::spool::aside::is_set_aside;
use crate::spool::aside::set_aside;
use crate::spool::config::SpoolConfig;
use crate::spool::config::SyncPolicy;
use crate::spool::cursor::CURSOR_NAME;
use crate::spool::cursor::Cursor;
use crate::spool::cursor::CursorSlot;
use crate::spool::cursor::FoundCursor;
use crate::spool::error::SpoolError;
use crate::spool::identity::identify;
use crate::spool::limits::FRAME_SEQ_MAX;
use crate::spool::limits::SEGMENT_MAX;
use crate::spool::log::Log;
use crate::spool::log::LogFiles;
use crate::spool::moment::Moment;
use crate::spool::progress::Progress;
use crate::spool::record::RecordHeader;
use crate::spool::segment::FoundHeader;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::Segment;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::read_footer;
use crate::spool::segment::read_header;
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
    /// Bytes that a crash had left of records at the end of the last segment.
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
    let mut recovery = Recovery::new(storage, content_type);
    recovery.report.remarks = recovery.storage.remarks();
    recovery.list()?;
    let cursor_file = recovery.open_cursor()?;
    let slot = recovery.read_cursor(cursor_file.as_ref())?;
    let examined = recovery.examine_segments()?;
    let (id, slot) = recovery.identify(&examined, slot);
    recovery.check_content_type(&examined, &id)?;
    // From here on files are renamed and removed: not before tapster knows that the spool is one for it.
    for (entry, reason) in std::mem::take(&mut recovery.unfit) {
        recovery.set_aside(&entry, reason);
    }
    recovery.name_segments(examined);
    recovery.report.cursor_found = slot.is_some();
    if let Some(slot) = slot {
        // The last segment may have been acknowledged, and be gone.
        recovery.segment_next = recovery.segment_next.max(slot.position.segment + 1);
    }
    let (mut segments, mut head) = recovery.order(&id, slot)?;
    recovery.end_last(&mut segments, &mut head)?;
    let watermark = slot.map_or_else(
        || {
            let first = segments.front();
            let number = first.map_or(recovery.segment_next, |first| first.number);
            segment_start(number, first.map_or(head, |first| first.frame_seq))
        },
        |slot| slot.position,
    );
    let newest = CursorSlot { generation: 0, position: watermark, spool: id };
    let durable = config.sync != SyncPolicy::None;
    let cursor = match cursor_file.zip(slot) {
        Some((file, slot)) => Cursor::new(file, slot),
        None => recovery.create_cursor(newest, durable)?,
    };
    let Recovery { storage, content_type, report, mut bad, segment_next, .. } = recovery;
    for segment in &mut segments {
        (segment.created, segment.youngest) =
            (now.plausible(segment.created), now.plausible(segment.youngest));
    }
    bad.iter_mut().for_each(|entry| entry.modified = now.plausible(entry.modified));
    bad.sort_by_key(|entry| entry.modified);
    let progress = Progress::new(cursor, watermark, config.sync);
    let head = head.max(watermark.frame_seq);
    let files = LogFiles { id, content_type, segments, segment_next, aside: bad.into(), head };
    Ok(Recovered { log: Log::new(storage, config, files), progress, report })
}

/// A segment file: its number by its name, and its header where that is sound.
type Examined = (u64, Entry, Option<SegmentHeader>);

/// A spool that is being opened.
struct Recovery<S: Storage> {
    storage: S,
    content_type: Option<ContentType>,
    report: RecoveryReport,
    has_cursor: bool,
    bad: Vec<Entry>,
    /// What is to be set aside, and why.
    unfit: Vec<(Entry, &'static str)>,
    /// Segments by number, and their headers where these are sound.
    segments: BTreeMap<u64, (Entry, Option<SegmentHeader>)>,
    /// Higher than the number of any segment that was ever here, as far as can be seen.
    segment_next: u64,
}

impl<S: Storage> Recovery<S> {
    fn new(storage: S, content_type: Option<ContentType>) -> Self {
        Self {
            storage,
            content_type,
            report: RecoveryReport::default(),
            has_cursor: false,
            bad: Vec::new(),
            unfit: Vec::new(),
            segments: BTreeMap::new(),
            segment_next: 1,
        }
    }

    /// Sorts what is in the folder by name.
    fn list(&mut self) -> Result<(), SpoolError> {
        let entries = patiently(|| self.storage.list()).map_err(SpoolError::io("list", "the folder"))?;
        for entry in entries {
            let number = segment_of(&entry.name);
            if let Some(number) = number.filter(|number| *number <= SEGMENT_MAX / 2) {
                self.segment_next = self.segment_next.max(number + 1);
            }
            match number {
                _ if is_set_aside(&entry) => self.bad.push(entry),
                Some(number) if entry.name == segment_name(number) => {
                    if !entry.regular {
                        self.unfit.push((entry, "not a regular file"));
                    } else if number > SEGMENT_MAX / 2 {
                        self.unfit.push((entry, "its number is out of reach"));
                    } else {
                        self.segments.insert(number, (entry, None));
                    }
                }
                None if entry.name == CURSOR_NAME && entry.regular => self.has_cursor = true,
                None if entry.name == CURSOR_NAME => self.unfit.push((entry, "not a regular file")),
                _ => self.report.foreign += 1,
            }
        }
        Ok(())
    }

    fn open_cursor(&self) -> Result<Option<S::File>, SpoolError> {
        if !self.has_cursor {
            return Ok(None);
        }
        let file = patiently(|| self.storage.open(CURSOR_NAME));
        file.map(Some).map_err(SpoolError::io("open", CURSOR_NAME))
    }

    fn read_cursor(&self, file: Option<&S::File>) -> Result<Option<CursorSlot>, SpoolError> {
        let Some(file) = file else { return Ok(None) };
        match patiently(|| Cursor::read(&self.storage, file)).map_err(SpoolError::io("read", CURSOR_NAME))? {
            FoundCursor::OtherVersion(version) => Err(SpoolError::other_version(CURSOR_NAME, version)),
            found => Ok(found.sound()),
        }
    }

    /// Reads headers and footers. Refuses, before anything is changed, what is of another version or content type.
    fn examine_segments(&mut self) -> Result<Vec<Examined>, SpoolError> {
        let mut examined = Vec::new();
        for (number, (mut entry, _)) in std::mem::take(&mut self.segments) {
            if entry.len < SEGMENT_HEADER_LEN as u64 {
                examined.push((number, entry, None));
                continue;
            }
            let failed = |action| SpoolError::io(action, entry.name.clone());
            let file = patiently(|| self.storage.open(&entry.name)).map_err(failed("open"))?;
            let header = match patiently(|| read_header(&self.storage, &file)).map_err(failed("read"))? {
                FoundHeader::OtherVersion(version) => {
                    return Err(SpoolError::other_version(&entry.name, version));
                }
                found => found.sound(),
            };
            let written_as = header.as_ref().map_or(number, |header| header.segment);
            let footer = patiently(|| read_footer(&self.storage, &file, written_as, entry.len));
            if let Some(footer) = footer.map_err(failed("read"))? {
                // The age of its frames, whatever has touched the file since.
                entry.modified = footer.received;
            }
            examined.push((number, entry, header));
        }
        Ok(examined)
    }

    /// Gives segments back their names.
    fn name_segments(&mut self, examined: Vec<Examined>) {
        for (number, entry, header) in examined {
            if entry.len < SEGMENT_HEADER_LEN as u64 {
                // A crash can leave a file that never had a record.
                let _ = self.storage.unlink(&entry.name);
                continue;
            }
            match &header {
                Some(found) if found.segment != number => self.rename_back(entry, header, number),
                _ => {
                    self.segments.insert(number, (entry, header));
                }
            }
        }
    }

    /// A segment that has the name of another gets its own, unless that is taken.
    fn rename_back(&mut self, mut entry: Entry, header: Option<SegmentHeader>, named: u64) {
        let number = header.as_ref().map_or(named, |header| header.segment);
        let name = segment_name(number);
        if number > SEGMENT_MAX / 2 || self.storage.rename(&entry.name, &name).is_err() {
            return self.set_aside(&entry, "it has the name of another segment");
        }
        self.segment_next = self.segment_next.max(number + 1);
        entry.name = name;
        self.segments.insert(number, (entry, header));
    }

    /// Which spool this is. A cursor of another is set aside.
    fn identify(&self, examined: &[Examined], slot: Option<CursorSlot>) -> ([u8; 16], Option<CursorSlot>) {
        let headers = examined.iter().filter_map(|(_, _, header)| header.as_ref());
        let (id, slot) = identify(headers, slot);
        (id.unwrap_or_else(|| fastrand::u128(..).to_le_bytes()), slot)
    }

    /// The segments of this spool in order, and a number that is above those of all frames but of the last segment.
    fn order(
        &mut self,
        id: &[u8; 16],
        slot: Option<CursorSlot>,
    ) -> Result<(VecDeque<Segment>, u64), SpoolError> {
        let mut segments = VecDeque::<Segment>::new();
        let mut head = slot.map_or(0, |slot| slot.position.frame_seq);
        for (number, (entry, header)) in std::mem::take(&mut self.segments) {
            if header.as_ref().is_some_and(|header| header.spool != *id) {
                self.set_aside(&entry, "it is of another spool");
                continue;
            }
            let first = header.as_ref().map(|header| header.frame_seq);
            let (first, end) = if first.is_none() {
                let summary = self.summary(&entry.name, number, entry.len)?;
                (summary.first, summary.end)
            } else {
                (first, 0)
            };
            let Some(frame_seq) = first else {
                self.set_aside(&entry, "there is no sound record in it");
                continue;
            };
            let end = end.max(frame_seq);
            if end > FRAME_SEQ_MAX / 2 || segments.back().is_some_and(|last| last.frame_seq > frame_seq) {
                self.set_aside(&entry, "its frames are out of order");
                continue;
            }
            head = head.max(end);
            segments.push_back(Segment {
                number,
                frame_seq,
                len: entry.len,
                created: header.as_ref().map_or(entry.modified, |header| header.created),
                youngest: entry.modified,
                clock_moved_by: 0,
                damaged: header.is_none(),
            });
        }
        Ok((segments, head))
    }

    /// Finds out where the frames of the last segment end, and ends it in order. One without records is removed.
    fn end_last(&mut self, segments: &mut VecDeque<Segment>, head: &mut u64) -> Result<(), SpoolError> {
        while let Some(last) = segments.back_mut() {
            let name = segment_name(last.number);
            let failed = |action| SpoolError::io(action, name.clone());
            let file = patiently(|| self.storage.open(&name)).map_err(failed("open"))?;
            let summary =
                Summary::read(&self.storage, &file, last.number, last.len).map_err(failed("read"))?;
            *head = (*head).max(summary.end);
            last.damaged |= summary.damaged;
            last.youngest = summary.youngest;
            if self.seal(&file, last, &summary) {
                break;
            }
            segments.pop_back();
        }
        Ok(())
    }

    fn summary(&self, name: &str, number: u64, len: u64) -> Result<Summary, SpoolError> {
        let file = patiently(|| self.storage.open(name)).map_err(SpoolError::io("open", name))?;
        Summary::read(&self.storage, &file, number, len).map_err(SpoolError::io("read", name))
    }

    /// Refuses a spool with frames that this output does not take.
    fn check_content_type(&self, examined: &[Examined], id: &[u8; 16]) -> Result<(), SpoolError> {
        let own = examined.iter().filter_map(|(_, entry, header)| Some(entry).zip(header.as_ref()));
        let mut own = own.filter(|(_, header)| header.spool == *id);
        match own.find(|(_, header)| header.content_type != self.content_type) {
            None => Ok(()),
            Some((entry, header)) => Err(SpoolError::other_content_type(
                &entry.name,
                header.content_type.as_ref(),
                self.content_type.as_ref(),
            )),
        }
    }

    /// Cuts off what a crash left behind the last record, and ends the segment in order, so that the next start is
    /// quick. Returns whether the segment is worth keeping.
    fn seal(&mut self, file: &S::File, segment: &mut Segment, summary: &Summary) -> bool {
        if summary.closed {
            return true;
        }
        self.report.torn_bytes += segment.len - summary.len;
        segment.len = summary.len;
        if summary.first.is_none() {
            // A failure leaves a segment of no records, which costs nothing.
            let _ = self.storage.unlink(&segment_name(segment.number));
            return false;
        }
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
        let sealed = self.storage.truncate(file, segment.len).and_then(|()| {
            write_all(&self.storage, file, &mut [IoSlice::new(&footer)], segment.len)?;
            self.storage.sync(file)
        });
        if sealed.is_ok() {
            segment.len += footer.len() as u64;
        }
        true
    }

    fn set_aside(&mut self, entry: &Entry, reason: &'static str) {
        if let Ok(name) = set_aside(&self.storage, &entry.name)
            && entry.regular
        {
            self.bad.push(Entry { name, ..entry.clone() });
        }
        self.report.set_aside.push(SetAside { name: entry.name.clone(), reason });
    }

    /// A cursor file that begins with `newest`. A file that has no sound cursor is set aside.
    fn create_cursor(&mut self, newest: CursorSlot, durable: bool) -> Result<Cursor<S::File>, SpoolError> {
        let failed = || SpoolError::io("write", "the cursor");
        if self.has_cursor {
            let entry = Entry { name: CURSOR_NAME.to_owned(), regular: false, len: 0, modified: 0 };
            self.set_aside(&entry, "there is no sound cursor in it");
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
