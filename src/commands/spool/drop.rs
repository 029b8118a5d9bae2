//! `tapster spool drop`: an end to what waits.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use jiff::Timestamp;
use tapster::observability::printable;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SpoolError;

use crate::cli::spool::SpoolDropArgs;
use crate::commands::CommandError;
use crate::commands::count::count_frames;
use crate::commands::count::counted;
use crate::commands::spool::list::Listing;
use crate::commands::spool::look::look;
use crate::commands::spool::time::Time;
use crate::commands::stdout_failed;

/// Removes what is in the folder, as far as it is old enough.
pub(crate) fn drop(args: &SpoolDropArgs) -> Result<ExitCode, CommandError> {
    let folder = printable(&args.folder);
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(format!("{folder}: {error}"));
    let (opened, inspected) = look(&args.folder).map_err(|error| failed(&error))?;
    if !args.yes {
        let listing = Listing::of(&opened, &args.folder).map_err(|error| failed(&error))?;
        let would_drop = would_drop(&listing, args.before);
        return Err(CommandError::Usage(format!("{folder}: would {would_drop}: add --yes to do it")));
    }
    let content_type = inspected.newest_header().and_then(|header| header.content_type.clone());
    let config = SpoolConfig { min_free: 0, ..SpoolConfig::default() };
    let opened = Spool::open(&args.folder, config, content_type, Moment::now());
    let (mut spool, _) = opened.map_err(|error| failed(&error))?;
    let bytes_before = spool.bytes();
    let result = drop_from(&mut spool, args.before);
    let dropped: u64 = std::iter::from_fn(|| spool.poll_loss()).map(|(_, frames)| frames).sum();
    let (dropped, left) = (count_frames(dropped), count_frames(spool.frames()));
    let bytes = bytes_before.saturating_sub(spool.bytes());
    let told = writeln!(io::stdout(), "{folder}: dropped {dropped}, freed {bytes} bytes; {left} waiting");
    result.map_err(|error| failed(&error))?;
    told.map_or_else(|error| stdout_failed(&error), |()| Ok(ExitCode::SUCCESS))
}

fn drop_from(spool: &mut Spool, before: Option<Timestamp>) -> Result<(), SpoolError> {
    let now = Moment::now();
    match before {
        Some(before) => spool.drop_before(unix(before), now)?,
        None => {
            spool.drop_before(u64::MAX, now)?;
            // Frames that were in no segment are lost now, too.
            while spool.next(now)?.is_some() {}
        }
    }
    spool.close(now)
}

fn would_drop(listing: &Listing, before: Option<Timestamp>) -> String {
    let before = Time(before.map_or(u64::MAX, unix));
    let segments = listing.segments.iter().take_while(|segment| segment.youngest < Some(before));
    let frames = segments.clone().map(|segment| segment.frames_waiting).sum();
    let (segments, frames) = (counted(segments.count() as u64, "segment"), count_frames(frames));
    let files = listing.set_aside.iter().filter(|file| file.modified < before).count();
    let files = counted(files as u64, "file");
    format!("drop {segments} with {frames} that wait, and {files} that were set aside")
}

/// Nanoseconds of Unix time.
fn unix(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}
