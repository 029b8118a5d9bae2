//! The token that opens the admin addresses on TCP.

use std::fmt;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// A secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Reads the token from a file: one line of printable ASCII without spaces.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the file: it cannot be read, users other than its owner and group may read it, or
    /// it holds no token.
    pub fn read(path: &Path) -> Result<Self, String> {
        let unreadable = |error| format!("{} cannot be read: {error}", path.display());
        // A FIFO that nobody writes must not hang the start.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(format!("{} is not a file", path.display()));
        }
        if metadata.mode() & OTHERS != 0 {
            let path = path.display();
            return Err(format!(
                "every user of this host can use {path}: `chmod 600 {path}`, or 640 for a group"
            ));
        }
        let mut text = String::new();
        file.take(LEN_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        let token = text.trim();
        if token.is_empty()
            || text.len() as u64 > LEN_MAX
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(format!(
                "{} must hold one word of printable ASCII, at most {LEN_MAX} bytes: `openssl rand -hex 32` makes one",
                path.display()
            ));
        }
        Ok(Self(token.to_owned()))
    }

    /// Whether these bytes are the token. Takes the same time wherever they differ; only the length of what was presented shows.
    pub fn is(&self, presented: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let mut differs = u8::from(own.len() != presented.len());
        for (index, byte) in presented.iter().enumerate() {
            differs |= black_box(byte ^ own[index % own.len()]);
        }
        black_box(differs) == 0
    }

    /// The token, for a header of a request.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whoever is neither the owner nor in the group.
const OTHERS: u32 = 0o007;
/// Longest file, bytes.
const LEN_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Token, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        Token::read(file.path())
    }

    #[test]
    fn a_token_is_one_word_that_no_stranger_can_read() {
        for mode in [0o600, 0o640, 0o400] {
            let token = read("secret-1\n", mode).unwrap();
            assert!(token.is(b"secret-1"));
            for other in [&b""[..], b"s", b"secret-2", b"Secret-1", b"secret-1secret-1", b"secret-1\n"] {
                assert!(!token.is(other), "{other:?}");
            }
            assert!(!format!("{token:?}").contains("secret"));
        }
        for mode in [0o644, 0o604, 0o602, 0o777] {
            assert!(read("secret-1\n", mode).unwrap_err().contains("chmod 600"), "{mode:o}");
        }
        for text in ["", "\n", "two words", "ümlaut", &"x".repeat(5000)] {
            assert!(read(text, 0o600).unwrap_err().contains("one word"), "{text}");
        }
        assert!(Token::read(Path::new("/")).unwrap_err().contains("not a file"));
        assert!(Token::read(Path::new("/nonexistent")).unwrap_err().contains("cannot be read"));
    }
}
