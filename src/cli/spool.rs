//! The command line of `tapster spool`.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;
use jiff::Timestamp;

use crate::cli::time::TimeRange;
use crate::cli::time::time;

#[derive(Debug, Subcommand)]
pub(crate) enum SpoolCommand {
    /// Tell what is in the folder: segments, frames, times, the cursor, what was set aside, and what is foreign
    List(SpoolLookArgs),
    /// Verify every record, and tell what is damaged or missing
    #[command(after_help = CHECK_NOTES)]
    Check(SpoolLookArgs),
    /// Write the frames that wait as a Frame Streams file; nothing is removed
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(SpoolDumpArgs),
    /// Remove what is in the folder of a spool that is not in use
    #[command(after_help = DROP_NOTES)]
    Drop(SpoolDropArgs),
}

#[derive(Args, Debug)]
pub(crate) struct SpoolLookArgs {
    /// Folders of spools, in use or not
    #[arg(required = true, value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,
    /// Print an object per folder instead of text for people
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SpoolDumpArgs {
    /// Folder of a spool, in use or not
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Write to this file, which must not exist; `-` is stdout [default: stdout, if it is no terminal]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
    /// Everything that is still there: frames that were delivered, and what is sound in files that were set aside, too
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) range: TimeRange,
}

#[derive(Args, Debug)]
pub(crate) struct SpoolDropArgs {
    /// Folder of a spool that is not in use
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Only segments of which every frame was read before this time: `2026-03-01T08:00:00Z`, `yesterday`, `2h` (ago) …
    #[arg(long, value_parser = time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) before: Option<Timestamp>,
    /// Do it; otherwise it is only told what would be dropped
    #[arg(short, long)]
    pub(crate) yes: bool,
}

pub(super) const SPOOL_EXAMPLES: &str = "\
Examples:
  tapster spool list /var/spool/tapster/*
  tapster spool check --json /var/spool/tapster/siem
  tapster spool dump /var/spool/tapster/siem --to waiting.fstrm
  tapster spool dump /var/spool/tapster/siem --from 2h | dnstap -r /dev/stdin
  tapster spool drop /var/spool/tapster/siem --before 7d --yes

`list`, `check` and `dump` take no lock and change nothing: the relay may be
running. `tapster replay DIR` sends a spool to a reader.";

const CHECK_NOTES: &str = "\
A torn end, as a crash or a write under way leaves it, is named and is no
damage. Missing are frames that nobody has acknowledged and that no segment
has: the relay will count them as lost, reason `spool_damaged`. It also passes
over what is damaged, and sets the file aside when it is done with it.

With --json: {\"folder\",\"content_type\",\"frames\",\"frames_waiting\",\"bytes\",
\"status\",\"flaws\",\"flaws_count\",\"set_aside\"} per folder; the first 1000 flaws
are listed.

Exit status: 0 every folder is sound; 1 something is damaged, was set aside,
or cannot be read.";

const DUMP_EXAMPLES: &str = "\
Examples:
  tapster spool dump /var/spool/tapster/siem --to waiting.fstrm
  tapster spool dump /var/spool/tapster/siem --all | fstrm_dump /dev/stdin
  tapster spool dump /var/spool/tapster/siem --from 08:00 --until 09:00 \\
      --to morning.fstrm

The time of a frame is when the relay read it. What is damaged is named on
stderr; everything that is sound is written all the same.

Exit status: 0 everything that was asked for is in the file, which ends with
STOP; 1 something is damaged or missing, or writing failed.";

const DROP_NOTES: &str = "\
Segments go as a whole, and so do files that were set aside. The cursor stays,
so that no number is used twice; files that are not those of a spool stay, too.
The folder is locked meanwhile: in use by a relay, it is refused.";
