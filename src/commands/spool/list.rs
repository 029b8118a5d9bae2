//! `tapster spool list`: what is in the folder of a spool.

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tapster::observability::printable;
use tapster::observability::printable_json;
use tapster::spool::CursorSlot;
use tapster::spool::Entry;
use tapster::spool::Folder;
use tapster::spool::Found;
use tapster::spool::Inspected;
use tapster::spool::InspectedSegment;
use tapster::spool::LeftOut;
use tapster::spool::SegmentItems;
use tapster::spool::SpoolError;
use tapster::spool::inspect;

use crate::cli::spool::SpoolLookArgs;
use crate::commands::CommandError;
use crate::commands::count::count_frames;
use crate::commands::count::counted;
use crate::commands::spool::time::Time;
use crate::commands::stdout_failed;
use crate::commands::tell::tell;

/// What `--json` prints for a folder.
#[derive(Debug, Serialize)]
pub(super) struct Listing {
    folder: String,
    content_type: Option<String>,
    frames: u64,
    pub(super) frames_waiting: u64,
    bytes: u64,
    oldest: Option<Time>,
    youngest: Option<Time>,
    cursor: Option<ListedCursor>,
    cursor_damaged: bool,
    pub(super) segments: Vec<ListedSegment>,
    pub(super) set_aside: Vec<ListedFile>,
    foreign: Vec<ListedFile>,
}

#[derive(Debug, Serialize)]
struct ListedCursor {
    segment: u64,
    offset: u64,
    frame: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct ListedSegment {
    file: String,
    status: &'static str,
    /// Number of the first frame; `None` where there is none.
    first_frame: Option<u64>,
    frames: u64,
    pub(super) frames_waiting: u64,
    bytes: u64,
    oldest: Option<Time>,
    pub(super) youngest: Option<Time>,
}

#[derive(Debug, Serialize)]
pub(super) struct ListedFile {
    file: String,
    bytes: u64,
    pub(super) modified: Time,
}

/// Prints the folders one after the other; the exit code tells whether all could be read.
pub(crate) fn list(args: &SpoolLookArgs) -> Result<ExitCode, CommandError> {
    let mut all_read = true;
    for path in &args.folders {
        let listing = Folder::open_to_inspect(path).and_then(|folder| Listing::of(&folder, path));
        let printed = match listing {
            Ok(listing) if args.json => print_json(&listing),
            Ok(listing) => listing.print(&mut io::stdout().lock()),
            Err(error) => {
                tell(&format_args!("{}: {error}", printable(path)));
                all_read = false;
                continue;
            }
        };
        if let Err(error) = printed {
            return stdout_failed(&error);
        }
    }
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One object on a line of its own.
pub(super) fn print_json(report: &impl Serialize) -> io::Result<()> {
    let json = printable_json(report).expect("a report is plain data");
    writeln!(io::stdout().lock(), "{json}")
}

impl Listing {
    pub(super) fn of(folder: &Folder, path: &Path) -> Result<Self, SpoolError> {
        let inspected = inspect(folder)?;
        let cursor = inspected.cursor.map(|slot| slot.position);
        let mut position = cursor.map_or(0, |position| position.frame_seq());
        let segments = inspected.segments.iter().filter_map(|segment| {
            let mut listed = ListedSegment::of(folder, segment, position)?;
            if cursor.is_some_and(|cursor| segment.number < cursor.segment()) {
                listed.frames_waiting = 0;
            }
            position = position.max(listed.first_frame.unwrap_or(0) + listed.frames);
            Some(listed)
        });
        let mut segments: Vec<_> = segments.collect();
        // A folder or a link is listed with what is foreign, whatever its name.
        let (files, others): (Vec<_>, Vec<_>) =
            inspected.left_out.iter().partition(|(segment, _)| segment.file.regular);
        segments.extend(files.into_iter().map(|(segment, reason)| ListedSegment::left_out(segment, *reason)));
        segments.sort_by(|one, other| one.file.cmp(&other.file));
        let Inspected { bad, foreign, cursor, cursor_damaged, .. } = &inspected;
        let content_type = inspected.newest_header().and_then(|header| header.content_type.as_ref());
        Ok(Self {
            folder: path.display().to_string(),
            content_type: content_type.map(ToString::to_string),
            frames: segments.iter().map(|segment| segment.frames).sum(),
            frames_waiting: segments.iter().map(|segment| segment.frames_waiting).sum(),
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            oldest: segments.iter().filter_map(|segment| segment.oldest).min(),
            youngest: segments.iter().filter_map(|segment| segment.youngest).max(),
            cursor: cursor.as_ref().map(ListedCursor::from),
            cursor_damaged: *cursor_damaged,
            segments,
            set_aside: bad.iter().map(ListedFile::from).collect(),
            foreign: foreign
                .iter()
                .chain(others.into_iter().map(|(segment, _)| &segment.file))
                .map(ListedFile::from)
                .collect(),
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let (folder, bytes) = (printable(&self.folder), self.bytes);
        let unknown = if self.segments.is_empty() { "content type unknown" } else { "no content type" };
        let content_type = self.content_type.as_deref().unwrap_or(unknown);
        write!(out, "{folder}: {content_type}, {} waiting, ", count_frames(self.frames_waiting))?;
        let segments = counted(self.segments.len() as u64, "segment");
        writeln!(out, "{segments} of {bytes} bytes{}", span(self.oldest, self.youngest))?;
        match &self.cursor {
            Some(ListedCursor { segment, offset, frame }) => {
                writeln!(
                    out,
                    "  cursor: before frame {frame}, in segment {segment} from offset {offset} on"
                )?;
            }
            None if self.cursor_damaged => writeln!(out, "  cursor: damaged, or of another spool")?,
            None => writeln!(out, "  cursor: none")?,
        }
        for segment in &self.segments {
            let ListedSegment { file, status, frames_waiting, bytes, oldest, youngest, .. } = segment;
            let frames = count_frames(segment.frames);
            let span = span(*oldest, *youngest);
            writeln!(out, "  {file}: {status}, {frames}, {frames_waiting} waiting, {bytes} bytes{span}")?;
        }
        for (what, files) in [("set aside", &self.set_aside), ("foreign", &self.foreign)] {
            for ListedFile { file, bytes, modified } in files {
                // Anybody may have chosen such a name.
                let file = printable(file);
                writeln!(out, "  {what}: {file}, {bytes} bytes, written {modified}")?;
            }
        }
        Ok(())
    }
}

fn span(oldest: Option<Time>, youngest: Option<Time>) -> String {
    let span = oldest.zip(youngest).map(|(oldest, youngest)| format!(", {oldest:.3} to {youngest:.3}"));
    span.unwrap_or_default()
}

impl ListedSegment {
    /// By header and footer; a segment that has not both was read. `None` if it has gone meanwhile.
    fn of(folder: &Folder, segment: &InspectedSegment, position: u64) -> Option<Self> {
        let status = match (&segment.header, segment.frame_seq_end) {
            (Some(_), Some(_)) => "closed",
            (Some(_), None) => "open",
            (None, _) => "header damaged",
        };
        let items = match SegmentItems::open(folder, &segment.file.name) {
            Ok(items) => Some(items),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => None,
        };
        let items = items.into_iter().flatten().map_while(Result::ok);
        let mut headers = items.filter_map(|item| match item {
            Found::Record(header, _) if header.frames > 0 => Some(header),
            _ => None,
        });
        let first = headers.next();
        let first_frame = first.and_then(|_| segment.first_frame());
        let count_from = |from: u64| segment.end().saturating_sub(from);
        Some(Self {
            file: segment.file.name.clone(),
            status,
            first_frame,
            frames: first_frame.map_or(0, count_from),
            frames_waiting: first_frame.map_or(0, |first| count_from(first.max(position))),
            bytes: segment.file.len,
            oldest: first.map(|first| Time(first.received)),
            youngest: segment.youngest().filter(|_| first.is_some()).map(Time),
        })
    }

    /// A file that is no segment of the spool.
    fn left_out(segment: &InspectedSegment, reason: LeftOut) -> Self {
        Self {
            file: segment.file.name.clone(),
            status: reason.as_str(),
            first_frame: None,
            frames: 0,
            frames_waiting: 0,
            bytes: segment.file.len,
            oldest: None,
            youngest: None,
        }
    }
}

impl From<&CursorSlot> for ListedCursor {
    fn from(slot: &CursorSlot) -> Self {
        let position = slot.position;
        Self { segment: position.segment(), offset: position.offset(), frame: position.frame_seq() }
    }
}

impl From<&Entry> for ListedFile {
    fn from(entry: &Entry) -> Self {
        Self { file: entry.name.clone(), bytes: entry.len, modified: Time(entry.modified) }
    }
}
