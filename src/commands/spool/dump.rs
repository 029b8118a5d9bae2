//! `tapster spool dump`: a spool as a Frame Streams file.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufWriter;
use std::io::IntoInnerError;
use std::io::IsTerminal;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use tapster::protocol::FileWriter;

use crate::cli::spool::SpoolDumpArgs;
use crate::commands::CommandError;
use crate::commands::check_range;
use crate::commands::file::count_frames;
use crate::commands::spool::frames::SpoolFrames;
use crate::commands::spool::look::look;

/// Writes START, the frames, and STOP; the exit code tells whether all of them were there.
pub(crate) fn dump(args: &SpoolDumpArgs) -> Result<ExitCode, CommandError> {
    check_range(&args.range)?;
    if args.to.is_none() && io::stdout().is_terminal() {
        let message = "frames are not for a terminal: name a file with --to, or `-` if you mean it";
        return Err(CommandError::Usage(message.to_owned()));
    }
    let folder = args.folder.display();
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(format!("{folder}: {error}"));
    let found = look(&args.folder).map_err(|error| failed(&error))?;
    let mut frames = SpoolFrames::new(&args.folder, &found, args.all, args.range);
    let to = args.to.as_deref().unwrap_or(Path::new("-"));
    let name = if to == Path::new("-") { "stdout".to_owned() } else { to.display().to_string() };
    let written = open(to).and_then(|file| write(&mut frames, file));
    let count = written.map_err(|error| CommandError::Failed(format!("{name}: {error}")))?;
    eprintln!("tapster: {folder}: {} written to {name}", count_frames(count));
    Ok(if frames.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a whole file and counts its frames. They are on disk when this returns, if it is a file on one: the spool may
/// be dropped next.
fn write(frames: &mut SpoolFrames<'_>, file: File) -> io::Result<u64> {
    let format = FileWriter::new(frames.content_type());
    let mut out = BufWriter::with_capacity(WRITE_LEN, file);
    out.write_all(&format.header())?;
    let mut count = 0;
    for (_, batch) in &mut *frames {
        out.write_all(batch.bytes())?;
        count += u64::from(batch.frames());
    }
    out.write_all(&format.trailer())?;
    let file = out.into_inner().map_err(IntoInnerError::into_error)?;
    if file.metadata()?.is_file() {
        file.sync_all()?;
    }
    Ok(count)
}

/// Opens what is written to. No file is overwritten.
fn open(to: &Path) -> io::Result<File> {
    if to == Path::new("-") {
        return Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    }
    let is_file = to.metadata().map_or(true, |metadata| metadata.is_file());
    OpenOptions::new().write(true).create_new(is_file).open(to)
}

/// Records are written at once from this length on, in bytes; shorter ones are gathered.
const WRITE_LEN: usize = 128 << 10;
