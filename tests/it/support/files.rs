//! Frame Streams files, read by hand.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use super::wire;

/// A file as far as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FstrmFile {
    /// The control frame at its beginning, whole.
    pub(crate) start: Vec<u8>,
    /// Whole data frames, length words included.
    pub(crate) encoded: Vec<u8>,
    /// Whether STOP is there, and nothing after it.
    pub(crate) clean: bool,
}

impl FstrmFile {
    /// Reads a file that begins with START; `None` while not even that is whole.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let len = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
        let start = bytes.get(..8 + len)?.to_vec();
        assert_eq!(start[..4], [0; 4], "a file begins with a control frame");
        let mut at = start.len();
        while let Some(word) = bytes[at..].first_chunk() {
            let len = u32::from_be_bytes(*word) as usize;
            if len == 0 || bytes.len() - at < 4 + len {
                break;
            }
            at += 4 + len;
        }
        let rest = &bytes[at..];
        Some(Self { encoded: bytes[start.len()..at].to_vec(), clean: rest == wire::stop(), start })
    }

    pub(crate) fn payloads(&self) -> Vec<&[u8]> {
        wire::payloads(&self.encoded)
    }
}

/// A whole file of this type with these encoded frames.
pub(crate) fn fstrm_file(content_type: &[u8], encoded: &[u8]) -> Vec<u8> {
    [&wire::start(&[content_type]), encoded, &wire::stop()].concat()
}

/// The files of a folder whose names end so, in order of name.
pub(crate) fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    paths.sort();
    paths
}
