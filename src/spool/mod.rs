//! Batches on disk: what an output could not deliver yet, safe from a kill and, as far as configured, from a power cut.
//!
//! A [`Spool`] is a queue of [`FrameBatch`](crate::protocol::FrameBatch)es in files of one folder. It has no thread and
//! reads no clock: one thread that may wait for the disk drives it, and tells it the time.
//!
//! A spool has four parts: the log (the segments on disk), durability (what a power cut would lose), progress (what is
//! acknowledged or lost, and the cursor) and the read head. None of them knows a limit for frames: whoever reads a spool
//! checks the lengths.
//!
//! ```
//! # use tapster::protocol::{ContentType, FrameBatch};
//! use tapster::spool::{Moment, Spool, SpoolConfig};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().join("spool");
//! # let config = SpoolConfig { min_free: 0, ..SpoolConfig::default() };
//! # let batch = FrameBatch::from_payloads(["a frame"], std::time::Instant::now())?;
//! let (mut spool, report) = Spool::open(&folder, config, Some(ContentType::DNSTAP), Moment::now())?;
//! assert_eq!(report.frames, 0);
//! spool.append(&[batch.clone()], Moment::now())?;
//! let (read, position) = spool.next(Moment::now())?.expect("what was appended");
//! assert_eq!(read.bytes(), batch.bytes());
//! // Delivered: it is not read again, and its segment may go.
//! spool.acknowledge(position.after(read.frames()), Moment::now());
//! spool.close(Moment::now())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`inspect`] and [`Contents`] look at a folder without touching it, in use or not.
//!
//! # On disk
//!
//! Numbers are little-endian, checksums are CRC32C, times are nanoseconds of Unix time.
//!
//! ```text
//! seg-0000000000000001.fsr      a segment; the number is never used again
//!   0     8  magic "tapspool"                 ┐
//!   8     4  version 1                        │
//!  12    16  spool: 16 random bytes           │ header, 4096 bytes
//!  28     8  number of the segment            │
//!  36     8  number of its first frame        │
//!  44     8  created                          │
//!  52     4  length of the content type, 2³²-1 for none
//!  56     n  content type, then zeroes        │
//! 4092    4  checksum of 0..4092              ┘
//! 4096       records, one behind the other:
//!   0     4  length of the encoded frames     ┐
//!   4     4  checksum of all that follows     │
//!   8     8  number of the segment            │ 40 bytes
//!  16     8  number of the first frame        │
//!  24     4  how many frames                  │
//!  28     4  1 in a footer, else 2 × connection│
//!  32     8  when they were read              ┘
//!  40        data frames as on the wire: length word (big-endian), payload, …
//!            … and at the end of a segment that was closed in order, a footer: a record of no frames, with the
//!            number of the next frame and the time of the youngest
//!
//! cursor                        everything before it was acknowledged
//!   0    64  slot ┐ 0 8 magic "tapcurs1", 8 8 generation, 16 8 number of a segment, 24 8 offset of a record in it,
//! 4096   64  slot ┘ 32 8 number of the next frame, 40 16 spool, 60 4 checksum of 0..60
//!            … where the record at the offset begins with an earlier frame, its frames before the next one are
//!            acknowledged. A version of tapster that does not know such cursors reads the whole record again: this
//!            costs duplicates and no loss, so the version of the format is the same.
//!
//! *.bad                         files that were set aside because something in them was damaged
//! ```
//!
//! # What holds
//!
//! - **The segments alone decide what is there.** Frames are numbered through all segments. So the spool skips a record
//!   that it has seen before, and knows how many frames are missing. A cursor that is lost or old costs duplicates.
//! - **A look and a recovery are one reading.** [`inspect`] decides which files are segments, in which order, and where the frames end;
//!   a recovery mends what it found.
//! - **Damage is passed over.** Whatever is damaged, a spool opens, finds every sound record, and goes on. A torn tail is what
//!   a crash leaves, and no damage. What cannot be read now is no damage either: opening and reading fail, and are tried again.
//! - **What is not for this program stays as it is**: files of a later version, frames of another content type.
//! - **A record is bound to its place**: its checksum covers the numbers of segment and frame, so that no stale block
//!   passes for data.
//! - **Every lost frame is reported** by [`Spool::poll_loss`], once.
//! - **A segment is removed only when a durable cursor has passed it.**
//! - **What is acknowledged before its sync is due is never synced**: as long as a reader keeps up, the disk has little
//!   to do.
//! - **After a failed sync nothing is trusted that was written since the last one.** These batches are still in memory;
//!   the spool writes them again, to another segment, under the same numbers.

mod appended;
mod arrangement;
mod aside;
mod config;
mod contents;
mod cursor;
mod disk_queue;
mod durability;
pub(crate) mod entrance;
mod error;
#[cfg(test)]
mod fixture;
mod folder;
mod gaps;
mod identity;
mod inspect;
mod limits;
mod log;
mod loss;
mod moment;
mod numbered;
mod offsets;
mod open_segment;
mod outgoing;
mod progress;
mod read_head;
mod reading_end;
mod record;
mod recovery;
mod refusal;
pub(crate) mod reports;
mod scan;
mod segment;
mod sim;
pub(crate) mod stage;
pub(crate) mod stage_loop;
mod storage;
mod summary;
mod upkeep;
mod whereabouts;
mod writing_end;

pub use crate::batch::connection::ConnectionId;
pub use crate::batch::position::LogPosition;
pub use appended::Appended;
pub use arrangement::InspectedSegment;
pub use arrangement::LeftOut;
pub use config::OnFull;
pub use config::SpoolConfig;
pub use config::SpoolConfigError;
pub use config::SpoolSettings;
pub use config::SyncPolicy;
pub use contents::Content;
pub use contents::Contents;
pub use contents::Flaw;
pub use contents::Part;
pub use cursor::CursorSlot;
pub use disk_queue::Spool;
pub use error::SpoolError;
pub use folder::Folder;
pub use folder::Probed;
pub use inspect::Inspected;
pub use inspect::SegmentItems;
pub use inspect::inspect;
pub use loss::LossReason;
pub use moment::Moment;
pub use record::RECORD_LEN_MAX;
pub use record::RecordHeader;
pub use recovery::RecoveryReport;
pub use recovery::SetAside;
pub use scan::Found;
pub use segment::SEGMENT_HEADER_LEN;
pub use segment::SegmentHeader;
pub use sim::SimFile;
pub use sim::SimFolder;
pub use storage::Entry;
pub use storage::Standing;
pub use storage::Storage;
