//! Text from outside, made fit to be read by people.
//!
//! A name, a key or an argument may hold anything: escape sequences that repaint a terminal, line breaks that fake a line
//! of ours, marks that turn the direction of writing. Whatever comes from outside and goes to people goes through here.
//! JSON has escapes of its own, and [`printable_json`] adds those that it lacks.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::fmt::Write;

use serde::Serialize;

/// Shows `text` on one line: what does not print is written as `\n`, `\u{1b}` or, where it is not UTF-8, `\xff`.
///
/// Backslashes and quotes stay as they are, so that what was shown may be shown again.
pub fn printable<T: AsRef<OsStr> + ?Sized>(text: &T) -> Printable<'_> {
    Printable { text: Cow::Borrowed(text.as_ref()), lines: false }
}

/// Shows what `message` says; line breaks stay, for messages that have several lines of their own.
pub fn printable_lines(message: &impl fmt::Display) -> Printable<'static> {
    Printable { text: Cow::Owned(message.to_string().into()), lines: true }
}

/// `value` as JSON on one line, in which everything prints: JSON by itself escapes line breaks and the like, and leaves
/// other marks of Unicode as they are, of which terminals obey some.
///
/// # Errors
/// Those of `serde_json`; plain data has none.
pub fn printable_json(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    if json.is_ascii() && !json.contains('\x7f') {
        return Ok(json);
    }
    let mut printable = String::with_capacity(json.len());
    for character in json.chars() {
        if prints(character) {
            printable.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(printable, "\\u{unit:04x}").expect("a String takes every character");
        }
    }
    Ok(printable)
}

/// Marks that sit on the letter before them print, although `escape_debug` escapes a lone one.
fn prints(character: char) -> bool {
    matches!(character, ' '..='~' | '\u{300}'..='\u{36f}') || character.escape_debug().len() == 1
}

/// See [`printable`].
#[derive(Clone, Debug)]
pub struct Printable<'a> {
    text: Cow<'a, OsStr>,
    lines: bool,
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.text.as_encoded_bytes().utf8_chunks() {
            for character in chunk.valid().chars() {
                if prints(character) || character == '\n' && self.lines {
                    f.write_char(character)?;
                } else {
                    write!(f, "{}", character.escape_debug())?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn what_prints_stays_and_what_does_not_is_escaped() {
        for (text, shown) in [
            ("/var/log/a b'\"\\.fstrm", "/var/log/a b'\"\\.fstrm"),
            ("Grüße, e\u{301}, 漢字", "Grüße, e\u{301}, 漢字"),
            ("\x1b[2J\x07\r\n\t\x7f", "\\u{1b}[2J\\u{7}\\r\\n\\t\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}txt.\u{2066}\u{200b}", "\\u{202e}txt.\\u{2066}\\u{200b}"),
        ] {
            assert_eq!(printable(text).to_string(), shown);
            assert_eq!(printable(&printable(text).to_string()).to_string(), shown, "again");
        }
        assert_eq!(printable(OsStr::from_bytes(b"a\xff\x1bb")).to_string(), "a\\xff\\u{1b}b");
        let text = "a\x1b\"\u{9b}\u{202e}\u{e0001}ü漢";
        let json = printable_json(&text).unwrap();
        assert_eq!(json, "\"a\\u001b\\\"\\u009b\\u202e\\udb40\\udc01ü漢\"");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        assert_eq!(printable_lines(&"a\n\x1b\nb").to_string(), "a\n\\u{1b}\nb");
    }
}
