//! The keys that say where frames wait: `when_full`, `buffer`, `queue`, `connections`, and the table `spool`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::value;
use crate::config::words::BufferWord;
use crate::config::words::PER_WORKER;
use crate::config::words::SYNC_WORDS;
use crate::config::words::when_full_words;
use crate::output::Buffer;
use crate::output::Lanes;
use crate::spool::SpoolConfig;
use crate::spool::SpoolSettings;
use crate::spool::SyncPolicy;

/// Where the frames of an output wait.
pub(super) fn take_buffer(section: &mut Section<'_>) -> Buffer {
    let when_full = section.take("when_full", value::choice(&when_full_words()));
    let medium = section.take("buffer", value::word).unwrap_or_default();
    let spool = take_spool(section, when_full == Some(None), medium);
    let queue = section.take("queue", value::size(QUEUE_MIN..=QUEUE_MAX));
    let memory =
        queue.map_or(Buffer::default().memory(), |queue| usize::try_from(queue).unwrap_or(usize::MAX));
    let lanes = section.take("connections", connections).unwrap_or_default();
    if spool.is_some() && lanes == Lanes::PerWorker {
        let message = "a spool has one writer, and its frames one connection: leave this key out";
        section.fault("connections", message.to_owned());
    }
    match (spool, medium) {
        (Some(spool), BufferWord::Memory) => Buffer::Spill { memory, spool },
        (Some(spool), BufferWord::Disk) => Buffer::Disk { memory, spool },
        (None, _) => {
            Buffer::Memory { max: memory, when_full: when_full.flatten().unwrap_or_default(), lanes }
        }
    }
}

/// The table `spool`, which one of the other keys must ask for.
fn take_spool(section: &mut Section<'_>, spills: bool, medium: BufferWord) -> Option<SpoolSettings> {
    let on_disk = medium == BufferWord::Disk;
    if on_disk && section.has("when_full") && !spills {
        let message =
            "with buffer = \"disk\" it is `on_full` of the spool that says what happens: leave this key out";
        section.fault("when_full", message.to_owned());
    }
    let wanted = match (on_disk, spills) {
        (true, _) => Some("buffer"),
        (false, true) => Some("when_full"),
        (false, false) => None,
    };
    match (wanted, section.has("spool")) {
        (Some(key), false) => {
            let message = format!("needs a folder: write spool = {EXAMPLE}");
            section.fault(key, message);
            section.table("spool", EXAMPLE);
            None
        }
        (None, true) => {
            let message = "is for outputs with when_full = \"spill\" or buffer = \"disk\": add one of them";
            section.fault("spool", message.to_owned());
            section.table("spool", EXAMPLE);
            None
        }
        _ => take_table(section),
    }
}

fn take_table(section: &mut Section<'_>) -> Option<SpoolSettings> {
    let mut keys = section.table("spool", EXAMPLE)?;
    let mut config = SpoolConfig::default();
    if !keys.has("dir") {
        keys.fault("dir", format!("is missing: write spool = {EXAMPLE}"));
    }
    let folder = keys.take("dir", value::text);
    keys.set("max", value::size(MAX_MIN..=SIZE_MAX), &mut config.max);
    keys.set("max_age", value::duration(Duration::from_secs(1)..=TEN_YEARS), &mut config.max_age);
    keys.set("min_free", value::size(0..=SIZE_MAX), &mut config.min_free);
    keys.set("sync", sync, &mut config.sync);
    keys.set("on_full", value::word, &mut config.on_full);
    keys.finish();
    Some(SpoolSettings { folder: PathBuf::from(folder?), config })
}

/// `1` or a word.
fn connections(written: &Value) -> Result<Lanes, String> {
    match written {
        Value::Integer(1) => Ok(Lanes::One),
        Value::Text(text) if text == "1" => Ok(Lanes::One),
        Value::Text(text) if text == PER_WORKER => Ok(Lanes::PerWorker),
        _ => Err(format!("must be 1 or \"{PER_WORKER}\"")),
    }
}

/// A word or a time.
fn sync(written: &Value) -> Result<SyncPolicy, String> {
    let is_time =
        matches!(written, Value::Text(text) if text.starts_with(|first: char| first.is_ascii_digit()));
    if is_time {
        return value::duration(SYNC_MIN..=SYNC_MAX)(written).map(SyncPolicy::Interval);
    }
    value::choice(SYNC_WORDS)(written).map_err(|error| format!("{error}; or a time as in \"100ms\""))
}

const EXAMPLE: &str = "{ dir = \"/var/lib/tapster/NAME\", max = \"10GiB\" }";

/// No spool is smaller: four segments of the smallest size.
const MAX_MIN: u64 = 256 << 10;
const SIZE_MAX: u64 = 1 << 60;
pub(super) const QUEUE_MIN: u64 = 1 << 10;
pub(super) const QUEUE_MAX: u64 = 1 << 40;
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Disks take about as long for one.
const SYNC_MIN: Duration = Duration::from_millis(1);
const SYNC_MAX: Duration = Duration::from_secs(3600);
