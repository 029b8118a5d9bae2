//! The frames in the folder of a spool, and what is wrong with them, without touching it: in use or not.
//!
//! What waits is what [`Spool::next`](crate::spool::Spool::next) would give, found by the same rules: which files are segments, in
//! which order, and where the frames end is decided in [`inspect`], and whether a record is sound in the record.

use std::collections::VecDeque;
use std::io;

use serde::Serialize;

use crate::observability::printable;
use crate::protocol::ContentType;
use crate::protocol::FrameBatch;
use crate::spool::arrangement::InspectedSegment;
use crate::spool::arrangement::LeftOut;
use crate::spool::cursor::CURSOR_NAME;
use crate::spool::cursor::Cursor;
use crate::spool::cursor::FoundCursor;
use crate::spool::inspect::Inspected;
use crate::spool::inspect::SegmentItems;
use crate::spool::inspect::inspect;
use crate::spool::moment::Moment;
use crate::spool::numbered::without_first;
use crate::spool::record::RecordHeader;
use crate::spool::scan::Found;
use crate::spool::segment::SEGMENT_HEADER_LEN;
use crate::spool::segment::SegmentHeader;
use crate::spool::segment::segment_of;
use crate::spool::storage::Storage;

/// How much of a spool is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What waits to be delivered: behind the cursor.
    Waiting,
    /// Every segment: what was delivered and is not removed yet, too.
    Segments,
    /// Everything that is sound and still there: in files that were set aside, too.
    All,
}

/// What is found in a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The frames of a sound record; where the first of them are delivered, or were found before, the others, with a
    /// header that says so.
    Batch(RecordHeader, FrameBatch),
    /// Something that is not as it should be.
    Flaw(Flaw),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Flaw {
    /// Bytes that are no record.
    #[error("{}: {bytes} bytes from offset {offset} on are damaged", printable(file))]
    Damaged {
        /// Name of the file.
        file: String,
        /// Where they begin, in bytes.
        offset: u64,
        /// How many there are.
        bytes: u64,
    },
    /// The end of a file that is no record. It is no damage: the frames in it, if any, were never wholly written.
    #[error("{}: the last {bytes} bytes are no record: a crash or a write under way", printable(file))]
    Torn {
        /// Name of the file.
        file: String,
        /// Where they begin, in bytes.
        offset: u64,
        /// How many there are.
        bytes: u64,
    },
    /// The header of a segment. Its records are found without it.
    #[error("{}: the header is damaged", printable(file))]
    Header {
        /// Name of the file.
        file: String,
    },
    /// The cursor: frames may come that were delivered before.
    #[error("cursor: damaged, or of another spool: frames that were delivered before count as waiting")]
    Cursor,
    /// Frames that are not acknowledged, and in no segment that is read.
    #[error("frames {first} to {} are missing: {frames} in all", first + frames - 1)]
    Missing {
        /// Number of the first of them.
        first: u64,
        /// How many there are.
        frames: u64,
    },
    /// A segment of another version of the format, which is not read: tapster leaves a spool with such files as it is.
    #[error("{}: is of version {version} of the spool format, which this tapster does not know", file.escape_debug())]
    OtherVersion {
        /// Name of the file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// A segment of another spool, which is not read.
    #[error("{}: is of another spool, and left out", printable(file))]
    OtherSpool {
        /// Name of the file.
        file: String,
    },
    /// A segment of another content type, which is not read.
    #[error("{}: is of another content type ({content_type}), and left out", printable(file))]
    OtherContentType {
        /// Name of the file.
        file: String,
        /// The type, for people.
        content_type: String,
    },
    /// A file with the name of a segment that is not read for another reason.
    #[error("{}: {reason}, and it is left out", printable(file))]
    LeftOut {
        /// Name of the file.
        file: String,
        /// Why.
        reason: &'static str,
    },
    /// The rest of a file cannot be read.
    #[error("{}: cannot be read from offset {offset} on: {error}", printable(file))]
    Unreadable {
        /// Name of the file.
        file: String,
        /// Where that was tried, in bytes.
        offset: u64,
        /// What the system said.
        error: String,
    },
}

impl Flaw {
    /// Whether something may be lost by it. A torn end is what a crash leaves.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Torn { .. })
    }
}

/// The contents of a spool, in the order of its frames; no frame twice. One record is in memory at a time, beside a
/// few bytes for each file.
pub struct Contents<'a, S: Storage> {
    storage: &'a S,
    now: Moment,
    /// Of the frames; `None` where no header tells.
    content_type: Option<Option<ContentType>>,
    spool: Option<[u8; 16]>,
    /// Files to come.
    files: VecDeque<File>,
    current: Option<(File, SegmentItems<'a, S>)>,
    /// Frames below it are not missed.
    acknowledged: Option<u64>,
    /// Number of the next frame. `None` before the first.
    position: Option<u64>,
    /// Number of the frame after the last one of this spool, as far as can be seen before all is read.
    head: u64,
    /// Found, and not given yet.
    found: VecDeque<Content>,
}

/// A segment, or one that was set aside.
#[derive(Clone, Debug)]
struct File {
    name: String,
    spool: Option<[u8; 16]>,
    number: u64,
    /// Number of its first frame.
    frame_seq: u64,
    /// Number of the frame after the last one that a record of it may have.
    frame_seq_end: u64,
    /// Where to begin, in bytes.
    offset: u64,
}

impl<'a, S: Storage> Contents<'a, S> {
    /// The contents of the spool that `inspected` tells of.
    pub fn new(storage: &'a S, inspected: &Inspected, part: Part, now: Moment) -> Self {
        let start = inspected.cursor.map(|slot| slot.position).filter(|_| part == Part::Waiting);
        let acknowledged = inspected.first_waiting();
        let mut contents = Self {
            storage,
            now,
            content_type: inspected.newest_header().map(|header| header.content_type.clone()),
            spool: inspected.spool,
            files: VecDeque::new(),
            current: None,
            acknowledged,
            position: acknowledged.filter(|_| part == Part::Waiting),
            head: inspected.head,
            found: VecDeque::new(),
        };
        if inspected.cursor_damaged {
            contents.found(Flaw::Cursor);
        }
        for (segment, reason) in &inspected.left_out {
            contents.leave_out(segment, *reason, part);
        }
        for segment in &inspected.segments {
            if start.is_none_or(|start| start.segment <= segment.number) {
                let offset = start.filter(|start| start.segment == segment.number).map(|start| start.offset);
                contents.add_segment(segment, offset);
            }
        }
        if part == Part::All {
            for entry in &inspected.bad {
                if let Some(number) = segment_of(&entry.name) {
                    contents.add_other(&entry.name, number);
                }
            }
            let own = contents.spool;
            let files = contents.files.make_contiguous();
            files.sort_by_key(|file| (file.spool != own, file.spool, file.frame_seq, file.number));
        }
        contents
    }

    /// Content type of the frames; `None` where no header tells, `Some(None)` where the spool takes any.
    pub fn content_type(&self) -> Option<&Option<ContentType>> {
        self.content_type.as_ref()
    }

    /// Tells of a file that is no segment of the spool. Where everything is wanted, it is read too.
    fn leave_out(&mut self, segment: &InspectedSegment, reason: LeftOut, part: Part) {
        let file = segment.file.name.clone();
        match reason {
            LeftOut::OtherVersion(version) => self.found(Flaw::OtherVersion { file, version }),
            // It never had a record: begun just now, or left by a crash.
            LeftOut::Short if segment.file.len == 0 => {}
            LeftOut::Short => self.found(Flaw::Torn { file, offset: 0, bytes: segment.file.len }),
            LeftOut::NotRegular => self.found(Flaw::LeftOut { file, reason: reason.as_str() }),
            _ if part == Part::All => self.add_other(&file, segment.number),
            LeftOut::OtherSpool => self.found(Flaw::OtherSpool { file }),
            _ => self.found(Flaw::LeftOut { file, reason: reason.as_str() }),
        }
    }

    fn add_segment(&mut self, segment: &InspectedSegment, offset: Option<u64>) {
        let file = segment.file.name.clone();
        match &segment.header {
            Some(header) if !self.is_of_content_type(header) => return self.other_content_type(file, header),
            None if !segment.unread => self.found(Flaw::Header { file: file.clone() }),
            _ => {}
        }
        self.files.push_back(File {
            name: file,
            spool: self.spool,
            number: segment.number,
            frame_seq: segment.first_frame().unwrap_or(u64::MAX),
            frame_seq_end: segment.frame_seq_end.map_or(u64::MAX, |_| segment.end()),
            offset: offset.unwrap_or(SEGMENT_HEADER_LEN as u64),
        });
    }

    /// Takes a file into the list that is no segment, of whatever spool.
    fn add_other(&mut self, name: &str, number: u64) {
        let file = name.to_owned();
        let mut items = match SegmentItems::open(self.storage, name) {
            Ok(items) => items,
            Err(error) => return self.cannot_read(file, 0, &error),
        };
        let offset = items.offset();
        let (spool, number, frame_seq) = match items.header() {
            Some(header) if !self.is_of_content_type(header) => {
                let header = header.clone();
                return self.other_content_type(file, &header);
            }
            Some(header) => (Some(header.spool), header.segment, header.frame_seq),
            None if items.len() <= offset => return,
            None => {
                self.found(Flaw::Header { file: file.clone() });
                let first = items.find_map(|item| match item {
                    Ok(Found::Damage { .. }) => None,
                    Ok(Found::Record(header, _)) => Some(header.frame_seq),
                    Err(_) => Some(u64::MAX),
                });
                (self.spool, number, first.unwrap_or(u64::MAX))
            }
        };
        self.files.push_back(File { name: file, spool, number, frame_seq, frame_seq_end: u64::MAX, offset });
    }

    /// Whether the frames are of the type of the spool. Where no segment tells the type, the first file does.
    fn is_of_content_type(&mut self, header: &SegmentHeader) -> bool {
        *self.content_type.get_or_insert_with(|| header.content_type.clone()) == header.content_type
    }

    fn other_content_type(&mut self, file: String, header: &SegmentHeader) {
        let content_type =
            header.content_type.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        self.found(Flaw::OtherContentType { file, content_type });
    }

    fn found(&mut self, flaw: Flaw) {
        self.found.push_back(Content::Flaw(flaw));
    }

    fn cannot_read(&mut self, file: String, offset: u64, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            return self.found(Flaw::Unreadable { file, offset, error: error.to_string() });
        }
        // It has gone since the folder was listed: the cursor had passed it before, and tells how far.
        let slot = self.storage.open(CURSOR_NAME).and_then(|file| Cursor::read(self.storage, &file));
        let slot = slot.ok().and_then(FoundCursor::sound).filter(|slot| Some(slot.spool) == self.spool);
        self.acknowledged = self.acknowledged.max(slot.map(|slot| slot.position.frame_seq));
    }

    /// Goes on with the next file. `None` behind the last file: every flaw was reported by then.
    fn open_next(&mut self) -> Option<()> {
        let Some(file) = self.files.pop_front() else {
            self.end();
            return (!self.found.is_empty()).then_some(());
        };
        if file.spool != self.spool {
            self.end();
            // Its numbers have nothing to do with those before.
            (self.spool, self.position, self.acknowledged) = (file.spool, None, None);
        }
        match SegmentItems::open(self.storage, &file.name) {
            Ok(mut items) => {
                items.seek(file.offset);
                self.current = Some((file, items));
            }
            Err(error) => self.cannot_read(file.name, 0, &error),
        }
        Some(())
    }

    /// Notes what is missing at the end of a spool.
    fn end(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        if self.position.max(self.acknowledged).is_some_and(|position| position < head)
            && let Ok(again) = inspect(self.storage)
            && again.spool == self.spool
        {
            // A spool at work may have gone on, or taken numbers back: the second look counts.
            head = head.min(again.head);
            self.acknowledged = self.acknowledged.max(again.cursor.map(|slot| slot.position.frame_seq));
        }
        self.expect(head);
    }

    /// Goes on by one record or stretch of damage.
    fn go_on(&mut self, file: File, mut items: SegmentItems<'a, S>) {
        let offset = items.offset();
        let Some(mut item) = items.next() else { return };
        if matches!(item, Ok(Found::Damage { .. })) && !items.is_at_end() {
            // A full disk makes a spool at work take back what it wrote, and write there again: the second look counts.
            items.seek(offset);
            item = items.next().unwrap_or(item);
        }
        let (name, bytes) = (file.name.clone(), items.offset() - offset);
        match item {
            Ok(Found::Record(header, _)) if header.footer => {
                // Of files that are no segments nothing else tells where they end.
                self.head = self
                    .head
                    .max(Some(header.frame_seq).filter(|end| *end <= file.frame_seq_end).unwrap_or(0));
            }
            Ok(Found::Record(header, payload)) => {
                let read_at = self.now.instant_of(header.received);
                match header.batch_of(payload, file.frame_seq_end, read_at) {
                    Some(batch) => self.take(header, batch),
                    None => self.found(Flaw::Damaged { file: name, offset, bytes }),
                }
            }
            Ok(Found::Damage { .. }) if items.is_at_end() => {
                self.found(Flaw::Torn { file: name, offset, bytes });
            }
            Ok(Found::Damage { .. }) => self.found(Flaw::Damaged { file: name, offset, bytes }),
            Err(error) => {
                return self.found(Flaw::Unreadable { file: name, offset, error: error.to_string() });
            }
        }
        self.current = Some((file, items));
    }

    /// Takes the frames of a record that were not found before.
    fn take(&mut self, header: RecordHeader, batch: FrameBatch) {
        let end = header.frame_seq_end();
        if self.position < Some(end) {
            self.expect(header.frame_seq);
            let first = self.position.max(Some(header.frame_seq)).unwrap_or_default();
            self.position = Some(end);
            self.found.push_back(rest_from(first, header, batch));
        }
    }

    /// Notes what is missing before frame `frame_seq`.
    fn expect(&mut self, frame_seq: u64) {
        let expected = self.position.max(self.acknowledged);
        if let Some(first) = expected.filter(|expected| *expected < frame_seq) {
            self.found(Flaw::Missing { first, frames: frame_seq - first });
        }
        self.position = self.position.max(Some(frame_seq));
    }
}

/// The frames of a record from number `first` on, which it has.
fn rest_from(first: u64, header: RecordHeader, batch: FrameBatch) -> Content {
    let batch = without_first(batch, first.saturating_sub(header.frame_seq));
    let len = batch.byte_len() as u32; // no longer than the record
    Content::Batch(RecordHeader { len, frame_seq: first, frames: batch.frames(), ..header }, batch)
}

impl<S: Storage> Iterator for Contents<'_, S> {
    type Item = Content;

    fn next(&mut self) -> Option<Content> {
        while self.found.is_empty() {
            match self.current.take() {
                Some((file, items)) => self.go_on(file, items),
                None => self.open_next()?,
            }
        }
        self.found.pop_front()
    }
}
