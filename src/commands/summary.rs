//! The ledger as `--summary` writes it, at the end of a run.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tapster::observability::Ledger;
use tapster::observability::printable;
use tapster::observability::printable_json;

use crate::commands::CommandError;

/// Writes the ledger as JSON; `-` is stdout. A FIFO or pipe that nobody reads does not hold up the end.
pub(crate) fn write_summary(path: &Path, ledger: &Ledger) -> Result<(), CommandError> {
    let mut json = printable_json(ledger).expect("a ledger is plain data");
    json.push('\n');
    write(path, json.as_bytes()).map_err(|error| {
        CommandError::Failed(format!("the summary cannot be written to {}: {error}", printable(path)))
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path == Path::new("-") {
        return write_while_it_moves(io::stdout().as_fd(), bytes);
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::NXIO.raw_os_error() => {
            io::Error::other("nobody reads this FIFO: start its reader before tapster ends, or name a file")
        }
        _ => error,
    })?;
    write_while_it_moves(file.as_fd(), bytes)
}

/// Gives up when nobody has taken anything for [`STALL`].
fn write_while_it_moves(file: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut waiting = [PollFd::new(&file, PollFlags::OUT)];
        match poll(&mut waiting, Some(&STALL)) {
            Ok(0) => return Err(io::Error::other("its reader takes nothing")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // A pipe that is ready has room for this: even a blocking one takes it at once.
        let piece = &bytes[..bytes.len().min(PIPE_PIECE)];
        match rustix::io::write(file, piece) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

const STALL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// `PIPE_BUF`: bytes.
const PIPE_PIECE: usize = 4096;
