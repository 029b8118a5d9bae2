//! How a file ends, in words: where it is damaged, and what is likely to have damaged it.

use std::io;
use std::time::Duration;
use std::time::SystemTime;

use tapster::dnstap::Message;
use tapster::protocol::ControlType;
use tapster::protocol::FilePosition;
use tapster::protocol::FileStatus;
use tapster::protocol::ProtocolError;
use tapster::protocol::scan;

use crate::commands::source::Facts;

/// What is to be said about a file that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// `clean`, `truncated` or `damaged`.
    pub(crate) status: &'static str,
    /// Where, what, and why; `None` for a clean file.
    pub(crate) detail: Option<String>,
    /// Where the whole frames end.
    pub(crate) position: FilePosition,
}

/// What is known of a file that was read as far as it goes.
pub(crate) struct Evidence<'a> {
    pub(crate) end: &'a FileStatus,
    pub(crate) position: FilePosition,
    pub(crate) facts: &'a Facts,
    /// The first bytes of the file.
    pub(crate) head: &'a [u8],
    /// What was read behind the last whole frame.
    pub(crate) rest: &'a [u8],
    /// What is wrong with the compression.
    pub(crate) unpacking: Option<&'a io::Error>,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.status == "clean"
    }

    /// Weighs the evidence. `now` tells whether the file may still be written.
    pub(crate) fn of(evidence: &Evidence<'_>, now: SystemTime) -> Self {
        let Evidence { end, position, facts, unpacking, .. } = evidence;
        let (status, mut words) = match (end, unpacking) {
            (_, Some(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                ("truncated", vec![evidence.cut_compression()])
            }
            (_, Some(error)) => ("damaged", vec![evidence.bad_compression(error)]),
            (FileStatus::Clean, None) => ("clean", Vec::new()),
            (FileStatus::Truncated { bytes }, None) => ("truncated", evidence.truncated(*bytes)),
            (FileStatus::Damaged(fault), None) => ("damaged", evidence.damaged(fault)),
            (FileStatus::Garbage, None) => ("damaged", vec![evidence.garbage()]),
        };
        if status == "truncated" {
            words.extend(facts.modified.and_then(|modified| still_written(modified, now)));
        }
        if status != "clean" && facts.compression.is_some() && position.offset > 0 {
            words.push("offsets count the bytes that were unpacked".to_owned());
        }
        Self { status, detail: (!words.is_empty()).then(|| words.join("; ")), position: *position }
    }
}

impl Evidence<'_> {
    /// The frame that is not whole.
    fn place(&self) -> String {
        format!("at byte {}, frame {}", self.position.offset, self.position.frames + 1)
    }

    fn truncated(&self, bytes: usize) -> Vec<String> {
        if self.head.is_empty() {
            return vec!["is empty".to_owned()];
        }
        if let Some(name) = named(self.head) {
            return vec![name];
        }
        let behind_stop = self.position.streams > 0 && self.rest.starts_with(&[0; 4][..bytes.min(4)]);
        let offset = self.position.offset;
        let what = match bytes {
            _ if self.position.streams == 0 => "ends before START is complete".to_owned(),
            0 => format!("ends without STOP, at byte {offset}, behind frame {}", self.position.frames),
            _ if behind_stop => {
                format!("ends within a control frame, at byte {offset}, {bytes} bytes of it are there")
            }
            _ => format!("ends within a frame ({}), {bytes} bytes of it are there", self.place()),
        };
        let blocks = self.facts.len.is_some_and(|len| len > 0 && len.is_multiple_of(BLOCK_LEN));
        let why = match (bytes, blocks) {
            (1.., true) => {
                "likely cause: the disk was full, or the machine lost power (the length is a multiple of 4096 bytes)"
            }
            (0, _) => "likely cause: its writer ended without STOP, as many do",
            _ => "likely cause: its writer was killed, the disk was full, or the copy is not complete",
        };
        vec![what, why.to_owned()]
    }

    fn damaged(&self, fault: &ProtocolError) -> Vec<String> {
        if self.position.streams == 0
            && let Some(name) = named(self.head).or_else(|| self.wrong_beginning(fault))
        {
            return vec![name];
        }
        let mut words = vec![format!("is damaged {}: {fault}", self.place())];
        words.extend(self.cause(fault).map(|cause| format!("likely cause: {cause}")));
        words
    }

    /// A file that is none, by its first frame.
    fn wrong_beginning(&self, fault: &ProtocolError) -> Option<String> {
        match fault {
            ProtocolError::UnexpectedControl { got: ControlType::Ready, .. } => {
                let len = self.position.offset + first_control_len(self.head)?;
                Some(format!(
                    "begins with READY: it is one direction of a socket, what a writer sent to its reader, and no \
                     file; `tail -c +{}` cuts READY off",
                    len + 1
                ))
            }
            ProtocolError::UnexpectedControl { got: got @ (ControlType::Accept | ControlType::Finish), .. } => {
                Some(format!(
                    "begins with {got}: it is one direction of a socket, what a reader answered to its writer, and \
                     holds no frames"
                ))
            }
            ProtocolError::UnexpectedData { .. } if self.begins_with_data() => Some(
                "has no header: it begins with a data frame and not with START; likely cause: its front was cut \
                 off, or it is a part of a larger file"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether the file begins with data frames, and not with just anything.
    fn begins_with_data(&self) -> bool {
        let found = scan(self.head, FRAME_LEN_LIKELY);
        let first = self.head.get(4..).unwrap_or_default();
        let is_dnstap =
            |len: u32| first.get(..len as usize).is_some_and(|first| Message::parse(first).is_ok());
        let len = self.head.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
        found.frames > 1 || found.frames == 1 && is_dnstap(len)
    }

    fn cause(&self, fault: &ProtocolError) -> Option<&'static str> {
        let is_zeros = self.rest.len() >= ZEROS_MIN && self.rest.iter().all(|byte| *byte == 0);
        if is_zeros {
            return Some("the machine lost power, or a copy was not complete: only zeros follow");
        }
        if has_carriage_returns(self.head, self.rest) {
            return Some(
                "text mode: a transfer wrote CR LF in place of each LF; copy the file in binary mode",
            );
        }
        if is_text_of_other_bytes(self.head, self.rest) {
            return Some("text mode: a program took the file for text and recoded its bytes");
        }
        match fault {
            // A length near 2^32 is a stream out of step; a moderate one may be a frame.
            ProtocolError::FrameTooLong { len, .. } if *len < 1 << 31 => Some(
                "its frames may be so long: then allow it with frame_len_max; or bytes were lost or changed",
            ),
            ProtocolError::UnexpectedControl { got: ControlType::Start, .. } => {
                Some("another file was appended to one that had not ended with STOP")
            }
            _ => Some("bytes were lost, added or changed before this place"),
        }
    }

    fn garbage(&self) -> String {
        let offset = self.position.offset;
        let len = self.facts.len.filter(|_| self.facts.compression.is_none());
        let count = len.and_then(|len| len.checked_sub(offset)).filter(|count| *count > 0);
        let bytes = match count {
            Some(1) => "1 byte".to_owned(),
            Some(count) => format!("{count} bytes"),
            None => "bytes".to_owned(),
        };
        let zeros = if self.rest.iter().all(|byte| *byte == 0) { " (zeros)" } else { "" };
        format!("has garbage behind STOP: {bytes}{zeros} from byte {offset} on that begin no stream")
    }

    fn cut_compression(&self) -> String {
        let name = self.facts.compression.unwrap_or("compression");
        format!(
            "ends within the {name} data, behind frame {}; likely cause: its writer was killed, the disk was full, or \
             the copy is not complete",
            self.position.frames
        )
    }

    fn bad_compression(&self, error: &io::Error) -> String {
        let name = self.facts.compression.unwrap_or("compression");
        format!(
            "is damaged behind frame {}: the {name} data cannot be unpacked: {error}",
            self.position.frames
        )
    }
}

/// What a file is that is no Frame Streams file, by its first bytes.
fn named(head: &[u8]) -> Option<String> {
    let packed = |name: &str, program: &str| {
        format!(
            "is compressed with {name}, which tapster does not read: `{program} -dc FILE | tapster inspect -`"
        )
    };
    let other = |what: &str| format!("is {what}, and no Frame Streams file");
    let name = match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => packed("xz", "xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => packed("bzip2", "bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => packed("lz4", "lz4"),
        [b'P', b'K', 3, 4, ..] => other("a zip archive"),
        [0xa1, 0xb2, 0xc3, 0xd4 | 0xcd, ..] | [0xd4 | 0x4d, 0xc3 | 0x3c, 0xb2, 0xa1, ..] => {
            other("a packet capture (pcap)")
        }
        [0x0a, 0x0d, 0x0d, 0x0a, ..] => other("a packet capture (pcapng)"),
        [0xff, 0xfe, ..] => {
            "begins with FF FE: a program (PowerShell, maybe) wrote it as UTF-16 text; write it in binary mode".to_owned()
        }
        [b't', b'a', b'p', b's', b'p', b'o', b'o', b'l', ..] => {
            "is a segment of a spool: give its folder to `tapster spool` or `tapster replay`".to_owned()
        }
        _ if head.len() >= TEXT_MIN && head.iter().all(is_of_text) => other("text"),
        _ => return None,
    };
    Some(name)
}

fn is_of_text(byte: &u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')
}

/// The length of the control frame at the front, with its head.
fn first_control_len(head: &[u8]) -> Option<u64> {
    let word = head.get(4..8)?.first_chunk()?;
    Some(8 + u64::from(u32::from_be_bytes(*word)))
}

/// Whether each LF has a CR before it.
fn has_carriage_returns(head: &[u8], rest: &[u8]) -> bool {
    let (mut all, mut with) = (0, 0);
    for bytes in [head, rest] {
        all += bytes.iter().filter(|byte| **byte == b'\n').count();
        with += bytes.windows(2).filter(|pair| *pair == b"\r\n").count();
    }
    // A piece may begin with an LF whose CR is in the piece before it.
    all > 0 && with > 0 && all - with <= usize::from(rest.first() == Some(&b'\n'))
}

/// Whether the bytes are UTF-8 with more than ASCII in it, which frames with times and addresses never are.
fn is_text_of_other_bytes(head: &[u8], rest: &[u8]) -> bool {
    let is_utf8 = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    // A piece may begin within a character.
    let begin = rest.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    let rest = &rest[begin..];
    is_utf8(head)
        && is_utf8(rest)
        && [head, rest].concat().iter().filter(|byte| !byte.is_ascii()).count() >= 2
}

/// Says so of a file that was written to not long ago.
fn still_written(modified: SystemTime, now: SystemTime) -> Option<String> {
    let age = now.duration_since(modified).unwrap_or_default();
    let seconds = age.as_secs();
    (age < STILL_WRITTEN).then(|| {
        format!("it was written to {seconds} s ago: a program may still be writing it, then look again later")
    })
}

/// Disks and page caches work with blocks of this length, in bytes.
const BLOCK_LEN: u64 = 4096;
/// Fewer zeros may be a part of anything.
const ZEROS_MIN: usize = 8;
/// Fewer characters may be a part of anything.
const TEXT_MIN: usize = 8;
/// Writers flush their buffers at least once a minute.
const STILL_WRITTEN: Duration = Duration::from_secs(60);
/// Longer lengths at the front of a file are no lengths, bytes.
const FRAME_LEN_LIKELY: u32 = 1 << 20;
