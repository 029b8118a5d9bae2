//! Users and groups of this host, by name or by number.

use std::fmt;
use std::fs;

/// A user or a group: as it was written, and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalId {
    written: String,
    id: u32,
}

impl LocalId {
    /// The user of this name or number; `None` where `/etc/passwd` does not have the name.
    pub fn user(written: &str) -> Option<Self> {
        Self::find(written, "/etc/passwd")
    }

    /// The group of this name or number; `None` where `/etc/group` does not have the name.
    pub fn group(written: &str) -> Option<Self> {
        Self::find(written, "/etc/group")
    }

    /// The number.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn find(written: &str, file: &str) -> Option<Self> {
        let id = if written.bytes().all(|byte| byte.is_ascii_digit()) {
            written.parse().ok().filter(|id| *id != NOBODY_AT_ALL)?
        } else {
            let text = fs::read(file).unwrap_or_default();
            entries(&String::from_utf8_lossy(&text)).find(|(name, _)| *name == written)?.1
        };
        Some(Self { written: written.to_owned(), id })
    }
}

impl fmt::Display for LocalId {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Names and numbers, in the order of a file like `/etc/passwd` or `/etc/group`. Lines that are none are passed over.
pub(super) fn entries(text: &str) -> impl DoubleEndedIterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        Some((name, id.parse().ok()?))
    })
}

/// To chown(2) it means "leave it as it is".
const NOBODY_AT_ALL: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_what_is_neither_is_not() {
        let root = LocalId::user("root").unwrap();
        assert_eq!((root.id(), root.to_string()), (0, "root".to_owned()));
        assert_eq!(LocalId::group("root").unwrap().id(), 0);
        assert_eq!(LocalId::user("4000000000").unwrap().id(), 4_000_000_000);
        for written in ["", "no such user", "-1", "4294967295", "4294967296", "root:x"] {
            assert_eq!(LocalId::user(written), None, "{written}");
            assert_eq!(LocalId::group(written), None, "{written}");
        }
    }
}
