//! `tapster spool check`: is every record what it was when it was written?

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tapster::observability::printable;
use tapster::spool::Content;
use tapster::spool::Contents;
use tapster::spool::Flaw;
use tapster::spool::Folder;
use tapster::spool::Found;
use tapster::spool::Moment;
use tapster::spool::Part;
use tapster::spool::SegmentItems;

use crate::cli::spool::SpoolLookArgs;
use crate::commands::CommandError;
use crate::commands::count::count_frames;
use crate::commands::spool::list::print_json;
use crate::commands::spool::look::look;
use crate::commands::stdout_failed;
use crate::commands::tell::tell;

/// What `--json` prints for a folder.
#[derive(Debug, Serialize)]
struct Report {
    folder: String,
    content_type: Option<String>,
    /// Sound, in segments.
    frames: u64,
    frames_waiting: u64,
    /// Of these frames, with their length words.
    bytes: u64,
    status: &'static str,
    /// The first of them, in the order of frames.
    flaws: Vec<Flaw>,
    flaws_count: u64,
    set_aside: Vec<SetAside>,
}

/// A file that was set aside.
#[derive(Debug, Serialize)]
struct SetAside {
    file: String,
    /// Sound frames in it.
    frames: u64,
}

/// Checks the folders one after the other; the exit code tells whether all are sound.
pub(crate) fn check(args: &SpoolLookArgs) -> Result<ExitCode, CommandError> {
    let mut all_sound = true;
    for path in &args.folders {
        let (folder, inspected) = match look(path) {
            Ok(found) => found,
            Err(error) => {
                tell(&format_args!("{}: {error}", printable(path)));
                all_sound = false;
                continue;
            }
        };
        let contents = Contents::new(&folder, &inspected, Part::Segments, Moment::now());
        let acknowledged = inspected.cursor.map_or(0, |slot| slot.position.frame_seq());
        let mut report = Report::new(path, &contents);
        let set_aside = inspected.bad.iter().map(|entry| SetAside::of(&folder, &entry.name));
        report.set_aside = set_aside.collect();
        let printed = report.fill(contents, acknowledged, args.json);
        if let Err(error) = printed.and_then(|()| report.print(args.json)) {
            return stdout_failed(&error);
        }
        all_sound &= report.status == SOUND;
    }
    Ok(if all_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Report {
    fn new(path: &Path, contents: &Contents<'_, Folder>) -> Self {
        Self {
            folder: path.display().to_string(),
            content_type: contents.content_type().and_then(|name| name.as_ref()).map(ToString::to_string),
            frames: 0,
            frames_waiting: 0,
            bytes: 0,
            status: SOUND,
            flaws: Vec::new(),
            flaws_count: 0,
            set_aside: Vec::new(),
        }
    }

    /// Reads everything; what is wrong is printed as it comes, or kept for `--json`.
    fn fill(&mut self, contents: Contents<'_, Folder>, acknowledged: u64, json: bool) -> io::Result<()> {
        for content in contents {
            match content {
                Content::Batch(header, batch) => {
                    let frames = u64::from(header.frames);
                    self.frames += frames;
                    self.bytes += batch.byte_len() as u64;
                    let waiting = header.frame_seq_end().saturating_sub(acknowledged);
                    self.frames_waiting += waiting.min(frames);
                }
                Content::Flaw(flaw) => {
                    if flaw.is_damage() {
                        self.status = DAMAGED;
                    }
                    self.flaws_count += 1;
                    if !json {
                        writeln!(io::stdout().lock(), "{}: {flaw}", printable(&self.folder))?;
                    } else if self.flaws.len() < FLAWS_MAX {
                        self.flaws.push(flaw);
                    }
                }
            }
        }
        if !self.set_aside.is_empty() {
            self.status = DAMAGED;
        }
        Ok(())
    }

    fn print(&self, json: bool) -> io::Result<()> {
        if json {
            return print_json(self);
        }
        let mut out = io::stdout().lock();
        let Self { frames, frames_waiting, bytes, status, .. } = self;
        let folder = printable(&self.folder);
        for SetAside { file, frames } in &self.set_aside {
            let (file, frames) = (printable(file), count_frames(*frames));
            writeln!(out, "{folder}: {file}: was set aside, {frames} in it sound: see `dump --all`")?;
        }
        let frames = count_frames(*frames);
        writeln!(out, "{folder}: {status}, {frames}, {bytes} bytes, {frames_waiting} waiting")
    }
}

impl SetAside {
    fn of(folder: &Folder, name: &str) -> Self {
        // What cannot be read has no sound frames.
        let items = SegmentItems::open(folder, name).into_iter().flatten().map_while(Result::ok);
        let frames = items.map(|item| match item {
            Found::Record(header, _) => u64::from(header.frames),
            Found::Damage { .. } => 0,
        });
        Self { file: name.to_owned(), frames: frames.sum() }
    }
}

const SOUND: &str = "sound";
const DAMAGED: &str = "damaged";

/// An object holds no more flaws: memory has a limit, and so have readers.
const FLAWS_MAX: usize = 1000;
