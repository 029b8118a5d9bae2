//! `tapster spool dump`: a spool as a Frame Streams file.

use std::io;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tapster::observability::printable;

use crate::cli::spool::SpoolDumpArgs;
use crate::commands::CommandError;
use crate::commands::check_range;
use crate::commands::count::count_frames;
use crate::commands::file_sink::FileSink;
use crate::commands::spool::frames::SpoolFrames;
use crate::commands::spool::look::look;
use crate::commands::tell::tell;

/// Writes START, the frames, and STOP; the exit code tells whether all of them were there.
pub(crate) fn dump(args: &SpoolDumpArgs) -> Result<ExitCode, CommandError> {
    check_range(&args.range)?;
    if args.to.is_none() && io::stdout().is_terminal() {
        let message = "frames are not for a terminal: name a file with --to, or `-` if you mean it";
        return Err(CommandError::Usage(message.to_owned()));
    }
    let folder = printable(&args.folder);
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(format!("{folder}: {error}"));
    let found = look(&args.folder).map_err(|error| failed(&error))?;
    let mut frames = SpoolFrames::new(&args.folder, &found, args.all, args.range);
    let to = args.to.as_deref().unwrap_or(Path::new("-"));
    let name = if to == Path::new("-") { "stdout".to_owned() } else { printable(to).to_string() };
    let count = write(&mut frames, to).map_err(|error| CommandError::Failed(format!("{name}: {error}")))?;
    tell(&format_args!("{folder}: {} written to {name}", count_frames(count)));
    Ok(if frames.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a whole file and counts its frames. They are on disk when this returns, if it is a file on one: the spool may
/// be dropped next.
fn write(frames: &mut SpoolFrames<'_>, to: &Path) -> io::Result<u64> {
    let mut out = FileSink::create(to, frames.content_type())?;
    let mut count = 0;
    for (_, batch) in &mut *frames {
        out.write(batch.bytes())?;
        count += u64::from(batch.frames());
    }
    out.finish()?;
    Ok(count)
}
