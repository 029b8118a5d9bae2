//! The keys of an `[[output]]` that are for files.

use std::time::Duration;

use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::value;
use crate::config::words::ModeWord;
use crate::config::words::Words;
use crate::output::FileConfig;
use crate::output::Keep;
use crate::output::Rotate;

/// What was written for files.
pub(super) struct FileKeys {
    pub(super) mode: u32,
    pub(super) rotate: Rotate,
    pub(super) keep: Option<Keep>,
}

impl FileKeys {
    /// Takes the keys. `mode` is a key of sockets too, with other words: it is taken only where the output writes files.
    pub(super) fn take(section: &mut Section<'_>, into_file: bool) -> Self {
        let mode = if into_file { section.take("mode", file_mode) } else { None };
        let rotate = take_rotate(section);
        let keep = section.take("keep", keep);
        Self { mode: mode.unwrap_or(FileConfig::MODE), rotate, keep }
    }
}

/// The permission bits of files. A file has one direction, as the word for it says: it stands for the default.
fn file_mode(value: &Value) -> Result<u32, String> {
    match value {
        Value::Text(text) if text == ModeWord::Unidirectional.word() => Ok(FileConfig::MODE),
        Value::Text(text) if text == ModeWord::Bidirectional.word() => {
            Err("nobody answers in a file: here `mode` are its permission bits, as in \"0640\"".to_owned())
        }
        value => value::permission_bits(value),
    }
}

/// A number of files, or an age.
fn keep(value: &Value) -> Result<Keep, String> {
    let is_number = match value {
        Value::Text(text) => text.bytes().all(|byte| byte.is_ascii_digit()),
        value => matches!(value, Value::Integer(_)),
    };
    if is_number {
        return value::integer(1..=KEEP_MAX)(value).map(Keep::Files);
    }
    value::duration(KEEP_AGE_MIN..=100 * YEAR)(value)
        .map(Keep::Age)
        .map_err(|error| format!("{error}; write a number of files, as in 30, or an age, as in \"7d\""))
}

fn take_rotate(section: &mut Section<'_>) -> Rotate {
    let example = "{ size = \"1GiB\", every = \"1h\" }";
    let Some(mut keys) = section.table("rotate", example) else { return Rotate::default() };
    let size = keys.take("size", value::size(ROTATE_SIZE_MIN..=ROTATE_SIZE_MAX));
    let every = keys.take("every", value::duration(Duration::from_secs(1)..=YEAR));
    let partial_suffix = keys.take("partial_suffix", value::text);
    keys.finish();
    Rotate { size, every, partial_suffix }
}

const KEEP_MAX: usize = 1_000_000;
/// A file is looked at once a minute, at the latest.
const KEEP_AGE_MIN: Duration = Duration::from_secs(60);
const ROTATE_SIZE_MIN: u64 = 4 << 10;
const ROTATE_SIZE_MAX: u64 = 1 << 50;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
